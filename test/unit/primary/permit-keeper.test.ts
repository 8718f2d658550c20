import { afterEach, describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import type { StateRecord } from "../../../proto/state-record.ts";
import { PermitKeeper } from "../../../primary/permit-keeper.ts";
import { OwnLease } from "../../../shared/arbiter/own-lease.ts";
import type { Pending } from "../../../shared/block/block-device.ts";
import type { StateFile } from "../../../shared/journal/state-file.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { MemoryArbiter } from "../../support/memory-arbiter.ts";

const TTL_MS = 10_000;
const silent = (): void => undefined;

async function turns(): Promise<void> {
  for (let count = 0; count < 60; count += 1) await Promise.resolve();
}

class Scene {
  readonly clock = new ManualClock();
  readonly arbiter: MemoryArbiter;
  readonly keeper: PermitKeeper;
  isConnected = true;
  /** Peers of the record beside `b`, and those that are not connected, or have not committed what is told. */
  readonly others: string[] = [];
  readonly away = new Set<string>();
  readonly lacking = new Set<string>();
  replaced: string[] = [];
  vouchedTimes = 0;
  handOver: string | null = null;
  isOutdated = false;
  arbiterUntold: true | undefined;
  lineage = "first";

  constructor(arbiter = new MemoryArbiter("a")) {
    this.arbiter = arbiter;
    const { clock } = this;
    const log = { info: silent, debug: silent, warn: silent, error: silent };
    const state = {};
    Object.defineProperty(state, "record", { get: () => this.#record });
    Object.defineProperty(state, "update", { value: this.#update.bind(this) });
    this.keeper = new PermitKeeper({
      clock,
      log,
      emit: silent,
      state: state as StateFile,
      lease: new OwnLease({ arbiter: this.arbiter, agentId: "a", ttlMs: TTL_MS, clock, log, emit: silent }),
      isConnected: (peer) => this.isConnected && !this.away.has(peer),
      isEstablished: (peer) => this.isConnected && !this.away.has(peer),
      committedBy: (peer) => (this.lacking.has(peer) ? 6 : 7),
      committed: () => 7,
      dialled: () => [{ agentId: "b", url: "ws://b" }],
      vouched: () => void (this.vouchedTimes += 1),
      isOutdated: () => this.isOutdated,
    });
  }

  get #record(): Partial<StateRecord> {
    const { handOver, lineage, others, replaced, arbiterUntold } = this;
    const history: StateRecord["history"] = { origin: "created", shared: true, ancestors: ["zeroth"], heard: [] };
    return {
      agentId: "a",
      vm: "vm",
      lineage,
      history,
      epochReserved: 8,
      committed: { epoch: 7, atMs: 0 },
      pairing: { peer: "b", sessions: [] },
      otherPeers: others.map((peer, index) => ({
        slot: index + 1,
        pairing: { peer, sessions: [] },
        tracks: null,
        committed: 0,
      })),
      replaced,
      handOver,
      ...(arbiterUntold === undefined ? {} : { arbiterUntold }),
    };
  }

  async #update(change: (record: StateRecord) => StateRecord): Promise<void> {
    await Promise.resolve();
    this.arbiterUntold = change(this.#record as StateRecord).arbiterUntold;
  }

  /** A peer answers a ping that is sent now. */
  promise(peer: string): void {
    const pulse = this.keeper.pulse(() => peer);
    if (pulse.of === "Primary") pulse.heard(pulse.beat(), TTL_MS);
  }

  async start(): Promise<void> {
    this.keeper.start();
    await turns();
  }

  /** What becomes of a write that the secondary does not have. */
  writeAlone(): { outcome: string } {
    return this.#outcomeOf(this.keeper.mayGoAlone());
  }

  /** What becomes of a checkpoint that the peers of `lacking` have not committed. */
  tell(): { outcome: string } {
    return this.#outcomeOf(this.keeper.mayTell((peer) => !this.lacking.has(peer)));
  }

  /** What becomes of a peer that opens a session with this history. */
  join(agentId: string, lineage: string | null): { outcome: string } {
    return this.#outcomeOf(this.keeper.mayJoin({ agentId, lineage }));
  }

  /** What becomes of a lineage that is to begin for as long as `isNeeded`. */
  begin(lineage: string, isNeeded = (): boolean => true): { outcome: string } {
    return this.#outcomeOf(this.keeper.mayBegin(lineage, isNeeded));
  }

  #outcomeOf(pending: Pending): { outcome: string } {
    const seen = { outcome: "waits" };
    Promise.resolve(pending).then(
      () => (seen.outcome = "acknowledged"),
      (error: unknown) => (seen.outcome = error instanceof ColobusError ? error.code : "threw"),
    );
    return seen;
  }

  get outdated(): readonly string[] | undefined {
    return this.arbiter.state.record?.outdated;
  }
}

let scene: Scene | undefined;

async function started(): Promise<Scene> {
  scene = new Scene();
  await scene.start();
  expect(scene.keeper.permit.isValid).toBe(true);
  return scene;
}

afterEach(async () => {
  await scene?.keeper.stop(new ColobusError("shutting-down", "the test is over"));
});

/** A primary whose peer is away, while the arbiter's record names another's later history. */
function superseded(holder = "b", lineage = "later"): Scene {
  const made = new Scene();
  scene = made;
  made.arbiter.put({ vm: "vm", lineage, holder, committed: 9, outdated: ["a"], ttlMs: TTL_MS }, holder);
  made.isConnected = false;
  return made;
}

async function refused(): Promise<Scene> {
  const made = superseded();
  await made.start();
  return made;
}

describe("a primary with an arbiter", () => {
  it("renews its lease in time, whatever else it tells the arbiter", async () => {
    const { clock, keeper } = await started();
    for (let passedMs = 0; passedMs < 5 * TTL_MS; passedMs += 500) {
      clock.advance(500);
      keeper.committed();
      await turns();
      expect(keeper.permit.isValid, `after ${passedMs} ms`).toBe(true);
    }
  });

  it("acknowledges a write alone only when the arbiter knows that the secondary lacks it", async () => {
    const made = await started();
    made.isConnected = false;
    let answer: () => void = silent;
    made.arbiter.answering = new Promise((resolve) => {
      answer = resolve;
    });
    const write = made.writeAlone();
    await turns();
    expect(write.outcome).toBe("waits");
    answer();
    await turns();
    expect(made.outdated).toEqual(["b"]);
    expect(write.outcome).toBe("acknowledged");
    expect(made.keeper.mayGoAlone()).toBeUndefined();
  });

  it("has such writes wait while the arbiter is away, until it, or the secondary, is back", async () => {
    const made = await started();
    made.isConnected = false;
    made.arbiter.isReachable = false;
    const write = made.writeAlone();
    made.clock.advance(TTL_MS / 2);
    await turns();
    expect(write.outcome).toBe("waits");
    made.isConnected = true;
    made.keeper.connectionChanged();
    await turns();
    expect(write.outcome).toBe("acknowledged");
    expect(made.outdated).toEqual([]);
  });

  it("lets the secondary take over again once it has committed, and not by a late word of that", async () => {
    const made = await started();
    made.isConnected = false;
    made.writeAlone();
    await turns();
    made.isConnected = true;
    let answer: () => void = silent;
    made.arbiter.answering = new Promise((resolve) => {
      answer = resolve;
    });
    made.keeper.committed();
    await turns();
    // The word is on its way when the secondary is lost again.
    made.isConnected = false;
    const [first, second] = [made.writeAlone(), made.writeAlone()];
    await turns();
    expect([first.outcome, second.outcome]).toEqual(["waits", "waits"]);
    made.arbiter.answering = undefined;
    answer();
    await turns();
    expect(made.outdated).toEqual(["b"]);
    expect([first.outcome, second.outcome]).toEqual(["acknowledged", "acknowledged"]);
  });

  it("is refused by a record that names another's later history, until an operator insists", async () => {
    scene = await refused();
    expect(scene.keeper.refusal).toMatchObject({ code: "lease-refused" });
    expect(scene.writeAlone().outcome).toBe("waits");
    await turns();
    await expect(scene.keeper.permit.admit()).rejects.toMatchObject({ code: "lease-refused" });
    await scene.keeper.overrule();
    expect(scene.keeper.permit.isValid).toBe(true);
    expect(scene.arbiter.state).toMatchObject({ leaseHolder: "a", record: { holder: "a", lineage: "first" } });
  });

  it("says whether its guests wait for an arbiter that is away, or for another's lease", async () => {
    const made = new Scene();
    scene = made;
    made.arbiter.isReachable = false;
    await made.start();
    expect(made.keeper.wait).toMatchObject({ code: "arbiter-unreachable" });
    made.arbiter.isReachable = true;
    const entry = { vm: "vm", lineage: "first", holder: "b", committed: 7, outdated: [], ttlMs: TTL_MS };
    made.arbiter.put(entry, "b");
    made.clock.advance(TTL_MS);
    await turns();
    expect(made.keeper.refusal).toBeUndefined();
    expect(made.keeper.wait).toMatchObject({ code: "lease-held" });
    expect(made.keeper.describe()).toContain("agent b has the lease");
    made.promise("b");
    expect(made.keeper.wait).toBeUndefined();
  });

  it("does not do later what an operator insisted on while the arbiter was away", async () => {
    scene = await refused();
    scene.arbiter.isReachable = false;
    await expect(scene.keeper.overrule()).rejects.toMatchObject({
      code: "arbiter-unreachable",
      message: expect.stringContaining("there is no answer") as string,
    });
    scene.arbiter.isReachable = true;
    scene.clock.advance(TTL_MS);
    await turns();
    expect(scene.arbiter.state).toMatchObject({ leaseHolder: "b", record: { holder: "b" } });
    expect(scene.keeper.refusal).toMatchObject({ code: "lease-refused" });
  });

  it.each([
    ["who served when its promotion was forced", "c", "later"],
    ["a history that its own goes back to, of whoever follows it now", "b", "zeroth"],
  ])(
    "tells the arbiter of a promotion that it was not told of, once, whatever the record says: %s",
    async (_, holder, lineage) => {
      const made = superseded(holder, lineage);
      made.arbiterUntold = true;
      made.arbiter.isReachable = false;
      await made.start();
      expect(made.keeper.wait).toMatchObject({ code: "arbiter-unreachable" });
      made.arbiter.isReachable = true;
      made.clock.advance(TTL_MS);
      await turns();
      expect(made.arbiter.state).toMatchObject({ leaseHolder: "a", record: { holder: "a", lineage: "first" } });
      expect(made.arbiterUntold).toBeUndefined();
      made.arbiter.put({ vm: "vm", lineage: "third", holder: "c", committed: 9, outdated: ["a"], ttlMs: TTL_MS }, "c");
      made.clock.advance(TTL_MS);
      await turns();
      expect(made.arbiter.state.leaseHolder).toBe("c");
    },
  );

  it("takes nothing by such a promotion from a peer that has taken over from it since", async () => {
    const made = superseded();
    made.arbiterUntold = true;
    await made.start();
    expect(made.keeper.refusal).toMatchObject({ code: "lease-refused" });
    expect(made.arbiter.state).toMatchObject({ leaseHolder: "b", record: { holder: "b" } });
  });

  it("drops what an operator insisted on, and renews no lease, once it is outdated", async () => {
    const made = await started();
    made.arbiter.isReachable = false;
    made.arbiterUntold = true;
    made.isOutdated = true;
    made.arbiter.isReachable = true;
    const entry = { vm: "vm", lineage: "later", holder: "b", committed: 9, outdated: ["a"], ttlMs: TTL_MS };
    made.arbiter.put(entry, "b");
    made.arbiter.calls.length = 0;
    made.clock.advance(TTL_MS);
    await turns();
    expect(made.arbiter.state).toMatchObject({ leaseHolder: "b", record: { holder: "b" } });
    expect(made.arbiter.calls).toEqual([]);
  });

  it("has a write that the secondary lacks fail once this side is outdated, whatever the arbiter is told next", async () => {
    const made = await started();
    made.isConnected = false;
    made.isOutdated = true;
    const write = made.writeAlone();
    await turns();
    expect(write.outcome).toBe("outdated");
  });

  it("tells the arbiter of a lineage that was begun alone, also where the secondary was still connected", async () => {
    const made = await started();
    made.lineage = "alone";
    made.keeper.wentAlone();
    await turns();
    expect(made.arbiter.state.record).toMatchObject({ lineage: "alone", outdated: ["b"] });
  });

  it("has a lineage stand in the record before it begins, and beside the one before it until it has begun", async () => {
    const made = await started();
    made.arbiter.isReachable = false;
    const lineage = made.begin("second");
    await turns();
    expect(lineage.outcome).toBe("waits");
    expect(made.keeper.isPlanned("second")).toBe(false);
    made.arbiter.isReachable = true;
    made.clock.advance(TTL_MS / 2);
    await turns();
    expect(lineage.outcome).toBe("acknowledged");
    made.lineage = "second";
    made.keeper.committed();
    await turns();
    expect(made.arbiter.state.record).toMatchObject({ lineage: "first", next: ["second"] });
    expect(made.keeper.isPlanned("third")).toBe(false);
    made.keeper.hasBegun();
    await turns();
    expect(made.arbiter.state.record).toMatchObject({ lineage: "second", next: [] });
  });

  it("keeps it beside the one before it while one may take over that has not heard of it, also in the next process", async () => {
    const made = await started();
    made.others.push("c");
    const lineage = made.begin("second");
    await turns();
    expect(lineage.outcome).toBe("acknowledged");
    made.lineage = "second";
    made.keeper.hasBegun();
    await turns();
    const kept = { lineage: "first", next: ["second"] };
    expect(made.arbiter.state.record).toMatchObject(kept);
    await made.keeper.stop(new ColobusError("shutting-down", "the process ends"));
    scene = new Scene(made.arbiter);
    scene.others.push("c");
    scene.lineage = "second";
    await scene.start();
    expect(scene.arbiter.state.record).toMatchObject(kept);
    expect(scene.begin("third").outcome).toBe("waits");
    await turns();
    expect(scene.arbiter.state.record).toMatchObject({ lineage: "first", next: ["third", "second"] });
    scene.lineage = "third";
    scene.away.add("c");
    scene.writeAlone();
    scene.keeper.hasBegun();
    await turns();
    scene.keeper.committed();
    await turns();
    expect(scene.arbiter.state.record).toMatchObject({ lineage: "third", next: [], outdated: ["c"] });
  });

  it("asks the arbiter for no lineage that nobody takes over without, and waits for none that is not needed any more", async () => {
    const made = await started();
    made.arbiter.isReachable = false;
    let isNeeded = true;
    const lineage = made.begin("second", () => isNeeded);
    isNeeded = false;
    made.keeper.connectionChanged();
    await turns();
    expect(lineage.outcome).toBe("acknowledged");
    expect(made.keeper.isPlanned("second")).toBe(false);
    made.arbiter.isReachable = true;
    made.isConnected = false;
    const write = made.writeAlone();
    await turns();
    expect(write.outcome).toBe("acknowledged");
    expect(made.keeper.mayBegin("third", () => true)).toBeUndefined();
  });

  it("keeps what an earlier process has told of the secondary", async () => {
    scene = new Scene();
    scene.isConnected = false;
    const entry = { vm: "vm", lineage: "first", holder: "a", committed: 7, outdated: ["b"], ttlMs: TTL_MS };
    scene.arbiter.put(entry, null);
    await scene.start();
    expect(scene.outdated).toEqual(["b"]);
  });

  it.each([
    ["it served last, and nobody since", {}, 1],
    ["it served last, under a history that goes on in its own", { lineage: "zeroth" }, 1],
    ["it served last, under a history that it does not know any more", { lineage: "later" }, 0],
    ["it served last, and has forgotten checkpoints since", { committed: 9 }, 0],
    ["another served last", { holder: "b" }, 0],
  ])("says whether the peer was not promoted, when by the record %s", async (_, more, times) => {
    scene = new Scene();
    scene.isConnected = false;
    const entry = { vm: "vm", lineage: "first", holder: "a", committed: 7, outdated: [], ttlMs: TTL_MS };
    scene.arbiter.put({ ...entry, ...more }, null);
    await scene.start();
    expect(scene.keeper.permit.isValid).toBe(true);
    expect(scene.vouchedTimes).toBe(times);
  });

  it("does not say that without a record", async () => {
    expect((await started()).vouchedTimes).toBe(0);
  });

  it("names the peer and gives the lease up when it hands the role over, and takes both back when that fails", async () => {
    const made = await started();
    made.handOver = "b";
    expect(made.keeper.permit.isValid).toBe(false);
    await made.keeper.standDown("b", "later");
    expect(made.arbiter.state).toMatchObject({ leaseHolder: null, record: { holder: "b", lineage: "later" } });
    made.clock.advance(TTL_MS);
    await turns();
    expect(made.arbiter.state.leaseHolder).toBeNull();
    made.handOver = null;
    made.promise("b");
    made.keeper.resume();
    await turns();
    expect(made.arbiter.state).toMatchObject({ leaseHolder: "a", record: { holder: "a", lineage: "first" } });
    expect(made.keeper.permit.isValid).toBe(true);
  });
});

describe("a primary of several secondaries with an arbiter", () => {
  async function withTwo(): Promise<Scene> {
    const made = new Scene();
    scene = made;
    made.others.push("c");
    await made.start();
    return made;
  }

  it("acknowledges a write that one of them lacks when the arbiter knows that, and lets the other one take over", async () => {
    const made = await withTwo();
    made.away.add("c");
    const write = made.writeAlone();
    expect(write.outcome).toBe("waits");
    await turns();
    expect(write.outcome).toBe("acknowledged");
    expect(made.outdated).toEqual(["c"]);
    expect(["b", "c"].map((peer) => made.keeper.mayTakeOver(peer))).toEqual([true, false]);
    made.isConnected = false;
    made.writeAlone();
    await turns();
    expect(made.outdated).toEqual(["c", "b"]);
  });

  it("tells of a checkpoint that one of them lacks when the arbiter knows that, though it is connected", async () => {
    const made = await withTwo();
    made.lacking.add("c");
    made.arbiter.isReachable = false;
    const told = made.tell();
    await turns();
    expect(told.outcome).toBe("waits");
    made.arbiter.isReachable = true;
    made.clock.advance(TTL_MS / 4);
    await turns();
    expect(told.outcome).toBe("acknowledged");
    expect(made.outdated).toEqual(["c"]);
    // The other one alone has committed it.
    made.keeper.committed();
    await turns();
    expect(made.outdated).toEqual(["c"]);
    made.lacking.clear();
    made.keeper.committed();
    await turns();
    expect(made.outdated).toEqual([]);
  });

  it("serves without its lease while all promise that could take over", async () => {
    const made = await withTwo();
    made.arbiter.isReachable = false;
    made.clock.advance(TTL_MS);
    expect(made.keeper.permit.isValid).toBe(false);
    made.promise("b");
    expect(made.keeper.permit.isValid).toBe(false);
    made.promise("c");
    expect(made.keeper.permit.isValid).toBe(true);
  });

  it("needs no promise of one that the arbiter knows to be outdated, nor of one that was given up, once it knows that", async () => {
    const made = await withTwo();
    made.away.add("c");
    made.writeAlone();
    await turns();
    made.others.pop();
    made.replaced = ["c", "d"];
    made.keeper.givenUp("d");
    made.arbiter.isReachable = false;
    made.clock.advance(TTL_MS);
    made.promise("b");
    await turns();
    expect(made.keeper.permit.isValid).toBe(false);
    made.arbiter.isReachable = true;
    made.clock.advance(TTL_MS / 4);
    await turns();
    expect(made.outdated).toEqual(["c", "d"]);
    made.arbiter.isReachable = false;
    made.clock.advance(TTL_MS);
    made.promise("b");
    expect(made.keeper.permit.isValid).toBe(true);
  });

  it("lets one that has followed another primary hear of its history when the arbiter knows that it lacks this one's", async () => {
    const made = await withTwo();
    expect(made.keeper.mayJoin({ agentId: "blank", lineage: null })).toBeUndefined();
    expect(made.keeper.mayJoin({ agentId: "c", lineage: "zeroth" })).toBeUndefined();
    const joined = made.join("d", "zeroth");
    expect(joined.outcome).toBe("waits");
    await turns();
    expect(joined.outcome).toBe("acknowledged");
    expect(made.outdated).toEqual(["d"]);
  });

  it("does not serve because one follows it while the record names another one that does not", async () => {
    scene = new Scene();
    const made = scene;
    made.others.push("c");
    const entry = { vm: "vm", lineage: "later", holder: "c", committed: 9, outdated: ["a"], ttlMs: TTL_MS };
    made.arbiter.put(entry, null);
    made.away.add("c");
    made.promise("b");
    await made.start();
    expect(made.keeper.refusal).toMatchObject({ code: "lease-refused" });
    expect(made.arbiter.state.record?.holder).toBe("c");
  });

  it("waits no more for what the arbiter is to know once the role ends", async () => {
    const made = await withTwo();
    made.away.add("c");
    made.arbiter.isReachable = false;
    const write = made.writeAlone();
    await turns();
    made.keeper.endWaiting(new ColobusError("shutting-down", "the test is over"));
    await turns();
    expect(write.outcome).toBe("shutting-down");
    await expect(made.keeper.mayGoAlone()).rejects.toMatchObject({ code: "shutting-down" });
  });
});
