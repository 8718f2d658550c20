import assert from "node:assert/strict";
import { untilApplied } from "./buffered-bytes.ts";
import { LifeFailover } from "./life-failover.ts";
import { LifeFaults } from "./life-faults.ts";
import { LifeGuest } from "./life-guest.ts";
import { LifeOperator } from "./life-operator.ts";
import {
  drawBufferedLife,
  drawLife,
  drawMirrorLife,
  drawSharedLife,
  OPERATION_KINDS,
  type OperationKind,
} from "./life-plan.ts";
import { LifeReader } from "./life-reader.ts";
import { liveIn } from "./life-run.ts";
import { LifeScene } from "./life-scene.ts";
import type { LifeCounts } from "./life-totals.ts";
import { LifeVerify } from "./life-verify.ts";
import { PairStates } from "./pair-states.ts";
import { imagePath, type PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import type { CrashKind } from "./simulated-crash.ts";

/**
 * One whole life of a pair, drawn from one seed: the first sync, hundreds of operations of two guests and an operator
 * with faults among them, and an end: quiet, with both copies compared byte by byte, or a failover with guest I/O
 * during the merge. The model is asked after every operation that ends.
 */
export interface LifeReport extends LifeCounts {
  readonly seed: number;
  readonly operations: number;
  readonly faults: number;
  /** Checkpoints whose commit was answered. */
  readonly checkpoints: number;
  readonly traceHash: string;
}

const CHECKPOINTS_MIN = 5;
/** Ends every wait for the pair to come together: far more than any fault lasts. */
const SYNCED_WITHIN_MS = 300_000;
const CHECKPOINT_WITHIN_MS = 60_000;
/** Of a checkpoint in peace: a dead session may be found out by the first. */
const ATTEMPTS_MAX = 3;

/** How a life is replayed from the command line. */
export function replayCommand(seed: number): string {
  return `npx tsx test/sim/run-lives.ts --seed ${seed}`;
}

/** One life of a pair that shares its disks, as `runLife`. */
export function runSharedLife(seed: number, print?: (line: string) => void): Promise<LifeReport> {
  const replay = `npx tsx test/sim/run-shared-lives.ts --seed ${seed}`;
  return live(seed, new LifeScene(seed, { replay, print, draw: drawSharedLife }));
}

/** One life of a pair whose secondary buffers (mode `mc`), as `runLife`. */
export function runBufferedLife(seed: number, print?: (line: string) => void): Promise<LifeReport> {
  const replay = `npx tsx test/sim/run-buffered-lives.ts --seed ${seed}`;
  return live(seed, new LifeScene(seed, { replay, print, draw: drawBufferedLife }));
}

/** One life of a pair without epochs (mode `mirror`), as `runLife`. */
export function runMirrorLife(seed: number, print?: (line: string) => void): Promise<LifeReport> {
  const replay = `npx tsx test/sim/run-mirror-lives.ts --seed ${seed}`;
  return live(seed, new LifeScene(seed, { replay, print, draw: drawMirrorLife }));
}

/** Lives one life. Rejects with SimFailure, which names the seed, when an invariant is broken. */
export function runLife(seed: number, print?: (line: string) => void): Promise<LifeReport> {
  return live(seed, new LifeScene(seed, { replay: replayCommand(seed), print, draw: drawLife }));
}

async function live(seed: number, scene: LifeScene): Promise<LifeReport> {
  const life = new Life(scene);
  const { world, model, counts } = scene;
  await liveIn(world, () => life.live());
  const faults = Object.entries(counts.faults).map(([kind, count]) => [`fault ${kind}`, count] as const);
  return {
    seed,
    operations: counts.operations,
    faults: faults.reduce((sum, [, count]) => sum + count, 0),
    checkpoints: model.counts.committed,
    counts: {
      ...model.counts,
      "operations": counts.operations,
      "restarts": counts.restarts,
      "failovers": counts.failovers,
      "congested": counts.congested,
      "VM states": counts.vmStates,
      "verifies": counts.verifies,
      "steps": world.steps,
      "virtual hours": world.nowMs / 3_600_000,
      ...Object.fromEntries(faults),
    },
    pairs: life.pairs,
    traceHash: world.traceHash,
  };
}

class Life {
  readonly #scene: LifeScene;
  readonly #random: SeededRandom;
  readonly #guest: LifeGuest;
  readonly #reader: LifeReader;
  readonly #operator: LifeOperator;
  readonly #verify: LifeVerify;
  readonly #faults: LifeFaults;
  readonly #failover: LifeFailover;
  readonly #pairs = new PairStates();
  /** Starts that are under way. */
  #reviving = 0;
  /** Nothing goes wrong any more that has not gone wrong before. */
  #atPeace = false;
  /** The latest start of each member: an earlier one that died on the way does not go on. */
  readonly #starts = new Map<PairMember, number>();

  constructor(scene: LifeScene) {
    const { random } = scene.world;
    this.#scene = scene;
    this.#random = random.fork("life");
    this.#guest = new LifeGuest(scene, random.fork("guest"));
    this.#reader = new LifeReader(scene, random.fork("reader"));
    this.#operator = new LifeOperator(scene, random.fork("operator"));
    this.#verify = new LifeVerify(scene, random.fork("verify"));
    this.#faults = new LifeFaults(scene, random.fork("faults"));
    this.#failover = new LifeFailover(scene, random.fork("failover"), this.#guest, this.#operator.vmStates);
  }

  get pairs(): LifeReport["pairs"] {
    return this.#pairs.counts;
  }

  /** Guests of a mirror go on before their writes are durable there: it has no state after a loss of power. */
  get #acksEarly(): boolean {
    const { mode, ack } = this.#scene.plan.pair;
    return mode === "mirror" && ack !== "applied";
  }

  /** In mode `mirror` there is one at the end of each sync. */
  get #checkpointsMin(): number {
    return this.#scene.plan.pair.mode === "mirror" ? 1 : CHECKPOINTS_MIN;
  }

  async live(): Promise<void> {
    const { plan, pair } = this.#scene;
    for (const member of [pair.primary, pair.secondary]) {
      member.host.onDeath((kind) => this.#died(member, kind));
      void this.#start(member, this.#random.below(200));
    }
    await this.#operate();
    this.#atPeace = true;
    await this.#faults.over();
    await this.#untilUp(pair.secondary);
    const { model } = this.#scene;
    if (plan.pair.mode === "mirror") this.#scene.observeCommitted();
    const isReady = model.counts.committed >= this.#checkpointsMin && model.committed > 0;
    if (plan.ending !== "failover" || !isReady) await this.#quiesce();
    if (plan.ending !== "synced") {
      this.#atPeace = false;
      await this.#untilUp(pair.secondary);
      await this.#failover.run((member) => this.#untilUp(member));
    }
  }

  async #operate(): Promise<void> {
    const { plan, counts, pair } = this.#scene;
    const faults = [...plan.faults];
    const verifies = [...plan.verifies];
    while (counts.operations < plan.operations) {
      while (faults[0] !== undefined && faults[0].at <= counts.operations)
        this.#faults.inject(faults.shift()?.kind ?? "link-cut");
      while ((verifies[0] ?? Infinity) <= counts.operations) {
        verifies.shift();
        this.#verify.do();
      }
      await this.#scene.world.sleep(plan.gapMs * 2 * this.#random.fraction());
      if (this.#guest.isRunning) await this.#guest.untilRoom();
      await this.#do(this.#drawOperation());
      counts.operations += 1;
      this.#pairs.look(pair.primary.status, pair.secondary.status);
    }
  }

  #drawOperation(): OperationKind {
    const { weights } = this.#scene.plan;
    let left = this.#random.fraction() * OPERATION_KINDS.reduce((sum, kind) => sum + weights[kind], 0);
    for (const kind of OPERATION_KINDS) {
      left -= weights[kind];
      if (left < 0) return kind;
    }
    return "pause";
  }

  /** One operation; a pause where the side that it is for does not run. */
  async #do(kind: OperationKind): Promise<void> {
    switch (kind) {
      case "write":
      case "open-write":
      case "rewrite":
      case "zero":
      case "flush":
      case "read":
        if (!this.#guest.isRunning) return this.#pause();
        return this.#guest.do(kind);
      case "view-read":
      case "view-read-all":
      case "view-write":
      case "view-zero":
      case "view-flush":
      case "kept-read":
        if (!this.#reader.isRunning) return this.#pause();
        return this.#reader.do(kind);
      case "checkpoint":
      case "prepare":
      case "commit":
      case "discard":
        if (!this.#guest.isRunning) return this.#pause();
        return this.#operator.do(kind);
      case "status":
        return this.#operator.look();
      case "pause":
        return this.#pause();
    }
  }

  #pause(): Promise<void> {
    return this.#scene.world.sleep(this.#random.within([1, this.#random.pick([20, 200, 2_000])]));
  }

  /** Nothing is wrong any more: the pair comes together, both copies are equal, and a checkpoint says so. */
  async #quiesce(): Promise<void> {
    const { calls, model, pair, plan } = this.#scene;
    this.#scene.world.note("the pair is left in peace");
    await this.#untilUp(pair.primary);
    await this.#untilUp(pair.secondary);
    await calls.settled();
    do {
      await this.#untilSynced();
      this.#guest.do("write");
      await calls.settled();
      await this.#takeLastCheckpoint();
    } while (model.counts.committed < this.#checkpointsMin);
    await this.#verify.all();
    await this.#idle();
    if (plan.pair.mode === "mc") await this.#untilApplied();
    // An automatic checkpoint may be under way: it would change nothing.
    for (const [index, disk] of plan.pair.disks.entries()) {
      const guest = model.guest[index];
      const primary = pair.primary.host.disk.readFile(imagePath(disk));
      guest?.check(primary, 0, `the primary's image of ${disk.name}`);
      const base = pair.secondary.host.disk.readFile(imagePath(disk));
      assert(base.equals(primary), `the copies of ${disk.name} differ`);
      model.view[index]?.check(primary, 0, `${disk.name} at the checkpoint`);
    }
    this.#operator.look();
    await this.#operator.vmStates.check(pair.secondary);
    if (this.#reader.isRunning && plan.pair.access !== "off") {
      assert(await this.#reader.readAll(), "the view cannot be read");
    }
  }

  /** What is committed reaches the base when no earlier checkpoint is kept that needs it as it was. */
  async #untilApplied(): Promise<void> {
    const { pair, plan } = this.#scene;
    for (let kept = 0; kept <= plan.pair.retain; kept += 1) await this.#takeLastCheckpoint();
    await untilApplied(this.#scene.world, [pair.secondary], CHECKPOINT_WITHIN_MS);
  }

  /** Left alone, the pair keeps its session, and everything that was sent becomes stable. */
  async #idle(): Promise<void> {
    const { calls, pair, plan } = this.#scene;
    await calls.settled();
    if (plan.pair.checkpointEveryMs !== undefined) return;
    await this.#scene.world.sleep(plan.pair.peerTimeoutMs * 1.5);
    const [peer] = pair.primary.status?.peers ?? [];
    assert.equal(peer?.replication, "Established");
    assert.equal(peer.lagBytes, 0);
  }

  /** Once the primary has noticed that a session is dead, nothing keeps it from taking a checkpoint. */
  async #takeLastCheckpoint(): Promise<void> {
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
      await this.#untilSynced();
      if (this.#scene.plan.pair.mode === "mirror") return this.#untilStable();
      const epoch = await this.#operator.takeCheckpoint(false, CHECKPOINT_WITHIN_MS);
      if (epoch !== undefined) return;
      // A sync that seems over while its end is on the way may not fit into what the operator's limit has left.
      const isLast = attempt === ATTEMPTS_MAX - 2;
      if (isLast && this.#scene.plan.pair.overlayLimitBytes !== undefined) await this.#operator.giveUp();
    }
    assert.fail("a pair in peace can take no checkpoint");
  }

  /** Everything that was sent is in the secondary's images. */
  async #untilStable(): Promise<void> {
    const { pair, world } = this.#scene;
    const deadlineMs = world.nowMs + CHECKPOINT_WITHIN_MS;
    const isStable = (): boolean => {
      const { status } = pair.primary;
      return status?.protection.state === "Protected" && status.peers[0]?.lagBytes === 0;
    };
    while (!isStable()) {
      assert(world.nowMs < deadlineMs, "a pair in peace is not protected");
      await this.#scene.world.sleep(10);
    }
    this.#scene.observeCommitted();
  }

  async #untilSynced(): Promise<void> {
    const { agent } = this.#scene.pair.primary;
    assert(agent !== undefined);
    const request = { condition: "synced", timeoutMs: SYNCED_WITHIN_MS } as const;
    let isOver = false;
    if (this.#scene.plan.pair.overlayLimitBytes !== undefined) void this.#operator.relieve(() => isOver);
    const outcome = await this.#scene.calls.make(
      this.#scene.pair.primary,
      "wait",
      SYNCED_WITHIN_MS,
      () => agent.wait(request, new AbortController().signal),
      (ended) => {
        if (ended.kind === "failed") assert.fail(`the pair does not come together: ${ended.error.message}`);
      },
    );
    isOver = true;
    assert.equal(outcome.kind, "done");
  }

  async #untilUp(member: PairMember): Promise<void> {
    while (member.agent === undefined || member.host.process.frozen || this.#reviving > 0)
      await this.#scene.world.sleep(10);
  }

  // Death and return

  #died(member: PairMember, kind: CrashKind): void {
    const { calls, model, pair, plan, counts } = this.#scene;
    this.#scene.disturbed();
    this.#scene.world.note(`${member.name} is dead: ${kind}`);
    if (member === pair.secondary) this.#reader.died();
    if (member === pair.secondary && !this.#failover.isPromoted) {
      model.secondaryDied(kind);
      if (kind === "power" && (plan.pair.durability === "process" || this.#acksEarly)) model.secondaryMayBeVoid();
    }
    if (member === this.#guest.member) model.guestDied(kind);
    calls.died(member.host.process);
    if (this.#failover.isGone(member)) return;
    counts.restarts += 1;
    void this.#start(member, this.#random.within([1, this.#random.pick([10, 1_000, 6_000])]));
  }

  async #start(member: PairMember, delayMs: number): Promise<void> {
    this.#reviving += 1;
    const start = (this.#starts.get(member) ?? 0) + 1;
    this.#starts.set(member, start);
    try {
      await this.#scene.world.sleep(delayMs);
      if (this.#failover.isGone(member) || this.#starts.get(member) !== start) return;
      const { host } = member;
      if (!host.alive) {
        if (member === this.#scene.pair.primary) this.#scene.model.recoverGuest(member);
        host.restart();
        // Whoever recovers may die of it.
        if (!this.#atPeace && this.#random.chance(0.1)) {
          host.disk.faults.crashAt(
            1 + this.#random.below(60),
            this.#acksEarly ? "process" : this.#scene.plan.pair.durability,
          );
        }
      }
      this.#scene.world.note(`${member.name} starts`);
      const tolerated = member === this.#scene.pair.secondary ? this.#scene.deviceCodes : [];
      if (!(await member.start(tolerated))) return;
      this.#scene.disturbed();
      if (member === this.#scene.pair.secondary) await this.#recoverSecondary(member);
      else this.#scene.lookAtLineage();
    } finally {
      this.#reviving -= 1;
    }
  }

  async #recoverSecondary(member: PairMember): Promise<void> {
    if (member.agent?.role === "Secondary") {
      await this.#reader.recover();
      if (member.agent?.role === "Secondary") await this.#operator.vmStates.check(member);
    } else if (member.agent !== undefined) await this.#failover.recover();
  }
}
