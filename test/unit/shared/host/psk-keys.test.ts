import { chmodSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { TLS_FILES_LOOK_EVERY_MS } from "../../../../proto/limits.ts";
import { openPskKeys, type PskKeys } from "../../../../shared/host/psk-keys.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { scratchDirectory } from "../../../support/scratch.ts";
import { SilentLog } from "../../../support/silent-log.ts";

const KEY = "0123456789abcdef0123456789ABCDEF";

function written(content: string): string {
  const path = join(scratchDirectory(), "keys.psk");
  writeFileSync(path, content, { mode: 0o600 });
  return path;
}

function open(path: string): PskKeys {
  return openPskKeys(path, new ManualClock(), new SilentLog());
}

describe("a file of pre-shared keys", () => {
  it("has a user and a key in each line", () => {
    const { content } = open(written(`backup:${KEY}\r\n\nbürgi@db1:${KEY.repeat(4)}\n`));
    expect([...content]).toEqual([
      ["backup", Buffer.from(KEY, "hex")],
      ["bürgi@db1", Buffer.from(KEY.repeat(4), "hex")],
    ]);
  });

  it.each([
    ["no keys", "\n", "has no keys"],
    ["something else in a line", `a:${KEY}\nb ${KEY}\n`, "line 2 of"],
    ["a key that is not hexadecimal", `a:${KEY}zz\n`, "line 1 of"],
    ["half a byte", `a:${KEY}0\n`, "is not USER:KEY"],
    ["no user", `:${KEY}\n`, "is not USER:KEY"],
    ["a user in hexadecimal", `#6162:${KEY}\n`, "is not USER:KEY"],
    ["a short key", "a:0123456789abcdef\n", "has a key of 8 bytes; it must have 16 to 64"],
    ["a long key", `a:${KEY.repeat(5)}\n`, "has a key of 80 bytes"],
    ["a long user", `${"a".repeat(129)}:${KEY}\n`, "names a user with more than 128 bytes"],
    ["a user twice", `a:${KEY}\nb:${KEY}\na:${KEY}\n`, "names the user a again"],
  ])("is refused with %s, and no key is told", (_, content, message) => {
    const opened = (): PskKeys => open(written(content));
    expect(opened).toThrow(message);
    expect(opened).not.toThrow(KEY);
    expect(opened).toThrow(expect.objectContaining({ code: "usage" }));
  });

  it("is refused where it is not there, or open to others", () => {
    expect(() => open(join(scratchDirectory(), "nothing"))).toThrow("the key file cannot be read: ENOENT");
    const path = written(`a:${KEY}\n`);
    chmodSync(path, 0o604);
    expect(() => open(path)).toThrow(expect.objectContaining({ action: `Run \`chmod 600 ${path}\`.` }));
  });

  it("is read again when it changes; what cannot be used changes nothing, and is told once", () => {
    const path = written(`a:${KEY}\n`);
    const clock = new ManualClock();
    const log = new SilentLog();
    const keys = openPskKeys(path, clock, log);
    keys.watch();
    writeFileSync(path, `a:${KEY}\nb:${KEY}\n`);
    clock.advance(TLS_FILES_LOOK_EVERY_MS);
    expect([...keys.content.keys()]).toEqual(["a", "b"]);
    const spoiled = [
      () => writeFileSync(path, "half a li"),
      () => rmSync(path),
      () => symlinkSync(path, path), // what cannot even be looked at
    ];
    for (const spoil of spoiled) {
      spoil();
      clock.advance(TLS_FILES_LOOK_EVERY_MS);
      clock.advance(TLS_FILES_LOOK_EVERY_MS);
      expect([...keys.content.keys()]).toEqual(["a", "b"]);
    }
    expect(log.lines.map(({ message }) => message)).toEqual([
      "TLS files were read again",
      ...spoiled.map(() => "the changed TLS files cannot be used: the old ones stay in force"),
    ]);
    keys.stop();
  });
});
