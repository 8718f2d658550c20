import assert from "node:assert/strict";
import { ColobusError } from "../../proto/errors.ts";
import type { BlockDevice } from "../../shared/block/block-device.ts";
import { Calls } from "./calls.ts";
import type { LifeCounts } from "./life-totals.ts";
import { makePair, urlOf, type PairDisk, type PairMember, type PairObserver } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";
import { makeTrio } from "./trio.ts";
import { SimWorld } from "./world.ts";

/**
 * One life of a pair, or of a primary with two secondaries, that an arbiter decides over, with guests on all hosts that try all
 * the time. Whatever is cut off, frozen or killed: once a side has served under a later promotion, no guest of another side gets
 * a success, reads included. In quiet lives only the arbiter fails: then no guest waits, and nobody is promoted. Where a pair
 * shares its disk, whoever takes over has the other host powered off first, which does not always work.
 *
 * With two secondaries an operator takes checkpoints as well, and none that was told to be committed is ever behind what a
 * promotion returns to; and has a former primary follow the new one, as the other secondary does by itself. No two ever part.
 */
const DISK: PairDisk = { name: "vda", sizeBytes: 64 * 4096 };
const TTL_MS = 4_000;
const PEER_TIMEOUT_MS = 1_500;
const GUEST_EVERY_MS = [1, 60] as const;
/** Each guest does one kind of request, so that those who read go on where those who write have to wait. */
const GUESTS = ["read", "read", "write", "flush"] as const;
const FAULTS = [4, 12] as const;
const FAULT_EVERY_MS = [200, 6_000] as const;
/** Longer than everything that anybody waits for after the last fault. */
const SETTLE_MS = 10 * TTL_MS;
const STARTED_WITHIN_MS = 120_000;
const SHARED = 0.35;
/** Often for longer than the lease lasts under which it runs. */
const FENCE_MS = [1, 2 * TTL_MS] as const;
const FENCE_FAILS = 0.2;
/** A side that may not start yet, because the other one merges, tries again. */
const START_AGAIN_MS = 500;
/** With two secondaries: how often an operator does something, and for how long a command is waited for. */
const OPERATOR_EVERY_MS = [100, 2_500] as const;
const COMMAND_MS = 2_000;
const ASTRAY_NOTICED = 0.1;
const PREPARED_EVERY_MS = 500;
/** A guest whose pair is connected does not wait longer for what an arbiter may have a say in. */
const QUIET_REQUEST_MS = 1_500;

type GuestKind = (typeof GUESTS)[number];
type Fault =
  | "isolate"
  | "freeze-primary"
  | "freeze"
  | "kill"
  | "partition"
  | "cut-link"
  | "arbiter-cut"
  | "arbiter-down"
  | "wall-clock";
const FAULTS_OF_LIFE: readonly Fault[] = [
  "isolate",
  "isolate",
  "freeze-primary",
  "freeze-primary",
  "freeze",
  "kill",
  "partition",
  "partition",
  "cut-link",
  "arbiter-cut",
  "arbiter-down",
  "wall-clock",
];
const QUIET_FAULTS: readonly Fault[] = ["arbiter-cut", "arbiter-down"];

/** What is told to be committed, or asked for, may come to nothing while hosts die: which codes say so. */
const OPERATOR_CODES: readonly string[] = [
  "no-peer",
  "timed-out",
  "outcome-unknown",
  "too-many-prepared",
  "outdated",
  "lease-refused",
  "handed-over",
  "shutting-down",
  "not-primary",
  "not-secondary",
  "connection-lost",
  "peer-timeout",
  "split-brain",
  "role-conflict",
  "merge-unfinished",
  "not-applicable",
];

export function runArbiterLife(seed: number, print?: (line: string) => void): Promise<LifeCounts> {
  return live("run-arbiter-lives.ts", seed, ["a", "b"], print);
}

export function runArbiterTrioLife(seed: number, print?: (line: string) => void): Promise<LifeCounts> {
  return live("run-arbiter-trio-lives.ts", seed, ["a", "b", "c"], print);
}

function live(
  program: string,
  seed: number,
  hosts: readonly string[],
  print?: (line: string) => void,
): Promise<LifeCounts> {
  const replay = `npx tsx test/sim/${program} --seed ${seed}`;
  return new ArbiterLife(new SimWorld(seed, { replay, print }), hosts).live();
}

class ArbiterLife {
  readonly #world: SimWorld;
  readonly #arbiter: SimArbiter;
  readonly #members: readonly PairMember[];
  readonly #calls: Calls;
  readonly #counts: Record<string, number> = {};
  readonly #isQuiet: boolean;
  readonly #isShared: boolean;
  readonly #fencing: SeededRandom;
  /** Which promotion each host serves under; 0: the first primary's reign. */
  readonly #reigns = new Map<string, number>([["a", 0]]);
  readonly #servedReigns = new Set<number>([0]);
  #promotions = 0;
  /** The checkpoint that each promotion has returned to. */
  readonly #bases = new Map<number, number>();
  /** The newest checkpoint that an operator was told to be committed. */
  #told = 0;
  #served = 0;
  #ending = false;

  constructor(world: SimWorld, hosts: readonly string[]) {
    this.#world = world;
    this.#calls = new Calls(world);
    this.#isQuiet = world.random.chance(0.25);
    this.#arbiter = new SimArbiter(world, world.random.fork("arbiter"), TTL_MS);
    this.#fencing = world.random.fork("fencing");
    this.#isShared = this.#fencing.chance(SHARED) && hosts.length === 2;
    if (!this.#isQuiet && world.random.chance(0.6)) this.#arbiter.slow(world.random.pick(hosts));
    const contents = Buffer.alloc(DISK.sizeBytes, 1);
    const ack = world.random.pick(["async", "received", "applied"] as const);
    const onPeerLoss = world.random.chance(0.7) ? "continue" : "freeze";
    const common = {
      disks: [DISK],
      clusterBytes: 4096,
      durability: "process",
      // Requests that are under way when a side stops.
      storage: { syncMs: [5, 60] },
      onPeerLoss,
      windowBytes: 1024 * 1024,
      peerTimeoutMs: PEER_TIMEOUT_MS,
      checkpointEveryMs: PREPARED_EVERY_MS,
      retain: 0,
      arbiter: { service: this.#arbiter, ttlMs: TTL_MS },
    } as const;
    const observer = this.#observer;
    if (hosts.length > 2) {
      this.#members = makeTrio(world, { ...common, mode: "colo", ack, onCongestion: "throttle" }, [contents], observer);
      return;
    }
    const { primary, secondary } = makePair(
      world,
      {
        ...common,
        ...(this.#isShared
          ? { mode: "shared", isMarked: onPeerLoss === "continue" || this.#fencing.chance(0.5) }
          : { mode: "colo" }),
        ack: this.#isShared ? "applied" : ack,
        access: "read-only",
        createImages: false,
        overlayLimitBytes: undefined,
        fence: (member) => this.#fencePeerOf(member),
      },
      { primary: [contents], secondary: [Buffer.alloc(DISK.sizeBytes)] },
      observer,
    );
    this.#members = [primary, secondary];
  }

  get #observer(): PairObserver {
    const world = this.#world;
    return {
      requested: () => undefined,
      happened: (member, { type, data }) => {
        this.#count(type);
        world.note(`${member.name}: ${type} ${JSON.stringify(data)}`);
        assert(!this.#isTrio || type !== "split-brain", "two sides have parted");
        if (type === "takeover-failed") assert.notEqual((data as { code?: string }).code, "internal");
        if (type !== "role-changed" || (data as { role?: string }).role !== "Primary") return;
        this.#promotions += 1;
        this.#reigns.set(member.name, this.#promotions);
        const { committed } = member.agent?.status().epoch ?? { committed: 0 };
        this.#bases.set(this.#promotions, committed);
        assert(committed >= this.#told, `${member.name} returns to ${committed}, and ${this.#told} was committed`);
      },
    };
  }

  async live(): Promise<LifeCounts> {
    await this.#world.do("the start", async () => {
      const [primary, ...secondaries] = this.#members;
      for (const secondary of secondaries) await secondary.start();
      await primary?.start();
      await primary?.agent?.wait(
        { condition: "committed", timeoutMs: STARTED_WITHIN_MS },
        new AbortController().signal,
      );
    });
    for (const member of this.#members) {
      for (const kind of GUESTS) this.#nextRequest(member, kind);
      if (this.#isTrio) this.#nextOrder(member);
    }
    const { random } = this.#world;
    const faults = random.within(FAULTS);
    for (let count = 0; count < faults; count += 1) {
      this.#fault(random.pick(this.#isQuiet ? QUIET_FAULTS : FAULTS_OF_LIFE));
      await this.#pass(random.within(FAULT_EVERY_MS));
    }
    await this.#pass(SETTLE_MS);
    this.#ending = true;
    await this.#checkEnd();
    return { counts: this.#counts, pairs: {} };
  }

  /** Everything has been whole for a while. */
  async #checkEnd(): Promise<void> {
    const primaries = this.#members.filter(({ agent }) => agent?.role === "Primary");
    if (this.#isQuiet) assert.equal(this.#promotions, 0, "the loss of the arbiter alone has promoted somebody");
    // A side that was promoted serves; the other one is refused, whatever it calls itself.
    const newest = primaries.filter(({ name }) => this.#isNewest(name));
    assert.equal(newest.length, 1, "somebody is Primary, under the last promotion");
    const before = this.#served;
    this.#ending = false;
    await this.#pass(2_000);
    this.#ending = true;
    const isHeld = newest[0]?.agent?.status().protection.reason === "held";
    if (!isHeld) assert(this.#served > before, "the primary serves, as its status says");
    this.#count("lives ended serving", isHeld ? 0 : 1);
    const peers = newest[0]?.agent?.status().peers ?? [];
    this.#count("secondaries at the end", peers.filter(({ connection }) => connection === "Connected").length);
    // The guests' last requests end.
    await this.#pass(2_000);
  }

  #isNewest(host: string): boolean {
    return this.#reigns.get(host) === this.#promotions;
  }

  #fault(fault: Fault): void {
    const { random, network } = this.#world;
    const serving = this.#members.find(({ name, agent }) => agent?.role === "Primary" && this.#isNewest(name));
    const isOfServing = fault === "isolate" || fault === "freeze-primary";
    const member = (isOfServing ? serving : undefined) ?? random.pick(this.#members);
    const lengthMs = random.within([50, 3 * TTL_MS]);
    this.#count(`fault ${fault}`);
    this.#world.note(`fault ${fault} of ${member.name}`);
    switch (fault) {
      case "isolate":
        // First it has nothing but its secondary's promise, then not that either.
        this.#arbiter.cut(member.name, true);
        this.#world.schedule(random.within([0, 2 * TTL_MS]), () => this.#partition(member, true));
        this.#world.schedule(2 * TTL_MS + lengthMs, () => {
          this.#arbiter.cut(member.name, false);
          this.#partition(member, false);
        });
        break;
      case "freeze-primary":
      case "freeze":
        member.host.freeze(true);
        this.#world.schedule(lengthMs, () => member.host.freeze(false));
        break;
      case "kill":
        if (!member.host.alive) return;
        member.host.freeze(false);
        member.host.crash("process");
        this.#calls.died(member.host.process);
        this.#world.schedule(lengthMs, () => this.#restart(member));
        break;
      case "partition": {
        const ways = this.#isTrio && random.chance(0.5) ? [random.pick(this.#waysOf(member))] : undefined;
        this.#partition(member, true, ways);
        this.#world.schedule(lengthMs, () => this.#partition(member, false, ways));
        break;
      }
      case "cut-link":
        for (const [one, other] of this.#waysOf(member)) network.cut(one, other);
        break;
      case "arbiter-cut":
        this.#arbiter.cut(member.name, true);
        this.#world.schedule(lengthMs, () => this.#arbiter.cut(member.name, false));
        break;
      case "arbiter-down":
        this.#arbiter.stop(true);
        this.#world.schedule(lengthMs, () => this.#arbiter.stop(false));
        break;
      case "wall-clock":
        // Backwards, so that the monotonic clock alone has to do.
        member.host.wallOffsetMs -= lengthMs;
        break;
    }
  }

  get #isTrio(): boolean {
    return this.#members.length > 2;
  }

  /** Between which hosts there is a way to this one. */
  #waysOf({ name }: PairMember): readonly (readonly [string, string])[] {
    const others = this.#members.filter((other) => other.name !== name);
    return others.map((other) => (name < other.name ? [name, other.name] : [other.name, name]));
  }

  /** Cuts the host off from the others, or these ways, or ends that. */
  #partition(member: PairMember, on: boolean, ways = this.#waysOf(member)): void {
    for (const [one, other] of ways) this.#world.network.partition(one, other, on);
  }

  #restart(member: PairMember): void {
    if (member.host.alive) return;
    member.host.restart();
    void member.start(this.#isShared ? ["image-busy"] : []).then((isStarted) => {
      if (!isStarted) this.#world.schedule(START_AGAIN_MS, () => this.#restart(member));
    });
  }

  /** On disks of their own nobody needs that. */
  async #fencePeerOf(member: PairMember): Promise<void> {
    if (!this.#isShared) return;
    const peer = this.#members.find((other) => other !== member);
    assert(peer !== undefined);
    await this.#world.sleep(this.#fencing.within(FENCE_MS));
    if (this.#fencing.chance(FENCE_FAILS)) throw new ColobusError("fence-failed", "the hook has failed");
    this.#count("fenced");
    if (peer.host.alive) peer.host.freeze(false);
    peer.host.crash("power");
    this.#calls.died(peer.host.process);
    this.#world.schedule(this.#fencing.within([100, 3 * TTL_MS]), () => this.#restart(peer));
  }

  /** An operator takes a checkpoint on whatever calls itself Primary, or has one that is behind follow the one that serves. */
  #nextOrder(member: PairMember): void {
    this.#world.schedule(this.#world.random.within(OPERATOR_EVERY_MS), () => {
      if (this.#ending) this.#nextOrder(member);
      else void this.#order(member).finally(() => this.#nextOrder(member));
    });
  }

  async #order(member: PairMember): Promise<void> {
    const { signal } = new AbortController();
    const { agent, status } = member;
    const timeoutMs = COMMAND_MS;
    const reign = this.#reigns.get(member.name) ?? 0;
    const newest = this.#members.find(({ name, role }) => role === "Primary" && this.#isNewest(name));
    if (agent === undefined || status === undefined || newest === undefined) return;
    const isAstray = status.role === "Secondary" && status.peers[0]?.connection !== "Connected";
    if (status.protection.reason === "outdated" || (isAstray && this.#world.random.chance(ASTRAY_NOTICED))) {
      const rejoined = await this.#calls.make(member, "rejoin", Number.POSITIVE_INFINITY, () =>
        agent.rejoin({ peer: urlOf(newest.name), timeoutMs }, signal),
      );
      if (rejoined.kind === "failed") assert(OPERATOR_CODES.includes(rejoined.error.code), rejoined.error.code);
      if (rejoined.kind === "done") this.#count("rejoined");
      return;
    }
    if (status.role === "Secondary") return;
    const taken = await this.#calls.make(
      member,
      "checkpoint",
      Number.POSITIVE_INFINITY,
      () => agent.checkpoint({ prepare: false, timeoutMs }, signal),
      (outcome) => {
        if (outcome.kind !== "done") return;
        const { epoch } = outcome.value;
        this.#count("checkpoints told");
        this.#told = Math.max(this.#told, epoch);
        for (const [later, base] of this.#bases) {
          assert(later <= reign || base >= epoch, `${epoch} is told, and promotion ${later} returned to ${base}`);
        }
      },
    );
    if (taken.kind === "failed") assert(OPERATOR_CODES.includes(taken.error.code), taken.error.code);
  }

  /** One guest of the host tries a request, and another one when that has ended. */
  #nextRequest(member: PairMember, kind: GuestKind): void {
    const { random } = this.#world;
    this.#world.schedule(random.within(GUEST_EVERY_MS), () => {
      if (!this.#ending) void this.#request(member, kind).finally(() => this.#nextRequest(member, kind));
      else this.#nextRequest(member, kind);
    });
  }

  /** What a guest of the host sees; undefined: nothing, or it is being taken away with the role. */
  #deviceOf(member: PairMember): BlockDevice | undefined {
    try {
      return member.device(DISK);
    } catch (error) {
      if (error instanceof ColobusError) return undefined;
      throw error;
    }
  }

  async #request(member: PairMember, kind: GuestKind): Promise<void> {
    const { random } = this.#world;
    const { agent } = member;
    const device = this.#deviceOf(member);
    if (agent?.role !== "Primary" || device === undefined || member.host.process.frozen) return;
    const offset = 4096 * random.below(DISK.sizeBytes / 4096);
    const reign = this.#reigns.get(member.name) ?? 0;
    const beganMs = this.#world.nowMs;
    await this.#calls.make(
      member,
      `guest's ${kind}`,
      Number.POSITIVE_INFINITY,
      () => {
        if (kind === "read") return device.read(Buffer.alloc(4096), offset);
        return kind === "flush" ? device.flush() : device.write(Buffer.alloc(4096, reign + 1), offset, { fua: false });
      },
      (outcome) => {
        if (outcome.kind !== "done") return;
        this.#served += 1;
        this.#count(`${kind}s served`);
        const newest = Math.max(...this.#servedReigns);
        assert(reign >= newest, `${member.name} served under reign ${reign} after reign ${newest} had served`);
        this.#servedReigns.add(reign);
        if (this.#isQuiet) assert(this.#world.nowMs - beganMs <= QUIET_REQUEST_MS, "a connected pair has stopped");
      },
    );
  }

  #count(what: string, by = 1): void {
    this.#counts[what] = (this.#counts[what] ?? 0) + by;
  }

  async #pass(ms: number): Promise<void> {
    await this.#world.run({ forMs: ms });
  }
}
