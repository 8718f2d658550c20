import assert from "node:assert/strict";
import { bufferedBytes } from "./buffered-bytes.ts";
import type { AgentEvent, Status } from "../../proto/control-api.ts";
import { ReplicatedDisk } from "../../primary/replicated-disk.ts";
import type { ColobusError, ErrorCode } from "../../proto/errors.ts";
import type { AckPolicy, Durability } from "../../proto/words.ts";
import { Calls } from "./calls.ts";
import { ModelWrite, type DiskModel } from "./disk-model.ts";
import type { LifeCounts } from "./life-totals.ts";
import { MirrorStream } from "./mirror-stream.ts";
import { PairStates } from "./pair-states.ts";
import { imagePath, makePair, urlOf, type Pair, type PairDisk, type PairMember } from "./pair.ts";
import { RoleModel } from "./role-model.ts";
import { RoleResizes } from "./role-resizes.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SimulatedCrash, type CrashKind } from "./simulated-crash.ts";
import { SimWorld } from "./world.ts";

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
const COMMAND_MS = 20_000;
const QUICK_MS = 2_000;
const CALL_SLACK_MS = 30_000;
const TOGETHER_WITHIN_MS = 600_000;
const RETAIN_MAX = 2;
const WRITE_MAX_BYTES = 3 * 4096;

/** How much longer a disk may get. */
const GROWTH_MAX_BYTES = 12 * 4096;

const COUNTED = [
  "operations",
  "writes",
  "checkpoints",
  "failovers",
  "rejoins",
  "switchovers",
  "splits",
  "discards",
  "alone",
  "faults",
  "process crashes",
  "power losses",
  "partitions",
  "cut links",
  "congested",
  "dry runs",
  "resizes",
] as const;

export interface RoleLifeReport extends LifeCounts {
  readonly seed: number;
}

export function runRoleLife(seed: number, print?: (line: string) => void): Promise<RoleLifeReport> {
  return live(seed, new RoleLife(seed, "colo", print));
}

/** The same of a pair in mode `mirror`. */
export function runMirrorRoleLife(seed: number, print?: (line: string) => void): Promise<RoleLifeReport> {
  return live(seed, new RoleLife(seed, "mirror", print));
}

/** The same of a pair in mode `mc`. */
export function runBufferedRoleLife(seed: number, print?: (line: string) => void): Promise<RoleLifeReport> {
  return live(seed, new RoleLife(seed, "mc", print));
}

async function live(seed: number, life: RoleLife): Promise<RoleLifeReport> {
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

const PROGRAM_OF_MODE = {
  colo: "run-role-lives",
  mc: "run-buffered-role-lives",
  mirror: "run-mirror-role-lives",
} as const;

class RoleLife {
  readonly world: SimWorld;
  readonly counts = Object.fromEntries(COUNTED.map((name) => [name, 0])) as Record<(typeof COUNTED)[number], number>;
  readonly pairs = new PairStates();
  readonly #random: SeededRandom;
  readonly #calls: Calls;
  readonly #pair: Pair;
  readonly #model: RoleModel;
  readonly #durability: Durability;
  readonly #mode: "colo" | "mc" | "mirror";
  readonly #print: ((line: string) => void) | undefined;
  readonly #events = new Map<PairMember, number>();
  #parted = false;
  /** When an operator only asks what the two would do. */
  readonly #asking: SeededRandom;
  /** undefined: the disks keep their sizes. */
  readonly #resizes: RoleResizes | undefined;

  constructor(seed: number, mode: "colo" | "mc" | "mirror", print?: (line: string) => void) {
    const program = PROGRAM_OF_MODE[mode];
    this.world = new SimWorld(seed, { replay: `npx tsx test/sim/${program}.ts --seed ${seed}` });
    this.#mode = mode;
    this.#random = this.world.random;
    this.#print = print;
    this.#calls = new Calls(this.world);
    this.#durability = this.#random.pick<Durability>(["power", "power", "process"]);
    const contents = DISKS.map(({ sizeBytes }) => this.#bytes(sizeBytes));
    const drawnAck = this.#random.pick<AckPolicy>(["async", "async", "received", "applied"]);
    const ack =
      mode === "mirror"
        ? this.#random.fork("ack").pick<AckPolicy>(["async", "received", "applied", "applied"])
        : drawnAck;
    const stream = mode === "mirror" ? new MirrorStream({ ack, durability: this.#durability }) : undefined;
    const longest = contents.map((content) => Buffer.concat([content, Buffer.alloc(GROWTH_MAX_BYTES)]));
    this.#model = new RoleModel(DISKS, longest, (member, event) => this.#happened(member, event), stream);
    const congestion = this.#random.fork("congestion");
    this.#pair = makePair(
      this.world,
      {
        mode: this.#mode,
        disks: DISKS,
        clusterBytes: 4096,
        durability: this.#durability,
        ack,
        access: "read-only",
        windowBytes: congestion.pick([1024 * 1024, 16 * 1024]),
        onCongestion: ack === "async" ? congestion.pick(["throttle", "detach"]) : "throttle",
        peerTimeoutMs: 5_000,
        createImages: false,
        checkpointEveryMs: undefined,
        retain: this.#random.pick([0, 0, RETAIN_MAX]) * (mode === "mirror" ? 0 : 1),
        overlayLimitBytes: undefined,
      },
      { primary: contents, secondary: contents.map((content) => Buffer.alloc(content.length)) },
      this.#model,
    );
    this.#model.begin(this.#pair.primary);
    this.#asking = this.#random.fork("asking");
    const resizing = this.#random.fork("resizing");
    this.#resizes = resizing.chance(0.5)
      ? new RoleResizes({
          calls: this.#calls,
          random: resizing,
          disks: DISKS,
          growthMaxBytes: GROWTH_MAX_BYTES,
          statusOf: (member) => this.#statusOf(member),
        })
      : undefined;
    this.#calls.isExcused = (process) => {
      const member = this.#members.find(({ host }) => host.process === process);
      const reason = member === undefined ? null : this.#statusOf(member)?.protection.reason;
      // Since its start it waits for the peer, which may by now have said that the two have parted.
      return reason === "held" || reason === "split-brain";
    };
  }

  get #members(): readonly PairMember[] {
    return [this.#pair.primary, this.#pair.secondary];
  }

  async live(): Promise<void> {
    for (const member of this.#members) await this.#start(member);
    await this.#together();
    const actions = ACTIONS_MIN + this.#random.below(60);
    for (let action = 0; action < actions || this.#isThin(); action += 1) {
      await this.#act();
      if (this.#resizes?.isDue() === true) void this.#resize(this.#random.pick(this.#members));
      if (this.#asking.chance(0.1)) void this.#ask(this.#asking.pick(this.#members));
      const [a, b] = this.#members.map((member) => this.#statusOf(member));
      this.pairs.look(a, b);
      await this.#sleep(this.#random.within([0, this.#random.pick([1, 30, 2_000])]));
    }
    do await this.#together();
    while (this.counts.checkpoints < CHECKPOINTS_MIN);
    await this.#compare();
  }

  #isThin(): boolean {
    return this.counts.operations < OPERATIONS_MIN || this.counts.faults < FAULTS_MIN;
  }

  async #act(): Promise<void> {
    const member = this.#random.pick(this.#members);
    const roll = this.#random.below(100);
    if (roll < 45)
      for (const one of this.#members) for (let count = this.#random.below(12); count > 0; count -= 1) this.#guest(one);
    else if (roll < 60)
      for (const one of this.#members) void (this.#mode === "mirror" ? this.#readView(one) : this.#checkpoint(one));
    else if (roll < 66) await this.#crash(member);
    else if (roll < 74) await this.#startIfDown(member);
    else if (roll < 79) this.#part(!this.#parted);
    else if (roll < 81) {
      this.world.network.cut("a", "b");
      this.#countFault("cut links");
    } else if (roll < 87) await this.#failover(member);
    else if (roll < 94) await this.#resolve(member);
    else if (roll < 98) await this.#switchover(member);
    else this.#startAlone(member);
  }

  // Guests

  #guest(member: PairMember): void {
    const status = this.#statusOf(member);
    if (status?.role !== "Primary") return;
    const index = this.#random.below(DISKS.length);
    const disk = DISKS[index] ?? missing();
    const device = member.device(disk);
    if (device === undefined) return;
    this.counts.operations += 1;
    const roll = this.#random.below(10);
    const length = 1 + this.#random.below(WRITE_MAX_BYTES);
    const offset = this.#random.below(device.sizeBytes - length);
    const model = this.#model.diskOf(member, index);
    if (roll < 2) this.#read(member, disk, model, offset, length);
    else if (roll < 3) this.#flush(member, disk, model);
    else if (roll < 4) {
      const write = new ModelWrite(offset, length, undefined);
      this.#change(member, index, model, write, `zeroes ${disk.name}`, () =>
        device.zero(offset, length, { fua: false, mayUnmap: true }),
      );
    } else {
      const data = this.#bytes(length);
      const write = new ModelWrite(offset, length, data);
      this.#change(member, index, model, write, `writes ${disk.name}`, () =>
        device.write(data, offset, { fua: false }),
      );
    }
  }

  #change(
    member: PairMember,
    index: number,
    model: DiskModel,
    write: ModelWrite,
    what: string,
    call: () => void | Promise<void>,
  ): void {
    this.#note(`guest on ${member.name} ${what} [${write.offset}, +${write.length})`);
    model.begin(write);
    const outOfStream = this.#outOfStream(member);
    void this.#calls.make(member, "write", CALL_SLACK_MS, call, (outcome) => {
      if (outcome.kind === "done") {
        this.counts.writes += 1;
        write.settled = true;
        const [peer] = this.#statusOf(member)?.peers ?? [];
        const isConnected = peer?.connection === "Connected";
        if (peer?.replication === "Established") this.#model.acknowledged(member, index, write);
        const isOutOfStream = outOfStream !== undefined && outOfStream === this.#outOfStream(member);
        if (!isConnected || isOutOfStream) this.#model.acknowledgedAlone(member);
      } else if (outcome.kind === "failed") this.#assertGuestError(outcome.error);
    });
  }

  /** While writes bypass a session that is open: the number of the member's last event, so that an end of it is noticed. */
  #outOfStream(member: PairMember): number | undefined {
    const peer = this.#statusOf(member)?.peers[0];
    return peer?.connection === "Connected" && peer.replication === "PausedSyncS"
      ? this.#events.get(member)
      : undefined;
  }

  #read(member: PairMember, disk: PairDisk, model: DiskModel, offset: number, length: number): void {
    const device = member.device(disk);
    const target = Buffer.alloc(length);
    const reading = model.beginRead();
    void this.#calls.make(
      member,
      "read",
      CALL_SLACK_MS,
      () => device?.read(target, offset),
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
    const legal: readonly ErrorCode[] = [
      "outdated",
      "handed-over",
      "guests-held",
      "shutting-down",
      "read-only",
      "no-checkpoint",
    ];
    assert(legal.includes(code), `a guest's request failed with ${code}: ${message}`);
  }

  // The operator

  async #checkpoint(
    member: PairMember,
    timeoutMs = this.#random.pick([100, QUICK_MS, COMMAND_MS]),
    prepare = this.#random.chance(0.2),
  ): Promise<boolean> {
    const { agent } = member;
    if (agent === undefined || this.#statusOf(member)?.role !== "Primary") return false;
    if (this.#mode === "mirror") return this.#isMirrored(member);
    const outcome = await this.#calls.make(member, "checkpoint", timeoutMs + 10, () =>
      agent.checkpoint({ prepare, timeoutMs }, new AbortController().signal),
    );
    if (outcome.kind === "done") this.counts.checkpoints += 1;
    return outcome.kind === "done" && !prepare;
  }

  /** Without epochs: everything is on the secondary, and a failover returns it. */
  #isMirrored(member: PairMember): boolean {
    const status = this.#statusOf(member);
    if (status?.protection.state !== "Protected" || status.peers[0]?.lagBytes !== 0) return false;
    this.counts.checkpoints += 1;
    return true;
  }

  /** What a secondary shows is what a failover would return. */
  async #readView(member: PairMember): Promise<void> {
    const epoch = this.#statusOf(member)?.epoch.committed ?? 0;
    if (this.#statusOf(member)?.role !== "Secondary" || epoch === 0) return;
    for (const [index, disk] of DISKS.entries()) {
      const device = member.device(disk);
      if (device === undefined) return;
      const model = this.#model.checkpointOf(epoch, index);
      const content = Buffer.alloc(device.sizeBytes);
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
    if (status.peers[0]?.connection === "Connected") return;
    const force = this.#random.chance(status.disks[0]?.state === "Outdated" ? 0.5 : 0.1);
    this.#note(`failover on ${member.name}${force ? " --force" : ""}`);
    const outcome = await this.#calls.make(member, "failover", COMMAND_MS + 10, () =>
      agent.failover(
        { force, dryRun: false, discardActive: false, timeoutMs: COMMAND_MS },
        new AbortController().signal,
      ),
    );
    if (outcome.kind === "failed") {
      const legal: readonly ErrorCode[] = ["peer-connected", "outdated", "timed-out"];
      assert(
        legal.includes(outcome.error.code),
        `failover failed with ${outcome.error.code}: ${outcome.error.message}`,
      );
      return;
    }
    if (outcome.kind !== "done" || outcome.value.already) return;
    this.counts.failovers += 1;
    await this.#takeUp(member);
  }

  /** A side that was promoted shows the checkpoint that its record names. */
  async #takeUp(member: PairMember): Promise<void> {
    const epoch = this.#statusOf(member)?.epoch.committed;
    if (epoch === undefined) return;
    this.#model.promoted(member, epoch);
    await this.#readBack(member);
  }

  async #readBack(member: PairMember): Promise<void> {
    for (const [index, disk] of DISKS.entries()) {
      const content = Buffer.alloc(disk.sizeBytes + GROWTH_MAX_BYTES);
      const device = member.device(disk);
      // Past the gate: guests may have to wait, but what they will see is there.
      const child = device instanceof ReplicatedDisk ? device.child : device;
      const outcome = await this.#calls.make(member, "read", CALL_SLACK_MS, () =>
        child?.read(content.subarray(0, child.sizeBytes), 0),
      );
      if (outcome.kind !== "done") return;
      this.#model.readBack(member, index, content);
    }
  }

  /** What an operator does about what a side says of itself. */
  async #resolve(member: PairMember): Promise<void> {
    const { agent } = member;
    const status = this.#statusOf(member);
    if (agent === undefined || status?.role !== "Primary") return;
    const { reason } = status.protection;
    const statuses = this.#members.map((side) => this.#statusOf(side));
    if (statuses.some((one) => one?.peers[0]?.lastError?.code === "size-mismatch")) await this.#resizeToPeer(member);
    const signal = new AbortController().signal;
    const other = member === this.#pair.primary ? "b" : "a";
    if (reason === "outdated") {
      this.#note(`rejoin on ${member.name}`);
      const outcome = await this.#calls.make(member, "rejoin", COMMAND_MS + 10, () =>
        agent.rejoin({ peer: urlOf(other), timeoutMs: COMMAND_MS }, signal),
      );
      if (outcome.kind === "failed") {
        const legal: readonly ErrorCode[] = ["timed-out", "usage", "role-conflict", "split-brain"];
        assert(
          legal.includes(outcome.error.code),
          `rejoin failed with ${outcome.error.code}: ${outcome.error.message}`,
        );
      }
      if (outcome.kind === "done" && !outcome.value.already) {
        this.counts.rejoins += 1;
        this.#model.rejoined(member);
      }
    } else if (reason === "split-brain") {
      this.counts.splits += 1;
      this.#note(`connect --discard-my-data on ${member.name}`);
      const outcome = await this.#calls.make(member, "connect", COMMAND_MS + 10, () =>
        agent.connect({ dryRun: false, discardMyData: true, timeoutMs: COMMAND_MS }, signal),
      );
      if (outcome.kind === "failed") {
        const legal: readonly ErrorCode[] = ["timed-out", "usage", "merge-unfinished", "outdated", "role-conflict"];
        assert(
          legal.includes(outcome.error.code),
          `connect failed with ${outcome.error.code}: ${outcome.error.message}`,
        );
      }
      if (this.#statusOf(member)?.role === "Secondary") this.counts.discards += 1;
    }
  }

  async #resize(member: PairMember): Promise<void> {
    if (this.#statusOf(member)?.role === "Primary")
      await this.#resizes?.grow(member, (line) => this.#note(line), this.counts);
  }

  /** A side that grew alone, and was outdated then, is longer than the one that was promoted. */
  async #resizeToPeer(member: PairMember): Promise<void> {
    const peer = this.#members.find((other) => other !== member) ?? missing();
    for (const disk of DISKS) {
      const sizeBytes = this.#statusOf(peer)?.disks.find(({ name }) => name === disk.name)?.sizeBytes ?? 0;
      await this.#resizes?.growTo(member, disk, sizeBytes, (line) => this.#note(line), this.counts);
    }
  }

  /** Nothing may follow from the question: the model goes on as if it had not been asked. */
  async #ask(member: PairMember): Promise<void> {
    const { agent } = member;
    if (agent === undefined) return;
    const timeoutMs = this.#asking.pick([100, QUICK_MS, COMMAND_MS]);
    this.#note(`connect --dry-run on ${member.name}`);
    const outcome = await this.#calls.make(member, "dry run", timeoutMs + 10, () =>
      agent.connect({ dryRun: true, discardMyData: false, timeoutMs }, new AbortController().signal),
    );
    if (outcome.kind === "done") this.counts["dry runs"] += 1;
    if (outcome.kind === "failed") {
      // A promotion, while it is asked, ends it as it ends a session.
      const legal: readonly ErrorCode[] = [
        "timed-out",
        "connection-lost",
        "peer-timeout",
        "shutting-down",
        "replaced",
        "size-mismatch",
      ];
      assert(
        legal.includes(outcome.error.code),
        `a dry run failed with ${outcome.error.code}: ${outcome.error.message}`,
      );
    }
  }

  async #switchover(member: PairMember): Promise<void> {
    const { agent } = member;
    const status = this.#statusOf(member);
    if (agent === undefined || status?.role !== "Primary" || status.peers[0]?.replication !== "Established") return;
    this.#note(`switchover on ${member.name}`);
    const outcome = await this.#calls.make(member, "switchover", COMMAND_MS + 10, () =>
      agent.switchover({ closeClients: true, timeoutMs: COMMAND_MS }, new AbortController().signal),
    );
    if (outcome.kind === "done") this.counts.switchovers += 1;
    if (outcome.kind === "failed") {
      const legal: readonly ErrorCode[] = [
        "no-peer",
        "timed-out",
        "outcome-unknown",
        "no-checkpoint",
        "too-many-prepared",
        "outdated",
        "guests-held",
      ];
      assert(
        legal.includes(outcome.error.code),
        `switchover failed with ${outcome.error.code}: ${outcome.error.message}`,
      );
    }
  }

  #startAlone(member: PairMember): void {
    const { agent } = member;
    if (agent === undefined || this.#statusOf(member)?.protection.reason !== "held") return;
    this.#note(`start-alone on ${member.name}`);
    void this.#calls.make(member, "start-alone", QUICK_MS, () => agent.startAlone());
    this.counts.alone += 1;
  }

  // Faults

  async #crash(member: PairMember): Promise<void> {
    if (!member.host.alive) return;
    // What `process` promises ends with the power: the lives of one pair of roles look at what comes then.
    const kind = this.#random.pick<CrashKind>(this.#durability === "power" ? ["process", "power"] : ["process"]);
    this.#note(`${member.name} dies: ${kind}`);
    this.#countFault(kind === "power" ? "power losses" : "process crashes");
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

  #part(on: boolean): void {
    if (on) this.#countFault("partitions");
    this.#parted = on;
    this.#note(on ? "the network parts them" : "the network is whole");
    this.world.network.partition("a", "b", on);
  }

  #countFault(kind: (typeof COUNTED)[number]): void {
    this.counts.faults += 1;
    this.counts[kind] += 1;
  }

  // The end

  /** The network is whole, both run, and the operator does what each side asks for, until they are in sync. */
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
      if (primary === undefined) await this.#failover(this.#random.pick(this.#members));
      else for (const member of this.#members) await this.#resolve(member);
      await this.#sleep(1_000);
    }
  }

  async #compare(): Promise<void> {
    await this.#calls.settled();
    const primary = this.#members.find((member) => this.#statusOf(member)?.role === "Primary") ?? missing();
    await primary.agent?.wait({ condition: "merged", timeoutMs: COMMAND_MS }, new AbortController().signal);
    if (this.#mode === "mirror") await this.#together();
    assert(
      (await this.#checkpoint(primary, COMMAND_MS, false)) ||
        (await this.#checkpoint(primary, COMMAND_MS, false)) ||
        (await this.#checkpoint(primary, COMMAND_MS, false)),
      "the last checkpoint is not taken",
    );
    if (this.#mode === "mc") await this.#untilApplied(primary);
    for (const [index, disk] of DISKS.entries()) {
      const [a, b] = this.#members.map(({ host }) => host.disk.readFile(imagePath(disk)));
      assert(a !== undefined && b !== undefined);
      const sizeBytes = primary.device(disk)?.sizeBytes ?? 0;
      assert(a.length >= sizeBytes && b.length >= sizeBytes, `a copy of ${disk.name} is too short at the end`);
      this.#model.diskOf(primary, index).check(a.subarray(0, sizeBytes), 0, `${disk.name} on a at the end`);
      const isEqual = a.subarray(0, sizeBytes).equals(b.subarray(0, sizeBytes));
      assert(isEqual, `the copies of ${disk.name} differ at the end`);
    }
  }

  /** What is committed reaches the base when no earlier checkpoint is kept that needs it as it was. */
  async #untilApplied(primary: PairMember): Promise<void> {
    for (let kept = 0; kept < RETAIN_MAX; kept += 1) await this.#checkpoint(primary, COMMAND_MS, false);
    const deadlineMs = this.world.nowMs + COMMAND_MS;
    while (this.#members.some((member) => bufferedBytes(member) > 0)) {
      assert(this.world.nowMs < deadlineMs, "what is committed is not put into the base");
      await this.#sleep(10);
    }
  }

  // Small things

  #happened(member: PairMember, { type, data }: AgentEvent): void {
    this.#events.set(member, (this.#events.get(member) ?? 0) + 1);
    const code = typeof data.code === "string" ? data.code : "";
    this.#note(`${member.name}: ${type} ${code} ${typeof data.epoch === "number" ? data.epoch : ""}`);
    if (type === "congested") this.counts.congested += 1;
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
