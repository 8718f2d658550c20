import assert from "node:assert/strict";
import type { AgentEvent, PeerStatus, Status } from "../../proto/control-api.ts";
import type { ColobusError, ErrorCode } from "../../proto/errors.ts";
import { ReplicatedDisk } from "../../primary/replicated-disk.ts";
import type { AckPolicy, Durability } from "../../proto/words.ts";
import { bufferedBytes } from "./buffered-bytes.ts";
import { Calls, type Outcome } from "./calls.ts";
import { ModelWrite, type DiskModel } from "./disk-model.ts";
import type { LifeCounts } from "./life-totals.ts";
import { PairStates } from "./pair-states.ts";
import { imagePath, urlOf, type PairDisk, type PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SimulatedCrash, type CrashKind } from "./simulated-crash.ts";
import { TrioModel } from "./trio-model.ts";
import { makeTrio } from "./trio.ts";
import { SimWorld } from "./world.ts";

/**
 * The life of a primary with two secondaries: guests write on whichever side serves, hosts die and come back, the network
 * cuts off one or the other, and an operator fails over to either secondary, has the others follow it, and gives a side up
 * after a split brain. At the end all three come together, and all images hold what the serving side's guest has seen.
 */
const DISKS: readonly PairDisk[] = [
  { name: "vda", sizeBytes: 20 * 4096 + 1024 },
  { name: "vdb", sizeBytes: 12 * 4096 },
];
const ACTIONS_MIN = 60;
const COMMAND_MS = 20_000;
const QUICK_MS = 2_000;
const CALL_SLACK_MS = 30_000;
const TOGETHER_WITHIN_MS = 900_000;
const WRITE_MAX_BYTES = 3 * 4096;

const COUNTED = [
  "operations",
  "writes",
  "checkpoints",
  "decisions",
  "failovers",
  "rejoins",
  "follows",
  "switchovers",
  "splits",
  "discards",
  "alone",
  "partitions",
  "process crashes",
  "power losses",
  "told without one",
] as const;

export interface TrioLifeReport extends LifeCounts {
  readonly seed: number;
}

export async function runTrioLife(seed: number, print?: (line: string) => void): Promise<TrioLifeReport> {
  const life = new TrioLife(seed, print);
  const { world } = life;
  let ended = false;
  world.schedule(0, () => {
    life.live().then(
      () => {
        ended = true;
      },
      (error: unknown) => world.fail("the life", error),
    );
  });
  await world.runUntil("the end of the life", () => ended, 24 * 3_600_000);
  const counts = { ...life.counts, "steps": world.steps, "virtual hours": world.nowMs / 3_600_000 };
  return { seed, counts, pairs: life.pairs.counts };
}

class TrioLife {
  readonly world: SimWorld;
  readonly counts = Object.fromEntries(COUNTED.map((name) => [name, 0])) as Record<(typeof COUNTED)[number], number>;
  readonly pairs = new PairStates();
  readonly #random: SeededRandom;
  readonly #calls: Calls;
  readonly #members: readonly PairMember[];
  readonly #model: TrioModel;
  readonly #durability: Durability;
  readonly #mode: "colo" | "mc";
  readonly #print: ((line: string) => void) | undefined;
  readonly #parted = new Set<string>();
  /** How many sessions a primary has lost. */
  readonly #losses = new Map<PairMember, number>();

  constructor(seed: number, print?: (line: string) => void) {
    this.world = new SimWorld(seed, { replay: `npx tsx test/sim/run-trio-lives.ts --seed ${seed}` });
    this.#random = this.world.random;
    this.#print = print;
    this.#calls = new Calls(this.world);
    this.#durability = this.#random.pick<Durability>(["power", "power", "process"]);
    this.#mode = this.#random.pick(["colo", "colo", "mc"]);
    const ack = this.#random.pick<AckPolicy>(["async", "async", "received", "applied"]);
    const contents = DISKS.map(({ sizeBytes }) => this.#bytes(sizeBytes));
    this.#model = new TrioModel(DISKS, (member, event) => this.#happened(member, event));
    this.#members = makeTrio(
      this.world,
      {
        mode: this.#mode,
        disks: DISKS,
        durability: this.#durability,
        ack,
        windowBytes: this.#random.pick([1024 * 1024, 16 * 1024]),
        onCongestion: ack === "async" ? this.#random.pick(["throttle", "detach"]) : "throttle",
      },
      contents,
      this.#model,
    );
    this.#model.begin(this.#member("a"), contents);
    this.#calls.isExcused = (process) => {
      const member = this.#members.find(({ host }) => host.process === process);
      const reason = member === undefined ? null : this.#statusOf(member)?.protection.reason;
      // Since its start it waits for its peers, which may by now have said that the sides have parted.
      return reason === "held" || reason === "split-brain";
    };
  }

  async live(): Promise<void> {
    for (const member of this.#members) await this.#start(member);
    await this.#together();
    const actions = ACTIONS_MIN + this.#random.below(60);
    for (let action = 0; action < actions; action += 1) {
      await this.#act();
      const [a, b] = this.#members.map((member) => this.#statusOf(member));
      this.pairs.look(a, b);
      await this.#sleep(this.#random.within([0, this.#random.pick([1, 30, 2_000])]));
    }
    await this.#together();
    await this.#compare();
  }

  async #act(): Promise<void> {
    const member = this.#random.pick(this.#members);
    const roll = this.#random.below(100);
    if (roll < 45)
      for (const one of this.#members) for (let count = this.#random.below(12); count > 0; count -= 1) this.#guest(one);
    else if (roll < 57) for (const one of this.#members) void this.#checkpoint(one);
    else if (roll < 60) for (const one of this.#members) void this.#decide(one);
    else if (roll < 66) await this.#crash(member);
    else if (roll < 74) await this.#startIfDown(member);
    else if (roll < 80) this.#part(member);
    else if (roll < 82) this.world.network.cut(member.name, this.#random.pick(this.#others(member)).name);
    else if (roll < 85) await this.#readView(member);
    else if (roll < 89) await this.#failover(member);
    else if (roll < 96) await this.#resolve();
    else if (roll < 98) await this.#switchover(member);
    else this.#startAlone(member);
  }

  // Guests

  #guest(member: PairMember): void {
    if (this.#statusOf(member)?.role !== "Primary") return;
    const index = this.#random.below(DISKS.length);
    const disk = DISKS[index] ?? missing();
    const device = member.device(disk);
    if (device === undefined) return;
    this.counts.operations += 1;
    const roll = this.#random.below(10);
    const length = 1 + this.#random.below(WRITE_MAX_BYTES);
    const offset = this.#random.below(disk.sizeBytes - length);
    const model = this.#model.diskOf(member, index);
    if (roll < 2) this.#read(member, disk, model, offset, length);
    else if (roll < 3) this.#flush(member, disk, model);
    else {
      const data = roll < 4 ? undefined : this.#bytes(length);
      const write = new ModelWrite(offset, length, data);
      model.begin(write);
      const missingBefore = this.#missing(member);
      const call = (): void | Promise<void> =>
        data === undefined
          ? device.zero(offset, length, { fua: false, mayUnmap: true })
          : device.write(data, offset, { fua: false });
      void this.#calls.make(member, "write", CALL_SLACK_MS, call, (outcome) => {
        if (outcome.kind === "done") {
          this.counts.writes += 1;
          write.settled = true;
          this.#tell(member, missingBefore);
        } else if (outcome.kind === "failed") this.#assertGuestError(outcome.error);
      });
    }
  }

  /** The peers that a primary sends nothing to now, by name, which it knows. */
  #missing(member: PairMember): string[] {
    const peers = this.#statusOf(member)?.peers ?? [];
    return peers.flatMap((peer) => (peer.connection === "Connected" ? [] : this.#nameOf(peer)));
  }

  /** Something was told that the peers lack which are missing, and were when it was asked for. */
  #tell(member: PairMember, missingBefore: readonly string[]): void {
    const status = this.#statusOf(member);
    if (status?.role !== "Primary") return;
    const established = status.peers.flatMap((peer) =>
      peer.replication === "Established" || peer.replication === "SyncSource" ? this.#nameOf(peer) : [],
    );
    for (const name of this.#missing(member).filter((one) => missingBefore.includes(one))) {
      this.counts["told without one"] += 1;
      this.#model.toldWithout(name, [member.name, ...(this.#isHeardBy(member, established) ? established : [])]);
    }
  }

  /** Whether the secondaries have heard of the primary's history by now: what is asked of a model that sees no messages. */
  #isHeardBy(member: PairMember, names: readonly string[]): boolean {
    const lineage = this.#statusOf(member)?.lineage;
    return names.every((name) => this.#statusOf(this.#member(name))?.lineage === lineage);
  }

  #nameOf({ agentId, url }: PeerStatus): string[] {
    const known = this.#members.find((member) => agentId !== null && this.#statusOf(member)?.agentId === agentId);
    const name = known?.name ?? (url === null ? undefined : /[abc]$/.exec(url)?.[0]);
    return name === undefined ? [] : [name];
  }

  #read(member: PairMember, disk: PairDisk, model: DiskModel, offset: number, length: number): void {
    const target = Buffer.alloc(length);
    const reading = model.beginRead();
    void this.#calls.make(
      member,
      "read",
      CALL_SLACK_MS,
      () => member.device(disk)?.read(target, offset),
      (outcome) => {
        model.endRead(reading);
        if (outcome.kind === "failed") this.#assertGuestError(outcome.error);
        if (outcome.kind !== "done" || !this.#model.isCurrent(member, model)) return;
        model.check(target, offset, `${disk.name} on ${member.name}`, reading);
      },
    );
  }

  #flush(member: PairMember, disk: PairDisk, model: DiskModel): void {
    const covered = model.beginFlush();
    void this.#calls.make(
      member,
      "flush",
      CALL_SLACK_MS,
      () => member.device(disk)?.flush(),
      (outcome) => {
        if (outcome.kind === "done") model.flushed(covered);
        else if (outcome.kind === "failed") this.#assertGuestError(outcome.error);
      },
    );
  }

  #assertGuestError({ code, message }: ColobusError): void {
    const legal = ["outdated", "handed-over", "guests-held", "shutting-down", "read-only", "no-checkpoint"];
    assert(legal.includes(code), `a guest's request failed with ${code}: ${message}`);
  }

  // The operator

  async #checkpoint(
    member: PairMember,
    timeoutMs = this.#random.pick([100, QUICK_MS, COMMAND_MS]),
    prepare = this.#random.chance(0.4),
  ): Promise<boolean> {
    const { agent } = member;
    if (agent === undefined || this.#statusOf(member)?.role !== "Primary") return false;
    const missingBefore = this.#missing(member);
    const established = this.#established(member);
    const losses = this.#losses.get(member);
    const outcome = await this.#calls.make(
      member,
      "checkpoint",
      timeoutMs + 10,
      () => agent.checkpoint({ prepare, timeoutMs }, signal()),
      (told) => {
        if (told.kind !== "done" || prepare) return;
        this.#tell(member, missingBefore);
        if (this.#losses.get(member) === losses) this.#assertCommittedOnAll(member, established, told.value.epoch);
      },
    );
    if (outcome.kind !== "done" || prepare) return false;
    this.counts.checkpoints += 1;
    return true;
  }

  /** What a hook does about a checkpoint that is prepared. */
  async #decide(member: PairMember): Promise<void> {
    const { agent } = member;
    const prepared = this.#statusOf(member)?.epoch.prepared ?? [];
    if (agent === undefined || prepared.length === 0 || this.#statusOf(member)?.role !== "Primary") return;
    const epoch = this.#random.pick(prepared);
    const missingBefore = this.#missing(member);
    const legal: readonly ErrorCode[] = [
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
    if (this.#random.chance(0.3)) {
      const withdrawn = await this.#calls.make(member, "discard", QUICK_MS + 10, () =>
        agent.discard({ epoch, timeoutMs: QUICK_MS }, signal()),
      );
      this.#assertLegal("discard", withdrawn, legal);
      return;
    }
    const outcome = await this.#calls.make(
      member,
      "commit",
      QUICK_MS + 10,
      () => agent.commit({ epoch, timeoutMs: QUICK_MS }, signal()),
      ({ kind }) => {
        if (kind === "done") this.#tell(member, missingBefore);
      },
    );
    this.#assertLegal("commit", outcome, legal);
    if (outcome.kind === "done") this.counts.decisions += 1;
  }

  /** A checkpoint that is told to be committed is so on each secondary that has had everything all along. */
  #assertCommittedOnAll(member: PairMember, names: readonly string[], epoch: number): void {
    for (const name of names) {
      const committed = this.#statusOf(this.#member(name))?.epoch.committed ?? epoch;
      assert(
        committed >= epoch,
        `checkpoint ${epoch} of ${member.name} is done, and ${name} has committed ${committed}`,
      );
    }
  }

  #established(member: PairMember): string[] {
    const peers = this.#statusOf(member)?.peers ?? [];
    return peers.flatMap((peer) => (peer.replication === "Established" ? this.#nameOf(peer) : []));
  }

  /** What a secondary shows is what a failover would return. */
  async #readView(member: PairMember): Promise<void> {
    const epoch = this.#statusOf(member)?.epoch.committed ?? 0;
    if (this.#statusOf(member)?.role !== "Secondary" || epoch === 0) return;
    for (const [index, disk] of DISKS.entries()) {
      const device = member.device(disk);
      if (device === undefined) return;
      const model = this.#model.checkpointOf(member, epoch, index);
      const content = Buffer.alloc(disk.sizeBytes);
      const reading = model.beginRead();
      const outcome = await this.#calls.make(member, "view", CALL_SLACK_MS, () => device.read(content, 0));
      model.endRead(reading);
      const status = this.#statusOf(member);
      if (outcome.kind !== "done" || status?.role !== "Secondary" || status.epoch.committed !== epoch) return;
      model.check(content, 0, `the view of ${disk.name} on ${member.name} since ${epoch}`, reading);
    }
  }

  /** The operator believes that the primary is gone: it is down, or cut off. */
  async #failover(member: PairMember): Promise<void> {
    const { agent } = member;
    const status = this.#statusOf(member);
    if (agent === undefined || status?.role !== "Secondary" || status.epoch.committed === 0) return;
    if (status.peers[0]?.connection === "Connected" || status.disks[0]?.state === "Outdated") return;
    this.#note(`failover on ${member.name}`);
    const outcome = await this.#calls.make(member, "failover", COMMAND_MS + 10, () =>
      agent.failover({ force: false, dryRun: false, discardActive: false, timeoutMs: COMMAND_MS }, signal()),
    );
    this.#assertLegal("failover", outcome, ["peer-connected", "outdated", "timed-out", "no-checkpoint"]);
    if (outcome.kind !== "done" || outcome.value.already) return;
    this.counts.failovers += 1;
    await this.#readBack(member);
  }

  async #readBack(member: PairMember): Promise<void> {
    for (const [index, disk] of DISKS.entries()) {
      const content = Buffer.alloc(disk.sizeBytes);
      const device = member.device(disk);
      // Past the gate: guests may have to wait, but what they will see is there.
      const child = device instanceof ReplicatedDisk ? device.child : device;
      const outcome = await this.#calls.make(member, "read", CALL_SLACK_MS, () => child?.read(content, 0));
      if (outcome.kind !== "done" || this.#statusOf(member)?.role !== "Primary") return;
      this.#model.readBack(member, index, content);
    }
  }

  /** The one whose guests run: the others are to follow it. */
  get #serving(): PairMember | undefined {
    const primaries = this.#members.filter((member) => this.#statusOf(member)?.role === "Primary");
    return primaries.find((member) => this.#statusOf(member)?.protection.reason !== "outdated");
  }

  /** What an operator does so that the others follow the one that serves. */
  async #resolve(): Promise<void> {
    const primary = this.#serving;
    if (primary === undefined) return;
    for (const member of this.#others(primary)) {
      const status = this.#statusOf(member);
      if (status === undefined || primary.agent === undefined) continue;
      const isItsOwn = status.peers[0]?.agentId === this.#statusOf(primary)?.agentId;
      if (status.role === "Secondary" && isItsOwn && status.peers[0]?.connection === "Connected") continue;
      await this.#follow(member, primary);
    }
  }

  async #follow(member: PairMember, primary: PairMember): Promise<void> {
    const { agent } = member;
    if (agent === undefined) return;
    this.#note(`rejoin on ${member.name}, to ${primary.name}`);
    const timeoutMs = QUICK_MS;
    const rejoined = await this.#calls.make(member, "rejoin", timeoutMs + 10, () =>
      agent.rejoin({ peer: urlOf(primary.name), timeoutMs }, signal()),
    );
    this.#assertLegal("rejoin", rejoined, ["timed-out", "usage", "role-conflict", "split-brain", "outdated"]);
    if (rejoined.kind === "done") this.counts[rejoined.value.already ? "follows" : "rejoins"] += 1;
    const status = this.#statusOf(member);
    const isSplit =
      (rejoined.kind === "failed" && rejoined.error.code === "split-brain") ||
      status?.peers.some(({ lastError }) => lastError?.code === "split-brain") === true;
    if (!isSplit || this.#statusOf(primary)?.role !== "Primary") return;
    this.counts.splits += 1;
    this.#note(`connect --discard-my-data on ${member.name}`);
    this.#model.gaveUp(member);
    const outcome = await this.#calls.make(member, "connect", COMMAND_MS + 10, () =>
      agent.connect({ dryRun: false, discardMyData: true, timeoutMs: COMMAND_MS }, signal()),
    );
    this.#assertLegal("connect", outcome, [
      "timed-out",
      "usage",
      "merge-unfinished",
      "outdated",
      "role-conflict",
      "handed-over",
    ]);
    if (outcome.kind === "done") this.counts.discards += 1;
  }

  async #switchover(member: PairMember): Promise<void> {
    const { agent } = member;
    const status = this.#statusOf(member);
    if (agent === undefined || status?.role !== "Primary" || status.peers.length === 0) return;
    const peer = this.#random.pick(status.peers).agentId;
    if (peer === null) return;
    this.#note(`switchover on ${member.name}`);
    const outcome = await this.#calls.make(member, "switchover", COMMAND_MS + 10, () =>
      agent.switchover({ closeClients: true, peer, timeoutMs: COMMAND_MS }, signal()),
    );
    this.#assertLegal("switchover", outcome, [
      "no-peer",
      "timed-out",
      "outcome-unknown",
      "no-checkpoint",
      "too-many-prepared",
      "outdated",
      "guests-held",
      "connection-lost",
      "peer-timeout",
    ]);
    if (outcome.kind === "done") this.counts.switchovers += 1;
  }

  #startAlone(member: PairMember): void {
    const { agent } = member;
    if (agent === undefined || this.#statusOf(member)?.protection.reason !== "held") return;
    this.#note(`start-alone on ${member.name}`);
    void this.#calls.make(member, "start-alone", QUICK_MS, () => agent.startAlone());
    this.counts.alone += 1;
  }

  #assertLegal(what: string, outcome: Outcome<unknown>, legal: readonly ErrorCode[]): void {
    if (outcome.kind !== "failed") return;
    const { code, message } = outcome.error;
    assert(legal.includes(code), `${what} failed with ${code}: ${message}`);
  }

  // Faults

  async #crash(member: PairMember): Promise<void> {
    if (!member.host.alive) return;
    const kind = this.#random.pick<CrashKind>(this.#durability === "power" ? ["process", "power"] : ["process"]);
    this.#note(`${member.name} dies: ${kind}`);
    this.counts[kind === "power" ? "power losses" : "process crashes"] += 1;
    const { process } = member.host;
    member.host.crash(kind);
    this.#calls.died(process);
    this.#model.died(member, kind);
    await this.#sleep(0);
  }

  async #startIfDown(member: PairMember): Promise<void> {
    if (member.host.alive) return;
    member.host.restart();
    await this.#start(member);
  }

  async #start(member: PairMember): Promise<void> {
    this.#note(`${member.name} starts`);
    if (!(await member.start())) return;
    const status = this.#statusOf(member);
    this.#model.started(member, status);
    if (status?.role === "Primary") await this.#readBack(member);
  }

  /** Cuts a host off from both others, or lets it come back. */
  #part(member: PairMember, on = !this.#parted.has(member.name)): void {
    if (on) {
      this.counts.partitions += 1;
      this.#parted.add(member.name);
    } else this.#parted.delete(member.name);
    this.#note(on ? `${member.name} is cut off` : `${member.name} is back`);
    for (const one of this.#members) {
      for (const other of this.#others(one)) {
        const isParted = this.#parted.has(one.name) || this.#parted.has(other.name);
        if (one.name < other.name) this.world.network.partition(one.name, other.name, isParted);
      }
    }
  }

  // The end

  /** The network is whole, all run, and the operator does what each side asks for, until they are in sync. */
  async #together(): Promise<void> {
    for (const member of this.#members) if (this.#parted.has(member.name)) this.#part(member, false);
    const deadlineMs = this.world.nowMs + TOGETHER_WITHIN_MS;
    for (;;) {
      for (const member of this.#members) await this.#startIfDown(member);
      const primary = this.#serving;
      if (primary !== undefined) {
        const peers = this.#statusOf(primary)?.peers ?? [];
        const inSync = peers.filter(({ replication }) => replication === "Established");
        if (inSync.length === 2 && (await this.#checkpoint(primary, COMMAND_MS, false))) return;
      }
      if (this.world.nowMs > deadlineMs) {
        const say = this.#members.map((member) => {
          const status = this.#statusOf(member);
          const peers = status?.peers.map(
            ({ url, replication, lastError }) => `${url} ${replication} ${lastError?.message}`,
          );
          return `${member.name} ${status?.role} ${status?.protection.reason} [${peers?.join(", ")}]`;
        });
        throw new Error(`the three do not come together: ${say.join("; ")}`);
      }
      if (primary === undefined) await this.#failover(this.#random.pick(this.#members));
      else await this.#resolve();
      if (primary === undefined || this.#statusOf(primary)?.protection.reason === "held") await this.#unhold();
      await this.#sleep(1_000);
    }
  }

  /** Where all are there and the guests of one wait, an operator knows what to do. */
  async #unhold(): Promise<void> {
    const outdated = this.#members.filter((member) => this.#statusOf(member)?.protection.reason === "outdated");
    const [only] = outdated;
    if (only === undefined || this.#serving !== undefined) return;
    // Whoever it is behind was made Secondary again, or gave up: an operator goes back to one of those that can serve.
    const other = this.#random.pick(this.#others(only));
    await this.#failover(other);
  }

  async #compare(): Promise<void> {
    await this.#calls.settled();
    const primary = this.#serving ?? missing();
    await primary.agent?.wait({ condition: "merged", timeoutMs: COMMAND_MS }, signal());
    await this.#together();
    if (this.#mode === "mc") {
      const deadlineMs = this.world.nowMs + COMMAND_MS;
      while (this.#members.some((member) => bufferedBytes(member) > 0)) {
        assert(this.world.nowMs < deadlineMs, "what is committed is not put into the base");
        await this.#sleep(10);
      }
    }
    for (const [index, disk] of DISKS.entries()) {
      const [own, ...others] = [primary, ...this.#others(primary)].map(({ host }) =>
        host.disk.readFile(imagePath(disk)),
      );
      assert(own !== undefined);
      this.#model.diskOf(primary, index).check(own, 0, `${disk.name} on ${primary.name} at the end`);
      for (const other of others) assert(other.equals(own), `the copies of ${disk.name} differ at the end`);
    }
  }

  // Small things

  #happened(member: PairMember, { type, data }: AgentEvent): void {
    const code = typeof data.code === "string" ? data.code : "";
    this.#note(
      `${member.name}: ${type} ${code} ${typeof data.epoch === "number" ? data.epoch : ""} ${typeof data.peer === "string" ? data.peer : ""}`,
    );
    if (type === "peer-disconnected") this.#losses.set(member, (this.#losses.get(member) ?? 0) + 1);
    if (type === "guests-released") this.#calls.restart(member.host.process);
    if (code === "internal" || code === "protocol-error") {
      this.world.fail(`${member.name} reports ${type}`, new Error(String(data.message)));
    }
  }

  #member(name: string): PairMember {
    return this.#members.find((member) => member.name === name) ?? missing();
  }

  #others(member: PairMember): PairMember[] {
    return this.#members.filter((other) => other !== member);
  }

  #statusOf(member: PairMember): Status | undefined {
    const { agent } = member;
    if (agent === undefined) return undefined;
    try {
      return agent.status();
    } catch (error) {
      if (error instanceof SimulatedCrash) return undefined;
      throw error;
    }
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.world.schedule(ms, resolve);
    });
  }

  #note(line: string): void {
    this.world.trace(`-- ${line}`);
    this.#print?.(`${this.world.nowMs.toFixed(3).padStart(12)} ms  ${line}`);
  }

  #bytes(length: number): Buffer {
    const bytes = Buffer.alloc(length);
    this.#random.fill(bytes);
    return bytes;
  }
}

function signal(): AbortSignal {
  return new AbortController().signal;
}

function missing(): never {
  throw new Error("there is none");
}
