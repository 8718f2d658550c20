import { describe, expect, it } from "vitest";
import { MergeWork } from "../../../secondary/merge-work.ts";
import { SecondaryRole } from "../../../secondary/secondary-role.ts";
import { FileImages } from "../../../shared/block/file-images.ts";
import { CheckpointAges } from "../../../shared/replication/checkpoint-ages.ts";
import { PeerTracking } from "../../../shared/replication/peer-tracking.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { SeededRandom } from "../../sim/seeded-random.ts";
import { SimRandom } from "../../sim/sim-random.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { turn, type MemoryStorage } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, pattern, seededStorage } from "../../support/overlay-bench.ts";
import {
  imagePath,
  lostSyncsOf,
  makeSecondary,
  trackingOptions,
  ReplicaBench,
  STATE_DIRECTORY,
} from "../../support/replica-bench.ts";
import { SilentLog } from "../../support/silent-log.ts";
import { vmStatesOf } from "../../support/vm-states-of.ts";
import { present } from "../../support/present.ts";

const SIZE = 4 * CLUSTER_BYTES;
const NO_FLAGS = { fua: false, mayUnmap: true } as const;

interface Bench {
  readonly storage: MemoryStorage;
  readonly state: StateFile;
  readonly role: SecondaryRole;
  readonly view: Buffer;
}

/** A secondary that was started again after its first commit. */
async function secondary(): Promise<Bench> {
  const storage = seededStorage(1);
  await makeSecondary(storage, [{ name: "vda", content: Buffer.alloc(SIZE) }], "process");
  const earlier = ReplicaBench.open(storage);
  const view = pattern(SIZE, 1);
  await earlier.begin(1);
  earlier.push([{ kind: "write", disk: 0, offset: 0, length: SIZE, payload: Buffer.from(view) }]);
  await earlier.barrier(1);
  await earlier.commit(1);
  earlier.push([{ kind: "write", disk: 0, offset: 0, length: 10, payload: pattern(10, 5) }]);
  await earlier.drained();
  await earlier.writer.stop();
  storage.crash("process");
  const state = present(StateFile.open(storage, STATE_DIRECTORY));
  const clock = new ManualClock();
  const role = new SecondaryRole({
    storage,
    images: new FileImages(storage),
    sharedMark: undefined,
    clock,
    ages: new CheckpointAges(clock, state.record),
    random: new SimRandom(new SeededRandom(1)),
    log: new SilentLog(),
    emit: () => undefined,
    state,
    stateDirectory: STATE_DIRECTORY,
    vmStates: vmStatesOf(storage),
    access: "read-write",
    token: undefined,
    tracking: PeerTracking.open(trackingOptions(storage, state)),
    trackingOptions: () => trackingOptions(storage, state),
    site: () => ({ host: "beta", bootId: "boot-1", disks: [] }),
    takeOver: () => undefined,
    judged: () => undefined,
    peerTimeoutMs: 1000,
    windowBytes: 1_048_576,
    bootId: "boot-1",
    retain: 0,
    maxCheckpointAgeMs: () => undefined,
    overlayLimitBytes: undefined,
    bufferMemoryBytes: 0,
    mayHaveLostWrites: false,
    lostSyncs: lostSyncsOf(state),
    disksCreated: () => undefined,
  });
  return { storage, state, role, view };
}

async function mergedImage(
  { storage, state }: Bench,
  promotion: Awaited<ReturnType<SecondaryRole["promote"]>>,
): Promise<Buffer> {
  const work = new MergeWork({
    disks: promotion.disks.map(({ disk }) => disk),
    state,
    log: new SilentLog(),
    speed: 0,
    merged: () => undefined,
  });
  while ((await work.step()) !== undefined) await turn();
  return storage.disk.readFile(imagePath("vda"));
}

describe("a promotion", () => {
  it("loses no write of the secondary's VM that arrives while it is recorded", async () => {
    const bench = await secondary();
    const { storage, role, view } = bench;
    const [disk] = role.disks;
    if (disk === undefined) throw new Error("there is a disk");
    let release = (): void => undefined;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    storage.hold = (op, path) => (op === "sync" && path.endsWith("/state") ? released : undefined);
    const promoting = role.promote({ discardActive: false, lineage: "2".repeat(32) });
    for (let count = 0; count < 5; count += 1) await turn();

    const bytes = pattern(100, 7);
    const target = Buffer.alloc(100);
    const writing = disk.view.write(bytes, 2 * CLUSTER_BYTES + 3, NO_FLAGS);
    const zeroing = disk.view.zero(3 * CLUSTER_BYTES, 50, NO_FLAGS);
    const reading = disk.view.read(target, 100);
    bytes.copy(view, 2 * CLUSTER_BYTES + 3);
    view.fill(0, 3 * CLUSTER_BYTES, 3 * CLUSTER_BYTES + 50);
    release();
    const promotion = await promoting;
    promotion.letGo(promotion.disks.map(({ name, disk }) => ({ name, device: disk })));
    await Promise.all([writing, zeroing, reading, disk.view.flush()]);
    expect(target).toEqual(view.subarray(100, 200));
    // A client that has not heard of the promotion goes on with what it has open.
    await disk.view.write(pattern(10, 8), 20, NO_FLAGS);
    pattern(10, 8).copy(view, 20);

    expect(await mergedImage(bench, promotion)).toEqual(view);
    const after = Buffer.alloc(SIZE);
    await disk.view.read(after, 0);
    expect(after).toEqual(view);
  });

  it("can leave out the secondary VM's own writes", async () => {
    const bench = await secondary();
    await bench.role.disks[0]?.view.write(pattern(100, 7), 50, NO_FLAGS);
    const promotion = await bench.role.promote({ discardActive: true, lineage: "2".repeat(32) });
    promotion.letGo([]);
    expect(await mergedImage(bench, promotion)).toEqual(bench.view);
  });

  it("that cannot be recorded leaves a secondary, which can be promoted later", async () => {
    const bench = await secondary();
    bench.storage.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
    const request = { discardActive: false, lineage: "2".repeat(32) };
    await expect(bench.role.promote(request)).rejects.toMatchObject({ code: "io-error" });
    expect(bench.state.record.role).toBe("Secondary");
    const target = Buffer.alloc(SIZE);
    await bench.role.disks[0]?.view.read(target, 0);
    expect(target).toEqual(bench.view);
    const promotion = await bench.role.promote(request);
    promotion.letGo([]);
    expect(await mergedImage(bench, promotion)).toEqual(bench.view);
  });
});

describe("a secondary without a session", () => {
  it("gives its checkpoint up once, and then has nothing to fail over to", async () => {
    const { role, state } = await secondary();
    expect(await role.operations.giveUp()).toBe(1);
    expect(await role.operations.giveUp()).toBe(0);
    expect(state.record.committed.epoch).toBe(0);
    expect(role.describeRecoverable()).toBeNull();
    expect(role.disks[0]?.hidden.allocatedBytes).toBe(0);
    expect(() => role.assertPromotable(false)).toThrow(expect.objectContaining({ code: "no-checkpoint" }) as Error);
  });

  it("is not promoted, not by force either, while a disk of its has no image yet", async () => {
    const { role, state } = await secondary();
    expect(() => role.assertPromotable(true)).not.toThrow();
    const unmade = state.record.disks.map((disk) => ({ ...disk, sizeBytes: null }));
    await state.update((record) => ({ ...record, disks: unmade }));
    expect(() => role.assertPromotable(true)).toThrow(expect.objectContaining({ code: "image-missing" }) as Error);
  });

  it("opens no checkpoint that it does not keep", async () => {
    const { role } = await secondary();
    expect(role.operations.tryHold(2)).toBeUndefined();
    const hold = role.operations.tryHold("committed");
    expect(hold?.epoch).toBe(1);
    await role.operations.giveUp();
    expect(hold?.isDropped).toBe(true);
    expect(role.operations.tryHold("committed")).toBeUndefined();
  });
});
