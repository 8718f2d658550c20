import { randomBytes } from "node:crypto";
import { closeSync, openSync, writeSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import {
  FALLOCATE,
  fallocate,
  preadAll,
  preadCached,
  pwriteAll,
  seekData,
  seekEnd,
  seekHole,
} from "../../../../shared/host/posix.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const { EBADF, ENXIO } = constants.errno;

function openScratch(): number {
  const fd = openSync(join(scratchDirectory(), "file"), "w+");
  onTestFinished(() => closeSync(fd));
  return fd;
}

describe("system calls", () => {
  it("write and read exactly the bytes of a view into a larger buffer", () => {
    const fd = openScratch();
    const whole = Buffer.from("....abcdefgh....");
    expect(pwriteAll(fd, whole.subarray(4, 12), 100)).toBe(0);
    expect(seekEnd(fd)).toBe(108);

    const target = Buffer.alloc(12, "-");
    expect(preadAll(fd, target.subarray(2, 10), 100)).toBe(8);
    expect(target.toString()).toBe("--abcdefgh--");

    target.fill("-");
    expect(preadCached(fd, target.subarray(3, 6), 101)).toBe(3);
    expect(target.toString()).toBe("---bcd------");
  });

  it("reach views so small that the engine keeps them inside the object", () => {
    const fd = openScratch();
    writeSync(fd, "wxyz", 0);
    for (const read of [preadAll, preadCached]) {
      const target = new Uint8Array(4);
      expect(read(fd, target, 0)).toBe(4);
      expect([...target]).toEqual([...Buffer.from("wxyz")]);
    }
  });

  it("count what a file holds before its end", () => {
    const fd = openScratch();
    writeSync(fd, "12345", 0);
    expect(preadAll(fd, Buffer.alloc(10), 2)).toBe(3);
    expect(preadAll(fd, Buffer.alloc(10), 5)).toBe(0);
    expect(preadCached(fd, Buffer.alloc(10), 2)).toBe(3);
  });

  it("are exact at offsets that no 32-bit number and no 32-bit float holds", () => {
    const fd = openScratch();
    const offset = 2 ** 41 + 2 ** 32 + 1;
    expect(pwriteAll(fd, Buffer.from("far"), offset)).toBe(0);
    expect(seekEnd(fd)).toBe(offset + 3);
    const target = Buffer.alloc(3);
    expect(preadAll(fd, target, offset)).toBe(3);
    expect(target.toString()).toBe("far");
    const data = seekData(fd, 0);
    expect(data).toBeGreaterThan(2 ** 41);
    expect(data).toBeLessThanOrEqual(offset);
    expect(seekHole(fd, offset)).toBe(offset + 3);
    expect(seekData(fd, offset + 3)).toBe(-ENXIO);
  });

  it("write what is larger than one call takes, whole and in its place", () => {
    const fd = openScratch();
    const whole = randomBytes(5 * 64 * 1024 + 1234);
    expect(pwriteAll(fd, whole.subarray(3), 777)).toBe(0);
    expect(seekEnd(fd)).toBe(777 + whole.length - 3);
    const target = Buffer.alloc(whole.length - 3);
    expect(preadAll(fd, target, 777)).toBe(target.length);
    expect(target.equals(whole.subarray(3))).toBe(true);
  });

  it("report the kernel's error number", () => {
    expect(pwriteAll(-1, Buffer.alloc(1), 0)).toBe(-EBADF);
    expect(preadAll(-1, Buffer.alloc(1), 0)).toBe(-EBADF);
    expect(preadCached(-1, Buffer.alloc(1), 0)).toBe(-EBADF);
    expect(fallocate(-1, FALLOCATE.grow, 0, 1)).toBe(-EBADF);
    expect(seekEnd(-1)).toBe(-EBADF);
  });
});
