import { randomBytes, randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readToken } from "../../../../shared/host/token-file.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

function read(content: string): Buffer {
  const path = join(scratchDirectory(), "token");
  writeFileSync(path, content, { mode: 0o600 });
  return readToken(path, "--token-file");
}

describe("a token", () => {
  it("is the content of its file without white space around it", () => {
    const token = randomBytes(32).toString("hex");
    expect(read(`  ${token}\n`).toString()).toBe(token);
  });

  it.each([
    ["openssl rand -hex 16", () => randomBytes(16).toString("hex")],
    ["openssl rand -hex 32", () => randomBytes(32).toString("hex")],
    ["the same in capitals", () => randomBytes(32).toString("hex").toUpperCase()],
    ["openssl rand -base64 16", () => randomBytes(16).toString("base64")],
    ["uuidgen", () => randomUUID()],
  ])("made by %s is taken", (_, make) => {
    for (let count = 0; count < 100; count += 1) expect(() => read(make())).not.toThrow();
  });

  it.each([
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "0123456789abcdef0123456789abcdef",
    "passwordpasswordpassword",
    "secret-secret-secret",
    "Hunter2Hunter2Hunter2",
    "10101010101010101010101010101010",
    "9876543210987654",
  ])("that was not made at random is refused, with a way to make one: %s", (content) => {
    expect(() => read(content)).toThrow(
      expect.objectContaining({
        code: "usage",
        message: expect.stringMatching(/is too easy to guess: it has \d+ bits of chance at most/) as string,
        action: expect.stringMatching(/openssl rand -hex 32/) as string,
      }) as Error,
    );
  });

  it("is neither short nor endless", () => {
    expect(() => read("short")).toThrow(/has 5 bytes; it must have 16 to 4096/);
    expect(() => read(randomBytes(4096).toString("hex"))).toThrow(/has 8192 bytes/);
  });
});
