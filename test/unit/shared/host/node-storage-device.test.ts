import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { openImage } from "../../../../shared/block/image.ts";
import { NodeStorage } from "../../../../shared/host/node-storage.ts";
import type { StorageFile } from "../../../../shared/host/storage.ts";
import { canMakeBlockDevices, scratchBlockDevice, scratchOldFileSystem } from "../../../support/scratch.ts";

const MIB = 1024 * 1024;
const storage = new NodeStorage();

function openDevice(): StorageFile {
  const file = storage.open(scratchBlockDevice(4 * MIB), { kind: "image", create: "never", lock: true });
  onTestFinished(() => {
    file.close();
  });
  return file;
}

describe.runIf(canMakeBlockDevices())("a block device", () => {
  it("has the device's size, all of it allocated, and no holes", () => {
    const file = openDevice();
    expect(file.sizeBytes()).toBe(4 * MIB);
    expect(file.allocatedBytes()).toBe(4 * MIB);
    expect(file.nextData(4096)).toBe(4096);
    expect(file.nextHole(4096)).toBe(4 * MIB);
    expect(file.nextData(4 * MIB)).toBeUndefined();
  });

  it("reads back what was written, after a sync too", async () => {
    const file = openDevice();
    file.write(Buffer.alloc(10_000, 7), 1111);
    await file.sync();
    const target = Buffer.alloc(10_000);
    await file.read(target, 1111);
    expect(target.equals(Buffer.alloc(10_000, 7))).toBe(true);
  });

  it.each(["zero", "zeroAllocated"] as const)("zeroes any range with %s, aligned or not", async (operation) => {
    const file = openDevice();
    file.write(Buffer.alloc(4 * MIB, 7), 0);
    const content = Buffer.alloc(4 * MIB, 7);
    for (const [offset, length] of [
      [0, MIB],
      [MIB + 512, 100_000],
      [2 * MIB + 1, 10],
      [4 * MIB - 512, 512],
    ] as const) {
      await file[operation](offset, length);
      content.fill(0, offset, offset + length);
    }
    const target = Buffer.alloc(4 * MIB);
    file.readNow(target, 0);
    expect(target.equals(content)).toBe(true);
  });

  it("needs no allocation within its size, and has none to give behind it", () => {
    const file = openDevice();
    file.allocate(0, 4 * MIB);
    expect(() => file.allocate(MIB, 4 * MIB)).toThrow(expect.objectContaining({ code: "out-of-space" }));
    expect(() => file.write(Buffer.alloc(4096), 4 * MIB)).toThrow(expect.objectContaining({ code: "out-of-space" }));
  });

  it("is locked by an image over it", () => {
    const path = scratchBlockDevice(MIB);
    const image = openImage(storage, path);
    expect(image.sizeBytes).toBe(MIB);
    expect(() => openImage(storage, path)).toThrow(expect.objectContaining({ code: "image-busy" }));
    expect(image.extents(0, MIB, 10)).toEqual([{ length: MIB, hole: false, zero: false }]);
    image.close();
  });
});

describe.runIf(canMakeBlockDevices())("a file system without fallocate", () => {
  function openOld(): StorageFile {
    const file = storage.open(join(scratchOldFileSystem(8 * MIB), "file"), { kind: "other", create: "new" });
    onTestFinished(() => {
      file.close();
    });
    return file;
  }

  it("allocates all the same, and changes no content", () => {
    const file = openOld();
    file.write(Buffer.from("kept"), 300_000);
    file.allocate(1000, MIB);
    expect(file.sizeBytes()).toBe(1000 + MIB);
    expect(file.allocatedBytes()).toBeGreaterThanOrEqual(MIB);
    const target = Buffer.alloc(1000 + MIB);
    file.readNow(target, 0);
    const content = Buffer.alloc(1000 + MIB);
    content.write("kept", 300_000);
    expect(target.equals(content)).toBe(true);
    expect(() => file.allocate(0, 16 * MIB)).toThrow(expect.objectContaining({ code: "out-of-space" }));
  });

  it("zeroes, with and without the space kept, and keeps the size", async () => {
    const file = openOld();
    file.write(Buffer.alloc(MIB + 1000, 7), 0);
    await file.zeroAllocated(100, 300_000);
    expect(file.allocatedBytes()).toBeGreaterThanOrEqual(MIB);
    await file.zero(600_000, 2 * MIB);
    expect(file.sizeBytes()).toBe(MIB + 1000);
    const target = Buffer.alloc(MIB + 1000);
    file.readNow(target, 0);
    expect(
      target.equals(
        Buffer.alloc(MIB + 1000, 7)
          .fill(0, 100, 300_100)
          .fill(0, 600_000),
      ),
    ).toBe(true);
  });

  it("does others' work while it writes zeroes", async () => {
    const file = openOld();
    file.write(Buffer.alloc(4 * MIB, 7), 0);
    let isDone = false;
    let turns = 0;
    const count = (): void => {
      if (isDone) return;
      turns += 1;
      setImmediate(count);
    };
    setImmediate(count);
    const zeroing = file.zeroAllocated(0, 3 * MIB);
    expect(zeroing).toBeInstanceOf(Promise);
    const target = Buffer.alloc(MIB);
    await file.read(target, 3 * MIB);
    expect(target.equals(Buffer.alloc(MIB, 7))).toBe(true);
    await zeroing;
    isDone = true;
    expect(turns).toBeGreaterThan(1);
    file.readNow(target, 2 * MIB);
    expect(target.equals(Buffer.alloc(MIB))).toBe(true);
  });

  it("tells who waits for zeroes that the file was closed", async () => {
    const file = storage.open(join(scratchOldFileSystem(32 * MIB), "file"), { kind: "other", create: "new" });
    file.truncate(20 * MIB);
    const zeroing = Promise.resolve(file.zeroAllocated(0, 20 * MIB));
    const later = Promise.resolve(file.zeroAllocated(0, MIB));
    const outcomes = Promise.allSettled([zeroing, later]);
    file.close();
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ status: "rejected", reason: { code: "shutting-down" } });
    }
  });
});
