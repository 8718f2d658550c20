import assert from "node:assert/strict";
import type { AgentEvent, Status } from "../../proto/control-api.ts";
import type { ColobusError, ErrorCode } from "../../proto/errors.ts";
import type { Durability } from "../../proto/words.ts";
import { ReplicatedDisk } from "../../primary/replicated-disk.ts";
import { Calls, type Outcome } from "./calls.ts";
import { ModelWrite } from "./disk-model.ts";
import type { LifeCounts } from "./life-totals.ts";
import { PairStates } from "./pair-states.ts";
import { imagePath, makePair, urlOf, type PairDisk, type PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SharedRoleModel } from "./shared-role-model.ts";
import { SimulatedCrash, type CrashKind } from "./simulated-crash.ts";
import { makeTrio } from "./trio.ts";
import { SimWorld } from "./world.ts";

/**
 * The life of a pair, or of three hosts, that share their disks and change their roles: a guest writes on the side that
 * serves, the secondaries' views are read meanwhile, hosts die and come back, the network parts them, and an operator fails
 * over, having fenced off the primary that the side knows, rejoins, and starts alone. Of three, an operator may be wrong about
 * which one that is, hands the role over, or fails over on both secondaries at once. After each step the side that serves shows
 * what its guest has written, and the others a checkpoint; at the end the disks hold it.
 */
const DISKS: readonly PairDisk[] = [
  { name: "vda", sizeBytes: 20 * 4096 + 1024 },
  { name: "vdb", sizeBytes: 12 * 4096 },
];
const ACTIONS_MIN = 50;
const COMMAND_MS = 20_000;
const QUICK_MS = 2_000;
const CALL_SLACK_MS = 30_000;
const TOGETHER_WITHIN_MS = 600_000;
const WRITE_MAX_BYTES = 3 * 4096;

const COUNTED = [
  "operations",
  "writes",
  "views read",
  "checkpoints",
  "failovers",
  "forced",
  "refused unprotected",
  "refused busy",
  "switchovers",
  "at once",
  "of another one",
  "follows",
  "rejoins",
  "discards",
  "alone",
  "both restart",
  "process crashes",
  "power losses",
  "partitions",
] as const;

export interface SharedRoleLifeReport extends LifeCounts {
  readonly seed: number;
}

/** Of a pair. */
export function runSharedRoleLife(seed: number, print?: (line: string) => void): Promise<SharedRoleLifeReport> {
  return runLife(new SharedRoleLife(seed, "run-shared-role-lives.ts", placePair, print), seed);
}

/** Of three hosts. */
export function runSharedTrioLife(seed: number, print?: (line: string) => void): Promise<SharedRoleLifeReport> {
  return runLife(new SharedRoleLife(seed, "run-shared-trio-lives.ts", placeTrio, print), seed);
}

async function runLife(life: SharedRoleLife, seed: number): Promise<SharedRoleLifeReport> {
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

class SharedRoleLife {
  readonly world: SimWorld;
  readonly counts = Object.fromEntries(COUNTED.map((name) => [name, 0])) as Record<(typeof COUNTED)[number], number>;
  readonly pairs = new PairStates();
  readonly #random: SeededRandom;
  readonly #calls: Calls;
  readonly #members: readonly PairMember[];
  readonly #model: SharedRoleModel;
  readonly #durability: Durability;
  readonly #isMarked: boolean;
  readonly #print: ((line: string) => void) | undefined;
  readonly #parted = new Set<PairMember>();
  /** Those that were asked to hand the role over since they have it: another one may be promoted while they run. */
  readonly #handingOver = new Set<PairMember>();
  readonly #byAgentId = new Map<string, PairMember>();
  /** The id of the agent whose secondary each was last. */
  readonly #followed = new Map<PairMember, string>();
  /** Those that were Secondary as they died. */
  readonly #diedSecondary = new Set<PairMember>();

  constructor(seed: number, program: string, place: Placing, print?: (line: string) => void) {
    this.world = new SimWorld(seed, { replay: `npx tsx test/sim/${program} --seed ${seed}` });
    this.#random = this.world.random;
    this.#print = print;
    this.#calls = new Calls(this.world);
    this.#durability = this.#random.pick<Durability>(["power", "power", "process"]);
    const isTrio = place === placeTrio;
    this.#isMarked = isTrio || this.#random.chance(0.7);
    const contents = DISKS.map(({ sizeBytes }) => this.#bytes(sizeBytes));
    const listener = (member: PairMember, event: AgentEvent): void => this.#happened(member, event);
    this.#model = new SharedRoleModel(DISKS, contents, listener, { mayReuse: isTrio });
    const drawn = { random: this.#random, durability: this.#durability, isMarked: this.#isMarked };
    this.#members = place(this.world, drawn, contents, this.#model);
    this.#model.begin(this.#members[0] ?? missing());
    this.#calls.isExcused = (process) => {
      const member = this.#members.find(({ host }) => host.process === process);
      const status = member === undefined ? undefined : this.#statusOf(member);
      // Every change waits for the secondaries; and a primary that starts, for its peers.
      const peers = status?.peers ?? [];
      const isWhole = peers.length > 0 && peers.every(({ replication }) => replication === "Established");
      return !isWhole || status?.protection.reason === "held";
    };
  }

  get #isTrio(): boolean {
    return this.#members.length > 2;
  }

  async live(): Promise<void> {
    for (const member of this.#members) await this.#start(member);
    await this.#together();
    const actions = ACTIONS_MIN + this.#random.below(50);
    for (let action = 0; action < actions; action += 1) {
      await this.#act();
      const [a, b] = this.#members.map((member) => this.#statusOf(member));
      this.pairs.look(a, b);
      await this.#sleep(this.#random.within([0, this.#random.pick([1, 30, 2_000])]));
      await this.#readViews();
    }
    await this.#together();
    await this.#compare();
  }

  async #act(): Promise<void> {
    const member = this.#random.pick(this.#members);
    const roll = this.#random.below(100);
    if (roll < 45) {
      for (const one of this.#members) for (let count = this.#random.below(12); count > 0; count -= 1) this.#guest(one);
    } else if (roll < 62) for (const one of this.#members) void this.#checkpoint(one);
    else if (roll < 67) this.#crash(member, this.#drawCrash());
    else if (roll < 74) await this.#startIfDown(member);
    else if (roll < 79) this.#part(member);
    else if (roll < 81) this.#cut(member);
    else if (roll < 90) await this.#changeRoles(member);
    else if (roll < 95) await this.#resolve(member);
    else if (roll < 97) await this.#bothRestart();
    else this.#startAlone(member);
  }

  // The guest, and who reads the view

  #guest(member: PairMember): void {
    if (this.#statusOf(member)?.role !== "Primary" || member !== this.#model.writer) return;
    const index = this.#random.below(DISKS.length);
    const disk = DISKS[index] ?? missing();
    const model = this.#model.guest[index] ?? missing();
    const device = member.device(disk);
    if (device === undefined) return;
    this.counts.operations += 1;
    const length = 1 + this.#random.below(WRITE_MAX_BYTES);
    const offset = this.#random.below(disk.sizeBytes - length);
    const roll = this.#random.below(10);
    if (roll < 2) {
      const target = Buffer.alloc(length);
      const reading = model.beginRead();
      void this.#calls.make(
        member,
        "read",
        CALL_SLACK_MS,
        () => device.read(target, offset),
        (outcome) => {
          model.endRead(reading);
          if (outcome.kind === "failed") this.#assertGuestError(outcome.error);
          if (outcome.kind !== "done" || this.#model.guest[index] !== model) return;
          model.check(target, offset, `${disk.name} on ${member.name}`, reading);
        },
      );
    } else if (roll < 3) {
      const covered = model.beginFlush();
      void this.#calls.make(
        member,
        "flush",
        CALL_SLACK_MS,
        () => device.flush(),
        (outcome) => {
          if (outcome.kind === "done") model.flushed(covered);
          else if (outcome.kind === "failed") this.#assertGuestError(outcome.error);
        },
      );
    } else {
      const data = roll < 4 ? undefined : this.#bytes(length);
      const write = new ModelWrite(offset, length, data);
      this.#note(`guest on ${member.name} writes ${disk.name} [${offset}, +${length})`);
      model.begin(write);
      void this.#calls.make(
        member,
        "write",
        CALL_SLACK_MS,
        () =>
          data === undefined
            ? device.zero(offset, length, { fua: false, mayUnmap: true })
            : device.write(data, offset, { fua: false }),
        (outcome) => {
          if (outcome.kind === "failed") this.#assertGuestError(outcome.error);
          if (outcome.kind !== "done") return;
          this.#model.acknowledged(member);
          this.counts.writes += 1;
          write.settled = true;
        },
      );
    }
  }

  #assertGuestError({ code, message }: ColobusError): void {
    const legal: readonly ErrorCode[] = ["outdated", "handed-over", "guests-held", "shutting-down", "read-only"];
    assert(legal.includes(code), `a guest's request failed with ${code}: ${message}`);
  }

  /** What a secondary shows is its checkpoint, whatever the other side writes meanwhile. */
  async #readViews(): Promise<void> {
    for (const member of this.#members) {
      const status = this.#statusOf(member);
      if (status?.role !== "Secondary" || status.epoch.committed === 0) continue;
      for (const [index, disk] of DISKS.entries()) {
        const device = member.device(disk);
        if (device === undefined) continue;
        const content = Buffer.alloc(disk.sizeBytes);
        const outcome = await this.#calls.make(member, "view", CALL_SLACK_MS, () => device.read(content, 0));
        if (outcome.kind === "failed") {
          const legal: readonly ErrorCode[] = [
            "unprotected",
            "no-checkpoint",
            "image-busy",
            "shutting-down",
            "outdated",
          ];
          assert(legal.includes(outcome.error.code), `a view failed with ${outcome.error.code}`);
        }
        if (outcome.kind !== "done") break;
        const now = this.#statusOf(member);
        if (now?.role !== "Secondary" || now.epoch.committed === 0) break;
        if (!this.#model.hasCheckpoint(now.epoch.committed)) {
          assert(now.disks[index]?.state === "Outdated", `${member.name} shows what was no checkpoint`);
          continue;
        }
        this.#model
          .checkpointOf(now.epoch.committed, index)
          .check(content, 0, `checkpoint ${now.epoch.committed} of ${disk.name} on ${member.name}`);
        this.counts["views read"] += 1;
      }
    }
  }

  // The operator

  async #checkpoint(
    member: PairMember,
    timeoutMs = this.#random.pick([100, QUICK_MS, COMMAND_MS]),
    prepare = this.#random.chance(0.2),
  ): Promise<boolean> {
    const { agent } = member;
    if (agent === undefined || this.#statusOf(member)?.role !== "Primary") return false;
    const outcome = await this.#calls.make(member, "checkpoint", timeoutMs + 10, () =>
      agent.checkpoint({ prepare, timeoutMs }, new AbortController().signal),
    );
    if (outcome.kind === "done") this.counts.checkpoints += 1;
    return outcome.kind === "done" && !prepare;
  }

  async #changeRoles(member: PairMember): Promise<void> {
    const roll = this.#isTrio ? this.#random.below(10) : 9;
    if (roll < 2) await this.#switchover();
    else if (roll < 4) await this.#failoverAtOnce();
    else await this.#failover(member);
  }

  /** The primary that the side has followed last, which may be another one by now where there are three. */
  #primaryOf(member: PairMember): PairMember {
    const [other, ...more] = this.#othersOf(member);
    if (other === undefined || more.length === 0) return other ?? missing();
    return this.#byAgentId.get(this.#followed.get(member) ?? "") ?? this.#model.writer ?? missing();
  }

  /** The other host is powered off first, and comes back when the promotion is over. */
  async #failover(member: PairMember): Promise<void> {
    const status = this.#statusOf(member);
    if (status?.role !== "Secondary") return;
    const other = this.#primaryOf(member);
    // What `process` promises of a merge ends with the power.
    if (this.#durability === "process" && (other !== this.#model.writer || this.#mayBeMerging(other))) return;
    const force = this.#random.chance(0.3);
    this.#note(`failover on ${member.name}${force ? " --force" : ""}`);
    this.#powerOff(other);
    while (this.#statusOf(member)?.peers[0]?.connection === "Connected") await this.#sleep(100);
    if (this.#isTrio && this.#model.writer !== other) this.counts["of another one"] += 1;
    await this.#promote(member, force);
  }

  /** Of a pair nobody else can be promoted while one merges: the other side does not start. */
  #mayBeMerging(writer: PairMember): boolean {
    if (!this.#isTrio) return false;
    const jobs = this.#statusOf(writer)?.jobs;
    return jobs === undefined || jobs.some(({ type, state }) => type === "merge" && state !== "concluded");
  }

  /** Two operators, or two scripts, each on the host of a secondary: one of these is promoted at most. */
  async #failoverAtOnce(): Promise<void> {
    const { writer } = this.#model;
    if (writer === undefined) return;
    const others = this.#othersOf(writer);
    const areSecondary = others.every((one) => this.#statusOf(one)?.role === "Secondary");
    if (!areSecondary || (this.#durability === "process" && this.#mayBeMerging(writer))) return;
    this.#note("failover on both at once");
    this.counts["at once"] += 1;
    this.#powerOff(writer);
    const isConnected = (one: PairMember): boolean => this.#statusOf(one)?.peers[0]?.connection === "Connected";
    while (others.some(isConnected)) await this.#sleep(100);
    const force = this.#random.chance(0.2);
    await Promise.all(
      others.map(async (one, index) => {
        await this.#sleep(this.#random.within([0, 20]));
        await this.#promote(one, force && index === 0);
      }),
    );
  }

  async #promote(member: PairMember, force: boolean): Promise<void> {
    const { agent } = member;
    if (agent === undefined) return;
    const outcome = await this.#calls.make(member, "failover", COMMAND_MS + 10, () =>
      agent.failover(
        { force, dryRun: false, discardActive: false, fenced: true, timeoutMs: COMMAND_MS },
        new AbortController().signal,
      ),
    );
    if (outcome.kind === "failed") {
      const { code, message } = outcome.error;
      const legal: readonly ErrorCode[] = ["unprotected", "image-busy", "no-checkpoint", "outdated", "timed-out"];
      const isOfTrio = this.#isTrio && code === "peer-connected"; // to one that has come back, or was promoted meanwhile
      assert(isOfTrio || legal.includes(code), `failover failed with ${code}: ${message}`);
      assert(!(force && code === "unprotected"), `a forced failover failed with ${message}`);
      if (code === "unprotected") this.counts["refused unprotected"] += 1;
      if (code === "image-busy") this.counts["refused busy"] += 1;
    }
    if (outcome.kind !== "done") return;
    if (!outcome.value.already) this.counts[force ? "forced" : "failovers"] += 1;
    await this.#readBack(member);
  }

  async #switchover(): Promise<void> {
    const { writer } = this.#model;
    const status = writer === undefined ? undefined : this.#statusOf(writer);
    if (writer?.agent === undefined || status?.role !== "Primary" || status.peers.length === 0) return;
    const { agent } = writer;
    const peer = this.#random.pick(status.peers).agentId;
    if (peer === null) return;
    this.#note(`switchover on ${writer.name}`);
    this.#handingOver.add(writer);
    const outcome = await this.#calls.make(writer, "switchover", COMMAND_MS + 10, () =>
      agent.switchover({ closeClients: true, peer, timeoutMs: COMMAND_MS }, new AbortController().signal),
    );
    if (outcome.kind === "failed") {
      const legal: readonly ErrorCode[] = [
        "no-peer",
        "timed-out",
        "outcome-unknown",
        "no-checkpoint",
        "outdated",
        "too-many-prepared",
        "guests-held",
        "connection-lost",
        "peer-timeout",
      ];
      const { code, message } = outcome.error;
      assert(legal.includes(code), `switchover failed with ${code}: ${message}`);
    }
    if (outcome.kind !== "done") return;
    this.counts.switchovers += 1;
    if (this.#model.writer !== undefined) await this.#readBack(this.#model.writer);
  }

  async #readBack(member: PairMember): Promise<void> {
    if (member !== this.#model.writer) return;
    for (const [index, disk] of DISKS.entries()) {
      const content = Buffer.alloc(disk.sizeBytes);
      const device = member.device(disk);
      // Past the gate: guests may have to wait, but what they will see is there.
      const child = device instanceof ReplicatedDisk ? device.child : device;
      const outcome = await this.#calls.make(member, "read", CALL_SLACK_MS, () => child?.read(content, 0));
      if (outcome.kind !== "done" || member !== this.#model.writer) return;
      this.#model.readBack(index, content);
    }
  }

  /** What an operator does about what a side says of itself. */
  async #resolve(member: PairMember): Promise<void> {
    const { agent } = member;
    const status = this.#statusOf(member);
    const { writer } = this.#model;
    if (agent === undefined || status === undefined || writer === undefined) return;
    const { reason } = status.protection;
    if (this.#isTrio) await this.#follow(member, writer, status);
    else if (status.role === "Primary" && reason === "outdated") await this.#rejoin(member, this.#primaryOf(member));
    else if (status.role === "Primary" && reason === "split-brain" && member !== writer) await this.#discard(member);
  }

  /** What an operator does so that a side follows the one that writes. */
  async #follow(member: PairMember, writer: PairMember, status: Status): Promise<void> {
    const [peer] = status.peers;
    const isItsOwn = peer?.agentId === this.#statusOf(writer)?.agentId && peer?.connection === "Connected";
    if (member === writer || this.#statusOf(writer)?.role !== "Primary") return;
    if (status.role === "Secondary" && isItsOwn) return;
    const code = await this.#rejoin(member, writer);
    const isSplit = this.#statusOf(member)?.peers.some(({ lastError }) => lastError?.code === "split-brain") === true;
    if (code === "split-brain" || isSplit) await this.#discard(member);
  }

  /** Returns the code of what kept it from that. */
  async #rejoin(member: PairMember, primary: PairMember): Promise<ErrorCode | undefined> {
    const { agent } = member;
    if (agent === undefined) return undefined;
    this.#note(`rejoin on ${member.name}`);
    const timeoutMs = this.#isTrio ? QUICK_MS : COMMAND_MS;
    const outcome = await this.#calls.make(member, "rejoin", timeoutMs + 10, () =>
      agent.rejoin({ peer: urlOf(primary.name), timeoutMs }, new AbortController().signal),
    );
    if (outcome.kind === "done") this.counts[outcome.value.already ? "follows" : "rejoins"] += 1;
    return this.#refusalOf("rejoin", outcome);
  }

  async #discard(member: PairMember): Promise<void> {
    const { agent } = member;
    if (agent === undefined) return;
    this.#note(`connect --discard-my-data on ${member.name}`);
    const outcome = await this.#calls.make(member, "connect", COMMAND_MS + 10, () =>
      agent.connect({ dryRun: false, discardMyData: true, timeoutMs: COMMAND_MS }, new AbortController().signal),
    );
    this.#refusalOf("connect", outcome);
    if (this.#statusOf(member)?.role === "Secondary") this.counts.discards += 1;
  }

  #refusalOf(what: string, outcome: Outcome<unknown>): ErrorCode | undefined {
    if (outcome.kind !== "failed") return undefined;
    const { code, message } = outcome.error;
    const legal: readonly ErrorCode[] = [
      "timed-out",
      "usage",
      "role-conflict",
      "split-brain",
      "merge-unfinished",
      "outdated",
      "handed-over",
    ];
    assert(legal.includes(code), `${what}: ${message}`);
    return code;
  }

  /** Refused, or harmless, on a side that the other one was promoted over: the mark knows. */
  #startAlone(member: PairMember): void {
    const { agent } = member;
    const reason = this.#statusOf(member)?.protection.reason;
    if (agent === undefined || !this.#isMarked || (reason !== "held" && reason !== "connecting")) return;
    if (this.#statusOf(member)?.role !== "Primary") return;
    this.#note(`start-alone on ${member.name}`);
    void this.#calls.make(member, "start-alone", QUICK_MS, () => agent.startAlone());
    this.counts.alone += 1;
  }

  // Faults

  #drawCrash(): CrashKind {
    return this.#random.pick<CrashKind>(this.#durability === "power" ? ["process", "power"] : ["process"]);
  }

  #crash(member: PairMember, kind: CrashKind): void {
    if (!member.host.alive) return;
    this.#note(`${member.name} dies: ${kind}`);
    this.counts[kind === "power" ? "power losses" : "process crashes"] += 1;
    if (this.#statusOf(member)?.role === "Secondary") this.#diedSecondary.add(member);
    const { process } = member.host;
    member.host.crash(kind);
    this.#calls.died(process);
    this.#model.died(member, kind);
  }

  /** Fences the member off: of a process that is dead already the kernel may still hold writes. */
  #powerOff(member: PairMember): void {
    if (member.host.alive) this.#crash(member, "power");
    else {
      member.host.crash("power");
      this.#model.died(member, "power");
    }
  }

  async #bothRestart(): Promise<void> {
    this.counts["both restart"] += 1;
    const order = this.#random.chance(0.5) ? this.#members : [...this.#members].reverse();
    for (const member of order) this.#crash(member, this.#drawCrash());
    for (const member of order) {
      await this.#sleep(this.#random.within([0, this.#random.pick([1, 8_000])]));
      await this.#startIfDown(member);
    }
  }

  async #startIfDown(member: PairMember): Promise<void> {
    if (member.host.alive) return;
    member.host.restart();
    await this.#start(member);
  }

  async #start(member: PairMember): Promise<void> {
    this.#note(`${member.name} starts`);
    // The other side may be merging.
    if (!(await member.start(["image-busy"]))) return;
    const status = this.#statusOf(member);
    if (status !== undefined) this.#byAgentId.set(status.agentId, member);
    const wasSecondary = this.#diedSecondary.delete(member);
    // It may have been promoted by the very call over which it died.
    if (this.#isTrio && wasSecondary && status?.role === "Primary") this.#promoted(member, status);
    if (status?.role === "Primary" && !status.disks.some(({ state }) => state === "Outdated"))
      await this.#readBack(member);
  }

  /** Cuts a host off, or lets it come back; of two hosts it is the same which. */
  #part(drawn: PairMember, on?: boolean): void {
    const member = this.#isTrio ? drawn : (this.#members[0] ?? drawn);
    const isCut = on ?? !this.#parted.has(member);
    if (isCut) {
      this.counts.partitions += 1;
      this.#parted.add(member);
    } else this.#parted.delete(member);
    this.#note(isCut ? `the network parts ${member.name} from the others` : `${member.name} is back in the network`);
    for (const one of this.#members) {
      for (const other of this.#othersOf(one)) {
        const isParted = this.#parted.has(one) || this.#parted.has(other);
        if (one.name < other.name) this.world.network.partition(one.name, other.name, isParted);
      }
    }
  }

  #cut(member: PairMember): void {
    const [other, ...more] = this.#othersOf(member);
    if (other === undefined) return;
    this.world.network.cut(member.name, more.length === 0 ? other.name : this.#random.pick([other, ...more]).name);
  }

  // The end

  async #together(): Promise<void> {
    for (const member of this.#members) this.#part(member, false);
    const deadlineMs = this.world.nowMs + TOGETHER_WITHIN_MS;
    for (;;) {
      for (const member of this.#members) await this.#startIfDown(member);
      const statuses = this.#members.map((member) => this.#statusOf(member));
      const primaries = this.#members.filter((_, index) => statuses[index]?.role === "Primary");
      const primary = this.#isTrio ? this.#model.writer : primaries[0];
      const inSync = statuses.filter(
        (status) => status?.role === "Secondary" && status.peers[0]?.replication === "Established",
      );
      if (inSync.length === this.#members.length - 1) {
        if (primary !== undefined && (await this.#checkpoint(primary, COMMAND_MS, false))) return;
      }
      if (this.world.nowMs > deadlineMs) {
        const say = statuses.map(
          (status) => `${status?.role} ${status?.protection.reason} ${status?.peers[0]?.lastError?.message}`,
        );
        throw new Error(`the two do not come together: ${say.join("; ")}`);
      }
      for (const member of this.#members) await this.#resolve(member);
      await this.#sleep(1_000);
    }
  }

  async #compare(): Promise<void> {
    await this.#calls.settled();
    const { writer } = this.#model;
    assert(writer !== undefined);
    await writer.agent?.wait({ condition: "merged", timeoutMs: COMMAND_MS }, new AbortController().signal);
    assert(await this.#checkpoint(writer, COMMAND_MS, false), "the last checkpoint is not taken");
    for (const [index, disk] of DISKS.entries()) {
      this.#model.guest[index]?.check(writer.host.disk.readFile(imagePath(disk)), 0, `${disk.name} at the end`);
    }
    const readBefore = this.counts["views read"];
    await this.#readViews();
    const read = this.counts["views read"] - readBefore;
    if (this.#isTrio)
      assert.equal(read, DISKS.length * (this.#members.length - 1), "each secondary shows the checkpoint");
  }

  // Small things

  #othersOf(member: PairMember): PairMember[] {
    return this.#members.filter((other) => other !== member);
  }

  #happened(member: PairMember, { type, data }: AgentEvent): void {
    const code = typeof data.code === "string" ? data.code : "";
    this.#note(`${member.name}: ${type} ${code} ${typeof data.epoch === "number" ? data.epoch : ""}`);
    if (type === "role-changed" && data.role === "Primary") {
      this.#promoted(member, this.#statusOf(member));
    }
    if (type === "peer-connected" && typeof data.agentId === "string" && this.#statusOf(member)?.role === "Secondary") {
      this.#followed.set(member, data.agentId);
    }
    if (type === "guests-released") this.#calls.restart(member.host.process);
    if (code === "internal" || code === "protocol-error") {
      this.world.fail(`${member.name} reports ${type}`, new Error(String(data.message)));
    }
  }

  #promoted(member: PairMember, status: Status | undefined): void {
    const { writer } = this.#model;
    const isFenced = writer === undefined || writer === member || !writer.host.alive || this.#handingOver.has(writer);
    if (this.#isTrio) assert(isFenced, `${member.name} is promoted on disks that ${writer?.name} writes`);
    this.#handingOver.delete(member);
    this.#model.promoted(member, status?.epoch.committed ?? 0);
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

/** What a life draws of its hosts before it places them. */
interface Drawn {
  readonly random: SeededRandom;
  readonly durability: Durability;
  readonly isMarked: boolean;
}

/** Places the hosts of a life, of which the first one begins as the primary. */
type Placing = (
  world: SimWorld,
  drawn: Drawn,
  contents: readonly Buffer[],
  model: SharedRoleModel,
) => readonly PairMember[];

function placePair(
  world: SimWorld,
  { random, durability, isMarked }: Drawn,
  contents: readonly Buffer[],
  model: SharedRoleModel,
): readonly PairMember[] {
  const { primary, secondary } = makePair(
    world,
    {
      mode: "shared",
      isMarked,
      onPeerLoss: isMarked && random.chance(0.5) ? "continue" : "freeze",
      disks: DISKS,
      clusterBytes: random.pick([4096, 16_384]),
      durability,
      ack: "applied",
      access: "read-only",
      windowBytes: random.pick([1024 * 1024, 16 * 1024]),
      onCongestion: "throttle",
      peerTimeoutMs: 5_000,
      createImages: false,
      checkpointEveryMs: undefined,
      retain: random.pick([0, 0, 2]),
      overlayLimitBytes: undefined,
    },
    { primary: contents, secondary: [] },
    model,
  );
  return [primary, secondary];
}

function placeTrio(
  world: SimWorld,
  { random, durability }: Drawn,
  contents: readonly Buffer[],
  model: SharedRoleModel,
): readonly PairMember[] {
  return makeTrio(
    world,
    {
      mode: "shared",
      onPeerLoss: random.pick(["continue", "freeze"]),
      disks: DISKS,
      clusterBytes: random.pick([4096, 16_384]),
      durability,
      ack: "applied",
      windowBytes: random.pick([1024 * 1024, 16 * 1024]),
      onCongestion: "throttle",
      retain: random.pick([0, 0, 2]),
      locksApart: random.chance(0.7),
    },
    contents,
    model,
  );
}

function missing(): never {
  throw new Error("there is none");
}
