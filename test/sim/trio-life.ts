import assert from "node:assert/strict";
import type { AgentEvent, PeerStatus } from "../../proto/status.ts";
import type { ErrorCode } from "../../proto/errors.ts";
import type { AckPolicy } from "../../proto/words.ts";
import { present } from "../support/present.ts";
import { readRecord } from "./crash-remains.ts";
import { untilApplied } from "./buffered-bytes.ts";
import type { LifeCounts } from "./life-totals.ts";
import { imagePath, urlOf, type PairDisk, type PairMember } from "./pair.ts";
import { RoleGuests, type GuestRequest } from "./role-guests.ts";
import { COMMAND_MS, isHeldOrParted, LOST_SESSION_ERRORS, QUICK_MS, RoleScene } from "./role-scene.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { TrioModel } from "./trio-model.ts";
import { COUNTED_REPLACEMENTS, TrioReplacements } from "./trio-replacements.ts";
import { makeTrio, makeTrioMember, type TrioOptions } from "./trio.ts";

/**
 * The life of a primary with two secondaries: guests write on whichever side serves, hosts die and come back, the network
 * cuts off one or the other, and an operator fails over to either secondary, has the others follow it, and gives a side up
 * after a split brain. In some lives hosts are gone for good, are given up, and others come in their place. At the end all three come together, and all images hold what the serving side's guest has seen.
 */
const DISKS: readonly PairDisk[] = [
  { name: "vda", sizeBytes: 20 * 4096 + 1024 },
  { name: "vdb", sizeBytes: 12 * 4096 },
];
const ACTIONS_MIN = 60;
const TOGETHER_WITHIN_MS = 900_000;
const WRITE_MAX_BYTES = 3 * 4096;
/** A failover that one side after the other has refused so often is forced at the end. */
const REFUSALS_MAX = 10;

const COUNTED = ["decisions", "follows", "splits", "told without one", ...COUNTED_REPLACEMENTS] as const;

/** What a commit or a discard may end with beside success. */
const DECISION_CODES: readonly ErrorCode[] = [
  "no-peer",
  "timed-out",
  "outcome-unknown",
  "epoch-unknown",
  "epoch-committed",
  "outdated",
  "handed-over",
  "shutting-down",
  "not-primary",
];

export function runTrioLife(seed: number, print?: (line: string) => void): Promise<LifeCounts> {
  return new TrioLife(seed, print).run();
}

class TrioLife {
  readonly #scene: RoleScene<(typeof COUNTED)[number]>;
  readonly #random: SeededRandom;
  readonly #guests: RoleGuests;
  readonly #model: TrioModel;
  readonly #mode: "colo" | "mc";
  /** undefined: the hosts stay. */
  readonly #replacements: TrioReplacements | undefined;
  /** How many sessions a primary has lost. */
  readonly #losses = new Map<PairMember, number>();
  /** Failovers since the last one that were refused, since something newer was told. */
  #refusals = 0;

  constructor(seed: number, print?: (line: string) => void) {
    const scene = new RoleScene(seed, { program: "run-trio-lives", print, disks: DISKS, counted: COUNTED });
    const { random, durability } = scene;
    this.#scene = scene;
    this.#random = random;
    this.#mode = random.pick(["colo", "colo", "mc"]);
    const ack = random.pick<AckPolicy>(["async", "async", "received", "applied"]);
    const contents = DISKS.map(({ sizeBytes }) => random.bytes(sizeBytes));
    const model = new TrioModel(DISKS, (member, event) => this.#happened(member, event));
    this.#model = model;
    const options: TrioOptions = {
      mode: this.#mode,
      disks: DISKS,
      durability,
      ack,
      windowBytes: random.pick([1024 * 1024, 16 * 1024]),
      onCongestion: ack === "async" ? random.pick(["throttle", "detach"]) : "throttle",
    };
    const members = makeTrio(scene.world, options, contents, model);
    const replacing = random.fork("replacements");
    this.#replacements = replacing.chance(0.5)
      ? new TrioReplacements(scene, {
          random: replacing,
          newcomer: (name) => makeTrioMember(scene.world, name, options, { observer: model }),
          gaveUp: (member) => model.gaveUp(member),
        })
      : undefined;
    model.guests.begin(present(members[0]), contents);
    this.#guests = new RoleGuests(scene, {
      isCurrent: (member, disk) => model.guests.isCurrent(member, disk),
      alsoLegal: ["no-checkpoint"],
    });
    scene.enter({
      members,
      died: (member, kind) => model.died(member, kind),
      started: (member) => this.#started(member),
      isExcused: isHeldOrParted,
    });
  }

  run(): Promise<LifeCounts> {
    return this.#scene.run(() => this.#live());
  }

  async #live(): Promise<void> {
    for (const member of this.#scene.members) await this.#scene.start(member);
    await this.#together();
    const actions = ACTIONS_MIN + this.#random.below(60);
    for (let action = 0; action < actions; action += 1) {
      await this.#act();
      await this.#replacements?.act(this.#serving);
      await this.#scene.pause();
    }
    await this.#together();
    await this.#compare();
  }

  async #act(): Promise<void> {
    const { members, world } = this.#scene;
    const member = this.#random.pick(members);
    const roll = this.#random.below(100);
    if (roll < 45)
      for (const one of members) for (let count = this.#random.below(12); count > 0; count -= 1) this.#guest(one);
    else if (roll < 57) for (const one of members) void this.#checkpoint(one);
    else if (roll < 60) for (const one of members) void this.#decide(one);
    else if (roll < 66) await this.#crash(member);
    else if (roll < 74) await this.#scene.startIfDown(member);
    else if (roll < 80) this.#scene.cutOff(member, !this.#scene.isCutOff(member));
    else if (roll < 82) world.network.cut(member.name, this.#random.pick(this.#scene.othersOf(member)).name);
    else if (roll < 85) await this.#readView(member);
    else if (roll < 89) await this.#failover(member);
    else if (roll < 96) await this.#resolve();
    else if (roll < 98) await this.#switchover(member);
    else if (isHeldOrParted(member.status)) this.#scene.startAlone(member);
  }

  // Guests

  #guest(member: PairMember): void {
    if (member.role !== "Primary") return;
    const index = this.#random.below(DISKS.length);
    const disk = present(DISKS[index]);
    if (member.device(disk) === undefined) return;
    this.#scene.counts.operations += 1;
    const roll = this.#random.below(10);
    const length = 1 + this.#random.below(WRITE_MAX_BYTES);
    const offset = this.#random.below(disk.sizeBytes - length);
    const request = { member, disk, model: this.#model.guests.diskOf(member, index), offset, length };
    if (roll < 2) this.#guests.read(request);
    else if (roll < 3) this.#guests.flush(request);
    else this.#write(request, roll < 4 ? undefined : this.#random.bytes(length));
  }

  #write(request: GuestRequest, data: Buffer | undefined): void {
    const missingBefore = this.#missing(request.member);
    this.#guests.write(request, data, () => this.#tell(request.member, missingBefore));
  }

  /** The peers that a primary sends nothing to now, by name, which it knows. */
  #missing({ status }: PairMember): string[] {
    return status?.peers.flatMap((peer) => (peer.connection === "Connected" ? [] : this.#nameOf(peer))) ?? [];
  }

  /** Something was told that the peers lack which are missing, and were when it was asked for. */
  #tell(member: PairMember, missingBefore: readonly string[]): void {
    const { status } = member;
    if (status?.role !== "Primary") return;
    const established = status.peers.flatMap((peer) =>
      peer.replication === "Established" || peer.replication === "SyncSource" ? this.#nameOf(peer) : [],
    );
    for (const name of this.#missing(member).filter((one) => missingBefore.includes(one))) {
      this.#scene.counts["told without one"] += 1;
      this.#model.toldWithout(name, [member.name, ...(this.#isHeardBy(member, established) ? established : [])]);
    }
  }

  /** Whether the secondaries have heard of the primary's history by now: what is asked of a model that sees no messages. */
  #isHeardBy({ status }: PairMember, names: readonly string[]): boolean {
    return names.every((name) => this.#scene.find(name)?.status?.lineage === status?.lineage);
  }

  #nameOf({ agentId, url }: PeerStatus): string[] {
    const known = this.#scene.members.find(({ status }) => agentId !== null && status?.agentId === agentId);
    const name = known?.name ?? (url === null ? undefined : /[a-z]$/.exec(url)?.[0]);
    return name === undefined ? [] : [name];
  }

  // The operator

  async #checkpoint(
    member: PairMember,
    timeoutMs = this.#random.pick([100, QUICK_MS, COMMAND_MS]),
    prepare = this.#random.chance(0.4),
  ): Promise<boolean> {
    if (member.role !== "Primary") return false;
    const missingBefore = this.#missing(member);
    const established = this.#established(member);
    const losses = this.#losses.get(member);
    const request = { prepare, timeoutMs };
    const outcome = await this.#scene.command(
      member,
      "checkpoint",
      (agent, signal) => agent.checkpoint(request, signal),
      {
        timeoutMs,
        told: (told) => {
          if (told.kind !== "done" || prepare) return;
          this.#tell(member, missingBefore);
          this.#model.checkpointTold(member, told.value.epoch);
          if (this.#losses.get(member) === losses) this.#assertCommittedOnAll(member, established, told.value.epoch);
        },
      },
    );
    if (outcome.kind !== "done" || prepare) return false;
    this.#scene.counts.checkpoints += 1;
    return true;
  }

  /** What a hook does about a checkpoint that is prepared. */
  async #decide(member: PairMember): Promise<void> {
    const { status } = member;
    const prepared = status?.epoch.prepared ?? [];
    if (prepared.length === 0 || status?.role !== "Primary") return;
    const request = { epoch: this.#random.pick(prepared), timeoutMs: QUICK_MS };
    const missingBefore = this.#missing(member);
    const limits = { timeoutMs: QUICK_MS, legal: DECISION_CODES };
    if (this.#random.chance(0.3)) {
      await this.#scene.command(member, "discard", (agent, signal) => agent.discard(request, signal), limits);
      return;
    }
    const outcome = await this.#scene.command(member, "commit", (agent, signal) => agent.commit(request, signal), {
      ...limits,
      told: ({ kind }) => {
        if (kind !== "done") return;
        this.#tell(member, missingBefore);
        this.#model.checkpointTold(member, request.epoch);
      },
    });
    if (outcome.kind === "done") this.#scene.counts.decisions += 1;
  }

  /** A checkpoint that is told to be committed is so on each secondary that has had everything all along. */
  #assertCommittedOnAll(member: PairMember, names: readonly string[], epoch: number): void {
    for (const name of names) {
      const committed = this.#scene.find(name)?.status?.epoch.committed ?? epoch;
      assert(
        committed >= epoch,
        `checkpoint ${epoch} of ${member.name} is done, and ${name} has committed ${committed}`,
      );
    }
  }

  #established({ status }: PairMember): string[] {
    return status?.peers.flatMap((peer) => (peer.replication === "Established" ? this.#nameOf(peer) : [])) ?? [];
  }

  #readView(member: PairMember): Promise<void> {
    return this.#scene.readView(member, (epoch, index) => this.#model.checkpointOf(member, epoch, index));
  }

  /** The operator believes that the primary is gone: it is down, or cut off. */
  async #failover(member: PairMember, force = false): Promise<void> {
    const { status } = member;
    if (status?.role !== "Secondary" || status.epoch.committed === 0) return;
    if (status.peers[0]?.connection === "Connected" || status.disks[0]?.state === "Outdated") return;
    this.#scene.world.note(`failover on ${member.name}`);
    const request = { force, dryRun: false, discardActive: false, timeoutMs: COMMAND_MS };
    if (force) for (const other of this.#scene.othersOf(member)) this.#model.gaveUp(other);
    const outcome = await this.#scene.command(member, "failover", (agent, signal) => agent.failover(request, signal), {
      legal: ["peer-connected", "outdated", "timed-out", "no-checkpoint"],
    });
    if (outcome.kind === "failed" && outcome.error.code === "outdated") this.#refusals += 1;
    if (outcome.kind !== "done" || outcome.value.already) return;
    this.#refusals = 0;
    this.#scene.counts.failovers += 1;
    const { epoch } = outcome.value;
    if (!force) this.#model.supersedes(epoch, readRecord(member.host).history.ancestors);
    await this.#readBack(member);
  }

  #readBack(member: PairMember): Promise<void> {
    return this.#scene.readBack(
      member,
      () => member.role === "Primary",
      (index, content) => this.#model.guests.readBack(member, index, content),
    );
  }

  /** The one whose guests run: the others are to follow it. */
  get #serving(): PairMember | undefined {
    return this.#scene.members.find(
      ({ status }) => status?.role === "Primary" && status.protection.reason !== "outdated",
    );
  }

  /** What an operator does so that the others follow the one that serves. */
  async #resolve(): Promise<void> {
    const primary = this.#serving;
    if (primary === undefined) return;
    await this.#replacements?.repair(primary);
    for (const member of this.#scene.othersOf(primary)) {
      const { status } = member;
      if (status === undefined || primary.agent === undefined) continue;
      const isItsOwn = status.peers[0]?.agentId === primary.status?.agentId;
      if (status.role === "Secondary" && isItsOwn && status.peers[0]?.connection === "Connected") continue;
      await this.#follow(member, primary);
    }
  }

  async #follow(member: PairMember, primary: PairMember): Promise<void> {
    this.#scene.world.note(`rejoin on ${member.name}, to ${primary.name}`);
    const request = { peer: urlOf(primary.name), timeoutMs: QUICK_MS };
    const rejoined = await this.#scene.command(member, "rejoin", (agent, signal) => agent.rejoin(request, signal), {
      timeoutMs: QUICK_MS,
      legal: ["timed-out", "not-applicable", "role-conflict", "split-brain", "outdated"],
    });
    if (rejoined.kind === "done") this.#scene.counts[rejoined.value.already ? "follows" : "rejoins"] += 1;
    const isSplit =
      (rejoined.kind === "failed" && rejoined.error.code === "split-brain") ||
      member.status?.peers.some(({ lastError }) => lastError?.code === "split-brain") === true;
    if (isSplit && member.agent !== undefined && primary.role === "Primary") await this.#discard(member, primary);
  }

  async #discard(member: PairMember, primary: PairMember): Promise<void> {
    this.#scene.counts.splits += 1;
    this.#scene.world.note(`connect --discard-my-data on ${member.name}`);
    this.#model.gaveUp(member);
    const peer = urlOf(primary.name);
    const request = { dryRun: false, discardMyData: true, peer, timeoutMs: COMMAND_MS };
    const outcome = await this.#scene.command(member, "connect", (agent, signal) => agent.connect(request, signal), {
      legal: ["timed-out", "not-applicable", "merge-unfinished", "outdated", "role-conflict", "handed-over"],
    });
    if (outcome.kind === "done") this.#scene.counts.discards += 1;
  }

  async #switchover(member: PairMember): Promise<void> {
    const { status } = member;
    if (status?.role !== "Primary" || status.peers.length === 0) return;
    const peer = this.#random.pick(status.peers).agentId;
    if (peer === null) return;
    await this.#scene.switchover(member, { peer, alsoLegal: LOST_SESSION_ERRORS });
  }

  // Faults

  async #crash(member: PairMember): Promise<void> {
    if (!member.host.alive) return;
    this.#scene.crash(member, this.#scene.drawCrash());
    await this.#scene.world.sleep(0);
  }

  async #started(member: PairMember): Promise<void> {
    const { status } = member;
    this.#model.started(member, status);
    this.#replacements?.started(member);
    if (status?.role === "Primary") await this.#readBack(member);
  }

  // The end

  /** The network is whole, all run, and the operator does what each side asks for, until they are in sync. */
  #together(): Promise<void> {
    const { members } = this.#scene;
    this.#scene.reunite();
    return this.#scene.untilTogether(async () => {
      const primary = this.#serving;
      const inSync = primary?.status?.peers.filter(({ replication }) => replication === "Established") ?? [];
      if (primary !== undefined && inSync.length === 2 && (await this.#checkpoint(primary, COMMAND_MS, false)))
        return true;
      // Where the one that has the newest checkpoint is lost for good, an operator gives that up.
      if (primary === undefined) await this.#failover(this.#random.pick(members), this.#refusals > REFUSALS_MAX);
      else await this.#resolve();
      if (primary === undefined || primary.status?.protection.reason === "held") await this.#unhold();
      return false;
    }, TOGETHER_WITHIN_MS);
  }

  /** Where all are there and the guests of one wait, an operator knows what to do. */
  async #unhold(): Promise<void> {
    const only = this.#scene.members.find(({ status }) => status?.protection.reason === "outdated");
    if (only === undefined || this.#serving !== undefined) return;
    // Whoever it is behind was made Secondary again, or gave up: an operator goes back to one of those that can serve.
    await this.#failover(this.#random.pick(this.#scene.othersOf(only)));
  }

  async #compare(): Promise<void> {
    await this.#scene.calls.settled();
    const primary = present(this.#serving);
    await primary.agent?.wait({ condition: "merged", timeoutMs: COMMAND_MS }, new AbortController().signal);
    await this.#together();
    if (this.#mode === "mc") await untilApplied(this.#scene.world, this.#scene.members, COMMAND_MS);
    for (const [index, disk] of DISKS.entries()) {
      const [own, ...others] = [primary, ...this.#scene.othersOf(primary)].map(({ host }) =>
        host.disk.readFile(imagePath(disk)),
      );
      assert(own !== undefined);
      this.#model.guests.diskOf(primary, index).check(own, 0, `${disk.name} on ${primary.name} at the end`);
      for (const other of others) assert(other.equals(own), `the copies of ${disk.name} differ at the end`);
    }
  }

  #happened(member: PairMember, event: AgentEvent): void {
    if (event.type === "peer-disconnected") this.#losses.set(member, (this.#losses.get(member) ?? 0) + 1);
    this.#scene.happened(member, event);
  }
}
