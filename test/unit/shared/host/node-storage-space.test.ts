import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { NodeStorage } from "../../../../shared/host/node-storage.ts";
import type { StorageFile } from "../../../../shared/host/storage.ts";
import { canMount, scratchFileSystem } from "../../../support/scratch.ts";

const MIB = 1024 * 1024;
const storage = new NodeStorage();

function openIn(directory: string, name: string): StorageFile {
  const file = storage.open(join(directory, name), { kind: "other", create: "new" });
  onTestFinished(() => {
    file.close();
  });
  return file;
}

describe.runIf(canMount())("a full file system", () => {
  it("fails the write with what was tried, and keeps what was there", () => {
    const small = scratchFileSystem(MIB);
    const file = openIn(small, "file");
    file.write(Buffer.alloc(512 * 1024, 1), 0);
    expect(() => file.write(Buffer.alloc(MIB, 2), 512 * 1024)).toThrow(
      expect.objectContaining({
        code: "out-of-space",
        message: `cannot write ${MIB} bytes at 524288 of ${file.path}: no space left on device (ENOSPC)`,
        action: expect.stringContaining("Free space"),
      }),
    );
    expect(storage.freeBytes(small)).toBe(0);
    const kept = Buffer.alloc(512 * 1024);
    file.readNow(kept, 0);
    expect(kept.equals(Buffer.alloc(512 * 1024, 1))).toBe(true);
  });

  it("takes writes again when space was freed, by zero and by removal", () => {
    const small = scratchFileSystem(MIB);
    const file = openIn(small, "file");
    file.truncate(2 * MIB);
    file.write(Buffer.alloc(MIB, 1), 0);
    expect(() => file.write(Buffer.alloc(1, 1), MIB)).toThrow(expect.objectContaining({ code: "out-of-space" }));
    void file.zero(0, 64 * 1024);
    expect(storage.freeBytes(small)).toBe(64 * 1024);
    file.write(Buffer.alloc(64 * 1024, 1), MIB);

    const path = join(small, "file");
    void file.zero(0, 2 * MIB);
    const other = storage.open(join(small, "other"), { kind: "other", create: "new" });
    other.write(Buffer.alloc(MIB, 1), 0);
    other.close();
    expect(() => file.write(Buffer.alloc(1), 0)).toThrow(expect.objectContaining({ code: "out-of-space" }));
    storage.remove(join(small, "other"));
    file.write(Buffer.alloc(1), 0);
    expect(storage.exists(path)).toBe(true);
  });

  it("fails allocation and allocated zeroes", async () => {
    const file = openIn(scratchFileSystem(MIB), "file");
    expect(() => file.allocate(0, 2 * MIB)).toThrow(expect.objectContaining({ code: "out-of-space" }));
    file.truncate(2 * MIB);
    await expect(file.zeroAllocated(0, 2 * MIB)).rejects.toThrow(expect.objectContaining({ code: "out-of-space" }));
  });

  it("never fails a write into what was allocated", () => {
    const small = scratchFileSystem(MIB);
    const file = openIn(small, "file");
    file.allocate(0, 256 * 1024);
    const hog = openIn(small, "hog");
    expect(() => hog.write(Buffer.alloc(MIB), 0)).toThrow(expect.objectContaining({ code: "out-of-space" }));
    file.write(Buffer.alloc(256 * 1024, 3), 0);
  });
});

describe.runIf(canMount())("a file in memory", () => {
  it("is always read at once, written or not, and knows its holes", async () => {
    const file = openIn(scratchFileSystem(4 * MIB), "file");
    file.truncate(2 * MIB);
    file.write(Buffer.alloc(4096, 5), MIB);
    const target = Buffer.alloc(8192, 0xee);
    expect(file.tryRead(target, MIB - 4096)).toBe(true);
    expect(target.equals(Buffer.alloc(8192).fill(5, 4096))).toBe(true);
    expect(file.nextData(0)).toBe(MIB);
    expect(file.nextHole(MIB)).toBe(MIB + 4096);
    void file.zeroAllocated(MIB, 8192);
    expect(file.tryRead(target, MIB)).toBe(true);
    expect(target.equals(Buffer.alloc(8192))).toBe(true);
    expect(file.sizeBytes()).toBe(2 * MIB);
    await file.sync();
  });
});
