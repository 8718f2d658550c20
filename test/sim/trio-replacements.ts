import assert from "node:assert/strict";
import type { PeerStatus } from "../../proto/status.ts";
import type { ErrorCode } from "../../proto/errors.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { COMMAND_MS, QUICK_MS, type RoleScene } from "./role-scene.ts";
import type { SeededRandom } from "./seeded-random.ts";

/** What is counted beside what a life counts itself. */
export const COUNTED_REPLACEMENTS = ["hosts lost", "forgotten", "kept as the last", "replaced", "refused"] as const;

const HOSTS_LOST_MAX = 4;
const FIRST_NAME = "d";

/** What an order to give a secondary up may end with beside success. */
const ORDER_CODES: readonly ErrorCode[] = [
  "timed-out",
  "no-peer",
  "usage",
  "not-applicable",
  "peer-connected",
  "not-primary",
  "shutting-down",
];
/** What one that was given up may be told. */
const RETURN_CODES: readonly ErrorCode[] = [
  "timed-out",
  "not-applicable",
  "role-conflict",
  "peer-replaced",
  "split-brain",
];

export interface TrioReplacementsOptions {
  readonly random: SeededRandom;
  /** Another host, whose agent has nothing yet. */
  readonly newcomer: (name: string) => PairMember;
  /** The operator gives up whatever a host has. */
  readonly gaveUp: (member: PairMember) => void;
}

/**
 * Hosts that are gone for good, and the operator who gives them up: with `forget`, whose place is for whoever comes, or with
 * `connect --accept-new-peer --instead-of`. A host with nothing comes in place of each. Some that are believed to be gone
 * come back once they were given up: they are refused.
 */
export class TrioReplacements {
  readonly #scene: RoleScene<(typeof COUNTED_REPLACEMENTS)[number]>;
  readonly #options: TrioReplacementsOptions;
  /** Some of them run, where nobody reaches them. */
  readonly #gone = new Set<PairMember>();
  readonly #newcomers: PairMember[] = [];
  /** Of each agent that has been here: its id. */
  readonly #ids = new Map<PairMember, string>();

  constructor(scene: RoleScene<(typeof COUNTED_REPLACEMENTS)[number]>, options: TrioReplacementsOptions) {
    this.#scene = scene;
    this.#options = options;
  }

  /** An agent has opened its state. */
  started(member: PairMember): void {
    const { status } = member;
    if (status !== undefined) this.#ids.set(member, status.agentId);
  }

  /** What happens beside an action of the life; `serving` is the primary whose guests run, if there is one. */
  async act(serving: PairMember | undefined): Promise<void> {
    const { random } = this.#options;
    if (this.#newcomers.length < HOSTS_LOST_MAX && random.chance(0.04)) await this.#lose();
    else if (serving !== undefined && random.chance(0.2)) await this.repair(serving);
  }

  /** The operator has `primary` give up whom it still waits for, and who is gone. */
  async repair(primary: PairMember): Promise<void> {
    const { random } = this.#options;
    const gone = this.#goneOf(primary);
    const [one, another] = gone;
    if (one === undefined) return;
    if (another !== undefined && random.chance(0.5)) await this.#forgetBoth(primary, one, another);
    else if (random.chance(0.2)) await this.#forgetTwice(primary, one);
    else if (primary.status?.peers.length === 1 || random.chance(0.5)) await this.#replace(primary, one);
    else await this.#forget(primary, one);
  }

  // Losses

  /** A host is gone, or believed to be, whose role another one can take. */
  async #lose(): Promise<void> {
    const { random, newcomer, gaveUp } = this.#options;
    const { members, world, counts } = this.#scene;
    const spare = members.filter((member) => this.#scene.othersOf(member).some(canServe));
    if (spare.length === 0) return;
    const lost = random.pick(spare);
    const comesBack = lost.status?.role === "Secondary" && random.chance(0.5);
    const name = String.fromCharCode(FIRST_NAME.charCodeAt(0) + this.#newcomers.length);
    const next = newcomer(name);
    world.note(`${lost.name} is ${comesBack ? "believed to be gone" : "gone for good"}, and ${name} is there`);
    counts["hosts lost"] += 1;
    gaveUp(lost);
    this.#newcomers.push(next);
    this.#gone.add(lost);
    this.#scene.replace(lost, next);
    for (const member of members) world.network.partition(lost.name, member.name, true);
    if (!comesBack) this.#scene.loseHost(lost);
    await this.#scene.start(next);
  }

  #goneOf({ status }: PairMember): PeerStatus[] {
    return status?.peers.filter(({ agentId, url }) => this.#lostAt(agentId, url) !== undefined) ?? [];
  }

  /** The host that is gone which a primary knows so. */
  #lostAt(agentId: string | null, url: string | null): PairMember | undefined {
    return [...this.#gone].find((lost) =>
      agentId === null ? url === urlOf(lost.name) : this.#ids.get(lost) === agentId,
    );
  }

  // Orders

  async #forget(primary: PairMember, peer: PeerStatus): Promise<boolean> {
    const lost = this.#lostAt(peer.agentId, peer.url);
    const named = peer.agentId ?? peer.url ?? "";
    const { world, counts } = this.#scene;
    world.note(`forget ${lost?.name} on ${primary.name}`);
    const request = { peer: named, timeoutMs: COMMAND_MS };
    const outcome = await this.#scene.command(primary, "forget", (agent, signal) => agent.forget(request, signal), {
      legal: ORDER_CODES,
      told: ({ kind }) => {
        if (kind === "done") assertGivenUp(primary, named);
      },
    });
    if (outcome.kind === "failed" && outcome.error.code === "not-applicable") counts["kept as the last"] += 1;
    if (outcome.kind !== "done") return false;
    counts.forgotten += 1;
    await this.#comeBack(lost, primary, peer.agentId);
    return true;
  }

  /** Two orders at the same moment give up one at most: the last secondary's place is another one's. */
  async #forgetBoth(primary: PairMember, one: PeerStatus, another: PeerStatus): Promise<void> {
    const { process } = primary.host;
    const given = await Promise.all([this.#forget(primary, one), this.#forget(primary, another)]);
    assert(!given.every(Boolean), "two orders have given up both secondaries");
    const peers = primary.host.process === process ? primary.status?.peers : undefined;
    assert(peers === undefined || peers.length > 0, `${primary.name} has no secondary any more`);
  }

  /** Whoever asks again hears that it is done. */
  async #forgetTwice(primary: PairMember, peer: PeerStatus): Promise<void> {
    const given = await Promise.all([this.#forget(primary, peer), this.#forget(primary, peer)]);
    assert(!given.every(Boolean), "one secondary was given up twice");
  }

  async #replace(primary: PairMember, peer: PeerStatus): Promise<void> {
    const lost = this.#lostAt(peer.agentId, peer.url);
    const insteadOf = peer.agentId ?? peer.url ?? "";
    const known = new Set(primary.status?.peers.map(({ agentId }) => agentId));
    const next = this.#newcomers.find(
      (one) => this.#scene.othersOf(primary).includes(one) && !known.has(this.#ids.get(one) ?? null),
    );
    const { world, counts } = this.#scene;
    world.note(`accept ${next?.name ?? "whoever comes"} instead of ${lost?.name} on ${primary.name}`);
    const timeoutMs = this.#options.random.pick([QUICK_MS, COMMAND_MS]);
    const request = {
      dryRun: false,
      discardMyData: false,
      acceptNewPeer: true,
      insteadOf,
      timeoutMs,
      ...(next === undefined ? {} : { peer: urlOf(next.name) }),
    };
    const outcome = await this.#scene.command(primary, "connect", (agent, signal) => agent.connect(request, signal), {
      timeoutMs,
      legal: ORDER_CODES,
    });
    if (outcome.kind !== "done") return;
    counts.replaced += 1;
    await this.#comeBack(lost, primary, peer.agentId);
  }

  /** One that was given up, and is not gone, finds its former primary: it is refused there, where it had been met under `id`. */
  async #comeBack(ghost: PairMember | undefined, primary: PairMember, id: string | null): Promise<void> {
    if (ghost?.host.alive !== true) return;
    const { world, counts } = this.#scene;
    const { process } = primary.host;
    world.note(`${ghost.name} is back`);
    world.network.partition(ghost.name, primary.name, false);
    const request = { peer: urlOf(primary.name), timeoutMs: QUICK_MS };
    const rejoined = await this.#scene.command(ghost, "rejoin", (agent, signal) => agent.rejoin(request, signal), {
      timeoutMs: QUICK_MS,
      legal: RETURN_CODES,
      told: () => {
        const isSame = process.alive && primary.role === "Primary";
        const peer = isSame ? primary.status?.peers.find(({ agentId }) => agentId === id) : undefined;
        assert(id === null || peer === undefined, `${ghost.name} was given up, and is a secondary again`);
      },
    });
    if (rejoined.kind === "failed" && rejoined.error.code === "peer-replaced") counts.refused += 1;
    world.network.partition(ghost.name, primary.name, true);
    if (ghost.host.alive) this.#scene.loseHost(ghost);
  }
}

/** Whether an operator could go on with this side alone. */
function canServe({ status }: PairMember): boolean {
  if (status?.role === "Primary") return status.protection.reason !== "outdated";
  return status !== undefined && status.epoch.committed > 0 && status.disks.every(({ state }) => state !== "Outdated");
}

function assertGivenUp({ status }: PairMember, named: string): void {
  const peer = status?.peers.find(({ agentId, url }) => agentId === named || url === named);
  assert(peer === undefined, `${named} was given up, and is listed as a secondary`);
}
