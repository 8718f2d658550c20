import { describe, expect, it } from "vitest";
import { ActiveDisk } from "../../../secondary/active-disk.ts";
import type { OverlayContext } from "../../../secondary/overlay-files.ts";
import { turn, type MemoryStorage } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, overlaysOn, pattern, seededStorage } from "../../support/overlay-bench.ts";

const PART = CLUSTER_BYTES / 32;
const SIZE = 8 * CLUSTER_BYTES + 512;
const EPOCH = 5;
const BELOW = pattern(SIZE, 1);

function readBelow(target: Uint8Array, offset: number): undefined {
  BELOW.copy(target, 0, offset, offset + target.length);
}

/** What a reader sees: the active disk where it holds, else what lies below. */
async function viewOf(active: ActiveDisk): Promise<Buffer> {
  const view = Buffer.from(BELOW);
  for (let at = 0; at < SIZE;) {
    const clusterEnd = Math.min(SIZE, (Math.floor(at / CLUSTER_BYTES) + 1) * CLUSTER_BYTES);
    const { held, end } = active.stretch(at, clusterEnd);
    if (held) await active.readData(view.subarray(at, end), at);
    at = end;
  }
  return view;
}

function expected(...writes: readonly (readonly [offset: number, bytes: Uint8Array])[]): Buffer {
  const bytes = Buffer.from(BELOW);
  for (const [offset, written] of writes) bytes.set(written, offset);
  return bytes;
}

function bench(): { storage: MemoryStorage; context: OverlayContext; active: ActiveDisk } {
  const storage = seededStorage(1);
  const context = overlaysOn(storage, SIZE);
  return { storage, context, active: new ActiveDisk(context, EPOCH) };
}

function files(storage: MemoryStorage): string[] {
  return storage.list("/state/disks/vda");
}

describe("the active disk", () => {
  it("holds nothing, and has no files, before the first write", () => {
    const { storage, active } = bench();
    expect([active.isEmpty, active.allocatedBytes, files(storage)]).toEqual([true, 0, []]);
  });

  it("holds what is written in whole parts without looking below", async () => {
    const { active } = bench();
    const bytes = pattern(3 * PART, 2);
    expect(active.write(bytes, 5 * PART, () => expect.unreachable())).toBeUndefined();
    expect(active.mask(0)).toBe(0b1110_0000);
    expect(await viewOf(active)).toEqual(expected([5 * PART, bytes]));
  });

  it("fills parts that are written in part from below, on both sides", async () => {
    const { active } = bench();
    const bytes = pattern(PART, 2);
    await active.write(bytes, 2 * PART + 7, readBelow);
    expect(active.mask(0)).toBe(0b1100);
    expect(await viewOf(active)).toEqual(expected([2 * PART + 7, bytes]));
  });

  it("fills around a write inside of one part", async () => {
    const { active } = bench();
    await active.write(Buffer.from("x"), CLUSTER_BYTES + 1, readBelow);
    expect(active.mask(1)).toBe(1);
    expect(await viewOf(active)).toEqual(expected([CLUSTER_BYTES + 1, Buffer.from("x")]));
  });

  it("does not look below what it holds already", async () => {
    const { active } = bench();
    await active.write(pattern(PART, 2), 0, readBelow);
    expect(active.write(Buffer.from("y"), 3, () => expect.unreachable())).toBeUndefined();
    expect(await viewOf(active)).toEqual(expected([0, pattern(PART, 2)], [3, Buffer.from("y")]));
  });

  it("holds zeroes without storage", async () => {
    const { active } = bench();
    await active.write(4 * CLUSTER_BYTES, 0, readBelow);
    expect(active.mask(3)).toBe(0xffff_ffff);
    expect(await viewOf(active)).toEqual(expected([0, Buffer.alloc(4 * CLUSTER_BYTES)]));
    const before = active.allocatedBytes;
    await active.write(pattern(CLUSTER_BYTES, 3), 0, readBelow);
    expect(active.allocatedBytes - before).toBe(CLUSTER_BYTES);
  });

  it("holds the short last cluster", async () => {
    const { active } = bench();
    const bytes = pattern(100, 2);
    await active.write(bytes, SIZE - 100, readBelow);
    expect(await viewOf(active)).toEqual(expected([SIZE - 100, bytes]));
    await active.write(pattern(512, 3), SIZE - 512, readBelow);
    expect(active.mask(8)).toBe(0xffff_ffff);
  });

  it("becomes whole part by part", async () => {
    const { active } = bench();
    for (let part = 0; part < 32; part += 1) await active.write(pattern(PART, part), part * PART, readBelow);
    expect(active.mask(0)).toBe(0xffff_ffff);
    expect([...active.clusters()]).toEqual([0]);
    expect([active.intersects(0, 1), active.intersects(1, 9)]).toEqual([true, false]);
  });

  it("comes back after a crash as it was, and goes on", async () => {
    const { storage, context, active } = bench();
    await active.write(pattern(1000, 2), 100, readBelow);
    await active.write(pattern(CLUSTER_BYTES, 3), 2 * CLUSTER_BYTES, readBelow);
    const before = await viewOf(active);
    storage.crash("process");
    const again = ActiveDisk.recover(context, EPOCH, false);
    expect(await viewOf(again)).toEqual(before);
    await again.write(pattern(10, 4), 50, readBelow);
    const after = await viewOf(again);
    storage.crash("process");
    expect(await viewOf(ActiveDisk.recover(context, EPOCH, false))).toEqual(after);
  });

  it("of another epoch than the committed one is removed at the start", async () => {
    const { storage, context, active } = bench();
    await active.write(pattern(10, 2), 0, readBelow);
    storage.crash("process");
    const next = ActiveDisk.recover(context, EPOCH + 1, false);
    expect([next.isEmpty, files(storage)]).toEqual([true, []]);
  });

  it.each(["data", "journal"])("without its %s file is none", async (kind) => {
    const { storage, context, active } = bench();
    await active.write(pattern(10, 2), 0, readBelow);
    storage.crash("process");
    storage.remove(`/state/disks/vda/active.${EPOCH}.${kind}`);
    expect(ActiveDisk.recover(context, EPOCH, false).isEmpty).toBe(true);
    expect(files(storage)).toEqual([]);
  });

  it("believes after a loss of power only what was flushed", async () => {
    const { storage, context, active } = bench();
    const flushed = pattern(2 * CLUSTER_BYTES, 2);
    await active.write(flushed, 100, readBelow);
    await active.flush();
    await active.write(pattern(CLUSTER_BYTES, 3), 4 * CLUSTER_BYTES, readBelow);
    storage.crash("power");
    const again = ActiveDisk.recover(context, EPOCH, true);
    expect(again.has(4)).toBe(false);
    expect(await viewOf(again)).toEqual(expected([100, flushed]));
  });

  it("keeps what a flush covered when more is written while the flush runs", async () => {
    const { storage, context, active } = bench();
    await active.write(pattern(CLUSTER_BYTES, 2), 0, readBelow);
    const flushing = active.flush();
    await active.write(pattern(CLUSTER_BYTES, 3), CLUSTER_BYTES, readBelow);
    await flushing;
    storage.crash("power");
    const again = ActiveDisk.recover(context, EPOCH, true);
    expect([again.has(0), again.has(1)]).toEqual([true, false]);
  });

  it("fails one flush, and no later one, where there is no room to say that it was done", async () => {
    const { storage, context, active } = bench();
    const bytes = pattern(2 * CLUSTER_BYTES, 2);
    await active.write(bytes, 100, readBelow);
    storage.disk.faults.inject({ op: "write", kind: "journal", error: "out-of-space" });
    await expect(active.flush()).rejects.toMatchObject({ code: "out-of-space" });
    await active.flush();
    storage.crash("power");
    expect(await viewOf(ActiveDisk.recover(context, EPOCH, true))).toEqual(expected([100, bytes]));
  });

  it("calls no flush done of what another one that ran at the same time has lost", async () => {
    const { storage, active } = bench();
    await active.write(pattern(CLUSTER_BYTES, 2), 0, readBelow);
    storage.disk.faults.inject({ op: "sync", kind: "active-data", error: "io-error" });
    const outcomes = await Promise.allSettled([active.flush(), active.flush()]);
    expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  });

  it("does not grow by flushes that have nothing to flush", async () => {
    const { storage, active } = bench();
    await active.write(pattern(CLUSTER_BYTES, 2), 0, readBelow);
    await active.flush();
    const size = storage.disk.file(`/state/disks/vda/active.${EPOCH}.journal`).content.sizeBytes;
    for (let count = 0; count < 10; count += 1) await active.flush();
    expect(storage.disk.file(`/state/disks/vda/active.${EPOCH}.journal`).content.sizeBytes).toBe(size);
  });

  it("holds nothing new, and what it held, when the disk is full", async () => {
    const { storage, active } = bench();
    const first = pattern(CLUSTER_BYTES, 2);
    await active.write(first, 0, readBelow);
    storage.disk.capacityBytes = storage.disk.usedBytes;
    const full = expect.objectContaining({ code: "out-of-space" }) as Error;
    expect(() => active.write(pattern(CLUSTER_BYTES, 3), CLUSTER_BYTES, readBelow)).toThrow(full);
    await expect(active.write(pattern(10, 4), 2 * CLUSTER_BYTES + 5, readBelow)).rejects.toMatchObject({
      code: "out-of-space",
    });
    expect(await viewOf(active)).toEqual(expected([0, first]));
    storage.disk.capacityBytes = 1 << 30;
    await active.write(pattern(10, 4), 2 * CLUSTER_BYTES + 5, readBelow);
    expect(await viewOf(active)).toEqual(expected([0, first], [2 * CLUSTER_BYTES + 5, pattern(10, 4)]));
  });

  it("holds nothing new when what lies below cannot be read", async () => {
    const { active } = bench();
    const unreadable = (): Promise<void> => Promise.reject(new Error("unreadable"));
    await expect(active.write(pattern(10, 2), 5, unreadable)).rejects.toThrow("unreadable");
    expect(active.isEmpty).toBe(true);
  });

  it("leaves no files when it is removed", async () => {
    const { storage, active } = bench();
    await active.write(pattern(10, 2), 0, readBelow);
    await active.removeBehind();
    expect([files(storage), storage.openPaths]).toEqual([[], []]);
  });
});

describe("an active disk that holds very many clusters in part", () => {
  const CLUSTERS = 65_536 + 16;

  /** One that takes no more clusters in part: each of the first 65,536 has a part of zeroes, which takes no storage. */
  function crowded(): { active: ActiveDisk; context: OverlayContext; storage: MemoryStorage } {
    const storage = seededStorage(1);
    const context = overlaysOn(storage, CLUSTERS * CLUSTER_BYTES);
    const active = new ActiveDisk(context, EPOCH);
    for (let cluster = 0; cluster < 65_536; cluster += 1)
      void active.write(PART, cluster * CLUSTER_BYTES, () => expect.unreachable());
    return { active, context, storage };
  }

  const first = 65_536 * CLUSTER_BYTES;
  const below = (target: Uint8Array): undefined => void target.fill(0xbb);
  const belowLater = async (target: Uint8Array): Promise<void> => {
    await turn();
    target.fill(0xbb);
  };

  it("fills further clusters whole, and loses no write of another part meanwhile", async () => {
    const { active, context, storage } = crowded();
    await active.write(Buffer.alloc(PART, 1), first + PART, below);
    expect(active.mask(65_536)).toBe(0xffff_ffff);

    // Two writes to one cluster that do not overlap, so that nobody serializes them.
    const cluster = first + CLUSTER_BYTES;
    await Promise.all([
      active.write(Buffer.alloc(10, 1), cluster + 3 * PART, belowLater),
      active.write(Buffer.alloc(10, 2), cluster + 5 * PART + 1, belowLater),
    ]);
    const expectedBytes = Buffer.alloc(CLUSTER_BYTES, 0xbb);
    expectedBytes.fill(1, 3 * PART, 3 * PART + 10);
    expectedBytes.fill(2, 5 * PART + 1, 5 * PART + 11);
    const found = Buffer.alloc(CLUSTER_BYTES);
    await active.readData(found, cluster);
    expect(found).toEqual(expectedBytes);

    storage.crash("process");
    const again = ActiveDisk.recover(context, EPOCH, false);
    expect(again.clusters().size).toBe(65_538);
    expect([again.mask(0), again.mask(65_537)]).toEqual([1, 0xffff_ffff]);
  });
});
