import assert from "node:assert/strict";
import type { AgentEvent, Status } from "../../proto/control-api.ts";
import type { ColobusError, ErrorCode } from "../../proto/errors.ts";
import type { Durability } from "../../proto/words.ts";
import { ReplicatedDisk } from "../../primary/replicated-disk.ts";
import { Calls } from "./calls.ts";
import { ModelWrite } from "./disk-model.ts";
import type { LifeCounts } from "./life-totals.ts";
import { PairStates } from "./pair-states.ts";
import { imagePath, makePair, urlOf, type Pair, type PairDisk, type PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SharedRoleModel } from "./shared-role-model.ts";
import { SimulatedCrash, type CrashKind } from "./simulated-crash.ts";
import { SimWorld } from "./world.ts";

/**
 * The life of a pair that shares its disks and changes its roles: a guest writes on the side that serves, the secondary's
 * view is read meanwhile, hosts die and come back, the network parts the two, and an operator fails over, having fenced
 * the other side off, rejoins, and starts alone. After each step the side that serves shows what its guest has written,
 * and the other one the checkpoint; at the end the disks hold it.
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

export async function runSharedRoleLife(seed: number, print?: (line: string) => void): Promise<SharedRoleLifeReport> {
  const life = new SharedRoleLife(seed, print);
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
  readonly #pair: Pair;
  readonly #model: SharedRoleModel;
  readonly #durability: Durability;
  readonly #isMarked: boolean;
  readonly #print: ((line: string) => void) | undefined;
  #parted = false;

  constructor(seed: number, print?: (line: string) => void) {
    this.world = new SimWorld(seed, { replay: `npx tsx test/sim/run-shared-role-lives.ts --seed ${seed}` });
    this.#random = this.world.random;
    this.#print = print;
    this.#calls = new Calls(this.world);
    this.#durability = this.#random.pick<Durability>(["power", "power", "process"]);
    this.#isMarked = this.#random.chance(0.7);
    const contents = DISKS.map(({ sizeBytes }) => this.#bytes(sizeBytes));
    this.#model = new SharedRoleModel(DISKS, contents, (member, event) => this.#happened(member, event));
    this.#pair = makePair(
      this.world,
      {
        mode: "shared",
        isMarked: this.#isMarked,
        onPeerLoss: this.#isMarked && this.#random.chance(0.5) ? "continue" : "freeze",
        disks: DISKS,
        clusterBytes: this.#random.pick([4096, 16_384]),
        durability: this.#durability,
        ack: "applied",
        access: "read-only",
        windowBytes: this.#random.pick([1024 * 1024, 16 * 1024]),
        onCongestion: "throttle",
        peerTimeoutMs: 5_000,
        createImages: false,
        checkpointEveryMs: undefined,
        retain: this.#random.pick([0, 0, 2]),
        overlayLimitBytes: undefined,
      },
      { primary: contents, secondary: [] },
      this.#model,
    );
    this.#model.begin(this.#pair.primary);
    this.#calls.isExcused = (process) => {
      const member = this.#members.find(({ host }) => host.process === process);
      const status = member === undefined ? undefined : this.#statusOf(member);
      // Every change waits for the secondary; and a primary that starts, for its peer.
      return status?.peers[0]?.replication !== "Established" || status.protection.reason === "held";
    };
  }

  get #members(): readonly PairMember[] {
    return [this.#pair.primary, this.#pair.secondary];
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
    else if (roll < 79) this.#part(!this.#parted);
    else if (roll < 81) this.world.network.cut("a", "b");
    else if (roll < 90) await this.#failover(member);
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

  /** The other host is powered off first, and comes back when the promotion is over. */
  async #failover(member: PairMember): Promise<void> {
    const { agent } = member;
    const status = this.#statusOf(member);
    if (agent === undefined || status?.role !== "Secondary") return;
    const other = this.#otherOf(member);
    // What `process` promises of a merge ends with the power.
    if (this.#durability === "process" && other !== this.#model.writer) return;
    const force = this.#random.chance(0.3);
    this.#note(`failover on ${member.name}${force ? " --force" : ""}`);
    this.#powerOff(other);
    while (this.#statusOf(member)?.peers[0]?.connection === "Connected") await this.#sleep(100);
    const outcome = await this.#calls.make(member, "failover", COMMAND_MS + 10, () =>
      agent.failover(
        { force, dryRun: false, discardActive: false, fenced: true, timeoutMs: COMMAND_MS },
        new AbortController().signal,
      ),
    );
    if (outcome.kind === "failed") {
      const { code, message } = outcome.error;
      const legal: readonly ErrorCode[] = ["unprotected", "image-busy", "no-checkpoint", "outdated", "timed-out"];
      assert(legal.includes(code) && !(force && code === "unprotected"), `failover failed with ${code}: ${message}`);
      if (code === "unprotected") this.counts["refused unprotected"] += 1;
      if (code === "image-busy") this.counts["refused busy"] += 1;
    }
    if (outcome.kind !== "done") return;
    if (!outcome.value.already) this.counts[force ? "forced" : "failovers"] += 1;
    await this.#readBack(member);
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
    if (agent === undefined || status?.role !== "Primary") return;
    const { reason } = status.protection;
    const signal = new AbortController().signal;
    const legal: readonly ErrorCode[] = [
      "timed-out",
      "usage",
      "role-conflict",
      "split-brain",
      "merge-unfinished",
      "outdated",
    ];
    if (reason === "outdated") {
      this.#note(`rejoin on ${member.name}`);
      const outcome = await this.#calls.make(member, "rejoin", COMMAND_MS + 10, () =>
        agent.rejoin({ peer: urlOf(member === this.#pair.primary ? "b" : "a"), timeoutMs: COMMAND_MS }, signal),
      );
      if (outcome.kind === "failed") assert(legal.includes(outcome.error.code), `rejoin: ${outcome.error.message}`);
      if (outcome.kind === "done" && !outcome.value.already) this.counts.rejoins += 1;
    } else if (reason === "split-brain" && member !== this.#model.writer) {
      this.#note(`connect --discard-my-data on ${member.name}`);
      const outcome = await this.#calls.make(member, "connect", COMMAND_MS + 10, () =>
        agent.connect({ dryRun: false, discardMyData: true, timeoutMs: COMMAND_MS }, signal),
      );
      if (outcome.kind === "failed") assert(legal.includes(outcome.error.code), `connect: ${outcome.error.message}`);
      if (this.#statusOf(member)?.role === "Secondary") this.counts.discards += 1;
    }
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
    // It may have been promoted by the very call over which it died.
    if (status?.role === "Primary" && !status.disks.some(({ state }) => state === "Outdated"))
      await this.#readBack(member);
  }

  #part(on: boolean): void {
    if (on) this.counts.partitions += 1;
    this.#parted = on;
    this.#note(on ? "the network parts them" : "the network is whole");
    this.world.network.partition("a", "b", on);
  }

  // The end

  async #together(): Promise<void> {
    this.#part(false);
    const deadlineMs = this.world.nowMs + TOGETHER_WITHIN_MS;
    for (;;) {
      for (const member of this.#members) await this.#startIfDown(member);
      const statuses = this.#members.map((member) => this.#statusOf(member));
      const primary = this.#members.find((_, index) => statuses[index]?.role === "Primary");
      if (statuses.some((status) => status?.role === "Secondary" && status.peers[0]?.replication === "Established")) {
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
    await this.#readViews();
  }

  // Small things

  #otherOf(member: PairMember): PairMember {
    return member === this.#pair.primary ? this.#pair.secondary : this.#pair.primary;
  }

  #happened(member: PairMember, { type, data }: AgentEvent): void {
    const code = typeof data.code === "string" ? data.code : "";
    this.#note(`${member.name}: ${type} ${code} ${typeof data.epoch === "number" ? data.epoch : ""}`);
    if (type === "role-changed" && data.role === "Primary") {
      this.#model.promoted(member, this.#statusOf(member)?.epoch.committed ?? 0);
    }
    if (type === "guests-released") this.#calls.restart(member.host.process);
    if (code === "internal" || code === "protocol-error") {
      this.world.fail(`${member.name} reports ${type}`, new Error(String(data.message)));
    }
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

function missing(): never {
  throw new Error("there is none");
}
