import { describe, expect, it, vi } from "vitest";
import { MergeWork } from "../../../secondary/merge-work.ts";
import { PromotedDisk } from "../../../secondary/promoted-disk.ts";
import { recoverPromotion } from "../../../secondary/recover-promotion.ts";
import { FileImages } from "../../../shared/block/file-images.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { SeededRandom } from "../../sim/seeded-random.ts";
import { SimRandom } from "../../sim/sim-random.ts";
import { turn, type MemoryStorage } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, pattern, seededStorage } from "../../support/overlay-bench.ts";
import { imagePath, lostSyncsOf, makeSecondary, ReplicaBench, STATE_DIRECTORY } from "../../support/replica-bench.ts";
import { SilentLog } from "../../support/silent-log.ts";
import { present } from "../../support/present.ts";

const SIZE = 4 * CLUSTER_BYTES;
/** Longer than what a merge copies at once. */
const LONG = 2 * 1024 * 1024 + 3 * CLUSTER_BYTES;
const NO_FLAGS = { fua: false, mayUnmap: true } as const;

/** A disk whose clusters 0 and 2 were overwritten after the checkpoint, and that was then promoted. */
function promoted(): Promise<Promoted> {
  return promotedOf(SIZE, [0, 2]);
}

interface Promoted {
  readonly storage: MemoryStorage;
  readonly bench: ReplicaBench;
  readonly disk: PromotedDisk;
  readonly view: Buffer;
}

async function promotedOf(sizeBytes: number, clusters: Iterable<number>): Promise<Promoted> {
  const storage = seededStorage(1);
  await makeSecondary(storage, [{ name: "vda", content: Buffer.alloc(sizeBytes) }], "process");
  const bench = ReplicaBench.open(storage);
  const view = pattern(sizeBytes, 1);
  await bench.begin(1);
  bench.push([{ kind: "write", disk: 0, offset: 0, length: sizeBytes, payload: Buffer.from(view) }]);
  await bench.barrier(1);
  await bench.commit(1);
  for (const cluster of clusters) {
    const payload = pattern(CLUSTER_BYTES, 9);
    bench.push([{ kind: "write", disk: 0, offset: cluster * CLUSTER_BYTES, length: CLUSTER_BYTES, payload }]);
  }
  await bench.drained();
  await bench.writer.stop();
  await bench.state.update((record) => ({
    ...record,
    role: "Primary",
    prepared: [],
    merge: { epoch: 1, activeEpoch: 1 },
  }));
  const [replica] = bench.disks;
  const { context, stack } = present(replica);
  return { storage, bench, disk: new PromotedDisk(context, stack, bench.gate, 1), view };
}

async function readAll(disk: PromotedDisk): Promise<Buffer> {
  const bytes = Buffer.alloc(SIZE);
  await disk.read(bytes, 0);
  return bytes;
}

async function mergeAll(disk: PromotedDisk, { state }: Pick<ReplicaBench, "state">): Promise<void> {
  const work = new MergeWork({
    disks: [disk],
    state,
    log: new SilentLog(),
    speed: 0,
    merged: () => undefined,
  });
  while ((await work.step()) !== undefined) await turn();
}

/** What the next process on the same host takes up. */
function takenUp(storage: MemoryStorage): { state: StateFile; disk: PromotedDisk } {
  const state = present(StateFile.open(storage, STATE_DIRECTORY));
  const { disks } = recoverPromotion({
    storage,
    images: new FileImages(storage),
    random: new SimRandom(new SeededRandom(1)),
    stateDirectory: STATE_DIRECTORY,
    record: state.record,
    bootId: state.record.bootId,
    lostSyncs: lostSyncsOf(state),
  });
  return { state, disk: present(disks[0]).disk };
}

describe("a promoted disk", () => {
  it("shows the checkpoint at once, and counts what is left to merge", async () => {
    const { disk, bench, view } = await promoted();
    expect(await readAll(disk)).toEqual(view);
    expect([disk.mergeTotalBytes, disk.mergedBytes]).toEqual([2 * CLUSTER_BYTES, 0]);
    expect(await disk.mergeNext()).toBe(CLUSTER_BYTES);
    expect(disk.mergedBytes).toBe(CLUSTER_BYTES);
    await mergeAll(disk, bench);
    expect(disk.mergedBytes).toBe(2 * CLUSTER_BYTES);
    expect(await readAll(disk)).toEqual(view);
  });

  it("looks at no cluster of a range where nothing is left to merge", async () => {
    const { disk, bench, view } = await promoted();
    const covers = vi.spyOn(present(bench.disks[0]).stack, "covers");
    await disk.zero(CLUSTER_BYTES, CLUSTER_BYTES, NO_FLAGS);
    expect(covers).not.toHaveBeenCalled();
    await disk.zero(2 * CLUSTER_BYTES, 2 * CLUSTER_BYTES, NO_FLAGS);
    view.fill(0, CLUSTER_BYTES);
    expect(await readAll(disk)).toEqual(view);
    await mergeAll(disk, bench);
    expect(await readAll(disk)).toEqual(view);
  });

  it("takes a guest's flush that ends only after the overlays are gone", async () => {
    const { storage, bench, disk } = await promoted();
    await disk.write(Buffer.from("x"), 0, NO_FLAGS);
    let release = (): void => undefined;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    storage.hold = (op, path) => (op === "sync" && path.includes("active") ? released : undefined);
    const flushed = disk.flush();
    const merged = mergeAll(disk, bench);
    for (let count = 0; count < 20; count += 1) await turn();
    release();
    await flushed;
    await merged;
    expect((await readAll(disk))[0]).toBe("x".charCodeAt(0));
    expect(storage.list(`${STATE_DIRECTORY}/disks/vda`)).toEqual([]);
  });

  it("has a merged stretch durable in the base before the journal names it, with durability process as well", async () => {
    const { storage, disk } = await promoted();
    await disk.write(Buffer.from("x"), 0, NO_FLAGS);
    await disk.flush();
    const journal = `${STATE_DIRECTORY}/disks/vda/merge.1.journal`;
    const unsynced: (readonly [base: number, hasJournal: boolean])[] = [];
    storage.hold = (op, path) => {
      const isBase = path === imagePath("vda");
      if (op === "sync" && (isBase || path === journal)) {
        unsynced.push([storage.disk.file(imagePath("vda")).unsyncedCount, storage.disk.find(journal) !== undefined]);
      }
      return undefined;
    };
    await disk.mergeNext();
    expect(unsynced).toEqual([
      [1, false],
      [0, true],
    ]);
    expect(storage.disk.file(journal).unsyncedCount).toBe(0);
  });

  it("fails its guest's flushes, and those of later processes, once the overlays below cannot be made durable, until the merge", async () => {
    const { storage, disk, view } = await promoted();
    storage.disk.faults.inject({ op: "sync", kind: "generation-data", error: "io-error" });
    await expect(disk.flush()).rejects.toMatchObject({ code: "io-error" });
    await expect(disk.flush()).rejects.toMatchObject({ code: "io-error" });
    storage.crash("process");
    const { state, disk: again } = takenUp(storage);
    await expect(again.flush()).rejects.toMatchObject({ code: "io-error" });
    await mergeAll(again, { state });
    await again.flush();
    expect(await readAll(again)).toEqual(view);
  });

  it("takes the space that a flush needs from what was set aside for the merge", async () => {
    const { storage, disk, view } = await promoted();
    const reserve = `${STATE_DIRECTORY}/disks/vda/merge.reserve`;
    const before = storage.disk.readFile(reserve).length;
    await disk.write(Buffer.from("x"), 0, NO_FLAGS);
    view.write("x", 0);
    storage.disk.faults.inject({ op: "write", path: (path) => path.includes("active"), error: "out-of-space" });
    await disk.flush();
    expect(storage.disk.readFile(reserve).length).toBeLessThan(before);
    storage.crash("power");
    expect(await readAll(takenUp(storage).disk)).toEqual(view);
  });

  it("has that noted where the guest has written nothing, and the overlays' file system is full", async () => {
    const { storage, disk } = await promoted();
    storage.disk.capacityBytes = storage.disk.usedBytes;
    storage.disk.faults.inject({ op: "sync", kind: "generation-data", error: "io-error" });
    await expect(disk.flush()).rejects.toMatchObject({ code: "io-error" });
    storage.crash("process");
    const { record } = present(StateFile.open(storage, STATE_DIRECTORY));
    expect(record.lostSyncs).toEqual([{ disk: "vda", active: null }]);
  });

  it("takes writes while the overlays' file system is full, by merging what they touch", async () => {
    const { storage, bench, disk, view } = await promoted();
    storage.disk.capacityBytes = storage.disk.usedBytes;
    const bytes = pattern(1000, 3);
    await disk.write(bytes, 2 * CLUSTER_BYTES + 17, NO_FLAGS);
    bytes.copy(view, 2 * CLUSTER_BYTES + 17);
    expect(await readAll(disk)).toEqual(view);
    await disk.zero(2 * CLUSTER_BYTES, 20, NO_FLAGS);
    view.fill(0, 2 * CLUSTER_BYTES, 2 * CLUSTER_BYTES + 20);
    await mergeAll(disk, bench);
    expect(storage.disk.readFile(imagePath("vda"))).toEqual(view);
  });

  it("does so piece by piece where a guest trims much at once", async () => {
    const count = LONG / CLUSTER_BYTES;
    const { storage, disk } = await promotedOf(LONG, Array(count).keys());
    storage.disk.capacityBytes = storage.disk.usedBytes;
    let longest = 0;
    storage.disk.faults.intercept = ({ op, kind, length }) => {
      if (op === "write" && kind === "image") longest = Math.max(longest, length);
      return undefined;
    };
    await disk.zero(10, LONG - 20, NO_FLAGS);
    expect(longest).toBe(1024 * 1024);
    expect(disk.mergedBytes).toBe(LONG);
  });

  it("says so when even what was set aside for a merge is used up, and goes on when there is room", async () => {
    const { storage, bench, disk, view } = await promoted();
    storage.remove(`${STATE_DIRECTORY}/disks/vda/merge.reserve`);
    storage.disk.capacityBytes = storage.disk.usedBytes;
    await expect(disk.mergeNext()).rejects.toMatchObject({ code: "out-of-space" });
    expect(await readAll(disk)).toEqual(view);
    storage.disk.capacityBytes = Infinity;
    await mergeAll(disk, bench);
    expect(storage.disk.readFile(imagePath("vda"))).toEqual(view);
  });

  it("merges a stretch again after the merge failed there", async () => {
    for (const kind of ["image", "journal"] as const) {
      const { storage, bench, disk, view } = await promoted();
      storage.disk.faults.inject({ op: "write", kind, error: "io-error" });
      await expect(disk.mergeNext()).rejects.toMatchObject({ code: "io-error" });
      expect(await readAll(disk)).toEqual(view);
      await disk.write(Buffer.from("y"), 5, NO_FLAGS); // the range is not locked for ever
      view.write("y", 5);
      await mergeAll(disk, bench);
      expect(storage.disk.readFile(imagePath("vda"))).toEqual(view);
    }
  });

  it.each(["process", "power"] as const)(
    "keeps what is written, and flushed, to a stretch whose journal has not reached the medium, when it dies: %s",
    async (kind) => {
      const { storage, disk, view } = await promoted();
      await disk.flush();
      storage.disk.faults.inject({ op: "sync", path: (path) => path.includes("/merge."), error: "io-error" });
      await expect(disk.mergeNext()).rejects.toMatchObject({ code: "io-error" });
      expect(await readAll(disk)).toEqual(view);
      const bytes = pattern(1000, 3);
      await disk.write(bytes, 17, NO_FLAGS);
      bytes.copy(view, 17);
      await disk.flush();
      storage.crash(kind);
      const { state, disk: again } = takenUp(storage);
      expect(await readAll(again)).toEqual(view);
      await mergeAll(again, { state });
      expect(storage.disk.readFile(imagePath("vda"))).toEqual(view);
    },
  );

  it("says where holes are, and never calls what an overlay holds a hole", async () => {
    const { disk } = await promoted();
    await disk.zero(CLUSTER_BYTES, CLUSTER_BYTES, NO_FLAGS);
    const extents = await disk.extents(0, SIZE, 10);
    expect(extents.reduce((sum, extent) => sum + extent.length, 0)).toBe(SIZE);
    expect(extents[0]).toEqual({ length: CLUSTER_BYTES, hole: false, zero: false });
    expect(extents[1]).toEqual({ length: CLUSTER_BYTES, hole: true, zero: true });
  });
});
