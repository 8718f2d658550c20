import { AssertionError } from "node:assert/strict";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { Image } from "../../../../shared/block/image.ts";
import { NodeStorage } from "../../../../shared/host/node-storage.ts";
import type { StorageFile } from "../../../../shared/host/storage.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const KIB = 1024;
const SIZE = 1024 * KIB;
const storage = new NodeStorage();

function openFile(): StorageFile {
  const file = storage.open(join(scratchDirectory(), "image"), { kind: "image", create: "new" });
  file.truncate(SIZE);
  return file;
}

function openScratch(): Image {
  const image = new Image(openFile(), SIZE);
  onTestFinished(() => image.close());
  return image;
}

async function readAll(image: Image): Promise<Buffer> {
  const target = Buffer.alloc(SIZE, 0xee);
  await image.read(target, 0);
  return target;
}

/** A file whose syncs the test ends one by one. */
function stallSyncs(): { image: Image; syncs: PromiseWithResolvers<void>[]; close: () => void } {
  const file = openFile();
  onTestFinished(() => file.close());
  const syncs: PromiseWithResolvers<void>[] = [];
  file.sync = () => {
    const sync = withResolvers();
    syncs.push(sync);
    return sync.promise;
  };
  return { image: new Image(file, SIZE), syncs, close: () => file.close() };
}

interface PromiseWithResolvers<T> {
  promise: Promise<T>;
  resolve(value: T): void;
  reject(reason: unknown): void;
}

function withResolvers(): PromiseWithResolvers<void> {
  const result: Partial<PromiseWithResolvers<void>> = {};
  result.promise = new Promise((resolve, reject) => {
    result.resolve = resolve;
    result.reject = reject;
  });
  return result as PromiseWithResolvers<void>;
}

/** All that is queued now has run when it resolves. */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

function settled(promise: Promise<void> | undefined): { done: boolean } {
  const state = { done: false };
  void promise?.then(() => {
    state.done = true;
  });
  return state;
}

describe("an image", () => {
  it("reads back whole writes, pieces and zeroes", async () => {
    const image = openScratch();
    expect(image.write(Buffer.alloc(8 * KIB, 1), 4 * KIB, { fua: false })).toBeUndefined();
    const write = image.openWrite(100 * KIB + 1, 10, { fua: false });
    expect(write.push(Buffer.from("abcd"))).toBeUndefined();
    expect(write.push(Buffer.from("efghij"))).toBeUndefined();
    expect(write.end()).toBeUndefined();
    expect(image.zero(6 * KIB, KIB, { fua: false, mayUnmap: true })).toBeUndefined();
    expect(image.zero(8 * KIB, KIB, { fua: false, mayUnmap: false })).toBeUndefined();

    const expected = Buffer.alloc(SIZE)
      .fill(1, 4 * KIB, 12 * KIB)
      .fill(0, 6 * KIB, 7 * KIB)
      .fill(0, 8 * KIB, 9 * KIB);
    expected.write("abcdefghij", 100 * KIB + 1);
    expect((await readAll(image)).equals(expected)).toBe(true);
  });

  it("keeps what was pushed of an abandoned write, and nothing more", async () => {
    const image = openScratch();
    const write = image.openWrite(0, 10, { fua: true });
    void write.push(Buffer.from("abc"));
    write.abandon();
    expect((await readAll(image)).subarray(0, 10).toString("latin1")).toBe("abc\0\0\0\0\0\0\0");
  });

  it("takes a write of more or fewer bytes than announced for a bug", () => {
    const image = openScratch();
    const write = image.openWrite(0, 4, { fua: false });
    void write.push(Buffer.from("abc"));
    expect(() => write.end()).toThrow(AssertionError);
    expect(() => write.push(Buffer.from("de"))).toThrow(AssertionError);
  });
});

describe("extents", () => {
  it("alternate between data and holes, and cover the range exactly", () => {
    const image = openScratch();
    void image.write(Buffer.alloc(64 * KIB, 1), 128 * KIB, { fua: false });
    void image.write(Buffer.alloc(64 * KIB, 1), 512 * KIB, { fua: false });
    const hole = (length: number) => ({ length, hole: true, zero: true });
    const data = (length: number) => ({ length, hole: false, zero: false });
    expect(image.extents(0, SIZE, 100)).toEqual([
      hole(128 * KIB),
      data(64 * KIB),
      hole(320 * KIB),
      data(64 * KIB),
      hole(448 * KIB),
    ]);
    expect(image.extents(130 * KIB, 100 * KIB, 100)).toEqual([data(62 * KIB), hole(38 * KIB)]);
    expect(image.extents(130 * KIB, 10, 100)).toEqual([data(10)]);
    expect(image.extents(SIZE - 1, 1, 100)).toEqual([hole(1)]);
  });

  it("stop after as many as were asked for", () => {
    const image = openScratch();
    void image.write(Buffer.alloc(64 * KIB, 1), 128 * KIB, { fua: false });
    expect(image.extents(0, SIZE, 1)).toEqual([{ length: 128 * KIB, hole: true, zero: true }]);
    expect(image.extents(0, SIZE, 2)).toHaveLength(2);
  });

  it("show what zeroing freed as a hole, and what it kept as data or zeroes", () => {
    const image = openScratch();
    void image.write(Buffer.alloc(256 * KIB, 1), 0, { fua: false });
    void image.zero(64 * KIB, 64 * KIB, { fua: false, mayUnmap: true });
    expect(image.extents(0, 256 * KIB, 10).map((extent) => extent.hole)).toEqual([false, true, false]);
  });

  it("show each hole, however much of the data around it was seen before", () => {
    const image = openScratch();
    void image.write(Buffer.alloc(SIZE, 1), 0, { fua: false });
    for (const [offset, length] of [
      [0, 64 * KIB],
      [256 * KIB, 64 * KIB],
      [SIZE - 64 * KIB, 64 * KIB],
    ] as const) {
      image.extents(0, SIZE, 10); // all of it is known
      void image.zero(offset, length, { fua: false, mayUnmap: true });
      expect(image.extents(offset, length, 10)).toEqual([{ length, hole: true, zero: true }]);
      void image.write(Buffer.alloc(length, 2), offset, { fua: false });
      expect(image.extents(0, SIZE, 10)).toEqual([{ length: SIZE, hole: false, zero: false }]);
    }
  });
});

describe("a flush", () => {
  it("waits for a sync that began after it was asked for, shared by all that came meanwhile", async () => {
    const { image, syncs } = stallSyncs();
    const first = settled(image.flush());
    expect(syncs).toHaveLength(1);
    const others = [
      settled(image.flush()),
      settled(image.write(Buffer.alloc(512), 0, { fua: true })),
      settled(image.zero(0, 512, { fua: true, mayUnmap: true })),
    ];
    await turn();
    expect(syncs).toHaveLength(1);

    syncs[0]?.resolve();
    await turn();
    expect(first.done).toBe(true);
    expect(syncs).toHaveLength(2);
    expect(others.some((other) => other.done)).toBe(false);

    const late = settled(image.flush());
    syncs[1]?.resolve();
    await turn();
    expect(others.every((other) => other.done)).toBe(true);
    expect(late.done).toBe(false);
    expect(syncs).toHaveLength(3);
    syncs[2]?.resolve();
    await turn();
    expect(late.done).toBe(true);

    const idle = settled(image.flush());
    expect(syncs).toHaveLength(4);
    syncs[3]?.resolve();
    await turn();
    expect(idle.done).toBe(true);
  });

  it("fails for good once a sync has failed, as the kernel has forgotten what was lost", async () => {
    const { image, syncs } = stallSyncs();
    const failure = new ColobusError("io-error", "the disk is gone");
    const first = image.flush();
    const waiting = image.flush();
    syncs[0]?.reject(failure);
    await expect(first).rejects.toBe(failure);
    await expect(waiting).rejects.toBe(failure);
    await expect(image.flush()).rejects.toBe(failure);
    await expect(image.write(Buffer.alloc(512), 0, { fua: true })).rejects.toBe(failure);
    expect(syncs).toHaveLength(1);
  });

  it("ends a write in pieces that asked for it", async () => {
    const { image, syncs } = stallSyncs();
    const write = image.openWrite(0, 512, { fua: true });
    expect(write.push(Buffer.alloc(512))).toBeUndefined();
    expect(syncs).toHaveLength(0);
    const end = settled(write.end());
    expect(syncs).toHaveLength(1);
    syncs[0]?.resolve();
    await turn();
    expect(end.done).toBe(true);
  });
});
