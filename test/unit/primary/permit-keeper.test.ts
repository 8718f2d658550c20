import { afterEach, describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import type { StateRecord } from "../../../proto/state-record.ts";
import { PermitKeeper } from "../../../primary/permit-keeper.ts";
import { OwnLease } from "../../../shared/arbiter/own-lease.ts";
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
  readonly arbiter = new MemoryArbiter("a");
  readonly keeper: PermitKeeper;
  isConnected = true;
  handOver: string | null = null;
  lineage = "first";

  constructor() {
    const { clock } = this;
    const log = { info: silent, debug: silent, warn: silent, error: silent };
    const state = {};
    Object.defineProperty(state, "record", { get: () => this.#record });
    this.keeper = new PermitKeeper({
      clock,
      log,
      emit: silent,
      state: state as StateFile,
      lease: new OwnLease({ arbiter: this.arbiter, agentId: "a", ttlMs: TTL_MS, clock, log, emit: silent }),
      isConnected: () => this.isConnected,
      isEstablished: () => this.isConnected,
      committed: () => 7,
    });
  }

  get #record(): Partial<StateRecord> {
    const { handOver, lineage } = this;
    return { agentId: "a", vm: "vm", lineage, pairing: { peer: "b", sessions: [] }, handOver };
  }

  async start(): Promise<void> {
    this.keeper.start();
    await turns();
  }

  /** What becomes of a write that the secondary does not have. */
  writeAlone(): { outcome: string } {
    const seen = { outcome: "waits" };
    Promise.resolve(this.keeper.mayGoAlone()).then(
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
    scene = new Scene();
    const entry = { vm: "vm", lineage: "later", holder: "b", committed: 9, outdated: ["a"], ttlMs: TTL_MS };
    scene.arbiter.put(entry, "b");
    scene.isConnected = false;
    await scene.start();
    expect(scene.keeper.refusal).toMatchObject({ code: "lease-refused" });
    expect(scene.writeAlone().outcome).toBe("waits");
    await turns();
    await expect(scene.keeper.permit.admit()).rejects.toMatchObject({ code: "lease-refused" });
    scene.keeper.insist();
    await turns();
    expect(scene.keeper.permit.isValid).toBe(true);
    expect(scene.arbiter.state).toMatchObject({ leaseHolder: "a", record: { holder: "a", lineage: "first" } });
  });

  it("tells the arbiter of a lineage that was begun alone, also where the secondary was still connected", async () => {
    const made = await started();
    made.lineage = "alone";
    made.keeper.wentAlone();
    await turns();
    expect(made.arbiter.state.record).toMatchObject({ lineage: "alone", outdated: ["b"] });
  });

  it("keeps what an earlier process has told of the secondary", async () => {
    scene = new Scene();
    scene.isConnected = false;
    const entry = { vm: "vm", lineage: "first", holder: "a", committed: 7, outdated: ["b"], ttlMs: TTL_MS };
    scene.arbiter.put(entry, null);
    await scene.start();
    expect(scene.outdated).toEqual(["b"]);
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
    made.keeper.permit.heard(made.keeper.permit.beat(), TTL_MS);
    made.keeper.resume();
    await turns();
    expect(made.arbiter.state).toMatchObject({ leaseHolder: "a", record: { holder: "a", lineage: "first" } });
    expect(made.keeper.permit.isValid).toBe(true);
  });
});
