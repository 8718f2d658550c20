import { setImmediate } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { DiskCopy } from "../../../primary/disk-copy.ts";
import { SYNC_HOLE_BYTES } from "../../../proto/limits.ts";
import { clusterGeometry } from "../../../shared/block/cluster-geometry.ts";
import { DirtyMap } from "../../../shared/replication/dirty-map.ts";
import { DirtyTracker } from "../../../shared/replication/dirty-tracker.ts";
import { SeededRandom } from "../../sim/seeded-random.ts";
import { SimRandom } from "../../sim/sim-random.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { MemoryImage } from "../../support/memory-image.ts";
import { seededStorage } from "../../support/overlay-bench.ts";

const CLUSTER = 4096;
const SIZE = 8 * CLUSTER;
const DIRECTORY = "/state/mirrors/0";

describe("a copy whose bitmap cannot be written", () => {
  it("is not tracked from then on, however long that takes to be recorded", async () => {
    const storage = seededStorage(1);
    storage.disk.addDirectory(DIRECTORY);
    const geometry = clusterGeometry(SIZE, CLUSTER);
    const random = new SimRandom(new SeededRandom(1));
    const options = {
      storage,
      random,
      directory: DIRECTORY,
      geometry,
      extentBytes: CLUSTER,
      durability: "power",
    } as const;
    let record = (): void => undefined;
    const copy = new DiskCopy({
      disk: "vda",
      name: "mirror-1",
      child: new MemoryImage(SIZE),
      geometry,
      dirty: await DirtyTracker.create(options, "clean"),
      clock: new ManualClock(),
      timeoutMs: 1000,
      state: "syncing",
      untracked: () =>
        new Promise((resolve) => {
          record = resolve;
        }),
    });
    expect(copy.isTracked).toBe(true);
    storage.disk.faults.inject({ op: "write", kind: "journal", error: "out-of-space" });
    const marked = copy.mark(0, 1);
    expect(copy.isTracked).toBe(false);
    record();
    await marked;
    expect([copy.isTracked, copy.tracker]).toEqual([false, undefined]);
  });
});

describe("a copy whose disk writes one range of zeroes after another", () => {
  const LIMIT_MS = 1000;
  const PIECE = 4 * CLUSTER;
  const FLAGS = { fua: false, mayUnmap: true } as const;

  /** A range takes `takesMs`. */
  function slowCopy(sizeBytes: number, takesMs: number) {
    const clock = new ManualClock();
    const child = new MemoryImage(sizeBytes);
    let last = Promise.resolve();
    let asked = 0;
    child.gate = ({ kind }) => {
      if (kind !== "zero") return undefined;
      asked += 1;
      const wait = (resolve: () => void): void => {
        clock.after(takesMs, resolve);
      };
      last = last.then(() => new Promise(wait));
      return last;
    };
    const geometry = clusterGeometry(sizeBytes, CLUSTER);
    const copy = new DiskCopy({
      disk: "vda",
      name: "mirror-1",
      child,
      geometry,
      dirty: new DirtyMap(geometry),
      clock,
      timeoutMs: LIMIT_MS,
      state: "sound",
    });
    const advance = async (ms: number): Promise<void> => {
      for (let passed = 0; passed < ms; passed += 100) {
        clock.advance(100);
        await setImmediate();
        clock.endTurn();
      }
    };
    const zero = async (offset: number, length: number) => copy.zero(offset, length, FLAGS);
    return { copy, zero, advance, asked: () => asked };
  }

  it("is not given up for what waits for its turn", async () => {
    const { copy, zero, advance, asked } = slowCopy(3 * SYNC_HOLE_BYTES, 0.6 * LIMIT_MS);
    const outcomes = Promise.all([0, 1, 2].map((at) => zero(at * SYNC_HOLE_BYTES, SYNC_HOLE_BYTES)));
    expect(asked()).toBe(1);
    await advance(3 * LIMIT_MS);
    expect(await outcomes).toEqual([undefined, undefined, undefined]);
    expect([copy.state, asked()]).toEqual(["sound", 3]);
  });

  it("is asked for small ranges side by side", async () => {
    const { zero, advance, asked } = slowCopy(SIZE, 0.1 * LIMIT_MS);
    const outcomes = Promise.all([0, 1].map((at) => zero(at * PIECE, PIECE)));
    expect(asked()).toBe(2);
    await advance(LIMIT_MS);
    expect(await outcomes).toEqual([undefined, undefined]);
  });

  it.each(["the limit", "the end"])("is not asked for those behind one that was given up by %s", async (why) => {
    const { copy, zero, advance, asked } = slowCopy(3 * SYNC_HOLE_BYTES, 1000 * LIMIT_MS);
    const outcomes = Promise.all([0, 1, 2].map((at) => zero(at * SYNC_HOLE_BYTES, SYNC_HOLE_BYTES)));
    if (why === "the end") copy.close();
    await advance(why === "the end" ? 0.2 * LIMIT_MS : 1.2 * LIMIT_MS);
    expect((await outcomes).map((outcome) => outcome?.code)).toEqual(Array(3).fill("child-timed-out"));
    expect([copy.state, asked(), copy.dirtyBytes]).toEqual(["broken", 1, 3 * SYNC_HOLE_BYTES]);
  });
});
