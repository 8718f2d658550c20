import { describe, expect, it } from "vitest";
import { EPOCH_LEAD_MAX, PREPARED_EPOCHS_MAX } from "../../../proto/limits.ts";
import { HiddenDisk } from "../../../secondary/hidden-disk.ts";
import type { SourceHistory } from "../../../secondary/replica-history.ts";
import { heard } from "../../../shared/replication/lineage.ts";
import { turn, type MemoryStorage } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, overlaysOn, pattern, seededStorage } from "../../support/overlay-bench.ts";
import { makeSecondary, ReplicaBench } from "../../support/replica-bench.ts";

const SIZE = 4 * CLUSTER_BYTES;
const DISKS = ["vda", "vdb"];
const FORMER = "1".repeat(32);
const NEXT = "2".repeat(32);
const LATER = "3".repeat(32);
/** Of another primary. */
const OTHERS = "4".repeat(32);
/** A device that does not answer any more. */
const NEVER = new Promise<void>(() => {});

/** A secondary in its first session with two disks, whose first checkpoint is committed. */
async function committedOnce(seed = 1): Promise<{ storage: MemoryStorage; bench: ReplicaBench }> {
  const storage = seededStorage(seed);
  await makeSecondary(
    storage,
    DISKS.map((name) => ({ name, content: Buffer.alloc(SIZE) })),
    "power",
  );
  const bench = ReplicaBench.open(storage);
  await bench.begin(1);
  fill(bench, 1);
  await bench.barrier(1);
  await bench.commit(1);
  return { storage, bench };
}

/** Writes a whole cluster of `value`s to both disks. */
function fill(bench: ReplicaBench, value: number, cluster = 0): void {
  const payload = Buffer.alloc(CLUSTER_BYTES, value);
  for (const disk of DISKS.keys()) {
    bench.push([{ kind: "write", disk, offset: cluster * CLUSTER_BYTES, length: CLUSTER_BYTES, payload }]);
  }
}

/** The first byte of a cluster of each disk's view. */
async function seen(bench: ReplicaBench, cluster = 0): Promise<(number | undefined)[]> {
  const views = await Promise.all(DISKS.map((_, disk) => bench.readView(disk, cluster * CLUSTER_BYTES, 1)));
  return views.map((view) => view[0]);
}

describe("the secondary's checkpoints", () => {
  it("show nothing before the first is committed, and save no originals until then", async () => {
    const storage = seededStorage(1);
    await makeSecondary(storage, [{ name: "vda", content: pattern(SIZE, 1) }], "process");
    const bench = ReplicaBench.open(storage);
    expect(() => bench.disks[0]?.view.read(Buffer.alloc(1), 0)).toThrow(
      expect.objectContaining({ code: "no-checkpoint" }) as Error,
    );
    await bench.begin(1);
    bench.push([{ kind: "write", disk: 0, offset: 0, length: 1, payload: Buffer.from("x") }]);
    await bench.drained();
    expect(bench.disks[0]?.hidden.isEmpty).toBe(true);
  });

  it("commit on all disks at once, with every earlier one, and again without harm", async () => {
    const { bench } = await committedOnce();
    for (const epoch of [2, 3, 4]) {
      fill(bench, epoch);
      await bench.barrier(epoch);
    }
    fill(bench, 5);
    expect(await seen(bench)).toEqual([1, 1]);
    await bench.commit(3);
    expect(await seen(bench)).toEqual([3, 3]);
    await bench.commit(2);
    await bench.commit(3);
    expect(await seen(bench)).toEqual([3, 3]);
    expect(bench.checkpoints.prepared).toEqual([4]);
    await bench.commit(4);
    expect(await seen(bench)).toEqual([4, 4]);
  });

  it("are prepared and committed with one record, with every earlier one", async () => {
    const { storage, bench } = await committedOnce();
    fill(bench, 2);
    await bench.barrier(2);
    fill(bench, 3);
    await bench.drained();
    storage.disk.faults.inject({ op: "sync", kind: "state", error: "io-error", skip: 1 }); // a second record would fail
    await bench.prepareAndCommit(3);
    storage.disk.faults.clear();
    expect(bench.checkpoints.committed.epoch).toBe(3);
    expect(bench.checkpoints.prepared).toEqual([]);
    fill(bench, 4);
    await bench.drained();
    expect(await seen(bench)).toEqual([3, 3]);
    const after = await bench.restart("power");
    expect(after.checkpoints.committed.epoch).toBe(3);
    expect(await seen(after)).toEqual([3, 3]);
  });

  it("are of the history that the primary's disks have when they are decided, however long readers take", async () => {
    const { bench } = await committedOnce();

    await bench.barrier(2);
    let read = (): void => undefined;
    const reading = bench.gate.run(
      () =>
        new Promise<void>((resolve) => {
          read = resolve;
        }),
    );
    let source: SourceHistory = { lineage: FORMER, ancestors: [], later: [] };
    const committing = bench.checkpoints.commit(2, () => source);
    await bench.state.update((record) => heard(heard(record, OTHERS), LATER));
    source = { lineage: NEXT, ancestors: [FORMER], later: [LATER] };
    read();
    await reading;
    await committing;
    // What another primary has begun to send is forgotten; what this one has is heard still.
    expect(bench.state.record).toMatchObject({ lineage: NEXT, history: { ancestors: [FORMER], heard: [LATER] } });
  });

  it("stand as they were when the one record fails, and are what it says where it reached the disk all the same", async () => {
    const { storage, bench } = await committedOnce();
    fill(bench, 2);
    await bench.drained();
    storage.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
    await expect(bench.prepareAndCommit(2)).rejects.toMatchObject({ code: "io-error" });
    fill(bench, 3);
    fill(bench, 3, 1);
    await bench.drained();
    expect(bench.checkpoints.committed.epoch).toBe(1);
    expect(await seen(bench)).toEqual([1, 1]);
    // The process dies; the next one reads the record, which was in the page cache.
    const after = await bench.restart("process");
    expect(after.checkpoints.committed.epoch).toBe(2);
    expect(await seen(after)).toEqual([2, 2]);
    expect(await seen(after, 1)).toEqual([0, 0]);
  });

  it("that are withdrawn leave what was written to the next one", async () => {
    const { bench } = await committedOnce();
    for (const epoch of [2, 3, 4]) {
      fill(bench, epoch);
      await bench.barrier(epoch);
    }
    expect(await bench.checkpoints.discard([2, 4])).toEqual([2, 4]);
    expect(await bench.checkpoints.discard([2])).toEqual([]);
    fill(bench, 5);
    await bench.drained();
    await bench.commit(3);
    expect(await seen(bench)).toEqual([3, 3]);
    await bench.barrier(5);
    await bench.commit(5);
    expect(await seen(bench)).toEqual([5, 5]);
  });

  it("are refused where they make no sense", async () => {
    const { bench } = await committedOnce();
    await bench.barrier(2);
    await expect(bench.commit(7)).rejects.toMatchObject({ code: "epoch-unknown" });
    await expect(bench.checkpoints.discard([1])).rejects.toMatchObject({ code: "epoch-committed" });
    await expect(bench.checkpoints.discard([2, 9])).rejects.toMatchObject({ code: "epoch-unknown" });
    await expect(bench.checkpoints.prepare(2)).rejects.toMatchObject({ code: "protocol-error" });
    await expect(bench.checkpoints.openAt(2)).rejects.toMatchObject({ code: "protocol-error" });
    const far = bench.checkpoints.openEpoch + EPOCH_LEAD_MAX + 1;
    await expect(bench.checkpoints.prepare(far)).rejects.toMatchObject({ code: "protocol-error" });
    await expect(bench.checkpoints.openAt(far)).rejects.toMatchObject({ code: "protocol-error" });
    expect(bench.checkpoints.epochSeen).toBeLessThan(EPOCH_LEAD_MAX);
    expect(bench.checkpoints.prepared).toEqual([2]);
  });

  it("are prepared up to a limit, beyond which writes join the next one", async () => {
    const { bench } = await committedOnce();
    let epoch = 2;
    for (; bench.checkpoints.prepared.length < PREPARED_EPOCHS_MAX; epoch += 1) await bench.barrier(epoch);
    fill(bench, 77);
    await expect(bench.barrier(epoch)).rejects.toMatchObject({ code: "too-many-prepared" });
    await bench.commit(epoch - 1);
    expect(await seen(bench)).toEqual([1, 1]);
    await bench.barrier(epoch + 1);
    await bench.commit(epoch + 1);
    expect(await seen(bench)).toEqual([77, 77]);
  });

  it("stand as they were when a commit cannot be recorded, and it can be asked for again", async () => {
    const { storage, bench } = await committedOnce();
    fill(bench, 2);
    await bench.barrier(2);
    storage.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
    await expect(bench.commit(2)).rejects.toMatchObject({ code: "io-error" });
    expect(await seen(bench)).toEqual([1, 1]);
    await bench.commit(2);
    expect(await seen(bench)).toEqual([2, 2]);
  });

  it("keep the barrier apart from what came later, when its record reached the disk in spite of an error", async () => {
    const { storage, bench } = await committedOnce();
    fill(bench, 2);
    await bench.drained();
    storage.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
    await expect(bench.barrier(2)).rejects.toMatchObject({ code: "io-error" });
    fill(bench, 3);
    fill(bench, 3, 1);
    await bench.drained();
    // The process dies; the next one reads the record, which was in the page cache.
    const after = await bench.restart("process");
    expect(after.checkpoints.prepared).toEqual([2]);
    expect(await seen(after)).toEqual([1, 1]);
    await after.commit(2);
    expect(await seen(after)).toEqual([2, 2]);
    expect(await seen(after, 1)).toEqual([0, 0]);
  });

  it("keep the barrier apart from what came later, when an empty generation cannot be removed", async () => {
    const { storage, bench } = await committedOnce();
    // An original that could not be named leaves the files of a generation that holds nothing.
    storage.disk.faults.inject({
      op: "write",
      kind: "journal",
      error: "out-of-space",
      path: (path) => path.includes("vda"),
      skip: 1,
    });
    fill(bench, 9);
    await expect.poll(() => bench.failure?.code).toBe("overlay-full");
    storage.disk.faults.inject({ op: "remove", error: "io-error", times: 99 });
    await bench.begin(2);
    await bench.barrier(2);
    fill(bench, 3);
    await bench.drained();
    await bench.commit(2);
    expect(await seen(bench)).toEqual([1, 1]);
    storage.disk.faults.clear();
    const after = await bench.restart("power");
    expect(await seen(after)).toEqual([1, 1]);
  });

  it("are found again after a crash, with their order of numbers", async () => {
    const { bench } = await committedOnce();
    for (const epoch of [2, 5]) {
      fill(bench, epoch);
      await bench.barrier(epoch);
    }
    fill(bench, 6);
    const after = await bench.restart("power");
    expect(after.checkpoints.prepared).toEqual([2, 5]);
    expect(after.checkpoints.openEpoch).toBeGreaterThan(5);
    expect(await seen(after)).toEqual([1, 1]);
    await after.commit(5);
    expect(await seen(after)).toEqual([5, 5]);
  });

  it("free what a commit drops, while views of the old state are let out first", async () => {
    const { storage, bench } = await committedOnce();
    fill(bench, 2);
    await bench.barrier(2);
    await bench.commit(2);
    await bench.checkpoints.settled();
    for (const name of DISKS) expect(storage.list(`/state/disks/${name}`)).toEqual(["merge.reserve"]);
  });
});

describe("the hidden disk", () => {
  const SEEDS = Array.from({ length: 20 }, (_, seed) => seed);

  it("keeps an original of zeroes through a loss of power, though its file has no data", async () => {
    for (const seed of SEEDS) {
      const { bench } = await committedOnce(seed);
      fill(bench, 2, 1); // what lies there is zero
      await bench.drained();
      await bench.writer.makeStable();
      expect(await seen(await bench.restart("power"), 1)).toEqual([0, 0]);
    }
  });

  it("keeps an original through the death of the process before its fsync, and then a loss of power", async () => {
    for (const seed of SEEDS) {
      const { storage, bench } = await committedOnce(seed);
      // A journal is synced first for its header's sake, and then for the entry's.
      const synced = new Set<string>();
      storage.hold = (op, path) => {
        if (op !== "sync" || !path.endsWith(".journal")) return undefined;
        if (synced.has(path)) return NEVER;
        synced.add(path);
        return undefined;
      };
      fill(bench, 2);
      for (let count = 0; count < 10; count += 1) await turn();
      storage.crash("process");
      storage.hold = undefined;
      // What the dead process had named and not synced is found, and so not saved again.
      const second = ReplicaBench.open(storage);
      await second.begin(2);
      fill(second, 3);
      await second.drained();
      await second.writer.makeStable();
      expect(await seen(await second.restart("power"))).toEqual([1, 1]);
    }
  });

  it("removes generations of committed epochs at the start", async () => {
    const { storage, bench } = await committedOnce();
    fill(bench, 2);
    await bench.drained();
    const context = bench.disks[0]?.context ?? overlaysOn(storage, SIZE);
    const hidden = HiddenDisk.recover(context, { committed: 2, newestBarrier: 2, open: 3 });
    expect([hidden.isEmpty, storage.list(context.directory)]).toEqual([true, ["merge.reserve"]]);
  });
});
