import { describe, expect, it } from "vitest";
import { ClusterBitmap } from "../../../../shared/block/cluster-bitmap.ts";
import { StateFile } from "../../../../shared/journal/state-file.ts";
import { DirtyTracker } from "../../../../shared/replication/dirty-tracker.ts";
import { PeerTracking, type TrackingSource } from "../../../../shared/replication/peer-tracking.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { turn, type MemoryStorage } from "../../../support/memory-storage.ts";
import { present } from "../../../support/present.ts";
import { trackingOptions, STATE_DIRECTORY } from "../../../support/replica-bench.ts";
import { seededStorage } from "../../../support/overlay-bench.ts";
import { stateRecord } from "../../../support/state-records.ts";

const SIZE = 40 * 4096;
const FORMER = "f".repeat(32);
const NEXT = "e".repeat(32);

async function newTracking(): Promise<{ storage: MemoryStorage; state: StateFile; found: PeerTracking }> {
  const storage = seededStorage(1);
  storage.disk.addDirectory(STATE_DIRECTORY);
  for (const name of ["vda", "vdb"]) storage.disk.addDirectory(`${STATE_DIRECTORY}/disks/${name}`);
  const disks = ["vda", "vdb"].map((name) => ({ name, image: `/images/${name}`, sizeBytes: SIZE, cleanMark: null }));
  const record = stateRecord({ role: "Primary", durability: "power", disks });
  const state = await StateFile.create(storage, STATE_DIRECTORY, record);
  return { storage, state, found: PeerTracking.open(trackingOptions(storage, state)) };
}

async function tracking(): Promise<{ storage: MemoryStorage; state: StateFile; tracking: PeerTracking }> {
  const { storage, state, found } = await newTracking();
  await found.begin(FORMER, "full");
  return { storage, state, tracking: found };
}

const CLUSTERS = SIZE / 4096;
const IDLE: TrackingSource = {
  inFlight: () => new ClusterBitmap(),
  isBusy: () => false,
  flush: () => Promise.resolve(),
};
const directoryOf = (name: string): string => `${STATE_DIRECTORY}/disks/${name}`;
const inBitmapOf =
  (name: string) =>
  (path: string): boolean =>
    path.startsWith(`${directoryOf(name)}/dirty.`);

/** What the next process finds after a death of this one. */
function reopened(storage: MemoryStorage): { state: StateFile; tracking: PeerTracking } {
  storage.crash("process");
  storage.disk.faults.clear();
  const state = present(StateFile.open(storage, STATE_DIRECTORY));
  return { state, tracking: PeerTracking.open(trackingOptions(storage, state)) };
}

/** As `tracking`, where an earlier process has left the peer's copy, and this side's, equal. */
async function equalCopies(): Promise<{ storage: MemoryStorage; state: StateFile; tracking: PeerTracking }> {
  const { storage, tracking: former } = await tracking();
  former.start(IDLE);
  for (const disk of [0, 1]) former.dirty(disk).removeClusters(0, CLUSTERS);
  await former.close();
  const found = reopened(storage);
  expect([found.tracking.peer, found.tracking.isClean]).toEqual([FORMER, true]);
  return { storage, ...found };
}

describe("bitmaps that begin with what is known to differ", () => {
  const of = (...clusters: readonly number[]): ClusterBitmap => new ClusterBitmap(clusters);
  const found = ({ tracking: read }: { tracking: PeerTracking }): number[][] =>
    [0, 1].map((disk) => [...read.dirty(disk).dirtyClusters()]);

  it("name that and no more, also for the next process", async () => {
    const { storage, state, found: fresh } = await newTracking();
    await fresh.begin(FORMER, [of(3, 4), of()]);
    expect(state.record.tracks).toBe(FORMER);
    expect(found({ tracking: fresh })).toEqual([[3, 4], []]);
    expect(found(reopened(storage))).toEqual([[3, 4], []]);
  });

  it("name that of disks as well that were made later, and have grown since", async () => {
    const { storage, state } = await newTracking();
    await state.update((record) => ({ ...record, role: "Secondary" }));
    const options = trackingOptions(storage, state);
    const fresh = PeerTracking.open({ ...options, disks: options.disks.slice(1) });
    fresh.made(options.disks);
    fresh.grow(0, SIZE + 4096);
    await fresh.begin(FORMER, [of(CLUSTERS), of(2)]);
    await state.update((record) => ({
      ...record,
      disks: record.disks.map((disk) => (disk.name === "vda" ? { ...disk, sizeBytes: SIZE + 4096 } : disk)),
    }));
    expect(found(reopened(storage))).toEqual([[CLUSTERS], [2]]);
  });

  it("add it to what they name already", async () => {
    const { storage, tracking: equal } = await equalCopies();
    await equal.begin(FORMER, [of(1), of(7)]);
    await equal.begin(FORMER, [of(2), of()]);
    expect(found({ tracking: equal })).toEqual([[1, 2], [7]]);
    expect(found(reopened(storage))).toEqual([[1, 2], [7]]);
  });
});

describe("what is known of a peer's copy", () => {
  it("is all of the next one's that it lacks, however early that one comes", async () => {
    const { state, tracking: found } = await tracking();
    const forgetting = found.forget();
    await Promise.all([forgetting, found.begin(NEXT, "full")]);
    expect([found.peer, state.record.tracks, found.bytes]).toEqual([NEXT, NEXT, 2 * SIZE]);
    await found.close();
  });

  it("is nothing once it is forgotten, however late its own beginning ends", async () => {
    const { state, tracking: found } = await tracking();
    const beginning = found.begin(FORMER, "full");
    await Promise.all([beginning, found.forget()]);
    expect([found.peer, state.record.tracks, found.isClean]).toEqual([null, null, true]);
    await found.close();
  });

  it.each<readonly [string, (found: PeerTracking) => Promise<void> | void, number]>([
    ["what was written, where nothing was sent", () => undefined, 4096],
    ["the same, where a peer has not come to a session", (found) => found.begin(FORMER, "assumed"), 4096],
    ["everything, where another one was to get everything", (found) => found.begin(FORMER, "full"), 2 * SIZE],
    ["everything, where something was sent", (found) => found.paired(), 2 * SIZE],
    ["everything, where another one was forgotten", (found) => found.forget(), 2 * SIZE],
  ])("is of a copy that an operator vouches for: %s", async (_, before, bytes) => {
    const { found } = await newTracking();
    found.dirty(0).addClusters(3, 4);
    await before(found);
    await found.begin(NEXT, "assumed");
    expect([found.peer, found.bytes]).toEqual([NEXT, bytes]);
    await found.close();
  });

  it("is nothing for a later process where it is given up while it begins anew", async () => {
    const { storage, state, tracking: found } = await equalCopies();
    let release = (): void => undefined;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    storage.hold = (op, path) => (op === "sync" && inBitmapOf("vda")(path) ? released : undefined);
    const beginning = found.begin(NEXT, "full");
    await turn();
    storage.disk.faults.inject({ error: "out-of-space", op: "write", path: inBitmapOf("vda") });
    const marked = found.mark(0, 0, 1);
    for (let count = 0; count < 10; count += 1) await turn();
    release();
    await Promise.allSettled([beginning, marked]);
    expect([found.bytes, state.record.tracks]).toEqual([2 * SIZE, null]);
    expect(reopened(storage).tracking.peer).toBeNull();
  });

  it("is made durable again by a session that begins, and not by settling beside it", async () => {
    const { storage, state, tracking: former } = await equalCopies();
    await former.close();
    const clock = new ManualClock();
    const found = PeerTracking.open({ ...trackingOptions(storage, state), clock });
    found.start(IDLE);
    storage.disk.faults.inject({ error: "out-of-space", op: "write", path: inBitmapOf("vda") });
    await found.mark(0, 0, 1);
    found.dirty(1).addClusters(3, 4);
    const beginning = found.begin(NEXT, "assumed");
    await turn();
    clock.advance(5_000);
    await beginning;
    for (let count = 0; count < 20; count += 1) await turn();
    const files = ["vda", "vdb"].flatMap((name) => storage.openPaths.filter(inBitmapOf(name)));
    expect(files).toHaveLength(2);
    const { tracking: left } = reopened(storage);
    expect([left.peer, left.dirty(1).dirtyClusters().has(3)]).toEqual([NEXT, true]);
  });

  it("is nothing any more before a disk is changed whose bitmap nobody keeps, since another one's cannot be read", async () => {
    const { storage, state } = await equalCopies();
    await state.close();
    DirtyTracker.remove({ storage, directory: directoryOf("vda") });
    const { state: record, tracking: found } = reopened(storage);
    expect([found.peer, record.record.tracks]).toEqual([null, FORMER]);
    await found.mark(1, 0, 1);
    found.dirty(1).addClusters(0, 1);
    expect(record.record.tracks).toBeNull();
    storage.disk.faults.inject({ error: "out-of-space", op: "write", path: inBitmapOf("vdb") });
    await expect(found.begin(FORMER, "full")).rejects.toMatchObject({ code: "out-of-space" });
    expect(reopened(storage).tracking.peer).toBeNull();
  });

  it("is nothing before new bitmaps take the place of some that cannot be read", async () => {
    const { storage, state } = await equalCopies();
    await state.close();
    DirtyTracker.remove({ storage, directory: directoryOf("vda") });
    const { tracking: found } = reopened(storage);
    storage.disk.faults.inject({ error: "out-of-space", op: "write", path: inBitmapOf("vdb") });
    await expect(found.begin(FORMER, "full")).rejects.toMatchObject({ code: "out-of-space" });
    expect(reopened(storage).tracking.peer).toBeNull();
    expect(storage.openPaths).toEqual([`${STATE_DIRECTORY}/state`]);
  });

  it("cannot be named where that nobody is cannot be recorded: the change waits for that", async () => {
    const { storage, state } = await equalCopies();
    await state.close();
    DirtyTracker.remove({ storage, directory: directoryOf("vda") });
    const { state: record, tracking: found } = reopened(storage);
    storage.disk.faults.inject({ error: "io-error", op: "sync", path: `${STATE_DIRECTORY}/state` });
    await expect(found.mark(1, 0, 1)).rejects.toMatchObject({ code: "io-error" });
    await found.mark(1, 0, 1);
    expect(record.record.tracks).toBeNull();
    expect(found.mark(1, 0, 1)).toBeUndefined();
  });

  it("stays when that it is forgotten cannot be recorded", async () => {
    const { storage, state, tracking: found } = await tracking();
    storage.disk.faults.inject({ error: "io-error", op: "sync", path: `${STATE_DIRECTORY}/state` });
    await expect(found.forget()).rejects.toMatchObject({ code: "io-error" });
    expect([found.peer, state.record.tracks, found.bytes]).toEqual([FORMER, FORMER, 2 * SIZE]);
    await found.close();
  });
});
