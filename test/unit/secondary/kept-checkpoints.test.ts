import { describe, expect, it, vi } from "vitest";
import { GENERATIONS_MAX } from "../../../proto/limits.ts";
import { ActiveDisk } from "../../../secondary/active-disk.ts";
import type { CheckpointHold } from "../../../secondary/kept-checkpoints.ts";
import type { MemoryStorage } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, seededStorage } from "../../support/overlay-bench.ts";
import { present } from "../../support/present.ts";
import { makeSecondary, ReplicaBench } from "../../support/replica-bench.ts";

const CLUSTERS = 4;
const SIZE = CLUSTERS * CLUSTER_BYTES;
const DISKS = ["vda", "vdb"];
const LINEAGE = "f".repeat(32);

async function begun(retain: number): Promise<{ storage: MemoryStorage; bench: ReplicaBench }> {
  const storage = seededStorage(3, 0.3);
  await makeSecondary(
    storage,
    DISKS.map((name) => ({ name, content: Buffer.alloc(SIZE) })),
    "power",
  );
  const bench = ReplicaBench.open(storage, { retain });
  await bench.begin(1);
  return { storage, bench };
}

/** Closes `epoch` with clusters 0 and `epoch mod 4` of both disks full of its number. */
async function prepare(bench: ReplicaBench, epoch: number): Promise<void> {
  const payload = Buffer.alloc(CLUSTER_BYTES, epoch);
  for (const disk of DISKS.keys()) {
    for (const cluster of new Set([0, epoch % CLUSTERS])) {
      bench.push([{ kind: "write", disk, offset: cluster * CLUSTER_BYTES, length: CLUSTER_BYTES, payload }]);
    }
  }
  await bench.barrier(epoch);
}

async function commitThrough(bench: ReplicaBench, last: number, first = 1): Promise<void> {
  for (let epoch = first; epoch <= last; epoch += 1) {
    await prepare(bench, epoch);
    await bench.commit(epoch);
  }
}

/** What each cluster of a disk was filled with when `epoch` was closed. */
function contentAt(epoch: number): number[] {
  return Array.from({ length: CLUSTERS }, (_, cluster) => {
    if (cluster === 0) return epoch;
    for (let at = epoch; at > 0; at -= 1) if (at % CLUSTERS === cluster) return at;
    return 0;
  });
}

async function read(bench: ReplicaBench, hold: CheckpointHold, disk = 0): Promise<number[]> {
  const target = Buffer.alloc(SIZE);
  await present(bench.disks[disk]).viewOf(hold).read(target, 0);
  return Array.from({ length: CLUSTERS }, (_, cluster) => {
    const bytes = target.subarray(cluster * CLUSTER_BYTES, (cluster + 1) * CLUSTER_BYTES);
    expect(new Set(bytes).size).toBe(1);
    return present(bytes[0]);
  });
}

/** Rolls back under LINEAGE. Returns from which epoch on the peer's copy was to be tracked. */
async function rollBack(bench: ReplicaBench, epoch: number, isPeerTracked = true): Promise<number[]> {
  const tracked: number[] = [];
  const trackRolledBack = (from: number): Promise<boolean> => {
    tracked.push(from);
    return Promise.resolve(isPeerTracked);
  };
  await bench.checkpoints.rollBack(epoch, { lineage: LINEAGE, trackRolledBack });
  return tracked;
}

async function expectKept(bench: ReplicaBench, epochs: readonly number[]): Promise<void> {
  expect(bench.checkpoints.kept.retained).toEqual(epochs);
  for (const epoch of [...epochs, bench.checkpoints.committed.epoch]) {
    const hold = bench.checkpoints.kept.hold(epoch);
    for (const disk of DISKS.keys()) expect(await read(bench, hold, disk)).toEqual(contentAt(epoch));
    hold.release();
  }
}

describe("retained checkpoints", () => {
  it("are the last ones that were committed, each as it was, while later epochs are written", async () => {
    const { bench } = await begun(3);
    await commitThrough(bench, 7);
    await prepare(bench, 8);
    await prepare(bench, 9);
    await expectKept(bench, [4, 5, 6]);
    // The commit takes the earlier prepared one along.
    await bench.commit(9);
    await expectKept(bench, [6, 7, 8]);
    await expectStored(bench, [7, 8, 9]);
  });

  it.each(["process", "power"] as const)("survive the death of the %s", async (kind) => {
    const { bench } = await begun(2);
    await commitThrough(bench, 5);
    await prepare(bench, 6);
    const restarted = await bench.restart(kind);
    await expectKept(restarted, [3, 4]);
    await restarted.begin(7);
    await commitThrough(restarted, 7, 7);
    await expectKept(restarted, [5, 6]);
  });

  it("are none where none are asked for", async () => {
    const { bench } = await begun(0);
    await commitThrough(bench, 4);
    await expectKept(bench, []);
    await expectStored(bench, []);
  });

  it("stand when a withdrawn checkpoint lies between them", async () => {
    const { bench } = await begun(2);
    await commitThrough(bench, 3);
    await prepare(bench, 4);
    await bench.checkpoints.discard([4]);
    await commitThrough(bench, 5, 5);
    await expectKept(bench, [2, 3]);
  });

  it("go one by one, the oldest first, when room is needed", async () => {
    const { bench } = await begun(3);
    await commitThrough(bench, 5);
    const hold = bench.checkpoints.kept.hold(2);
    expect(await bench.checkpoints.makeRoom()).toBe(true);
    expect(() => bench.disks[0]?.viewOf(hold).read(Buffer.alloc(1), 0)).toThrow(
      expect.objectContaining({ code: "checkpoint-dropped" }) as Error,
    );
    await expectKept(bench, [3, 4]);
    await expectStored(bench, [4, 5]);
    expect(await bench.checkpoints.makeRoom()).toBe(true);
    expect(await bench.checkpoints.makeRoom()).toBe(true);
    expect(await bench.checkpoints.makeRoom()).toBe(false);
    expect(bench.retainedDropped).toEqual([2, 3, 4]);
    expect(await read(bench, bench.checkpoints.kept.hold(5))).toEqual(contentAt(5));
    await expectKept(await bench.restart("power"), []);
  });
});

describe("a checkpoint that a client holds", () => {
  it("stays as it is over commits, and goes when it is released", async () => {
    const { bench } = await begun(0);
    await commitThrough(bench, 2);
    const hold = bench.checkpoints.kept.hold(2);
    await commitThrough(bench, 6, 3);
    expect(await read(bench, hold)).toEqual(contentAt(2));
    await expectStored(bench, [3, 4, 5, 6]);
    hold.release();
    hold.release();
    await bench.checkpoints.settled();
    await expectStored(bench, []);
    expect(await read(bench, bench.checkpoints.kept.hold(6))).toEqual(contentAt(6));
  });

  it("costs a bounded number of generations, however many commits it outlasts", async () => {
    const { bench } = await begun(0);
    await commitThrough(bench, 2);
    const hold = bench.checkpoints.kept.hold(2);
    await commitThrough(bench, 5, 3);
    const later = bench.checkpoints.kept.hold(5);
    await commitThrough(bench, 2 + GENERATIONS_MAX * 2, 6);
    await bench.checkpoints.settled();
    expect(bench.disks[0]?.hidden.describeGenerations().length).toBeLessThanOrEqual(GENERATIONS_MAX);
    expect(await read(bench, hold)).toEqual(contentAt(2));
    expect(await read(bench, later)).toEqual(contentAt(5));
  });

  it("is refused where there is none", async () => {
    const { bench } = await begun(1);
    expect(bench.checkpoints.kept.has(0)).toBe(false);
    await commitThrough(bench, 3);
    expect([1, 2, 3, 4].map((epoch) => bench.checkpoints.kept.has(epoch))).toEqual([false, true, true, false]);
  });
});

describe("a rollback", () => {
  it("makes a retained checkpoint the committed one, and forgets the later ones", async () => {
    const { bench } = await begun(3);
    await commitThrough(bench, 5);
    await prepare(bench, 6);
    const later = bench.checkpoints.kept.hold(4);
    const earlier = bench.checkpoints.kept.hold(2);
    await bench.writer.stop();
    const { agentId, lineage: before } = bench.state.record;
    expect(await rollBack(bench, 3)).toEqual([3]);
    expect(bench.state.record).toMatchObject({ agentId, lineage: LINEAGE, committed: { epoch: 3 }, prepared: [] });
    expect(bench.state.record.history).toMatchObject({ origin: "rollback", rolledBackFrom: 5, ancestors: [before] });
    expect((await bench.readView(0)).subarray(0, 1)).toEqual(Buffer.from([3]));
    expect(later.isDropped).toBe(true);
    expect(await read(bench, earlier)).toEqual(contentAt(2));
    await expectKept(bench, [2]);
    await expectKept(await bench.restart("power"), [2]);
  });

  it("counts what it has rolled back among what a failover loses", async () => {
    const { bench } = await begun(2);
    const volumes: { writes: number; bytes: number }[] = [];
    for (let epoch = 1; epoch <= 6; epoch += 1) {
      await prepare(bench, epoch);
      volumes.push(bench.checkpoints.volumeSinceCommit());
      if (epoch < 6) await bench.commit(epoch);
    }
    await bench.writer.stop();
    const lost = volumes.slice(3);
    const sum = (key: "writes" | "bytes"): number => lost.reduce((total, volume) => total + volume[key], 0);
    expect(lost.every(({ bytes }) => bytes > 0)).toBe(true);
    await rollBack(bench, 3);
    expect(bench.checkpoints.volumeSinceCommit()).toEqual({
      writes: sum("writes"),
      bytes: sum("bytes"),
      complete: false,
    });
    await bench.begin(8);
    await prepare(bench, 8);
    await bench.commit(8);
    expect(bench.checkpoints.volumeSinceCommit()).toMatchObject({ writes: 0, bytes: 0 });
    await bench.checkpoints.giveUp();
    expect(bench.checkpoints.volumeSinceCommit()).toMatchObject({ writes: 0, bytes: 0 });
  });

  it("holds while the next session overwrites what was rolled back, until its commit", async () => {
    const { bench } = await begun(2);
    await commitThrough(bench, 5);
    await rollBack(bench, 3);
    await bench.begin(8);
    await prepare(bench, 8);
    expect(await read(bench, bench.checkpoints.kept.hold(3))).toEqual(contentAt(3));
    await bench.commit(8);
    expect((await bench.readView(0)).subarray(0, 1)).toEqual(Buffer.from([8]));
    await expectRetained(bench, 3);
  });

  it("a second time is one from the newest checkpoint that there was", async () => {
    const { bench } = await begun(3);
    await commitThrough(bench, 5);
    await rollBack(bench, 4);
    const { lineage, history } = bench.state.record;
    await bench.checkpoints.rollBack(3, { lineage: "e".repeat(32), trackRolledBack: () => Promise.resolve(true) });
    const again = bench.state.record.history;
    expect(again).toMatchObject({ rolledBackFrom: 5, ancestors: [lineage, ...history.ancestors] });
  });

  it("leaves no pairing where nothing is known of the peer's copy", async () => {
    for (const isPeerTracked of [true, false]) {
      const { bench } = await begun(2);
      await commitThrough(bench, 3);
      const pairing = { peer: "a".repeat(32), sessions: ["s"] };
      await bench.state.update((record) => ({ ...record, pairing }));
      await rollBack(bench, 2, isPeerTracked);
      expect(bench.state.record.pairing).toEqual(isPeerTracked ? pairing : null);
    }
  });

  it("starts with an empty active disk", async () => {
    const { bench } = await begun(2);
    await commitThrough(bench, 2);
    await present(bench.disks[0]).view.write(Buffer.alloc(CLUSTER_BYTES, 0xaa), 0, { fua: true });
    await commitThrough(bench, 3, 3);
    await bench.checkpoints.settled();
    // What could not be removed when the checkpoint was left.
    const stale = new ActiveDisk(present(bench.disks[0]).context, 2);
    await stale.write(Buffer.alloc(CLUSTER_BYTES, 0xbb), 0, () => undefined);
    await stale.flush();
    stale.close();
    await rollBack(bench, 2);
    expect((await bench.readView(0)).subarray(0, 1)).toEqual(Buffer.from([2]));
    const restarted = await bench.restart("power");
    expect((await restarted.readView(0)).subarray(0, 1)).toEqual(Buffer.from([2]));
  });

  it("to what is not retained is refused, and to the committed one changes nothing", async () => {
    const { bench } = await begun(1);
    await commitThrough(bench, 4);
    const { record } = bench.state;
    await expect(rollBack(bench, 2)).rejects.toMatchObject({ code: "epoch-unknown" });
    expect(await rollBack(bench, 4)).toEqual([]);
    expect(bench.state.record).toEqual(record);
  });
});

describe("a checkpoint that is given up", () => {
  it("leaves nothing to return to, no overlays, and no copy-before-write until the next barrier", async () => {
    const { bench } = await begun(2);
    await commitThrough(bench, 4);
    await prepare(bench, 5);
    const hold = bench.checkpoints.kept.hold(3);
    expect(await bench.checkpoints.giveUp()).toBe(4);
    expect(bench.state.record).toMatchObject({ committed: { epoch: 0 }, prepared: [], retained: [] });
    expect(hold.isDropped).toBe(true);
    await expectStored(bench, []);
    expect(bench.usage().totalBytes).toBe(0);
    expect(() => bench.disks[0]?.view.read(Buffer.alloc(1), 0)).toThrow(
      expect.objectContaining({ code: "no-checkpoint" }) as Error,
    );
    bench.push([{ kind: "write", disk: 0, offset: 0, length: 1, payload: Buffer.from("x") }]);
    await bench.drained();
    await expectStored(bench, []);
    await prepare(bench, 6);
    await prepare(bench, 7);
    await expectStored(bench, [7]);
    await bench.commit(6);
    expect((await bench.readView(0)).subarray(0, 1)).toEqual(Buffer.from([6]));
    expect(await bench.checkpoints.giveUp()).toBe(6);
    expect(await bench.checkpoints.giveUp()).toBe(0);
  });
});

describe("the overlay limit", () => {
  it("asks for a checkpoint once at its mark, and again only after a commit", async () => {
    const { bench, clusters } = await limited({ retain: 0, clusters: 40 });
    await clusters(29);
    expect(bench.wanted).toBe(0);
    await clusters(34);
    expect(bench.wanted).toBe(1);
    await bench.barrier(2);
    await bench.commit(2);
    await clusters(34);
    expect(bench.wanted).toBe(2);
  });

  it("stops the stream when it is reached, and nothing of the checkpoint is lost", async () => {
    const { bench, clusters } = await limited({ retain: 0, clusters: 20 });
    await clusters(64, false);
    await vi.waitFor(() => expect(bench.failure?.code).toBe("overlay-full"));
    expect(bench.usage().totalBytes).toBeLessThanOrEqual(20 * CLUSTER_BYTES + CLUSTER_BYTES);
    expect(new Set(await bench.readView(0))).toEqual(new Set([1]));
  });

  it("takes retained checkpoints first", async () => {
    const { bench, clusters } = await limited({ retain: 3, clusters: 40 });
    for (const epoch of [2, 3, 4]) {
      await clusters(12);
      await bench.barrier(epoch);
      await bench.commit(epoch);
    }
    expect(bench.checkpoints.kept.retained).toEqual([1, 2, 3]);
    await clusters(24);
    expect(bench.failure).toBeUndefined();
    expect(bench.retainedDropped).toEqual([1, 2]);
    expect(new Set((await bench.readView(0)).subarray(0, CLUSTER_BYTES))).toEqual(new Set([12]));
    expect(bench.wanted).toBe(0);
  });

  /** A secondary with one disk of 64 clusters that are full of ones in its committed checkpoint. */
  async function limited(options: {
    readonly retain: number;
    readonly clusters: number;
  }): Promise<{ bench: ReplicaBench; clusters: (count: number, drained?: boolean) => Promise<void> }> {
    const storage = seededStorage(5);
    await makeSecondary(storage, [{ name: "vda", content: Buffer.alloc(64 * CLUSTER_BYTES, 1) }], "process");
    const bench = ReplicaBench.open(storage, {
      retain: options.retain,
      // Room for the journals beside the clusters.
      limitBytes: options.clusters * CLUSTER_BYTES,
    });
    await bench.begin(1);
    await bench.barrier(1);
    await bench.commit(1);
    return {
      bench,
      clusters: async (count, drained = true) => {
        for (let cluster = 0; cluster < count; cluster += 1) {
          const payload = Buffer.alloc(CLUSTER_BYTES, count);
          bench.push([{ kind: "write", disk: 0, offset: cluster * CLUSTER_BYTES, length: CLUSTER_BYTES, payload }]);
        }
        if (drained) await bench.drained();
      },
    };
  }
});

async function expectRetained(bench: ReplicaBench, epoch: number): Promise<void> {
  const hold = bench.checkpoints.kept.hold(epoch);
  expect(await read(bench, hold)).toEqual(contentAt(epoch));
}

/** The epochs of which each disk holds originals, in memory and on disk. */
async function expectStored(bench: ReplicaBench, epochs: readonly number[]): Promise<void> {
  await bench.checkpoints.settled();
  for (const { hidden, context } of bench.disks) {
    expect(hidden.describeGenerations().map(({ epoch }) => epoch)).toEqual(epochs);
    const files = context.storage.list(context.directory).filter((name) => /^hidden\.\d+\.data$/.test(name));
    expect(files.map((name) => Number(name.split(".")[1])).sort((left, right) => left - right)).toEqual(epochs);
  }
}
