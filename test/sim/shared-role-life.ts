import assert from "node:assert/strict";
import type { AgentEvent, Status } from "../../proto/status.ts";
import type { ErrorCode } from "../../proto/errors.ts";
import type { Durability } from "../../proto/words.ts";
import { present } from "../support/present.ts";
import type { LifeCounts } from "./life-totals.ts";
import { imagePath, makePair, urlOf, type PairDisk, type PairMember } from "./pair.ts";
import { RoleGuests } from "./role-guests.ts";
import { CALL_MS, COMMAND_MS, isHeldOrParted, LOST_SESSION_ERRORS, QUICK_MS, RoleScene } from "./role-scene.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SharedRoleModel } from "./shared-role-model.ts";
import type { CrashKind } from "./simulated-crash.ts";
import { makeTrio } from "./trio.ts";
import type { SimWorld } from "./world.ts";

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
const TOGETHER_WITHIN_MS = 600_000;
const WRITE_MAX_BYTES = 3 * 4096;

const COUNTED = [
  "views read",
  "forced",
  "refused unprotected",
  "refused busy",
  "at once",
  "of another one",
  "follows",
  "both restart",
] as const;

/** What a rejoin, and a side that is given up, may end with beside success. */
const RESOLVE_CODES: readonly ErrorCode[] = [
  "timed-out",
  "not-applicable",
  "role-conflict",
  "split-brain",
  "merge-unfinished",
  "outdated",
  "handed-over",
];
const VIEW_CODES: readonly ErrorCode[] = ["unprotected", "no-checkpoint", "image-busy", "shutting-down", "outdated"];

/** Of a pair. */
export function runSharedRoleLife(seed: number, print?: (line: string) => void): Promise<LifeCounts> {
  return new SharedRoleLife(seed, "run-shared-role-lives", placePair, print).run();
}

/** Of three hosts. */
export function runSharedTrioLife(seed: number, print?: (line: string) => void): Promise<LifeCounts> {
  return new SharedRoleLife(seed, "run-shared-trio-lives", placeTrio, print).run();
}

class SharedRoleLife {
  readonly #scene: RoleScene<(typeof COUNTED)[number]>;
  readonly #random: SeededRandom;
  readonly #guests: RoleGuests;
  readonly #model: SharedRoleModel;
  readonly #isTrio: boolean;
  readonly #isMarked: boolean;
  /** Those that were asked to hand the role over since they have it: another one may be promoted while they run. */
  readonly #handingOver = new Set<PairMember>();
  readonly #byAgentId = new Map<string, PairMember>();
  /** The id of the agent whose secondary each was last. */
  readonly #followed = new Map<PairMember, string>();
  /** Those that were Secondary as they died. */
  readonly #diedSecondary = new Set<PairMember>();

  constructor(seed: number, program: string, place: Placing, print?: (line: string) => void) {
    const scene = new RoleScene(seed, { program, print, disks: DISKS, counted: COUNTED });
    const { random, durability } = scene;
    this.#scene = scene;
    this.#random = random;
    this.#isTrio = place === placeTrio;
    this.#isMarked = this.#isTrio || random.chance(0.7);
    const contents = DISKS.map(({ sizeBytes }) => random.bytes(sizeBytes));
    const listener = (member: PairMember, event: AgentEvent): void => this.#happened(member, event);
    const model = new SharedRoleModel(DISKS, contents, listener, { mayReuse: this.#isTrio });
    this.#model = model;
    const members = place(scene.world, { random, durability, isMarked: this.#isMarked }, contents, model);
    model.begin(present(members[0]));
    this.#guests = new RoleGuests(scene, { isCurrent: (_, disk) => model.guest.includes(disk), alsoLegal: [] });
    scene.enter({
      members,
      died: (member, kind) => model.died(member, kind),
      started: (member) => this.#started(member),
      // The other side may be merging.
      tolerated: ["image-busy"],
      isExcused: (status) => {
        // Every change waits for the secondaries; and a primary that starts, for its peers.
        const peers = status?.peers ?? [];
        const isWhole = peers.length > 0 && peers.every(({ replication }) => replication === "Established");
        return !isWhole || status?.protection.reason === "held";
      },
    });
  }

  run(): Promise<LifeCounts> {
    return this.#scene.run(() => this.#live());
  }

  async #live(): Promise<void> {
    for (const member of this.#scene.members) await this.#scene.start(member);
    await this.#together();
    const actions = ACTIONS_MIN + this.#random.below(50);
    for (let action = 0; action < actions; action += 1) {
      await this.#act();
      await this.#scene.pause();
      await this.#readViews();
    }
    await this.#together();
    await this.#compare();
  }

  async #act(): Promise<void> {
    const { members } = this.#scene;
    const member = this.#random.pick(members);
    const roll = this.#random.below(100);
    if (roll < 45) {
      for (const one of members) for (let count = this.#random.below(12); count > 0; count -= 1) this.#guest(one);
    } else if (roll < 62) for (const one of members) void this.#checkpoint(one);
    else if (roll < 67) this.#crash(member, this.#scene.drawCrash());
    else if (roll < 74) await this.#scene.startIfDown(member);
    else if (roll < 79) this.#part(member);
    else if (roll < 81) this.#cut(member);
    else if (roll < 90) await this.#changeRoles(member);
    else if (roll < 95) await this.#resolve(member);
    else if (roll < 97) await this.#bothRestart();
    else this.#startAlone(member);
  }

  // The guest, and who reads the view

  #guest(member: PairMember): void {
    if (member.role !== "Primary" || member !== this.#model.writer) return;
    const index = this.#random.below(DISKS.length);
    const disk = present(DISKS[index]);
    const model = present(this.#model.guest[index]);
    if (member.device(disk) === undefined) return;
    this.#scene.counts.operations += 1;
    const length = 1 + this.#random.below(WRITE_MAX_BYTES);
    const offset = this.#random.below(disk.sizeBytes - length);
    const request = { member, disk, model, offset, length };
    const roll = this.#random.below(10);
    if (roll < 2) this.#guests.read(request);
    else if (roll < 3) this.#guests.flush(request);
    else {
      const data = roll < 4 ? undefined : this.#random.bytes(length);
      this.#guests.write(request, data, () => this.#model.acknowledged(member));
    }
  }

  /** What a secondary shows is its checkpoint, whatever the other side writes meanwhile. */
  async #readViews(): Promise<void> {
    for (const member of this.#scene.members) {
      const { status } = member;
      if (status?.role !== "Secondary" || status.epoch.committed === 0) continue;
      for (const [index, disk] of DISKS.entries()) {
        const device = member.device(disk);
        if (device === undefined) continue;
        const content = Buffer.alloc(disk.sizeBytes);
        const outcome = await this.#scene.calls.make(member, "view", CALL_MS, () => device.read(content, 0));
        if (outcome.kind === "failed") {
          assert(VIEW_CODES.includes(outcome.error.code), `a view failed with ${outcome.error.code}`);
        }
        if (outcome.kind !== "done") break;
        const { status: now } = member;
        if (now?.role !== "Secondary" || now.epoch.committed === 0) break;
        if (!this.#model.hasCheckpoint(now.epoch.committed)) {
          assert(now.disks[index]?.state === "Outdated", `${member.name} shows what was no checkpoint`);
          continue;
        }
        this.#model
          .checkpointOf(now.epoch.committed, index)
          .check(content, 0, `checkpoint ${now.epoch.committed} of ${disk.name} on ${member.name}`);
        this.#scene.counts["views read"] += 1;
      }
    }
  }

  // The operator

  #checkpoint(
    member: PairMember,
    timeoutMs = this.#random.pick([100, QUICK_MS, COMMAND_MS]),
    prepare = this.#random.chance(0.2),
  ): Promise<boolean> {
    if (member.role !== "Primary") return Promise.resolve(false);
    return this.#scene.checkpoint(member, timeoutMs, prepare);
  }

  async #changeRoles(member: PairMember): Promise<void> {
    const roll = this.#isTrio ? this.#random.below(10) : 9;
    if (roll < 2) await this.#switchover();
    else if (roll < 4) await this.#failoverAtOnce();
    else await this.#failover(member);
  }

  /** The primary that the side has followed last, which may be another one by now where there are three. */
  #primaryOf(member: PairMember): PairMember {
    if (!this.#isTrio) return this.#scene.peerOf(member);
    return present(this.#byAgentId.get(this.#followed.get(member) ?? "") ?? this.#model.writer);
  }

  /** The other host is powered off first, and comes back when the promotion is over. */
  async #failover(member: PairMember): Promise<void> {
    if (member.role !== "Secondary") return;
    const other = this.#primaryOf(member);
    // What `process` promises of a merge ends with the power.
    if (this.#scene.durability === "process" && other !== this.#model.writer) return;
    const force = this.#random.chance(0.3);
    this.#scene.world.note(`failover on ${member.name}${force ? " --force" : ""}`);
    this.#powerOff(other);
    while (member.status?.peers[0]?.connection === "Connected") await this.#scene.world.sleep(100);
    if (this.#isTrio && this.#model.writer !== other) this.#scene.counts["of another one"] += 1;
    await this.#promote(member, force);
  }

  /** Two operators, or two scripts, each on the host of a secondary: one of these is promoted at most. */
  async #failoverAtOnce(): Promise<void> {
    const { writer } = this.#model;
    if (writer === undefined) return;
    const others = this.#scene.othersOf(writer);
    const areSecondary = others.every(({ role }) => role === "Secondary");
    if (!areSecondary) return;
    this.#scene.world.note("failover on both at once");
    this.#scene.counts["at once"] += 1;
    this.#powerOff(writer);
    const isConnected = ({ status }: PairMember): boolean => status?.peers[0]?.connection === "Connected";
    while (others.some(isConnected)) await this.#scene.world.sleep(100);
    const force = this.#random.chance(0.2);
    await Promise.all(
      others.map(async (one, index) => {
        await this.#scene.world.sleep(this.#random.within([0, 20]));
        await this.#promote(one, force && index === 0);
      }),
    );
  }

  async #promote(member: PairMember, force: boolean): Promise<void> {
    if (member.agent === undefined) return;
    const request = { force, dryRun: false, discardActive: false, fenced: true, timeoutMs: COMMAND_MS };
    const legal: ErrorCode[] = ["image-busy", "no-checkpoint", "outdated", "timed-out"];
    if (!force) legal.push("unprotected");
    if (this.#isTrio) legal.push("peer-connected"); // to one that has come back, or was promoted meanwhile
    const outcome = await this.#scene.command(member, "failover", (agent, signal) => agent.failover(request, signal), {
      legal,
    });
    if (outcome.kind === "failed") {
      if (outcome.error.code === "unprotected") this.#scene.counts["refused unprotected"] += 1;
      if (outcome.error.code === "image-busy") this.#scene.counts["refused busy"] += 1;
    }
    if (outcome.kind !== "done") return;
    if (!outcome.value.already) this.#scene.counts[force ? "forced" : "failovers"] += 1;
    await this.#readBack(member);
  }

  async #switchover(): Promise<void> {
    const { writer } = this.#model;
    const status = writer?.status;
    if (writer === undefined || status?.role !== "Primary" || status.peers.length === 0) return;
    const peer = this.#random.pick(status.peers).agentId;
    if (peer === null) return;
    this.#handingOver.add(writer);
    if (!(await this.#scene.switchover(writer, { peer, alsoLegal: LOST_SESSION_ERRORS }))) return;
    if (this.#model.writer !== undefined) await this.#readBack(this.#model.writer);
  }

  async #readBack(member: PairMember): Promise<void> {
    const isWriter = (): boolean => member === this.#model.writer;
    if (!isWriter()) return;
    await this.#scene.readBack(member, isWriter, (index, content) => this.#model.readBack(index, content));
  }

  /** What an operator does about what a side says of itself. */
  async #resolve(member: PairMember): Promise<void> {
    const { status } = member;
    const { writer } = this.#model;
    if (status === undefined || writer === undefined) return;
    const { reason } = status.protection;
    if (this.#isTrio) await this.#follow(member, writer, status);
    else if (status.role === "Primary" && reason === "outdated") await this.#rejoin(member, this.#primaryOf(member));
    else if (status.role === "Primary" && reason === "split-brain" && member !== writer)
      await this.#discard(member, writer);
  }

  /** What an operator does so that a side follows the one that writes. */
  async #follow(member: PairMember, writer: PairMember, status: Status): Promise<void> {
    const [peer] = status.peers;
    const isItsOwn = peer?.agentId === writer.status?.agentId && peer?.connection === "Connected";
    if (member === writer || writer.role !== "Primary") return;
    if (status.role === "Secondary" && isItsOwn) return;
    const code = await this.#rejoin(member, writer);
    const isSplit = member.status?.peers.some(({ lastError }) => lastError?.code === "split-brain") === true;
    if (code === "split-brain" || isSplit) await this.#discard(member, writer);
  }

  /** Resolves with the code of what kept it from that. */
  async #rejoin(member: PairMember, primary: PairMember): Promise<ErrorCode | undefined> {
    if (member.agent === undefined) return undefined;
    this.#scene.world.note(`rejoin on ${member.name}`);
    const timeoutMs = this.#isTrio ? QUICK_MS : COMMAND_MS;
    const request = { peer: urlOf(primary.name), timeoutMs };
    const outcome = await this.#scene.command(member, "rejoin", (agent, signal) => agent.rejoin(request, signal), {
      timeoutMs,
      legal: RESOLVE_CODES,
    });
    if (outcome.kind === "done") this.#scene.counts[outcome.value.already ? "follows" : "rejoins"] += 1;
    return outcome.kind === "failed" ? outcome.error.code : undefined;
  }

  async #discard(member: PairMember, writer: PairMember): Promise<void> {
    if (member.agent === undefined) return;
    this.#scene.world.note(`connect --discard-my-data on ${member.name}`);
    // Whom else it dials may be behind as well.
    const peer = this.#isTrio ? { peer: urlOf(writer.name) } : {};
    const request = { dryRun: false, discardMyData: true, ...peer, timeoutMs: COMMAND_MS };
    await this.#scene.command(member, "connect", (agent, signal) => agent.connect(request, signal), {
      legal: RESOLVE_CODES,
    });
    if (member.role === "Secondary") this.#scene.counts.discards += 1;
  }

  /** Refused, or harmless, on a side that the other one was promoted over: the mark knows. */
  #startAlone(member: PairMember): void {
    const { status } = member;
    const isAlone = isHeldOrParted(status) || status?.protection.reason === "connecting";
    if (!this.#isMarked || !isAlone || status?.role !== "Primary") return;
    this.#scene.startAlone(member);
  }

  // Faults

  #crash(member: PairMember, kind: CrashKind): void {
    if (!member.host.alive) return;
    if (member.role === "Secondary") this.#diedSecondary.add(member);
    this.#scene.crash(member, kind);
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
    this.#scene.counts["both restart"] += 1;
    const { members } = this.#scene;
    const order = this.#random.chance(0.5) ? members : [...members].reverse();
    for (const member of order) this.#crash(member, this.#scene.drawCrash());
    for (const member of order) {
      await this.#scene.world.sleep(this.#random.within([0, this.#random.pick([1, 8_000])]));
      await this.#scene.startIfDown(member);
    }
  }

  async #started(member: PairMember): Promise<void> {
    const { status } = member;
    if (status !== undefined) this.#byAgentId.set(status.agentId, member);
    const wasSecondary = this.#diedSecondary.delete(member);
    // It may have been promoted by the very call over which it died.
    if (this.#isTrio && wasSecondary && status?.role === "Primary") this.#promoted(member, status);
    if (status?.role === "Primary" && !status.disks.some(({ state }) => state === "Outdated"))
      await this.#readBack(member);
  }

  /** Of two hosts it is the same which is cut off. */
  #part(drawn: PairMember): void {
    const member = this.#isTrio ? drawn : this.#scene.member("a");
    this.#scene.cutOff(member, !this.#scene.isCutOff(member));
  }

  #cut(member: PairMember): void {
    const others = this.#scene.othersOf(member);
    const other = this.#isTrio ? this.#random.pick(others) : present(others[0]);
    this.#scene.world.network.cut(member.name, other.name);
  }

  // The end

  #together(): Promise<void> {
    this.#scene.reunite();
    return this.#scene.untilTogether(async () => {
      const { members } = this.#scene;
      const primary = this.#isTrio ? this.#model.writer : this.#scene.primary;
      const inSync = members.filter(
        ({ status }) => status?.role === "Secondary" && status.peers[0]?.replication === "Established",
      );
      if (inSync.length === members.length - 1 && primary !== undefined) {
        if (await this.#checkpoint(primary, COMMAND_MS, false)) return true;
      }
      for (const member of members) await this.#resolve(member);
      return false;
    }, TOGETHER_WITHIN_MS);
  }

  async #compare(): Promise<void> {
    await this.#scene.calls.settled();
    const writer = present(this.#model.writer);
    await writer.agent?.wait({ condition: "merged", timeoutMs: COMMAND_MS }, new AbortController().signal);
    assert(await this.#checkpoint(writer, COMMAND_MS, false), "the last checkpoint is not taken");
    for (const [index, disk] of DISKS.entries()) {
      this.#model.guest[index]?.check(writer.host.disk.readFile(imagePath(disk)), 0, `${disk.name} at the end`);
    }
    if (!this.#isTrio) await this.#readViews();
    else if (!(await this.#showsAll()) && !(await this.#showsAll()))
      assert.fail("not each secondary shows the checkpoint");
  }

  /** Whether each secondary shows the checkpoint: a session may have been replaced while it was taken, and one lacks it. */
  async #showsAll(): Promise<boolean> {
    const readBefore = this.#scene.counts["views read"];
    await this.#together();
    await this.#readViews();
    const read = this.#scene.counts["views read"] - readBefore;
    return read === DISKS.length * (this.#scene.members.length - 1);
  }

  #happened(member: PairMember, event: AgentEvent): void {
    const { type, data } = event;
    this.#scene.happened(member, event);
    if (type === "role-changed" && data.role === "Primary") this.#promoted(member, member.status);
    if (type === "peer-connected" && typeof data.agentId === "string" && member.role === "Secondary") {
      this.#followed.set(member, data.agentId);
    }
  }

  #promoted(member: PairMember, status: Status | undefined): void {
    const { writer } = this.#model;
    const isFenced = writer === undefined || writer === member || !writer.host.alive || this.#handingOver.has(writer);
    if (this.#isTrio) assert(isFenced, `${member.name} is promoted on disks that ${writer?.name} writes`);
    this.#handingOver.delete(member);
    this.#model.promoted(member, status?.epoch.committed ?? 0);
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
