import assert from "node:assert/strict";
import type { AgentEvent, JobStatus } from "../../proto/status.ts";
import type { AckPolicy } from "../../proto/words.ts";
import { present } from "../support/present.ts";
import { untilApplied } from "./buffered-bytes.ts";
import type { LifeCounts } from "./life-totals.ts";
import { MirrorStream } from "./mirror-stream.ts";
import { AgeWatch } from "./age-watch.ts";
import { imagePath, makePair, urlOf, type PairDisk, type PairMember } from "./pair.ts";
import { RoleGuests, type GuestRequest } from "./role-guests.ts";
import { RoleModel } from "./role-model.ts";
import { RoleResizes } from "./role-resizes.ts";
import { COMMAND_MS, isHeldOrParted, QUICK_MS, RoleScene } from "./role-scene.ts";
import type { SeededRandom } from "./seeded-random.ts";

/**
 * The life of a pair whose roles change: guests write on whichever side serves, hosts die and come back, the network
 * parts the two, and an operator fails over, rejoins, switches over, starts alone, and gives one side up after a split
 * brain. At the end the two come together, and both images hold what the serving side's guest has seen.
 */
const DISKS: readonly PairDisk[] = [
  { name: "vda", sizeBytes: 24 * 4096 + 1024 },
  { name: "vdb", sizeBytes: 16 * 4096 },
];
const ACTIONS_MIN = 60;
const OPERATIONS_MIN = 300;
const CHECKPOINTS_MIN = 5;
const FAULTS_MIN = 5;
const TOGETHER_WITHIN_MS = 600_000;
const RETAIN_MAX = 2;
const WRITE_MAX_BYTES = 3 * 4096;

/** How much longer a disk may get. */
const GROWTH_MAX_BYTES = 12 * 4096;

const COUNTED = [
  "splits",
  "faults",
  "cut links",
  "congested",
  "dry runs",
  "ages",
  "resizes",
  "stops",
  "stops in a merge",
  "rollbacks",
] as const;

const PROGRAM_OF_MODE = {
  colo: "run-role-lives",
  mc: "run-buffered-role-lives",
  mirror: "run-mirror-role-lives",
} as const;

export function runRoleLife(seed: number, print?: (line: string) => void): Promise<LifeCounts> {
  return new RoleLife(seed, "colo", print).run();
}

/** The same of a pair in mode `mirror`. */
export function runMirrorRoleLife(seed: number, print?: (line: string) => void): Promise<LifeCounts> {
  return new RoleLife(seed, "mirror", print).run();
}

/** The same of a pair in mode `mc`. */
export function runBufferedRoleLife(seed: number, print?: (line: string) => void): Promise<LifeCounts> {
  return new RoleLife(seed, "mc", print).run();
}

class RoleLife {
  readonly #scene: RoleScene<(typeof COUNTED)[number]>;
  readonly #random: SeededRandom;
  readonly #guests: RoleGuests;
  readonly #model: RoleModel;
  readonly #mode: "colo" | "mc" | "mirror";
  readonly #events = new Map<PairMember, number>();
  /** When an operator only asks what the two would do. */
  readonly #asking: SeededRandom;
  /** When guests are let go on in a split brain. */
  readonly #forcing: SeededRandom;
  /** undefined: nobody stops an agent in good order, nor pauses a merge. */
  readonly #stopping: SeededRandom | undefined;
  /** undefined: nobody rolls a secondary back. */
  readonly #rolling: SeededRandom | undefined;
  /** undefined: the disks keep their sizes. */
  readonly #resizes: RoleResizes | undefined;

  constructor(seed: number, mode: "colo" | "mc" | "mirror", print?: (line: string) => void) {
    const scene = new RoleScene(seed, { program: PROGRAM_OF_MODE[mode], print, disks: DISKS, counted: COUNTED });
    const { random, durability } = scene;
    this.#scene = scene;
    this.#mode = mode;
    this.#random = random;
    const contents = DISKS.map(({ sizeBytes }) => random.bytes(sizeBytes));
    const drawnAck = random.pick<AckPolicy>(["async", "async", "received", "applied"]);
    const ack =
      mode === "mirror" ? random.fork("ack").pick<AckPolicy>(["async", "received", "applied", "applied"]) : drawnAck;
    const stream = mode === "mirror" ? new MirrorStream({ ack, durability }) : undefined;
    const model = new RoleModel(DISKS, (member, event) => this.#happened(member, event), stream);
    this.#model = model;
    const congestion = random.fork("congestion");
    const { primary, secondary } = makePair(
      scene.world,
      {
        mode,
        disks: DISKS,
        clusterBytes: 4096,
        durability,
        ack,
        access: "read-only",
        windowBytes: congestion.pick([1024 * 1024, 16 * 1024]),
        onCongestion: ack === "async" ? congestion.pick(["throttle", "detach"]) : "throttle",
        peerTimeoutMs: 5_000,
        createImages: false,
        checkpointEveryMs: undefined,
        retain: random.pick([0, 0, RETAIN_MAX]) * (mode === "mirror" ? 0 : 1),
        overlayLimitBytes: undefined,
        storage: random.fork("syncs").chance(1 / 8) ? { syncMs: [50, 300] } : {},
      },
      { primary: contents, secondary: contents.map((content) => Buffer.alloc(content.length)) },
      new AgeWatch(scene.world, model, () => {
        scene.counts.ages += 1;
      }),
    );
    const longest = contents.map((content) => Buffer.concat([content, Buffer.alloc(GROWTH_MAX_BYTES)]));
    model.guests.begin(primary, longest);
    this.#guests = new RoleGuests(scene, {
      isCurrent: (member, disk) => model.guests.isCurrent(member, disk),
      alsoLegal: ["no-checkpoint"],
    });
    this.#asking = random.fork("asking");
    this.#forcing = random.fork("forcing");
    const resizing = random.fork("resizing");
    this.#resizes = resizing.chance(0.5)
      ? new RoleResizes(scene, { random: resizing, disks: DISKS, growthMaxBytes: GROWTH_MAX_BYTES })
      : undefined;
    const stopping = random.fork("stopping");
    this.#stopping = stopping.chance(0.25) ? stopping : undefined;
    const rolling = random.fork("rollbacks");
    this.#rolling = rolling.chance(0.5) ? rolling : undefined;
    scene.enter({
      members: [primary, secondary],
      died: (member, kind) => model.died(member, kind),
      started: (member) => this.#started(member),
      isExcused: isHeldOrParted,
    });
  }

  run(): Promise<LifeCounts> {
    return this.#scene.run(() => this.#live());
  }

  async #live(): Promise<void> {
    const { counts, members } = this.#scene;
    for (const member of members) await this.#scene.start(member);
    await this.#together();
    const actions = ACTIONS_MIN + this.#random.below(60);
    for (let action = 0; action < actions || this.#isThin(); action += 1) {
      await this.#act();
      if (this.#resizes?.isDue() === true) void this.#resize(this.#random.pick(members));
      await this.#stop(this.#stopping);
      if (this.#rolling?.chance(0.1) === true) await this.#rollBack(this.#rolling);
      if (this.#asking.chance(0.1)) void this.#ask(this.#asking.pick(members));
      await this.#scene.pause();
    }
    do await this.#together();
    while (counts.checkpoints < CHECKPOINTS_MIN);
    await this.#compare();
  }

  #isThin(): boolean {
    const { counts } = this.#scene;
    return counts.operations < OPERATIONS_MIN || counts.faults < FAULTS_MIN;
  }

  async #act(): Promise<void> {
    const { members } = this.#scene;
    const member = this.#random.pick(members);
    const roll = this.#random.below(100);
    if (roll < 45)
      for (const one of members) for (let count = this.#random.below(12); count > 0; count -= 1) this.#guest(one);
    else if (roll < 60)
      for (const one of members) void (this.#mode === "mirror" ? this.#readView(one) : this.#checkpoint(one));
    else if (roll < 66) await this.#crash(member);
    else if (roll < 74) await this.#scene.startIfDown(member);
    else if (roll < 79) this.#part();
    else if (roll < 81) {
      this.#scene.world.network.cut("a", "b");
      this.#scene.counts.faults += 1;
      this.#scene.counts["cut links"] += 1;
    } else if (roll < 87) await this.#failover(member);
    else if (roll < 94) await this.#resolve(member);
    else if (roll < 98) await this.#switchover(member);
    else if (isHeldOrParted(member.status)) this.#startAlone(member);
  }

  // Guests

  #guest(member: PairMember): void {
    if (member.role !== "Primary") return;
    const index = this.#random.below(DISKS.length);
    const disk = present(DISKS[index]);
    const device = member.device(disk);
    if (device === undefined) return;
    this.#scene.counts.operations += 1;
    const roll = this.#random.below(10);
    const length = 1 + this.#random.below(WRITE_MAX_BYTES);
    const offset = this.#random.below(device.sizeBytes - length);
    const request = { member, disk, model: this.#model.guests.diskOf(member, index), offset, length };
    if (roll < 2) this.#guests.read(request);
    else if (roll < 3) this.#guests.flush(request);
    else this.#write(request, index, roll < 4 ? undefined : this.#random.bytes(length));
  }

  #write(request: GuestRequest, index: number, data: Buffer | undefined): void {
    const { member } = request;
    const outOfStream = this.#outOfStream(member);
    this.#guests.write(request, data, (write) => {
      const [peer] = member.status?.peers ?? [];
      const isConnected = peer?.connection === "Connected";
      if (peer?.replication === "Established") this.#model.acknowledged(member, index, write);
      const isOutOfStream = outOfStream !== undefined && outOfStream === this.#outOfStream(member);
      if (!isConnected || isOutOfStream) this.#model.acknowledgedAlone(member);
    });
  }

  /** While writes bypass a session that is open: the number of the member's last event, so that an end of it is noticed. */
  #outOfStream(member: PairMember): number | undefined {
    const peer = member.status?.peers[0];
    return peer?.connection === "Connected" && peer.replication === "PausedSyncS"
      ? this.#events.get(member)
      : undefined;
  }

  // The operator

  #checkpoint(
    member: PairMember,
    timeoutMs = this.#random.pick([100, QUICK_MS, COMMAND_MS]),
    prepare = this.#random.chance(0.2),
  ): Promise<boolean> {
    if (member.role !== "Primary") return Promise.resolve(false);
    if (this.#mode === "mirror") return Promise.resolve(this.#isMirrored(member));
    return this.#scene.checkpoint(member, timeoutMs, prepare);
  }

  /** Without epochs: everything is on the secondary, and a failover returns it. */
  #isMirrored({ status }: PairMember): boolean {
    if (status?.protection.state !== "Protected" || status.peers[0]?.lagBytes !== 0) return false;
    this.#scene.counts.checkpoints += 1;
    return true;
  }

  #readView(member: PairMember): Promise<void> {
    return this.#scene.readView(member, (epoch, index) => this.#model.checkpointOf(epoch, index));
  }

  /** The operator believes that the primary is gone: it is down, or cut off. */
  async #failover(member: PairMember): Promise<void> {
    const { status } = member;
    if (status?.role !== "Secondary" || status.epoch.committed === 0) return;
    if (status.peers[0]?.connection === "Connected") return;
    const force = this.#random.chance(status.disks[0]?.state === "Outdated" ? 0.5 : 0.1);
    this.#scene.world.note(`failover on ${member.name}${force ? " --force" : ""}`);
    const request = { force, dryRun: false, discardActive: false, timeoutMs: COMMAND_MS };
    const outcome = await this.#scene.command(member, "failover", (agent, signal) => agent.failover(request, signal), {
      legal: ["peer-connected", "outdated", "timed-out"],
    });
    if (outcome.kind !== "done" || outcome.value.already) return;
    this.#scene.counts.failovers += 1;
    await this.#takeUp(member);
  }

  /** A side that was promoted shows the checkpoint that its record names. */
  async #takeUp(member: PairMember): Promise<void> {
    const epoch = member.status?.epoch.committed;
    if (epoch === undefined) return;
    this.#model.promoted(member, epoch);
    if (this.#stopping?.chance(0.7) === true) await this.#orderMerge(member, "pause");
    await this.#readBack(member);
  }

  #readBack(member: PairMember): Promise<void> {
    return this.#scene.readBack(
      member,
      () => true,
      (index, content) => this.#model.guests.readBack(member, index, content),
      GROWTH_MAX_BYTES,
    );
  }

  /** What an operator does about what a side says of itself. */
  async #resolve(member: PairMember): Promise<void> {
    const { status } = member;
    if (status?.peers[0]?.lastError?.code === "rolled-back") await this.#settleRollback(member);
    if (status?.role !== "Primary") return;
    const { reason } = status.protection;
    const errors = this.#scene.members.map((side) => side.status?.peers[0]?.lastError?.code);
    if (errors.includes("size-mismatch")) await this.#resizeToPeer(member);
    if (reason === "outdated") await this.#rejoin(member);
    else if (reason === "split-brain") await this.#discard(member);
  }

  #startAlone(member: PairMember): void {
    const isParted = member.status?.protection.reason === "split-brain";
    this.#scene.startAlone(member, { force: isParted && this.#forcing.chance(0.5) });
  }

  async #rejoin(member: PairMember): Promise<void> {
    if (member.agent === undefined) return;
    this.#scene.world.note(`rejoin on ${member.name}`);
    const request = { peer: urlOf(this.#scene.peerOf(member).name), timeoutMs: COMMAND_MS };
    const outcome = await this.#scene.command(member, "rejoin", (agent, signal) => agent.rejoin(request, signal), {
      legal: ["timed-out", "not-applicable", "role-conflict", "split-brain"],
    });
    if (outcome.kind !== "done" || outcome.value.already) return;
    this.#scene.counts.rejoins += 1;
    this.#model.rejoined(member);
  }

  /** A secondary without a primary goes back to a checkpoint that it has retained. */
  async #rollBack(random: SeededRandom): Promise<void> {
    const candidates = this.#scene.members.filter(
      ({ status }) =>
        status?.role === "Secondary" && status.epoch.retained.length > 0 && status.peers[0]?.connection !== "Connected",
    );
    if (candidates.length === 0) return;
    const member = random.pick(candidates);
    const epoch = random.pick(present(member.status).epoch.retained);
    this.#scene.world.note(`rollback to ${epoch} on ${member.name}`);
    const request = { epoch, timeoutMs: COMMAND_MS };
    const outcome = await this.#scene.command(member, "rollback", (agent, signal) => agent.rollback(request, signal), {
      legal: ["peer-connected", "epoch-unknown", "not-secondary", "timed-out"],
    });
    if (outcome.kind === "done") this.#scene.counts.rollbacks += 1;
  }

  /** The checkpoint that a secondary was rolled back to is what goes on, or is given up. */
  async #settleRollback(member: PairMember): Promise<void> {
    if (member.status?.role !== "Secondary") return;
    if (this.#rolling?.chance(0.5) === true) await this.#failover(member);
    else await this.#discard(member);
  }

  async #discard(member: PairMember): Promise<void> {
    if (member.role === "Primary") this.#scene.counts.splits += 1;
    if (member.agent === undefined) return;
    this.#scene.world.note(`connect --discard-my-data on ${member.name}`);
    const request = { dryRun: false, discardMyData: true, timeoutMs: COMMAND_MS };
    await this.#scene.command(member, "connect", (agent, signal) => agent.connect(request, signal), {
      legal: ["timed-out", "not-applicable", "merge-unfinished", "outdated", "role-conflict"],
    });
    if (member.role === "Secondary") this.#scene.counts.discards += 1;
  }

  async #resize(member: PairMember): Promise<void> {
    if (member.role === "Primary") await this.#resizes?.grow(member);
  }

  /** A side that grew alone, and was outdated then, is longer than the one that was promoted. */
  async #resizeToPeer(member: PairMember): Promise<void> {
    const peer = this.#scene.peerOf(member);
    for (const disk of DISKS) {
      const sizeBytes = peer.status?.disks.find(({ name }) => name === disk.name)?.sizeBytes ?? 0;
      await this.#resizes?.growTo(member, disk, sizeBytes);
    }
  }

  /** Nothing may follow from the question: the model goes on as if it had not been asked. */
  async #ask(member: PairMember): Promise<void> {
    if (member.agent === undefined) return;
    const timeoutMs = this.#asking.pick([100, QUICK_MS, COMMAND_MS]);
    this.#scene.world.note(`connect --dry-run on ${member.name}`);
    const request = { dryRun: true, discardMyData: false, timeoutMs };
    const outcome = await this.#scene.command(member, "dry run", (agent, signal) => agent.connect(request, signal), {
      timeoutMs,
      // A promotion, while it is asked, ends it as it ends a session.
      legal: ["timed-out", "connection-lost", "peer-timeout", "shutting-down", "replaced", "size-mismatch"],
    });
    if (outcome.kind === "done") this.#scene.counts["dry runs"] += 1;
  }

  async #switchover(member: PairMember): Promise<void> {
    const { status } = member;
    if (status?.role !== "Primary" || status.peers[0]?.replication !== "Established") return;
    await this.#scene.switchover(member);
  }

  // Faults

  async #crash(member: PairMember): Promise<void> {
    if (!member.host.alive) return;
    this.#scene.crash(member, this.#scene.drawCrash());
    this.#scene.counts.faults += 1;
    await this.#scene.world.sleep(0);
  }

  async #started(member: PairMember): Promise<void> {
    const { status } = member;
    this.#model.started(member, status);
    if (status?.role === "Primary") await this.#readBack(member);
  }

  /** Mostly a side whose merge is paused, and whose peer has come back: that has another checkpoint, or none. */
  async #stop(random: SeededRandom | undefined): Promise<void> {
    if (random?.chance(0.1) !== true) return;
    const member = random.pick(this.#scene.members);
    const isMerging = mergeOf(member) !== undefined;
    if (!isMerging && !random.chance(0.2)) return;
    if (isMerging && random.chance(0.7)) await this.#comeBack(this.#scene.peerOf(member), random);
    if (!(await this.#scene.stop(member))) return;
    this.#scene.counts.stops += 1;
    if (isMerging) this.#scene.counts["stops in a merge"] += 1;
    await this.#scene.startIfDown(member);
    if (random.chance(0.5)) await this.#orderMerge(member, "resume");
  }

  /** A side gets a session with its peer, and may get as far as a checkpoint. */
  async #comeBack(member: PairMember, random: SeededRandom): Promise<void> {
    this.#scene.reunite();
    await this.#scene.startIfDown(member);
    await this.#scene.world.sleep(random.within([100, 5_000]));
    await this.#resolve(member);
    await this.#scene.world.sleep(random.within([1, 2_000]));
    if (random.chance(0.5)) await this.#checkpoint(this.#scene.peerOf(member), QUICK_MS, false);
  }

  async #orderMerge(member: PairMember, verb: "pause" | "resume"): Promise<void> {
    const merge = mergeOf(member);
    if (merge === undefined) return;
    await this.#scene.command(member, verb, (agent) => agent.job(merge.id, verb), { legal: ["job-state"] });
  }

  #part(): void {
    const a = this.#scene.member("a");
    const on = !this.#scene.isCutOff(a);
    if (on) this.#scene.counts.faults += 1;
    this.#scene.cutOff(a, on);
  }

  // The end

  /** The network is whole, both run, and the operator does what each side asks for, until they are in sync. */
  #together(): Promise<void> {
    this.#scene.reunite();
    return this.#scene.untilTogether(async () => {
      const { members, primary, isFollowed } = this.#scene;
      if (this.#stopping !== undefined) for (const member of members) await this.#orderMerge(member, "resume");
      if (isFollowed && primary !== undefined && (await this.#checkpoint(primary, COMMAND_MS, false))) return true;
      if (primary === undefined) await this.#failover(this.#random.pick(members));
      else for (const member of members) await this.#resolve(member);
      return false;
    }, TOGETHER_WITHIN_MS);
  }

  async #compare(): Promise<void> {
    await this.#scene.calls.settled();
    const primary = present(this.#scene.primary);
    await primary.agent?.wait({ condition: "merged", timeoutMs: COMMAND_MS }, new AbortController().signal);
    if (this.#mode === "mirror") await this.#together();
    assert(
      (await this.#checkpoint(primary, COMMAND_MS, false)) ||
        (await this.#checkpoint(primary, COMMAND_MS, false)) ||
        (await this.#checkpoint(primary, COMMAND_MS, false)),
      "the last checkpoint is not taken",
    );
    if (this.#mode === "mc") {
      // What is committed reaches the base when no earlier checkpoint is kept that needs it as it was.
      for (let kept = 0; kept < RETAIN_MAX; kept += 1) await this.#checkpoint(primary, COMMAND_MS, false);
      await untilApplied(this.#scene.world, this.#scene.members, COMMAND_MS);
    }
    for (const [index, disk] of DISKS.entries()) {
      const [a, b] = this.#scene.members.map(({ host }) => host.disk.readFile(imagePath(disk)));
      assert(a !== undefined && b !== undefined);
      const sizeBytes = primary.device(disk)?.sizeBytes ?? 0;
      assert(a.length >= sizeBytes && b.length >= sizeBytes, `a copy of ${disk.name} is too short at the end`);
      const model = this.#model.guests.diskOf(primary, index);
      model.check(a.subarray(0, sizeBytes), 0, `${disk.name} on a at the end`);
      const isEqual = a.subarray(0, sizeBytes).equals(b.subarray(0, sizeBytes));
      assert(isEqual, `the copies of ${disk.name} differ at the end`);
    }
  }

  #happened(member: PairMember, event: AgentEvent): void {
    this.#events.set(member, (this.#events.get(member) ?? 0) + 1);
    if (event.type === "congested") this.#scene.counts.congested += 1;
    this.#scene.happened(member, event);
  }
}

/** A merge that is not at its end. */
function mergeOf({ status }: PairMember): JobStatus | undefined {
  return status?.jobs.find(({ type, state }) => type === "merge" && state !== "concluded");
}
