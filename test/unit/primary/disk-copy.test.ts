import { describe, expect, it } from "vitest";
import { DiskCopy } from "../../../primary/disk-copy.ts";
import { clusterGeometry } from "../../../shared/block/cluster-geometry.ts";
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
