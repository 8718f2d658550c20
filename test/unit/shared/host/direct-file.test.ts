import { closeSync, ftruncateSync, openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { NodeStorage } from "../../../../shared/host/node-storage.ts";
import type { OpenOptions, StorageFile } from "../../../../shared/host/storage.ts";
import { blockDeviceOver, canMakeBlockDevices, scratchDirectory } from "../../../support/scratch.ts";

const MIB = 1024 * 1024;
const storage = new NodeStorage();

function open(path: string, options: Omit<OpenOptions, "kind" | "create">): StorageFile {
  const file = storage.open(path, { kind: "image", create: "never", ...options });
  onTestFinished(() => {
    file.close();
  });
  return file;
}

async function contentOf(file: StorageFile, offset: number, length: number): Promise<Buffer> {
  const target = Buffer.alloc(length);
  if (!file.tryRead(target, offset)) await file.read(target, offset);
  return target;
}

describe("a file that another host writes", () => {
  it("is read at any offset, and to its very end", async () => {
    const path = join(scratchDirectory(), "image");
    const content = Buffer.alloc(3 * MIB + 1536);
    for (let at = 0; at < content.length; at += 4) content.writeUInt32LE(at, at);
    writeFileSync(path, content);
    const file = open(path, { direct: true, readOnly: true });
    expect(file.sizeBytes()).toBe(content.length);
    for (const [offset, length] of [
      [0, content.length],
      [1, 10],
      [4095, 4098],
      [MIB - 5, MIB + 10],
      [content.length - 3, 3],
    ] as const) {
      expect((await contentOf(file, offset, length)).equals(content.subarray(offset, offset + length))).toBe(true);
      const now = Buffer.alloc(length);
      file.readNow(now, offset);
      expect(now.equals(content.subarray(offset, offset + length))).toBe(true);
    }
    await expect(contentOf(file, content.length - 3, 4)).rejects.toMatchObject({ code: "io-error" });
  });

  it("says nothing of holes, which the writer may have filled since", () => {
    const path = join(scratchDirectory(), "image");
    closeSync(openSync(path, "w"));
    const fd = openSync(path, "r+");
    ftruncateSync(fd, MIB);
    closeSync(fd);
    const file = open(path, { direct: true, readOnly: true });
    expect(file.nextData(4096)).toBe(4096);
    expect(file.nextHole(0)).toBe(MIB);
    expect(file.nextData(MIB)).toBeUndefined();
  });

  it("is missing with its own code", () => {
    expect(() => open(join(scratchDirectory(), "nothing"), { direct: true })).toThrow(
      expect.objectContaining({ code: "image-missing" }),
    );
  });

  it("waits for reads that are under way before its descriptor goes", async () => {
    const path = join(scratchDirectory(), "image");
    writeFileSync(path, Buffer.alloc(8 * MIB, 3));
    const file = storage.open(path, { kind: "image", create: "never", direct: true });
    const reading = contentOf(file, 0, 8 * MIB);
    file.close();
    expect((await reading).equals(Buffer.alloc(8 * MIB, 3))).toBe(true);
  });
});

/** Two devices over one file, as two hosts see one LUN: each has a page cache of its own. */
function twoDevices(): [string, string] {
  const backing = join(scratchDirectory(), "backing");
  writeFileSync(backing, Buffer.alloc(MIB, 1));
  return [blockDeviceOver(backing), blockDeviceOver(backing)];
}

describe.runIf(canMakeBlockDevices())("a disk that two hosts can reach", () => {
  it("shows what the other host has flushed only to who reads past the page cache", async () => {
    const [one, other] = twoDevices();
    const writer = open(one, { lock: true });
    const cached = open(other, { readOnly: true });
    const direct = open(other, { readOnly: true, direct: true });
    expect((await contentOf(cached, 0, 8192)).equals(Buffer.alloc(8192, 1))).toBe(true);
    writer.write(Buffer.alloc(8192, 2), 0);
    await writer.sync();
    // What makes this mode refuse buffered reads: nothing tells this cache.
    expect((await contentOf(cached, 0, 8192)).equals(Buffer.alloc(8192, 1))).toBe(true);
    expect((await contentOf(direct, 0, 8192)).equals(Buffer.alloc(8192, 2))).toBe(true);
  });

  it("is seen as it is by who opens it anew for writing", async () => {
    const [one, other] = twoDevices();
    const writer = open(one, { lock: true });
    const before = storage.open(other, { kind: "image", create: "never" });
    await contentOf(before, 0, 8192);
    writer.write(Buffer.alloc(8192, 2), 0);
    await writer.sync();
    const keeper = open(other, { readOnly: true, direct: true }); // as the secondary has it, while it is promoted
    before.close();
    const after = open(other, { lock: true, fresh: true });
    expect((await contentOf(after, 0, 8192)).equals(Buffer.alloc(8192, 2))).toBe(true);
    expect(keeper.sizeBytes()).toBe(MIB);
  });
});
