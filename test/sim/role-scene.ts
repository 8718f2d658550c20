import assert from "node:assert/strict";
import type { Agent } from "../../cli/agent.ts";
import { ReplicatedDisk } from "../../primary/replicated-disk.ts";
import type { AgentEvent, Status } from "../../proto/status.ts";
import type { ErrorCode } from "../../proto/errors.ts";
import type { Durability } from "../../proto/words.ts";
import { present } from "../support/present.ts";
import { Calls, type Outcome } from "./calls.ts";
import type { DiskModel } from "./disk-model.ts";
import { liveIn } from "./life-run.ts";
import type { LifeCounts } from "./life-totals.ts";
import { PairStates } from "./pair-states.ts";
import type { PairDisk, PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import type { CrashKind } from "./simulated-crash.ts";
import { SimWorld } from "./world.ts";

/** How long an operator waits: for a command that may take its time, and in a hurry. */
export const COMMAND_MS = 20_000;
export const QUICK_MS = 2_000;
/** How long an agent that is stopped waits for its peer, and how long it may take. */
const DRAIN_MS = 3_000;
const STOP_LIMIT_MS = 30_000;
/** Ends what a client waits for. */
export const CALL_MS = 30_000;

/** What is counted in each life whose sides change their roles. */
const COUNTED = [
  "operations",
  "writes",
  "checkpoints",
  "failovers",
  "switchovers",
  "rejoins",
  "discards",
  "alone",
  "partitions",
  "process crashes",
  "power losses",
] as const;

/** What a switchover may end with when nothing is wrong with the agents. */
const SWITCHOVER_ERRORS = [
  "no-peer",
  "timed-out",
  "outcome-unknown",
  "no-checkpoint",
  "too-many-prepared",
  "outdated",
] as const satisfies readonly ErrorCode[];
/** What keeps an operator's word from letting guests go on. */
const START_ALONE_ERRORS = ["outdated", "handed-over", "split-brain"] as const satisfies readonly ErrorCode[];
/** Of several secondaries, one that is not asked may end its session meanwhile. */
export const LOST_SESSION_ERRORS = ["connection-lost", "peer-timeout"] as const satisfies readonly ErrorCode[];

export interface RoleSceneOptions<Also extends string> {
  /** The name of the program that lives such lives. */
  readonly program: string;
  readonly print: ((line: string) => void) | undefined;
  readonly disks: readonly PairDisk[];
  /** What else is counted. */
  readonly counted: readonly Also[];
}

/** Who takes part, and what the life does about what happens to them. */
export interface RoleCast {
  readonly members: readonly PairMember[];
  /** A host has died, and with it what `kind` says. */
  readonly died: (member: PairMember, kind: CrashKind) => void;
  /** An agent has opened its state. */
  readonly started: (member: PairMember) => Promise<void>;
  /** Errors that a start may end with; none unless they are said. */
  readonly tolerated?: readonly ErrorCode[];
  /** Whether a side that says this of itself may let its callers wait. */
  readonly isExcused: (status: Status | undefined) => boolean;
}

interface CommandLimits<T> {
  readonly timeoutMs?: number;
  /** Errors that it may end with; any unless they are said. */
  readonly legal?: readonly ErrorCode[];
  /** Called at the moment at which the operator is told. */
  readonly told?: (outcome: Outcome<T>) => void;
}

/**
 * What the lives of sides that change their roles share: the world, the calls into the agents, what an operator asks of
 * them, and how they die and come back. `enter` says who they are before anything happens.
 */
export class RoleScene<Also extends string = never> {
  readonly world: SimWorld;
  readonly random: SeededRandom;
  readonly calls: Calls;
  readonly counts: Record<(typeof COUNTED)[number], number> & Record<Also, number>;
  readonly durability: Durability;
  readonly #pairs = new PairStates();
  readonly #disks: readonly PairDisk[];
  #cast: RoleCast | undefined;
  #members: readonly PairMember[] = [];
  readonly #cutOff = new Set<PairMember>();

  constructor(seed: number, { program, print, disks, counted }: RoleSceneOptions<Also>) {
    this.world = new SimWorld(seed, { replay: `npx tsx test/sim/${program}.ts --seed ${seed}`, print });
    this.random = this.world.random;
    this.calls = new Calls(this.world);
    this.counts = Object.fromEntries([...COUNTED, ...counted].map((name) => [name, 0])) as typeof this.counts;
    this.durability = this.random.pick<Durability>(["power", "power", "process"]);
    this.#disks = disks;
  }

  enter(cast: RoleCast): void {
    this.#cast = cast;
    this.#members = cast.members;
    this.calls.isExcused = (process) =>
      cast.isExcused(this.#members.find(({ host }) => host.process === process)?.status);
  }

  get members(): readonly PairMember[] {
    return this.#members;
  }

  get #entered(): RoleCast {
    return present(this.#cast);
  }

  member(name: string): PairMember {
    return present(this.find(name));
  }

  /** undefined: it takes no part any more. */
  find(name: string): PairMember | undefined {
    return this.members.find((member) => member.name === name);
  }

  othersOf(member: PairMember): PairMember[] {
    return this.members.filter((other) => other !== member);
  }

  /** The other side of a pair. */
  peerOf(member: PairMember): PairMember {
    return present(this.othersOf(member)[0]);
  }

  /** The first side that calls itself Primary. */
  get primary(): PairMember | undefined {
    return this.members.find(({ role }) => role === "Primary");
  }

  /** Some Secondary has everything that its Primary has. */
  get isFollowed(): boolean {
    return this.members.some(
      ({ status }) => status?.role === "Secondary" && status.peers[0]?.replication === "Established",
    );
  }

  /** Lives the life to its end, and tells what was counted in it. */
  async run(live: () => Promise<void>): Promise<LifeCounts> {
    await liveIn(this.world, live);
    const counts = { ...this.counts, "steps": this.world.steps, "virtual hours": this.world.nowMs / 3_600_000 };
    return { counts, pairs: this.#pairs.counts };
  }

  /** After each action: takes the states of the first two, and lets some time pass. */
  async pause(): Promise<void> {
    const [a, b] = this.members.map(({ status }) => status);
    this.#pairs.look(a, b);
    await this.world.sleep(this.random.within([0, this.random.pick([1, 30, 2_000])]));
  }

  // The operator

  /** Asks an agent for something. Another error than the legal ones fails the world. */
  command<T>(
    member: PairMember,
    what: string,
    call: (agent: Agent, signal: AbortSignal) => T | Promise<T>,
    { timeoutMs = COMMAND_MS, legal, told }: CommandLimits<T> = {},
  ): Promise<Outcome<T>> {
    const { signal } = new AbortController();
    const ask = (): T | Promise<T> => call(present(member.agent), signal);
    return this.calls.make(member, what, timeoutMs + 10, ask, (outcome) => {
      if (outcome.kind === "failed" && legal !== undefined) {
        const { code, message } = outcome.error;
        assert(legal.includes(code), `${what} failed with ${code}: ${message}`);
      }
      told?.(outcome);
    });
  }

  /** Takes a checkpoint. True when it is committed. */
  async checkpoint(member: PairMember, timeoutMs: number, prepare: boolean): Promise<boolean> {
    const request = { prepare, timeoutMs };
    const outcome = await this.command(member, "checkpoint", (agent, signal) => agent.checkpoint(request, signal), {
      timeoutMs,
    });
    if (outcome.kind === "done") this.counts.checkpoints += 1;
    return outcome.kind === "done" && !prepare;
  }

  /** Has a primary swap its role with a secondary. True when it has. `alsoLegal`: errors that it may end with as well. */
  async switchover(
    member: PairMember,
    { peer, alsoLegal = [] }: { readonly peer?: string; readonly alsoLegal?: readonly ErrorCode[] } = {},
  ): Promise<boolean> {
    this.world.note(`switchover on ${member.name}`);
    const request = { closeClients: true, timeoutMs: COMMAND_MS, ...(peer === undefined ? {} : { peer }) };
    const call = (agent: Agent, signal: AbortSignal): Promise<unknown> => agent.switchover(request, signal);
    const outcome = await this.command(member, "switchover", call, { legal: [...SWITCHOVER_ERRORS, ...alsoLegal] });
    if (outcome.kind === "done") this.counts.switchovers += 1;
    return outcome.kind === "done";
  }

  /** Lets the guests of a side go on that wait; where it knows of a split brain, only with `force`. */
  startAlone(member: PairMember, { force = false } = {}): void {
    const isKept = !force && member.status?.protection.reason === "split-brain";
    this.world.note(`start-alone on ${member.name}${force ? " --force" : ""}`);
    void this.command(member, "start-alone", (agent) => agent.startAlone({ force }), {
      timeoutMs: QUICK_MS,
      legal: START_ALONE_ERRORS,
      told: (outcome) => {
        const isReleased = outcome.kind === "done" && outcome.value.released;
        assert(!(isKept && isReleased), `${member.name} goes on in a split brain that it knows of`);
      },
    });
    this.counts.alone += 1;
  }

  /** What a secondary shows is what a failover would return. */
  async readView(member: PairMember, checkpointOf: (epoch: number, index: number) => DiskModel): Promise<void> {
    const epoch = member.status?.epoch.committed ?? 0;
    if (member.role !== "Secondary" || epoch === 0) return;
    for (const [index, disk] of this.#disks.entries()) {
      const device = member.device(disk);
      if (device === undefined) return;
      const model = checkpointOf(epoch, index);
      const content = Buffer.alloc(device.sizeBytes);
      const reading = model.beginRead();
      const outcome = await this.calls.make(member, "view", CALL_MS, () => device.read(content, 0));
      model.endRead(reading);
      const { status } = member;
      if (outcome.kind !== "done" || status?.role !== "Secondary" || status.epoch.committed !== epoch) return;
      model.check(content, 0, `the view of ${disk.name} on ${member.name} since ${epoch}`, reading);
    }
  }

  /**
   * Shows `found` what the guest of a side will see, disk by disk, as long as `serves`. Past the gate: guests may have to
   * wait, but what they will see is there. Zeroes fill what a disk may grow by.
   */
  async readBack(
    member: PairMember,
    serves: () => boolean,
    found: (index: number, content: Buffer) => void,
    growthBytes = 0,
  ): Promise<void> {
    for (const [index, disk] of this.#disks.entries()) {
      const content = Buffer.alloc(disk.sizeBytes + growthBytes);
      const device = member.device(disk);
      const child = device instanceof ReplicatedDisk ? device.child : device;
      const outcome = await this.calls.make(member, "read", CALL_MS, () =>
        child?.read(content.subarray(0, child.sizeBytes), 0),
      );
      if (outcome.kind !== "done" || !serves()) return;
      found(index, content);
    }
  }

  // Faults

  /** How a host may die: what `process` promises ends with the power, which other lives look at. */
  drawCrash(): CrashKind {
    return this.random.pick<CrashKind>(this.durability === "power" ? ["process", "power"] : ["process"]);
  }

  /** The host of an agent that runs dies. */
  crash(member: PairMember, kind: CrashKind): void {
    this.world.note(`${member.name} dies: ${kind}`);
    this.counts[kind === "power" ? "power losses" : "process crashes"] += 1;
    const { process } = member.host;
    member.host.crash(kind);
    this.calls.died(process);
    this.#entered.died(member, kind);
  }

  /** Stops an agent in good order, as a service manager does, unless a call into it lasts long. False: it goes on. */
  async stop(member: PairMember): Promise<boolean> {
    const { process } = member.host;
    if (member.agent === undefined) return false;
    let isDrained = false;
    const drained = this.calls.drained(process, []).then(() => (isDrained = true));
    await Promise.race([drained, this.world.sleep(COMMAND_MS)]);
    if (!isDrained || !process.alive) return false;
    this.world.note(`${member.name} is stopped`);
    await this.command(member, "stop", () => member.stop(DRAIN_MS), { timeoutMs: STOP_LIMIT_MS, legal: [] });
    this.crash(member, "process");
    return true;
  }

  /** The host of an agent dies, and never comes back. */
  loseHost(member: PairMember): void {
    const { process } = member.host;
    member.host.crash("power");
    this.calls.died(process);
    this.#entered.died(member, "power");
  }

  /** Another one takes part in a member's place, behind the same partitions of the others. */
  replace(member: PairMember, next: PairMember): void {
    this.#members = this.#members.map((one) => (one === member ? next : one));
    this.#cutOff.delete(member);
    for (const other of this.othersOf(next)) {
      if (this.isCutOff(other)) this.world.network.partition(next.name, other.name, true);
    }
  }

  isCutOff(member: PairMember): boolean {
    return this.#cutOff.has(member);
  }

  /** Cuts a host off from all others, or lets it come back. */
  cutOff(member: PairMember, on: boolean): void {
    if (on) {
      this.counts.partitions += 1;
      this.#cutOff.add(member);
    } else this.#cutOff.delete(member);
    this.world.note(on ? `${member.name} is cut off` : `${member.name} is back`);
    for (const one of this.members) {
      for (const other of this.othersOf(one)) {
        const isParted = this.isCutOff(one) || this.isCutOff(other);
        if (one.name < other.name) this.world.network.partition(one.name, other.name, isParted);
      }
    }
  }

  /** Nobody is cut off any more. */
  reunite(): void {
    for (const member of this.members) if (this.isCutOff(member)) this.cutOff(member, false);
  }

  async startIfDown(member: PairMember): Promise<void> {
    if (member.host.alive) return;
    member.host.restart();
    await this.start(member);
  }

  async start(member: PairMember): Promise<void> {
    const { tolerated, started } = this.#entered;
    this.world.note(`${member.name} starts`);
    if (await member.start(tolerated)) await started(member);
  }

  /** All run, again and again, until the operator finds them together. What the operator does otherwise is `resolve`. */
  async untilTogether(resolve: () => Promise<boolean>, withinMs: number): Promise<void> {
    const deadlineMs = this.world.nowMs + withinMs;
    for (;;) {
      for (const member of this.members) await this.startIfDown(member);
      if (await resolve()) return;
      if (this.world.nowMs > deadlineMs) {
        throw new Error(`the sides do not come together: ${this.members.map(describe).join("; ")}`);
      }
      await this.world.sleep(1_000);
    }
  }

  /** What every life does about an event. */
  happened(member: PairMember, { type, data }: AgentEvent): void {
    const told = [data.code, data.epoch, data.peer].filter((one) => typeof one === "string" || typeof one === "number");
    this.world.note([`${member.name}: ${type}`, ...told].join(" "));
    if (type === "guests-released") this.calls.restart(member.host.process);
    if (data.code === "internal" || data.code === "protocol-error") {
      this.world.fail(`${member.name} reports ${type}`, new Error(String(data.message)));
    }
  }
}

/** Since its start a side waits for its peers, which may by now have said that the sides have parted. */
export function isHeldOrParted(status: Status | undefined): boolean {
  return status?.protection.reason === "held" || status?.protection.reason === "split-brain";
}

function describe({ name, status }: PairMember): string {
  const peers = status?.peers.map(({ url, replication, lastError }) => `${url} ${replication} ${lastError?.message}`);
  return `${name} ${status?.role} ${status?.protection.reason} [${peers?.join(", ")}]`;
}
