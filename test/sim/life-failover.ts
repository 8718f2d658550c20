import assert from "node:assert/strict";
import type { Agent } from "../../cli/agent.ts";
import type { FailoverAnswer } from "../../proto/control-api.ts";
import type { Outcome } from "./calls.ts";
import type { LifeGuest } from "./life-guest.ts";
import type { LifeScene } from "./life-scene.ts";
import type { LifeVmStates } from "./life-vm-states.ts";
import { imagePath, type PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";

const FAILOVER_WITHIN_MS = 30_000;
const MERGED_WITHIN_MS = 300_000;
const OPERATIONS_MAX = 80;
const CRASHES_MAX = 3;

/**
 * The last act of a life: the primary is gone, or cut off, or overruled, and the secondary is promoted. Its guest works
 * on the export while the overlays are merged, the host may crash on the way, and at the end the image alone holds
 * what the guest has written.
 */
export class LifeFailover {
  readonly #scene: LifeScene;
  readonly #random: SeededRandom;
  readonly #guest: LifeGuest;
  readonly #vmStates: LifeVmStates;
  readonly #discardActive: boolean;
  readonly #gone = new Set<PairMember>();
  #promoted = false;
  /** The promoted side's disks were read back after its last start. */
  #recovered = true;

  constructor(scene: LifeScene, random: SeededRandom, guest: LifeGuest, vmStates: LifeVmStates) {
    this.#scene = scene;
    this.#random = random;
    this.#guest = guest;
    this.#vmStates = vmStates;
    this.#discardActive = random.chance(0.25);
  }

  get isPromoted(): boolean {
    return this.#promoted;
  }

  /** Whether the member is never started again. */
  isGone(member: PairMember): boolean {
    return this.#gone.has(member);
  }

  async run(untilUp: (member: PairMember) => Promise<void>): Promise<void> {
    const { pair, calls } = this.#scene;
    const force = this.#random.chance(0.3);
    await this.#losePrimary(force);
    const crashes = this.#random.below(CRASHES_MAX + 1);
    if (crashes > 0 && this.#random.chance(0.4)) this.#crashWithin(30);
    while (!this.#promoted) {
      await untilUp(pair.secondary);
      if (this.#promoted) break; // it was promoted, and died before it could say so
      await this.#promote(force);
    }
    await this.#work(untilUp, crashes);
    await untilUp(pair.secondary);
    await calls.settled();
    await this.#untilMerged(untilUp);
    this.#checkImages();
    // What was merged is on the medium: only what was written since the last flush can be in doubt.
    this.#operate(10);
    await calls.settled();
    pair.secondary.host.crash(this.#scene.plan.pair.durability);
    await this.#scene.world.sleep(1);
    await untilUp(pair.secondary);
    assert(this.#recovered, "the promoted side was not read back");
    this.#checkImages();
  }

  /** The promoted side has started again, or is found promoted: everything must be there. */
  async recover(): Promise<void> {
    this.#recovered = false;
    const { status } = this.#scene.pair.secondary;
    if (status === undefined) return;
    const hadGuest = this.#promoted;
    if (!this.#promoted) this.#scene.model.observeCommitted(status.epoch.committed);
    this.#becomePromoted();
    // Nothing says that the other side was not promoted meanwhile, but the operator knows.
    if (status.protection.reason === "held") await this.#scene.pair.secondary.agent?.startAlone({ force: false });
    const contents = await this.#guest.readContents();
    this.#recovered = contents !== undefined;
    if (contents !== undefined && !hadGuest) this.#scene.model.checkMoment(contents);
  }

  async #losePrimary(force: boolean): Promise<void> {
    const { pair, world, plan, calls } = this.#scene;
    const { primary } = pair;
    this.#gone.add(primary);
    this.#scene.disturb(true);
    const isShared = plan.pair.mode === "shared";
    // A primary that goes on alone when it is cut off leaves no checkpoint to return to.
    const isLeftAlone = plan.pair.onPeerLoss === "continue" && isShared;
    const how = this.#random.pick([
      "killed",
      "loses power",
      ...(isLeftAlone ? [] : ["cut off"]),
      ...(force && !isShared ? ["overruled"] : []),
    ]);
    this.#scene.world.note(`the primary is ${how}`);
    if (how === "killed") primary.host.crash("process");
    else if (how === "loses power") primary.host.crash("power");
    else if (how === "cut off") world.network.partition("a", "b", true);
    if (!force) {
      const isConnected = (): boolean => {
        const { status } = pair.secondary;
        return status === undefined || status.peers[0]?.connection === "Connected";
      };
      const untilMs = world.nowMs + 3 * plan.pair.peerTimeoutMs + 10_000;
      while (isConnected()) {
        assert(world.nowMs < untilMs, "the secondary does not give its primary up");
        await this.#scene.world.sleep(50);
      }
    }
    // Its guest is dead, or cut off too: nobody waits for it.
    if (primary.host.alive && how !== "overruled") primary.host.crash("process");
    calls.died(primary.host.process);
    // Who is promoted on a shared disk has had the other fenced.
    if (isShared) primary.host.crash("power");
  }

  async #promote(force: boolean): Promise<void> {
    const { pair, calls } = this.#scene;
    const { agent } = pair.secondary;
    if (agent === undefined) return;
    const request = {
      force,
      dryRun: false,
      discardActive: this.#discardActive,
      fenced: true,
      timeoutMs: FAILOVER_WITHIN_MS,
    };
    const signal = new AbortController().signal;
    if (this.#random.chance(0.5)) {
      const rehearsal = await calls.make(pair.secondary, "failover", FAILOVER_WITHIN_MS, () =>
        agent.failover({ ...request, dryRun: true }, signal),
      );
      this.#checkAnswer(rehearsal);
      if (pair.secondary.agent === undefined) return;
      assert.equal(agent.role, "Secondary");
    }
    this.#scene.world.note("failover");
    const outcome = await calls.make(
      pair.secondary,
      "failover",
      FAILOVER_WITHIN_MS,
      () => agent.failover(request, signal),
      (ended) => {
        this.#checkAnswer(ended);
        if (ended.kind !== "done") return;
        // Nobody has written yet.
        if (!this.#promoted) void this.#vmStates.check(pair.secondary);
        this.#becomePromoted();
      },
    );
    if (outcome.kind !== "done") return;
    const again = await calls.make(pair.secondary, "failover", FAILOVER_WITHIN_MS, () =>
      agent.failover(request, signal),
    );
    if (again.kind === "done") assert(again.value.already, "a second failover has nothing to do");
    else assert.equal(again.kind, "lost");
  }

  #checkAnswer(outcome: Outcome<FailoverAnswer>): void {
    if (outcome.kind === "failed") assert.fail(`failover: ${outcome.error.code}, ${outcome.error.message}`);
    if (outcome.kind !== "done") return;
    // A commit that was under way may have come before the promotion.
    const { status } = this.#scene.pair.secondary;
    if (status === undefined) return;
    this.#scene.model.observeCommitted(status.epoch.committed);
    assert.equal(outcome.value.epoch, this.#scene.model.committed);
  }

  #becomePromoted(): void {
    if (this.#promoted) return;
    this.#promoted = true;
    this.#scene.counts.failovers += 1;
    this.#scene.model.promoted(this.#discardActive);
    this.#guest.member = this.#scene.pair.secondary;
  }

  /** Guest I/O during the merge, which is slowed down now and then, with crashes among it. */
  async #work(untilUp: (member: PairMember) => Promise<void>, crashes: number): Promise<void> {
    const { pair, plan, calls } = this.#scene;
    await untilUp(pair.secondary);
    assert(this.#recovered || pair.secondary.agent === undefined, "the promoted side was not read back");
    if (calls.count("write") === 0) {
      const contents = await this.#guest.readContents();
      if (contents !== undefined) this.#scene.model.checkMoment(contents);
    }
    for (let crash = 0; crash <= crashes; crash += 1) {
      await this.#slowDown();
      if (crash < crashes) this.#crashWithin(120);
      const { process } = pair.secondary.host;
      // A process that follows must be read back before its guest may go on.
      const isRunning = (): boolean => process.alive && this.#guest.isRunning;
      for (let left = this.#random.below(OPERATIONS_MAX); left > 0 && isRunning(); left -= 1) {
        await this.#guest.untilRoom();
        if (isRunning()) this.#operate(1);
        await this.#scene.world.sleep(plan.gapMs * this.#random.fraction());
      }
      if (crash === crashes) break;
      if (pair.secondary.host.alive)
        pair.secondary.host.crash(
          plan.pair.durability === "power" ? this.#random.pick(["process", "power"]) : "process",
        );
      await this.#scene.world.sleep(1);
      await untilUp(pair.secondary);
    }
  }

  #operate(count: number): void {
    for (let left = count; left > 0 && this.#guest.isRunning; left -= 1) {
      this.#scene.counts.operations += 1;
      this.#guest.do(this.#random.pick(["write", "write", "write", "zero", "read", "rewrite", "flush", "open-write"]));
    }
  }

  /** Limits the merge's speed, so that there is something left to merge. */
  async #slowDown(): Promise<void> {
    const { agent } = this.#scene.pair.secondary;
    const job = agent?.jobs().find(({ type, state }) => type === "merge" && state !== "concluded");
    if (agent === undefined || job === undefined || this.#random.chance(0.4)) return;
    await this.#setSpeed(agent, job.id, 2 ** (10 + this.#random.below(10)));
  }

  async #setSpeed(agent: Agent, job: string, speed: number): Promise<void> {
    const { pair, calls } = this.#scene;
    await calls.make(pair.secondary, "set-speed", FAILOVER_WITHIN_MS, () => agent.setJobSpeed(job, speed));
  }

  #crashWithin(calls: number): void {
    const { durability } = this.#scene.plan.pair;
    const drawn = durability === "power" ? this.#random.pick(["process", "power"] as const) : "process";
    const { mode, ack } = this.#scene.plan.pair;
    // Where guests go on before their writes are durable on a mirror, it has nothing to return to after a loss of power.
    const kind = mode === "mirror" && ack !== "applied" && !this.#promoted ? "process" : drawn;
    this.#scene.pair.secondary.host.disk.faults.crashAt(1 + this.#random.below(calls), kind);
  }

  async #untilMerged(untilUp: (member: PairMember) => Promise<void>): Promise<void> {
    const { pair, calls } = this.#scene;
    for (;;) {
      pair.secondary.host.disk.faults.clear();
      await untilUp(pair.secondary);
      const { agent } = pair.secondary;
      assert(agent !== undefined);
      for (const { id, type } of agent.jobs()) if (type === "merge") await this.#setSpeed(agent, id, 0);
      const request = { condition: "merged", timeoutMs: MERGED_WITHIN_MS } as const;
      const outcome = await calls.make(pair.secondary, "wait", MERGED_WITHIN_MS, () =>
        agent.wait(request, new AbortController().signal),
      );
      if (outcome.kind === "failed") assert.fail(`the merge does not end: ${outcome.error.message}`);
      if (outcome.kind === "done") return;
    }
  }

  /** The images alone hold what the guest sees. */
  #checkImages(): void {
    for (const [index, disk] of this.#scene.plan.pair.disks.entries()) {
      const content = this.#scene.pair.secondary.host.disk.readFile(imagePath(disk));
      this.#scene.model.guest[index]?.check(content, 0, `the image of ${disk.name} after the merge`);
    }
  }
}
