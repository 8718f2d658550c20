import { describe, expect, it } from "vitest";
import { GuestPolicy } from "../../../primary/guest-policy.ts";
import { LineageKeeper } from "../../../primary/lineage-keeper.ts";
import { SharedDisks } from "../../../primary/shared-disks.ts";
import { clusterGeometry } from "../../../shared/block/cluster-geometry.ts";
import { SharedMark } from "../../../shared/journal/shared-mark.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { SeededRandom } from "../../sim/seeded-random.ts";
import { SimRandom } from "../../sim/sim-random.ts";
import { MemoryImage } from "../../support/memory-image.ts";
import { seededStorage } from "../../support/overlay-bench.ts";
import { SilentLog } from "../../support/silent-log.ts";
import { stateRecord } from "../../support/state-records.ts";

const CLUSTER = 4096;
const FIRST = "f".repeat(32);
const PLAIN = { fua: false } as const;

async function turns(): Promise<void> {
  for (let count = 0; count < 20; count += 1) {
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
}

function openPromise() {
  let [resolve, reject]: [() => void, (reason: ColobusError) => void] = [() => undefined, () => undefined];
  const promise = new Promise<void>((...settle) => {
    [resolve, reject] = settle;
  });
  return { promise, resolve: () => resolve(), reject: (reason: ColobusError) => reject(reason) };
}

/** A primary whose secondary is lost, with a place for the mark, and guests that may go on alone. */
async function alone() {
  const storage = seededStorage(1);
  for (const directory of ["/state", "/shared"]) storage.disk.addDirectory(directory);
  const state = await StateFile.create(
    storage,
    "/state",
    stateRecord({
      mode: "shared",
      role: "Primary",
      lineage: FIRST,
      history: { origin: "created", shared: true, ancestors: [], heard: [] },
    }),
  );
  const log = new SilentLog();
  const emit = (): void => undefined;
  const guests = new GuestPolicy({
    state,
    mayHaveHadPeer: false,
    mayBeSuperseded: false,
    splitBrain: () => undefined,
    log,
    emit,
  });
  guests.gate.open();
  const mark = new SharedMark(storage, "/shared/mark", () => state.record.agentId);
  const image = new MemoryImage(4 * CLUSTER);
  const arbiter = openPromise();
  const told: (string | null)[] = [];
  const lineages = new LineageKeeper({
    state,
    random: new SimRandom(new SeededRandom(1)),
    emit,
    assertServing: () => undefined,
    streaming: () => new Map(),
    keeper: () => undefined,
  });
  const { children } = new SharedDisks({
    state,
    guests,
    children: [{ child: image }],
    geometries: [clusterGeometry(4 * CLUSTER, CLUSTER)],
    places: () => [],
    lineages: () => lineages,
    committedBy: () => 0,
    committed: () => 0,
    overwritten: () => undefined,
    unflushedThrough: 0,
    sharedMark: mark,
    onPeerLoss: "continue",
    mayGoAlone: () => arbiter.promise,
    wentAlone: () => told.push(state.record.lineage),
    log,
  });
  const [disk] = children;
  if (disk === undefined) throw new Error("there is one disk");
  return { arbiter, disk, guests, image, mark, state, told };
}

function contentOf(image: MemoryImage): number | undefined {
  const byte = Buffer.alloc(1);
  void image.read(byte, 0);
  return byte[0];
}

describe("guests of a shared disk whose secondary is lost", () => {
  it("go on when the arbiter has been told, the mark says so, and a lineage has begun", async () => {
    const { arbiter, disk, image, mark, state, told } = await alone();
    const writing = disk.write(Buffer.alloc(CLUSTER, 1), 0, PLAIN);
    await turns();
    expect(await mark.read()).toBeUndefined();
    expect(state.record.lineage).toBe(FIRST);
    expect(contentOf(image)).toBe(0);
    arbiter.resolve();
    await writing;
    expect(await mark.read()).toMatchObject({ state: "unprotected" });
    expect(state.record.lineage).not.toBe(FIRST);
    expect(told).toEqual([state.record.lineage]);
    expect(contentOf(image)).toBe(1);
  });

  it("wait for the secondary where this side may not serve", async () => {
    const { arbiter, disk, guests, mark, told } = await alone();
    void Promise.resolve(disk.write(Buffer.alloc(CLUSTER, 1), 0, PLAIN)).catch(() => undefined); // it waits for ever
    arbiter.reject(new ColobusError("lease-refused", "another side serves"));
    await turns();
    expect(guests.gate.state).toBe("frozen");
    expect(await mark.read()).toBeUndefined();
    expect(told).toEqual([]);
  });
});
