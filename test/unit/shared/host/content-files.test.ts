import { execFileSync } from "node:child_process";
import { chmodSync, lstatSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { describe, expect, it } from "vitest";
import { putFile, writeContent } from "../../../../shared/host/content-files.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const STATE = Buffer.from("a VM's memory");

async function* brokenOff(): AsyncGenerator<Buffer> {
  yield STATE.subarray(0, 4);
  await Promise.resolve();
  throw new Error("it broke off");
}

describe("content that is written to a file", () => {
  it("takes the place of what is there, through a link too, for its owner only", async () => {
    const directory = scratchDirectory();
    const file = join(directory, "vm.state");
    writeFileSync(file, "an earlier state");
    chmodSync(file, 0o644);
    symlinkSync(file, join(directory, "link"));
    expect(await writeContent(Readable.from([STATE]), join(directory, "link"), STATE.length)).toBe(STATE.length);
    expect(readFileSync(file)).toEqual(STATE);
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(lstatSync(join(directory, "link")).isSymbolicLink()).toBe(true);
    expect(readdirSync(directory).sort()).toEqual(["link", "vm.state"]);
  });

  it.each([true, false])("leaves what was there when it breaks off, with an error: %s", async (hasError) => {
    const directory = scratchDirectory();
    const file = join(directory, "vm.state");
    writeFileSync(file, "an earlier state");
    const content = hasError ? Readable.from(brokenOff()) : Readable.from([STATE.subarray(1)]);
    const written = writeContent(content, file, STATE.length);
    if (hasError) await expect(written).rejects.toThrow("it broke off");
    else expect(await written).toBe(STATE.length - 1);
    expect(readFileSync(file, "utf8")).toBe("an earlier state");
    expect(readdirSync(directory)).toEqual(["vm.state"]);
  });

  it.each([true, false])("goes into a pipe that is there, which stays; it breaks off: %s", async (breaksOff) => {
    const directory = scratchDirectory();
    const pipe = join(directory, "pipe");
    execFileSync("mkfifo", [pipe]);
    const reader = open(pipe, "r").then(async (handle) => {
      const bytes = await handle.readFile();
      await handle.close();
      return bytes;
    });
    if (breaksOff) {
      const written = writeContent(Readable.from(brokenOff()), pipe, STATE.length);
      await expect(written).rejects.toThrow("it broke off");
    } else {
      writeFileSync(join(directory, "from"), STATE);
      await putFile(join(directory, "from"), pipe);
      expect(await reader).toEqual(STATE);
    }
    await reader;
    expect(lstatSync(pipe).isFIFO()).toBe(true);
  });
});
