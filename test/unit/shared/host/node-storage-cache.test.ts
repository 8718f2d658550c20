import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { NodeStorage } from "../../../../shared/host/node-storage.ts";
import type { StorageFile } from "../../../../shared/host/storage.ts";
import { requirePeers } from "../../../support/peers.ts";
import { isInMemory, scratchDirectory } from "../../../support/scratch.ts";

const LENGTH = 256 * 1024;
const storage = new NodeStorage();

async function openUncached(): Promise<StorageFile> {
  const file = storage.open(join(scratchDirectory(), "file"), { kind: "image", create: "new" });
  onTestFinished(() => {
    file.close();
  });
  file.write(Buffer.alloc(LENGTH, 7), 0);
  await file.sync();
  // dd with `nocache` and nothing to copy asks the kernel to forget the file's clean pages. Pages that another
  // processor has just put into its lists stay for a moment.
  await vi.waitFor(
    () => {
      const dropped = spawnSync("dd", [`if=${file.path}`, "iflag=nocache", "count=0"], { stdio: "ignore" });
      expect(dropped.status).toBe(0);
      expect(cachedBytes(file)).toBe(0);
    },
    { timeout: 8_000 },
  );
  return file;
}

/** Asked without a read: even one that does not wait makes the kernel read ahead. */
function cachedBytes(file: StorageFile): number {
  const counted = spawnSync("fincore", ["--bytes", "--noheadings", "--output", "RES", file.path], { encoding: "utf8" });
  expect(counted.status).toBe(0);
  return Number(counted.stdout);
}

// A file system in memory has nothing that could be cold.
describe.runIf(!isInMemory() && requirePeers("fincore"))("content that is not in the page cache", () => {
  it("is not waited for by tryRead, and is there for it after a read", async () => {
    const target = Buffer.alloc(4096);
    // The attempt makes the kernel read ahead: where this process is held up in the midst of it, the content is there.
    const file = await vi.waitFor(
      async () => {
        const cold = await openUncached();
        expect(cold.tryRead(target, 8192)).toBe(false);
        return cold;
      },
      { timeout: 20_000 },
    );
    await file.read(target, 8192);
    expect(target.equals(Buffer.alloc(4096, 7))).toBe(true);
    target.fill(0);
    expect(file.tryRead(target, 8192)).toBe(true);
    expect(target.equals(Buffer.alloc(4096, 7))).toBe(true);
  });

  it("is fetched by prefetch", async () => {
    const file = await openUncached();
    const target = Buffer.alloc(4096);
    file.prefetch(128 * 1024, 4096);
    await vi.waitFor(() => expect(cachedBytes(file)).toBeGreaterThan(0));
    await vi.waitFor(() => expect(file.tryRead(target, 128 * 1024)).toBe(true));
    expect(target.equals(Buffer.alloc(4096, 7))).toBe(true);
  });

  // What the kernel reads ahead makes later small writes dear on ext4.
  it("is read without what lies behind it", async () => {
    const file = await openUncached();
    const target = Buffer.alloc(LENGTH / 4);
    await file.read(target, 0);
    await file.read(target, target.length);
    expect(cachedBytes(file)).toBe(2 * target.length);
  });
});
