import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { NodeStorage } from "../../../../shared/host/node-storage.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const storage = new NodeStorage();
const options = { kind: "image", create: "never", lock: true } as const;

function scratchImage(): string {
  const path = join(scratchDirectory(), "vda.img");
  writeFileSync(path, Buffer.alloc(4096));
  return path;
}

/** A second process that holds the lock until its standard input ends. */
async function lockElsewhere(path: string): Promise<{ release(): Promise<void> }> {
  const child = spawn("flock", ["--exclusive", path, "sh", "-c", "echo held; read line; true"], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  onTestFinished(() => void child.stdin.end());
  const exited = once(child, "exit");
  await once(child.stdout, "data");
  return {
    async release() {
      child.stdin.end();
      await exited;
    },
  };
}

describe("a locked file", () => {
  it("cannot be locked while another process has it, and can when that has ended", async () => {
    const path = scratchImage();
    const other = await lockElsewhere(path);
    expect(() => storage.open(path, options)).toThrow(
      expect.objectContaining({
        code: "image-busy",
        message: expect.stringContaining(path),
        action: expect.stringContaining("Stop the other agent or process that uses"),
      }),
    );
    // Whoever does not ask for the lock is not refused.
    storage.open(path, { kind: "image", create: "never" }).close();
    await other.release();
    storage.open(path, options).close();
  });

  it("cannot be locked twice in one process either", () => {
    const path = scratchImage();
    const first = storage.open(path, options);
    expect(() => storage.open(path, options)).toThrow(expect.objectContaining({ code: "image-busy" }));
    expect(() => storage.open(path, { ...options, readOnly: true })).toThrow(
      expect.objectContaining({ code: "image-busy" }),
    );
    first.close();
    storage.open(path, options).close();
  });

  it("is free at once after the close, though reads are still under way", async () => {
    const path = scratchImage();
    const first = storage.open(path, options);
    const reads = Array.from({ length: 16 }, () => first.read(Buffer.alloc(4096), 0));
    first.close();
    const second = storage.open(path, options);
    await Promise.all(reads);
    expect(() => storage.open(path, options)).toThrow(expect.objectContaining({ code: "image-busy" }));
    second.close();
  });
});
