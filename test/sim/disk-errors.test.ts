import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { Status } from "../../proto/status.ts";
import { DISK_ERRORS, type DiskErrorId, type DiskErrorRow } from "../../tools/disk-error-rows.ts";
import type { Outcome } from "./calls.ts";
import { imagePath, type Pair, type PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import type { FaultRule } from "./storage-faults.ts";

/**
 * Every row of `docs/disk-errors.md` happens here: a pair that is protected, and has something in every overlay, loses one
 * kind of call on one kind of file. What the client sees, what both sides say and the event must be those of the row.
 * Then the fault is taken away, and without a restart the pair is in sync again, takes a checkpoint, and its copies are
 * equal; nothing is lost when the secondary's power is, right after that.
 */
const CLUSTER = 4096;
/** A failed fsync leaves on the medium what chance will have. */
const SEEDS = [1, 2, 3, 4];
const SETTLED_MS = 10_000;
/** More than an epoch reservation of the primary holds. */
const CHECKPOINTS_MAX = 80;

type Side = "primary" | "secondary";

interface Scenario {
  readonly side: Side;
  readonly fault: Omit<FaultRule, "error" | "times">;
  /** What is done before the fault. */
  readonly prepare?: (pair: ScriptedPair) => Promise<void>;
  /** Meets the fault; resolves with what the client of the row was told. */
  readonly act: (pair: ScriptedPair) => Promise<Outcome<unknown> | undefined>;
  /** Done when the fault is gone. */
  readonly after?: (pair: ScriptedPair) => Promise<void>;
  /** Once it is promoted the secondary is a pair no more. */
  readonly promotes?: true;
}

const inHidden = (path: string): boolean => path.includes("/hidden.");
const inDirty = (path: string): boolean => path.includes("/dirty.");
const inMerge = (path: string): boolean => path.includes("/merge.");

const READS = ["tryRead", "read"] as const;
const WRITES = ["write", "zero", "zeroAllocated"] as const;

const write = (pair: ScriptedPair): Promise<Outcome<unknown>> => pair.guestWrite(0, CLUSTER, 100, "bytes");
/** Overwrites clusters of both disks whose originals are not saved yet. */
const overwrite = async (pair: ScriptedPair): Promise<Outcome<unknown>> => {
  await pair.guestWrite(1, 0, 16 * CLUSTER, "bytes");
  return pair.guestWrite(0, 0, 10 * CLUSTER, "bytes");
};
const viewWrite = (pair: ScriptedPair): Promise<Outcome<unknown>> => pair.viewWrite(1, 3 * CLUSTER, 500);
/** Extents are settled when nobody has touched them for a while: the next write marks its own again. */
const settle = ({ world }: ScriptedPair): Promise<void> => world.sleep(SETTLED_MS);
const onBitmap = (op: "write" | "sync"): Scenario => ({
  side: "primary",
  fault: { op, path: inDirty },
  prepare: settle,
  act: write,
});
const onStream = (fault: Scenario["fault"]): Scenario => ({ side: "secondary", fault, act: overwrite });
const onMerge = (fault: Scenario["fault"]): Scenario => ({
  side: "secondary",
  fault,
  promotes: true,
  prepare: async ({ pair }) => Promise.resolve(pair.primary.host.crash("power")),
  act: (pair) => pair.failOver(),
});

const SCENARIOS: Record<DiskErrorId, Scenario> = {
  "primary-read": {
    side: "primary",
    fault: { op: READS, kind: "image" },
    act: (pair) => pair.guestRead(0, 2 * CLUSTER, CLUSTER),
  },
  "primary-read-alone": {
    side: "primary",
    fault: { op: READS, kind: "image" },
    prepare: async (pair) => {
      pair.pair.secondary.host.crash("process");
      await pair.until("the loss is noticed", () => statusOf(pair.pair.primary).peers[0]?.connection === "Connecting");
    },
    act: (pair) => pair.guestRead(0, 2 * CLUSTER, CLUSTER),
    after: async ({ pair }) => {
      pair.secondary.host.restart();
      await pair.secondary.start();
    },
  },
  "primary-resync-read": {
    side: "primary",
    fault: { op: READS, kind: "image" },
    prepare: async (pair) => {
      pair.pair.secondary.host.crash("process");
      await write(pair);
    },
    act: async ({ pair }) => {
      pair.secondary.host.restart();
      await pair.secondary.start();
      return undefined;
    },
  },
  "primary-write": { side: "primary", fault: { op: WRITES, kind: "image" }, act: write },
  "primary-full": { side: "primary", fault: { op: WRITES, kind: "image" }, act: write },
  "primary-flush": {
    side: "primary",
    fault: { op: "sync", kind: "image" },
    act: async (pair) => {
      await write(pair);
      return pair.guestFlush(0);
    },
  },
  "primary-record": {
    side: "primary",
    fault: { op: "sync", kind: "state" },
    act: async (pair) => {
      for (let count = 0; count < CHECKPOINTS_MAX; count += 1) {
        const outcome = await pair.checkpointOutcome();
        if (outcome.kind === "failed") return outcome;
      }
      return undefined;
    },
  },
  "primary-record-alone": {
    side: "primary",
    fault: { op: "sync", kind: "state" },
    prepare: async (pair) => {
      pair.pair.secondary.host.crash("process");
      await pair.until("the loss is noticed", () => statusOf(pair.pair.primary).peers[0]?.connection === "Connecting");
    },
    act: write,
    after: async ({ pair }) => {
      pair.secondary.host.restart();
      await pair.secondary.start();
    },
  },
  "primary-bitmap-write": onBitmap("write"),
  "primary-bitmap-full": onBitmap("write"),
  "primary-bitmap-sync": onBitmap("sync"),

  "secondary-read": onStream({ op: READS, kind: "image" }),
  "secondary-write": onStream({ op: WRITES, kind: "image" }),
  "secondary-full": onStream({ op: WRITES, kind: "image" }),
  "secondary-flush": onStream({ op: "sync", kind: "image" }),
  "hidden-write": onStream({ op: "write", kind: "generation-data" }),
  "hidden-full": onStream({ op: "write", kind: "generation-data" }),
  "hidden-sync": onStream({ op: "sync", kind: "generation-data" }),
  "hidden-journal-write": onStream({ op: "write", kind: "journal", path: inHidden }),
  "hidden-journal-full": onStream({ op: "write", kind: "journal", path: inHidden }),
  "hidden-journal-sync": onStream({ op: "sync", kind: "journal", path: inHidden }),
  "active-write": { side: "secondary", fault: { op: "write", kind: "active-data" }, act: viewWrite, after: viewAgain },
  "active-full": { side: "secondary", fault: { op: "write", kind: "active-data" }, act: viewWrite, after: viewAgain },
  "active-sync": {
    side: "secondary",
    fault: { op: "sync", kind: "active-data" },
    act: async (pair) => {
      await viewWrite(pair);
      return pair.flushView(1);
    },
    after: async (pair) => {
      expect(clientOf(await pair.flushView(1)), "a flush that is only tried again").toBe("EIO");
      await pair.checkpoint();
      await viewAgain(pair);
    },
  },
  "secondary-record-prepare": {
    side: "secondary",
    fault: { op: "sync", kind: "state" },
    act: (pair) => pair.checkpointOutcome(),
  },
  "secondary-record-commit": {
    side: "secondary",
    fault: { op: "sync", kind: "state" },
    prepare: async (pair) => void (await pair.prepare()),
    act: (pair) => pair.decisionOutcome("commit", preparedOf(pair)),
    after: async (pair) => assert(await pair.decide("commit", preparedOf(pair))),
  },
  "secondary-record-promotion": {
    side: "secondary",
    fault: { op: "sync", kind: "state" },
    prepare: async ({ pair }) => Promise.resolve(pair.primary.host.crash("power")),
    promotes: true,
    act: (pair) => pair.failOver(),
    after: async (pair) => {
      expect(statusOf(pair.pair.secondary).role).toBe("Secondary");
      expect((await pair.failOver()).kind).toBe("done");
    },
  },

  "merge-read": onMerge({ op: READS, kind: ["generation-data", "active-data"] }),
  "merge-write": onMerge({ op: WRITES, kind: "image" }),
  "merge-full": onMerge({ op: WRITES, kind: "image" }),
  "merge-sync": onMerge({ op: "sync", kind: "image" }),
  "merge-journal-write": onMerge({ op: "write", path: inMerge }),
  "merge-journal-sync": {
    ...onMerge({ op: "sync", path: inMerge }),
    after: async (pair) => {
      const { secondary } = pair.pair;
      for (const index of pair.disks.keys()) {
        expect((await pair.viewWrite(index, 0, 10 * CLUSTER)).kind).toBe("done");
        expect((await pair.flushView(index)).kind).toBe("done");
      }
      secondary.host.crash("power");
      secondary.host.restart();
      await secondary.start();
    },
  },
  "kept-read": {
    side: "secondary",
    fault: { op: READS, kind: ["image", "generation-data"] },
    act: (pair) => pair.readKept(0),
    after: async (pair) => expect((await pair.readKept(0)).kind).toBe("done"),
  },
};

async function viewAgain(pair: ScriptedPair): Promise<void> {
  expect((await viewWrite(pair)).kind).toBe("done");
  expect((await pair.flushView(1)).kind).toBe("done");
}

function preparedOf({ pair }: ScriptedPair): number {
  const [epoch] = statusOf(pair.secondary).epoch.prepared;
  assert(epoch !== undefined, "no checkpoint is prepared");
  return epoch;
}

function statusOf(member: PairMember): Status {
  const { agent } = member;
  assert(agent !== undefined, `the agent on ${member.name} does not run`);
  return agent.status();
}

function isProtected({ primary, secondary }: Pair): () => boolean {
  return () => [primary, secondary].every((member) => statusOf(member).protection.state === "Protected");
}

/** The outcome of a call in the row's words; the code of the error for what the row does not say. */
function clientOf(outcome: Outcome<unknown> | undefined): string {
  if (outcome?.kind !== "failed") return outcome?.kind === "lost" ? "lost" : "nothing";
  return outcome.error.row.nbd ?? "nothing";
}

/** Brings the row about, and takes the fault away again. */
async function live(id: DiskErrorId, seed: number): Promise<ScriptedPair> {
  const row: DiskErrorRow = DISK_ERRORS[id];
  const scenario = SCENARIOS[id];
  const scripted = new ScriptedPair(seed, "power", { retain: 2 });
  const { pair } = scripted;
  await scripted.start();
  await scripted.fillOverlays();
  const { prepare, act } = scenario;
  if (prepare !== undefined) await scripted.do("what comes before", () => prepare(scripted));

  const failing = pair[scenario.side];
  const before = failing.agent?.events(0).at(-1)?.sequence ?? 0;
  const error = row.error === "EIO" ? "io-error" : "out-of-space";
  const repair = failing.host.disk.faults.inject({ ...scenario.fault, error, times: Number.POSITIVE_INFINITY });
  const outcome = await scripted.do("what meets the fault", () => act(scripted));
  const seen = clientOf(outcome);
  if (row.client === "exit code 1") expect(outcome?.kind, "the command").toBe("failed");
  else expect(seen, "what the client sees").toBe(row.client);

  if (row.event !== null) {
    const isTold = (): boolean =>
      failing.agent
        ?.events(before)
        .some(({ type, data }) => type === row.event && (data.code ?? data.error) !== null) === true;
    await scripted.until(`the event ${row.event}`, isTold);
  }
  for (const side of ["primary", "secondary"] as const) {
    const reason = row[side];
    if (reason === null || pair[side].agent === undefined) continue;
    await scripted.until(`${side} says ${reason}`, () => statusOf(pair[side]).protection.reason === reason);
  }
  const isPair = scenario.promotes === undefined;
  if (isPair && row.primary === null && row.secondary === null)
    await scripted.until("still protected", isProtected(pair));
  if (row.primary === "disk-failed" || row.secondary === "disk-failed") {
    expect(statusOf(failing).protection.nextAction).not.toBe("");
  }
  repair();
  return scripted;
}

/** What must hold without a restart once the fault is gone. */
async function heal(id: DiskErrorId, scripted: ScriptedPair): Promise<void> {
  const { after, promotes } = SCENARIOS[id];
  const { pair } = scripted;
  if (after !== undefined) await scripted.do("what comes after", () => after(scripted));
  if (promotes === true) {
    await scripted.checkPromoted();
    return;
  }
  await scripted.until("protected again", isProtected(pair));
  for (const member of [pair.primary, pair.secondary]) {
    for (const { state } of statusOf(member).disks) expect(state, member.name).toBe("UpToDate");
  }
  await scripted.until("all is stable", () => statusOf(pair.primary).peers[0]?.lagBytes === 0);
  // What the fault may have kept from the medium would be missing now: of the checkpoint, or of the copy.
  pair.secondary.host.crash("power");
  await scripted.restartSecondary();
  await scripted.checkRecovery();
  await scripted.do("a write", () => overwrite(scripted));
  await scripted.checkRecovery();
  await scripted.checkEnd();
}

/** The secondary has what the failed flush may have lost: it takes over, and gives it back. */
async function healBySwitchover(scripted: ScriptedPair): Promise<void> {
  const { primary, secondary } = scripted.pair;
  const again = await scripted.do("a flush", () => scripted.guestFlush(0));
  expect(clientOf(again), "a flush that is only tried again").toBe("EIO");
  expect(statusOf(primary).disks[0]).toMatchObject({ state: "Failed", children: [{ state: "broken" }] });
  const { agent } = primary;
  const written = scripted.disks.map((disk) => primary.host.disk.readFile(imagePath(disk)));
  await scripted.switchOver();
  expect(primary.agent, "the agent is not restarted").toBe(agent);
  expect(statusOf(secondary).role).toBe("Primary");
  await scripted.until("merged", () => statusOf(secondary).jobs.every(({ state }) => state === "concluded"));
  await scripted.until("a checkpoint", () => statusOf(primary).disks.every(({ state }) => state === "UpToDate"));
  primary.host.crash("power");
  for (const [index, disk] of scripted.disks.entries()) {
    for (const { host } of [secondary, primary]) {
      const image = host.disk.readFile(imagePath(disk));
      expect(image?.equals(written[index] ?? Buffer.alloc(0)), `${disk.name} on ${host.name}`).toBe(true);
    }
  }
}

const bySwitchover = Object.keys(DISK_ERRORS).filter(
  (id) => DISK_ERRORS[id as DiskErrorId].heals === "by a switchover",
) as DiskErrorId[];
const others = (Object.keys(DISK_ERRORS) as DiskErrorId[]).filter((id) => !bySwitchover.includes(id));

describe("an error of a file below an agent", () => {
  it.each(others)("has the documented outcome, and heals without a restart: %s", async (id) => {
    for (const seed of SEEDS) await heal(id, await live(id, seed));
  });

  it.each(bySwitchover)("has the documented outcome, and heals by a switchover: %s", async (id) => {
    for (const seed of SEEDS) await healBySwitchover(await live(id, seed));
  });
});

describe("the events of a disk that fails again and again", () => {
  it("are told once in a while, so that they do not push the others out", async () => {
    const scripted = new ScriptedPair(1, "power");
    await scripted.start();
    const { primary } = scripted.pair;
    primary.host.disk.faults.inject({ op: READS, kind: "image", error: "io-error", times: Number.POSITIVE_INFINITY });
    for (let count = 0; count < 50; count += 1) {
      await scripted.do("a read", () => scripted.guestRead(0, 0, CLUSTER));
    }
    const told = primary.agent?.events(0).filter(({ type }) => type === "disk-error") ?? [];
    expect(told).toHaveLength(1);
    expect(told[0]?.data).toMatchObject({ disk: "vda", during: "read", offset: 0, length: CLUSTER, code: "io-error" });
  });
});
