import { describe, expect, it } from "vitest";
import { PREPARED_EPOCHS_MAX } from "../../proto/limits.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import { StateFile } from "../../shared/journal/state-file.ts";
import type { CrashKind } from "./simulated-crash.ts";
import { SimWorld } from "./world.ts";

const RECORD: StateRecord = {
  agentId: "0".repeat(32),
  vm: "vm",
  mode: "colo",
  role: "Secondary",
  durability: "power",
  clusterBytes: 4096,
  lineage: null,
  history: { origin: "created", shared: false, ancestors: [], heard: [] },
  pairing: null,
  tracks: null,
  outdated: false,
  discardsOwn: false,
  handOver: null,
  peers: [],
  disks: [{ name: "vda", image: "/vda.img", sizeBytes: null, cleanMark: null }],
  epochReserved: 0,
  unflushedThrough: 0,
  committed: { epoch: 0, atMs: 0 },
  prepared: [],
  retained: [],
  merge: null,
  lostSyncs: [],
  replaysOwed: [],
  mirrors: [],
  bootId: "boot",
};
const UPDATES = 5;

/** Two lives of a state file, the first of which dies at its `dyingCall`-th storage call; false when it outlived that. */
async function liveAndDie(seed: number, dyingCall: number, kind: CrashKind): Promise<boolean> {
  const world = new SimWorld(seed);
  const host = world.host("b");
  host.disk.addDirectory("/state");
  host.disk.faults.crashAt(dyingCall, kind);
  let tried = -1;
  let promised = -1;
  const live = async (): Promise<void> => {
    const state = await StateFile.create(host.storage, "/state", RECORD);
    promised = tried = 0;
    for (let epoch = 1; epoch <= UPDATES; epoch++) {
      tried = epoch;
      await state.update((record) => ({
        ...record,
        epochReserved: epoch,
        prepared: Array.from({ length: world.random.below(PREPARED_EPOCHS_MAX) }, () => ({ epoch, atMs: 0 })),
      }));
      promised = epoch;
    }
  };
  world.schedule(0, () => void live());
  await world.run({ until: () => promised === UPDATES });
  const survived = host.alive;
  if (survived) host.crash(kind);
  host.disk.faults.clear();
  host.restart();
  const left = StateFile.open(host.storage, "/state")?.record.epochReserved ?? -1;
  expect(left).toBeGreaterThanOrEqual(promised);
  expect(left).toBeLessThanOrEqual(Math.max(tried, 0));
  return !survived;
}

describe("the state record, killed at every call", () => {
  it.each<CrashKind>(["process", "power"])("is whole and as new as was promised: %s", async (kind) => {
    let lives = 0;
    for (let seed = 0; seed < 20; seed++) {
      for (let call = 1; await liveAndDie(seed, call, kind); call++) lives++;
    }
    expect(lives).toBeGreaterThan(20 * 2 * UPDATES);
  });
});

/** How the first of three lives goes: only where it stops is its last record surely durable. */
type Ending = "dies" | "fails" | "stops";

/**
 * Three lives: the first dies, or an fsync of it fails, so that its last record may be in the page cache alone, or it
 * stops in order; the second cannot tell, and loses power at one of its calls; the third must have what the first was promised.
 */
async function liveThrice(seed: number, ending: Ending, dyingCall: number): Promise<boolean> {
  const world = new SimWorld(seed);
  const host = world.host("b");
  host.disk.addDirectory("/state");
  let promised = 0;
  const write = async (state: StateFile, epoch: number): Promise<void> => {
    // Long enough to be torn, and in another order than the schema's.
    const prepared = Array.from({ length: PREPARED_EPOCHS_MAX }, () => ({ atMs: 0, epoch }));
    await state.update((record) => ({ ...record, epochReserved: epoch, prepared }));
    promised = epoch;
  };
  let firstIsOver = false;
  const first = async (): Promise<void> => {
    const state = await StateFile.create(host.storage, "/state", RECORD);
    for (let epoch = 1; epoch <= UPDATES; epoch++) await write(state, epoch);
    if (ending === "fails") host.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
    else if (ending === "dies") host.disk.faults.inject({ op: "sync", crash: "process" });
    await write(state, UPDATES + 1).catch(() => undefined);
    firstIsOver = true;
  };
  world.schedule(0, () => void first());
  await world.run({ until: () => firstIsOver || !host.alive });
  if (host.alive) host.crash("process");
  host.disk.faults.clear();
  host.restart();
  host.disk.faults.crashAt(dyingCall, "power");
  let secondIsOver = false;
  const second = async (): Promise<void> => {
    const state = StateFile.open(host.storage, "/state");
    for (let epoch = UPDATES + 2; state !== undefined && epoch < UPDATES + 5; epoch++) await write(state, epoch);
    secondIsOver = true;
  };
  world.schedule(0, () => void second());
  await world.run({ until: () => secondIsOver || !host.alive });
  const survived = host.alive;
  if (survived) host.crash("power");
  host.disk.faults.clear();
  host.restart();
  const left = StateFile.open(host.storage, "/state")?.record.epochReserved ?? -1;
  expect(left, `seed ${seed}, call ${dyingCall}`).toBeGreaterThanOrEqual(promised);
  return !survived;
}

describe("the state record that may be in the page cache alone", () => {
  it.each<Ending>(["dies", "fails", "stops"])("costs nothing that is durable: the first process %s", async (ending) => {
    for (let seed = 0; seed < 30; seed++) {
      for (let call = 1; await liveThrice(seed, ending, call); call++);
    }
  });
});
