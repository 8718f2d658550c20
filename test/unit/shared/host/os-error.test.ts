import { constants } from "node:os";
import { describe, expect, it } from "vitest";
import type { ErrorCode } from "../../../../proto/errors.ts";
import { errnoText, fsError, osError } from "../../../../shared/host/os-error.ts";

const E = constants.errno;

describe("osError", () => {
  const cases: [name: keyof typeof E, code: ErrorCode][] = [
    ["ENOSPC", "out-of-space"],
    ["EDQUOT", "out-of-space"],
    ["EFBIG", "out-of-space"],
    ["EACCES", "permission-denied"],
    ["EPERM", "permission-denied"],
    ["EROFS", "permission-denied"],
    ["ENOENT", "not-found"],
    ["EIO", "io-error"],
    ["EMFILE", "io-error"],
    ["EISDIR", "io-error"],
  ];
  it.each(cases)("maps %s to %s and says what to do", (name, code) => {
    const error = osError("cannot write 4096 bytes at 8192 of /x/y", "/x/y", E[name]);
    expect(error.code).toBe(code);
    expect(error.message).toContain(`(${name})`);
    expect(error.action).toMatch(/^[A-Z].*\.$/);
  });

  it("says what was tried and what the system answered", () => {
    const error = osError("cannot write 4096 bytes at 8192 of /x/y", "/x/y", E.ENOSPC);
    expect(error.message).toBe("cannot write 4096 bytes at 8192 of /x/y: no space left on device (ENOSPC)");
  });

  it("names errors that Node itself does not know", () => {
    expect(errnoText(E.EDQUOT)).toBe("disk quota exceeded (EDQUOT)");
    expect(errnoText(4000)).toBe("unknown error (4000)");
  });
});

describe("fsError", () => {
  it("takes the number from an exception of node:fs and keeps the exception as cause", () => {
    const thrown = Object.assign(new Error("x"), { errno: -E.ENOSPC, code: "ENOSPC" });
    const error = fsError("cannot write /x", "/x", thrown);
    expect(error.code).toBe("out-of-space");
    expect(error.cause).toBe(thrown);
  });

  it("throws a bug on instead of calling it a fault of the system", () => {
    const bug = new TypeError("undefined is not a function");
    expect(() => fsError("cannot write /x", "/x", bug)).toThrow(bug);
  });
});
