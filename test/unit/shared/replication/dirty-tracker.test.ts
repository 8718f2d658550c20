import { describe, expect, it } from "vitest";
import type { Durability } from "../../../../proto/words.ts";
import { ClusterBitmap } from "../../../../shared/block/cluster-bitmap.ts";
import { clusterGeometry, growGeometry } from "../../../../shared/block/cluster-geometry.ts";
import {
  DirtyTracker,
  type DirtyTrackerOptions,
  type SettleSource,
} from "../../../../shared/replication/dirty-tracker.ts";
import { SeededRandom } from "../../../sim/seeded-random.ts";
import { SimRandom } from "../../../sim/sim-random.ts";
import { MemoryStorage, turn } from "../../../support/memory-storage.ts";
import { seededStorage } from "../../../support/overlay-bench.ts";
import { present } from "../../../support/present.ts";

const CLUSTER = 4096;
const EXTENT = 4 * CLUSTER;
const CLUSTERS = 40;
const DIRECTORY = "/state/disks/vda";
/** Calls of `settle` after which nothing counts as touched any more. */
const CALLS_UNTIL_IDLE = 14;

function options(storage: MemoryStorage, durability: Durability = "power"): DirtyTrackerOptions {
  return {
    storage,
    random: new SimRandom(new SeededRandom(3)),
    directory: DIRECTORY,
    geometry: clusterGeometry(CLUSTERS * CLUSTER - 512, CLUSTER),
    extentBytes: EXTENT,
    durability,
  };
}

function emptyStorage(): MemoryStorage {
  const storage = seededStorage(1);
  storage.disk.addDirectory(DIRECTORY);
  return storage;
}

/** What is dirty once the process, or the power, is gone. */
function dirtyAfter(storage: MemoryStorage, kind: "process" | "power", durability: Durability = "power"): number[] {
  storage.crash(kind);
  return present(DirtyTracker.open(options(storage, durability)))
    .dirtyClusters()
    .toArray();
}

/** The same disk, for a look at what a crash would leave now. */
function forked(storage: MemoryStorage): MemoryStorage {
  return new MemoryStorage(storage.disk.fork());
}

const IDLE: SettleSource = { inFlight: () => new ClusterBitmap(), isBusy: () => false, flush: () => Promise.resolve() };

async function settleUntilIdle(tracker: DirtyTracker, source: Partial<SettleSource> = {}): Promise<void> {
  for (let call = 0; call < CALLS_UNTIL_IDLE; call += 1) await tracker.settle({ ...IDLE, ...source });
}

const range = (first: number, end: number): number[] =>
  Array.from({ length: end - first }, (_, index) => first + index);

describe("the dirty tracker", () => {
  it.each(["process", "power"] as const)(
    "finds a whole extent dirty after a write to it and a loss of %s",
    async (kind) => {
      const storage = emptyStorage();
      const tracker = await DirtyTracker.create(options(storage), "clean");
      await tracker.mark(5 * CLUSTER, 100);
      expect(dirtyAfter(storage, kind)).toEqual(range(4, 8));
    },
  );

  it("is done with a mark at once where the extents are marked", async () => {
    const tracker = await DirtyTracker.create(options(emptyStorage()), "clean");
    await tracker.mark(0, 3 * EXTENT);
    expect(tracker.mark(0, 1)).toBeUndefined();
    expect(tracker.mark(EXTENT - 1, 2)).toBeUndefined();
    expect(tracker.mark(2 * EXTENT, EXTENT)).toBeUndefined();
    expect(tracker.mark(3 * EXTENT, 1)).toBeDefined();
  });

  it("marks at once, without an fsync, where only the death of the process has to be survived", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage, "process"), "clean");
    expect(tracker.mark(0, 1)).toBeUndefined();
    expect(dirtyAfter(storage, "process", "process")).toEqual(range(0, 4));
  });

  it("shares one fsync among marks that wait at the same time, and calls none done before it", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage), "clean");
    let release = (): void => undefined;
    let syncs = 0;
    storage.hold = (operation) => {
      if (operation !== "sync") return undefined;
      syncs += 1;
      return new Promise((resolve) => {
        release = resolve;
      });
    };
    let done = 0;
    const marks = [0, 1, 2, 3].map((extent) =>
      Promise.resolve(tracker.mark(extent * EXTENT, 1)).then(() => (done += 1)),
    );
    await turn();
    expect([syncs, done]).toEqual([1, 0]);
    release();
    await turn();
    await turn();
    // The first went alone; the others came while it was under way.
    expect([syncs, done]).toEqual([2, 1]);
    release();
    await Promise.all(marks);
    expect(syncs).toBe(2);
  });

  it("marks nothing when the journal cannot be written, and tries again", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage), "clean");
    storage.disk.faults.inject({ error: "io-error", op: ["sync"], times: 1 });
    await expect(tracker.mark(0, 1)).rejects.toMatchObject({ code: "io-error" });
    await tracker.mark(0, 1);
    expect(dirtyAfter(storage, "power")).toEqual(range(0, 4));
  });

  it.each(["process", "power"] as const)(
    "has what it says durably, %s, behind what an earlier process saw in the page cache alone",
    async (durability) => {
      for (let seed = 1; seed <= 20; seed += 1) {
        const storage = seededStorage(seed);
        storage.disk.addDirectory(DIRECTORY);
        const first = await DirtyTracker.create(options(storage, durability), "clean");
        storage.disk.faults.inject({ error: "io-error", op: "sync" });
        await expect(first.addRuns([{ first: 1, end: 2 }])).rejects.toMatchObject({ code: "io-error" });
        storage.crash("process");
        const second = present(DirtyTracker.open(options(storage, durability)));
        expect(second.dirtyClusters().toArray()).toEqual([1]);
        await second.mark(5 * EXTENT, 1);
        // Where marks are not fsynced, a clean stop does it.
        if (durability === "process") await second.settleAll({ ...IDLE, inFlight: () => new ClusterBitmap([20]) });
        expect(dirtyAfter(storage, "power", durability), `seed ${seed}`).toEqual(
          durability === "power" ? [1, ...range(20, 24)] : [1, 20],
        );
      }
    },
  );

  it("calls an extent clean once it is idle, and what is dirty in it stays", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage), "clean");
    await tracker.mark(0, 2 * EXTENT);
    tracker.addBytes(CLUSTER, 10);
    await tracker.settle(IDLE);
    expect(dirtyAfter(forked(storage), "process")).toEqual(range(0, 8));
    await settleUntilIdle(tracker);
    expect(dirtyAfter(forked(storage), "process")).toEqual([1]);
    // A later write to it has to mark it again.
    await tracker.mark(0, 1);
    expect(dirtyAfter(storage, "power")).toEqual(range(0, 4));
  });

  it("keeps what is in flight, busy, or touched meanwhile", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage), "clean");
    await tracker.mark(0, 4 * EXTENT);
    await settleUntilIdle(tracker, {
      inFlight: () => new ClusterBitmap([2]),
      isBusy: (offset, length) => offset <= EXTENT && EXTENT < offset + length,
      flush: async () => {
        await tracker.mark(2 * EXTENT, 1);
      },
    });
    expect(dirtyAfter(storage, "process")).toEqual([2, ...range(4, 8), ...range(8, 12)]);
  });

  it("flushes the image before it calls anything clean, and calls nothing clean when that fails", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage), "clean");
    await tracker.mark(0, EXTENT);
    const failing = { flush: () => Promise.reject(new Error("no")) };
    await expect(settleUntilIdle(tracker, failing)).rejects.toThrow("no");
    expect(dirtyAfter(storage, "process")).toEqual(range(0, 4));
  });

  it("is exact after a clean stop", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage), "clean");
    await tracker.mark(0, 5 * EXTENT);
    tracker.addClusters(3, 5);
    await tracker.settleAll({ ...IDLE, inFlight: () => new ClusterBitmap([19]) });
    tracker.close();
    expect(dirtyAfter(storage, "power")).toEqual([3, 4, 19]);
  });

  it("has made every mark that is waited for before it may be closed", async () => {
    const tracker = await DirtyTracker.create(options(emptyStorage()), "clean");
    // The second one waits for the fsync behind the first one's.
    const marks = [tracker.mark(0, 100), tracker.mark(EXTENT, 100)];
    await tracker.settled();
    tracker.close();
    for (const mark of marks) await expect(mark).resolves.toBeUndefined();
  });

  it("finds what was added for a peer's sake, and everything where that is how it began", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage), "clean");
    await tracker.addRuns([
      { first: 1, end: 3 },
      { first: 39, end: 40 },
    ]);
    expect(dirtyAfter(storage, "power")).toEqual([1, 2, 39]);
    await DirtyTracker.create(options(storage), "all-dirty");
    expect(dirtyAfter(storage, "power")).toEqual(range(0, CLUSTERS));
    await DirtyTracker.create(options(storage), new ClusterBitmap([7]));
    expect(dirtyAfter(storage, "power")).toEqual([7]);
    expect(storage.list(DIRECTORY)).toHaveLength(1);
  });

  it("is not there for a file that was never whole, and falls back to the one before", async () => {
    const storage = emptyStorage();
    expect(DirtyTracker.open(options(storage))).toBeUndefined();
    const tracker = await DirtyTracker.create(options(storage), new ClusterBitmap([5]));
    tracker.close();
    // The death comes before the sync mark of the next file.
    storage.disk.faults.inject({ error: "io-error", op: ["syncDirectory"], times: 1 });
    await expect(DirtyTracker.create(options(storage), "clean")).rejects.toMatchObject({ code: "io-error" });
    expect(dirtyAfter(storage, "process")).toEqual([5]);
    expect(storage.list(DIRECTORY)).toHaveLength(1);
  });

  it("writes its journal anew when it has grown, and loses nothing that is marked meanwhile", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage, "process"), "clean");
    const [first] = storage.list(DIRECTORY);
    for (let round = 0; storage.list(DIRECTORY)[0] === first; round += 1) {
      for (let repeat = 0; repeat < 2000; repeat += 1) await tracker.addRuns([{ first: 0, end: 1 }]);
      tracker.removeClusters(0, 1);
      await tracker.settle({ ...IDLE, flush: async () => Promise.resolve(tracker.mark(9 * EXTENT, 1)) });
      expect(round).toBeLessThan(100);
    }
    expect(storage.list(DIRECTORY)).toHaveLength(1);
    expect(dirtyAfter(storage, "power", "process")).toEqual(expect.arrayContaining(range(36, 40)));
  });

  it("leaves nothing behind when the peer is forgotten", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(options(storage), "all-dirty");
    await tracker.forget();
    expect(storage.list(DIRECTORY)).toEqual([]);
  });

  it("finds what lies behind the former end of a disk that has grown dirty, but for what was settled since", async () => {
    const storage = emptyStorage();
    const grown = { ...options(storage), geometry: clusterGeometry(CLUSTERS * CLUSTER - 512, CLUSTER) };
    const tracker = await DirtyTracker.create(grown, "clean");
    await tracker.mark((CLUSTERS - 1) * CLUSTER, 100); // its extent had the former end in it
    growGeometry(grown.geometry, (CLUSTERS + 10) * CLUSTER);
    tracker.addGrown(CLUSTERS - 1);
    const longer = { ...options(storage), geometry: clusterGeometry((CLUSTERS + 10) * CLUSTER, CLUSTER) };
    const left = forked(storage);
    left.crash("power");
    const found = present(DirtyTracker.open({ ...longer, storage: left }));
    expect(found.dirtyClusters().toArray()).toEqual(range(CLUSTERS - 4, CLUSTERS + 10));

    tracker.removeClusters(0, CLUSTERS + 8);
    await settleUntilIdle(tracker);
    await tracker.settleAll(IDLE);
    storage.crash("power");
    expect(present(DirtyTracker.open(longer)).dirtyClusters().toArray()).toEqual(range(CLUSTERS + 8, CLUSTERS + 10));
  });
});

describe("a dirty tracker of very many runs", () => {
  const EACH_MOST = 65_536;
  const RUNS = EACH_MOST + 10;

  function fragmented(storage: MemoryStorage, changes: Partial<DirtyTrackerOptions> = {}): DirtyTrackerOptions {
    return { ...options(storage), geometry: clusterGeometry(2 * RUNS * CLUSTER, CLUSTER), ...changes };
  }

  const everyOther = (): ClusterBitmap => new ClusterBitmap(Array.from({ length: RUNS }, (_, run) => 2 * run));

  it("settles so many at a time, and all of them at a clean stop", async () => {
    const storage = emptyStorage();
    const tracker = await DirtyTracker.create(fragmented(storage), everyOther());
    tracker.removeClusters(0, 2 * RUNS);
    await tracker.settle(IDLE);
    expect(tracker.unsettled().size).toBe(RUNS - EACH_MOST);
    await tracker.settle(IDLE);
    expect(tracker.unsettled().size).toBe(0);
    const again = await DirtyTracker.create(fragmented(storage), everyOther());
    again.removeClusters(0, 2 * RUNS);
    again.addClusters(8, 9);
    await again.settleAll(IDLE);
    storage.crash("power");
    expect(
      present(DirtyTracker.open(fragmented(storage)))
        .dirtyClusters()
        .toArray(),
    ).toEqual([8]);
  });

  it("lets others mark while its journal is written anew, and loses none of it", async () => {
    const storage = emptyStorage();
    const all = fragmented(storage, { fileMinBytes: 1 });
    const tracker = await DirtyTracker.create(all, new ClusterBitmap([0]));
    await tracker.addRuns([...everyOther()].map((first) => ({ first, end: first + 1 })));
    let syncs = 0;
    storage.hold = (operation, path) => {
      if (operation !== "sync" || !path.endsWith("dirty.2.journal")) return undefined;
      syncs += 1;
      // As soon as a first part is written; it waits for the old journal.
      if (syncs === 1) void tracker.mark(3 * CLUSTER, 1);
      return turn();
    };
    await tracker.settle(IDLE);
    expect(syncs).toBeGreaterThan(2);
    storage.crash("power");
    const found = present(DirtyTracker.open(all)).dirtyClusters();
    expect(found.size).toBe(RUNS + 2);
    expect([found.has(1), found.has(3), found.has(5)]).toEqual([true, true, false]);
  });
});
