import assert from "node:assert/strict";
import type {
  ConnectAnswer,
  ConnectRequest,
  ForgetAnswer,
  ForgetRequest,
  MeasureLinkAnswer,
  MeasureLinkRequest,
  RejoinAnswer,
  RejoinRequest,
  StartAloneAnswer,
  StartAloneRequest,
  SwitchoverAnswer,
  SwitchoverRequest,
  VerdictAnswer,
} from "../proto/control-api.ts";
import { asColobusError, ColobusError, type ErrorCode } from "../proto/errors.ts";
import { RECONNECT_MAX_MS, RECONNECT_MIN_MS } from "../proto/limits.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { PeerStatus } from "../proto/status.ts";
import { isInSync } from "../proto/words.ts";
import { changedBytesFor, gravestOf, mayBeAt, placeToForget, placeToReplace } from "../primary/place-orders.ts";
import type { PrimaryRole } from "../primary/primary-role.ts";
import type { SecondaryPlace } from "../primary/secondary-place.ts";
import type { FollowOrder } from "../secondary/replica-history.ts";
import type { Clock } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import { newId, type Random } from "../shared/host/random.ts";
import { sleep } from "../shared/host/sleep.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { givenUpFor, peerGivenUp } from "../shared/replication/lineage.ts";
import { refusalOf } from "../shared/replication/refusal.ts";
import type { Verdict } from "../shared/replication/verdict.ts";
import type { AgentRoles } from "./agent-roles.ts";
import type { DiskExports } from "./disk-export.ts";
import { describeVerdict, type Judged } from "./verdict-answer.ts";

export interface RoleCommandsOptions {
  readonly roles: AgentRoles;
  readonly state: StateFile;
  readonly exports: DiskExports;
  readonly clock: Clock;
  readonly random: Random;
}

/**
 * The operator's commands about roles and peers: rejoin, connect, start-alone, switchover. Each speaks to the peer first
 * and lets the handshake's verdict decide; none changes a role on its own guess.
 */
export class RoleCommands {
  readonly #options: RoleCommandsOptions;
  readonly #waiters = new Set<() => void>();

  constructor(options: RoleCommandsOptions) {
    this.#options = options;
  }

  /** A handshake has come to a verdict, or the role has changed. */
  changed(): void {
    for (const waiter of this.#waiters) waiter();
  }

  /**
   * An outdated primary, or another one's secondary, becomes the secondary of the agent at `peer`, which is asked first: what
   * is refused then, or not answered, changes nothing here.
   */
  async rejoin({ peer, timeoutMs }: RejoinRequest, signal: AbortSignal): Promise<RejoinAnswer> {
    const { roles, state } = this.#options;
    const deadline = this.#deadline(timeoutMs, signal);
    try {
      await this.#until(deadline, () => state.record.merge === null, "the last failover is not merged yet");
      const already = roles.active.role === "Secondary";
      const asked = await this.#askUntilAnswered(deadline, peer);
      if (roles.active.role === "Secondary") await this.#follow(deadline, peer, asked);
      else await this.#layDown(deadline, peer, asked);
      return { already, peer, epoch: state.record.committed.epoch };
    } finally {
      deadline.end();
    }
  }

  /** A secondary follows the agent at `peer`, and dials nobody else, from now on. Errors: as `#obey`; what the two are instead. */
  async #follow(deadline: Deadline, peer: string, asked: Judged): Promise<void> {
    const { agentId } = this.#options.state.record;
    if (asked.verdict.kind === "split-brain") throw parted(asked.peer);
    // One that is behind has to hear of it: the two meet, whatever becomes of the order.
    if (asked.verdict.kind !== "sync" && asked.verdict.kind !== "outdated") throw refusal(asked.verdict, agentId);
    const change = (record: StateRecord): StateRecord => ({ ...record, peers: [peer] });
    await this.#obey(deadline, { primary: asked.peer.agentId, url: peer, change });
  }

  /**
   * Has a secondary follow the primary that the order names. Until that one's session begins, and the record has the order's
   * change with it, this side goes on with whom it follows.
   * Errors: why the two are no pair; `timed-out`; `not-secondary` when the role has changed meanwhile.
   */
  async #obey(deadline: Deadline, order: FollowOrder): Promise<void> {
    const { roles, state } = this.#options;
    const { active } = roles;
    if (active.role === "Primary") throw notSecondary();
    const { secondary } = active;
    const { primary, url } = order;
    if (secondary.isFollowing(primary)) {
      // What it has by now may be that one's: nothing of it is given up any more.
      if (url !== undefined) await this.#keepPeer(url);
      roles.redial();
      return;
    }
    const before = { verdict: this.#lastVerdict(), error: secondary.lastError };
    let reason: ColobusError | undefined;
    const isOver = (): boolean => {
      const last = this.#lastVerdict();
      if (roles.active !== active) reason = notSecondary();
      else if (last !== before.verdict && last?.peer.agentId === primary) {
        reason = refusalOf(last.verdict, state.record.agentId);
      }
      return reason !== undefined || secondary.isFollowing(primary);
    };
    const what = (): string => {
      const { lastError } = secondary;
      const why = lastError === undefined || lastError === before.error ? "" : `: ${lastError.message}`;
      return `the ${url === undefined ? "peer" : `agent at ${url}`} has not begun a session yet${why}`;
    };
    secondary.take(order);
    roles.redial(url);
    try {
      await this.#until(deadline, isOver, what);
    } finally {
      secondary.dismiss(order);
      roles.redial();
    }
    if (reason !== undefined) throw reason;
  }

  /** A primary becomes the secondary of the agent at `peer`. Errors: as `assertBehind`, `timed-out`; those of `demote`. */
  async #layDown(deadline: Deadline, peer: string, asked: Judged): Promise<void> {
    const { roles, state } = this.#options;
    // One that is behind itself has to hear of it: the two meet, whatever becomes of the order.
    if (asked.verdict.kind !== "outdated") assertBehind(asked, state.record.agentId);
    try {
      const judged = await this.#handshake(deadline, peer);
      if (roles.active.role === "Primary") {
        assertBehind(judged, state.record.agentId);
        if (judged.verdict.kind === "outdated") {
          return await roles.demote({ discardsOwn: false, newer: judged.peer.agentId, peer });
        }
        await this.#until(deadline, () => roles.active.role === "Secondary", "the role is not laid down yet");
      }
      await this.#keepPeer(peer);
    } catch (error) {
      roles.redial();
      throw error;
    }
    roles.redial();
  }

  async #keepPeer(url: string): Promise<void> {
    await this.#options.state.update((record) => ({ ...record, peers: [url] }));
  }

  /** Speaks to the peer now, or only asks it what the two would do; or gives up this side's data for the peer's. */
  async connect(request: ConnectRequest, signal: AbortSignal): Promise<ConnectAnswer> {
    const deadline = this.#deadline(request.timeoutMs, signal);
    try {
      if (request.acceptNewPeer === true) return await this.#acceptNewPeer(request, deadline);
      const { peer } = request;
      if (request.insteadOf !== undefined) {
        throw new ColobusError("usage", "--instead-of is said with --accept-new-peer");
      }
      if (peer !== undefined && !request.discardMyData) {
        throw new ColobusError("usage", "--peer is said with --accept-new-peer, or with --discard-my-data");
      }
      const isKnown = peer === undefined && this.#isConnected();
      let known = isKnown ? this.#ownVerdict() : undefined;
      if (peer !== undefined) known = await this.#askUntilAnswered(deadline, peer);
      if (request.dryRun) {
        known ??= await this.#ask(deadline);
        return { dryRun: true, connected: this.#isConnected(), verdict: this.#describe(known) };
      }
      known ??= await this.#handshake(deadline);
      if (request.discardMyData) {
        if (peer === undefined) known = this.#gravest() ?? known;
        await this.#discard(deadline, known, peer);
      }
      const last = this.#ownVerdict();
      const judged = last === undefined || (request.discardMyData && !isOfSame(last, known)) ? known : last;
      return { dryRun: false, connected: this.#isConnected(), verdict: this.#describe(judged) };
    } finally {
      deadline.end();
    }
  }

  /** Errors: `not-supported` on a side that is dialled; `timed-out`; as `measureLink`. */
  async measureLink(request: MeasureLinkRequest, signal: AbortSignal): Promise<MeasureLinkAnswer> {
    const { roles, state } = this.#options;
    const [url] = state.record.peers;
    if (url === undefined) {
      throw new ColobusError("not-supported", "this side does not dial its peer", "Ask on the other host.");
    }
    const deadline = this.#deadline(request.timeoutMs, signal);
    const given = new AbortController();
    try {
      const figures = await deadline.race(roles.measureLink(url, given.signal), `${url} has not been measured yet`);
      return { url, ...figures };
    } finally {
      given.abort();
      deadline.end();
    }
  }

  /** One of several secondaries is gone for good. Errors: as `placeToForget`; `io-error`; `timed-out`, and the order stands. */
  async forget({ peer, timeoutMs }: ForgetRequest, signal: AbortSignal): Promise<ForgetAnswer> {
    const { roles } = this.#options;
    const deadline = this.#deadline(timeoutMs, signal);
    try {
      const primary = this.#primary("forget");
      this.#assertPlacesAreOwn("forget");
      const given = roles.inTurn(primary, async () => {
        const place = placeToForget(primary.places, peer);
        const { peerId, replicator } = place;
        const answer = { agentId: peerId ?? null, url: replicator.url };
        await primary.giveUp(place, undefined);
        roles.redial();
        return answer;
      });
      return await deadline.race(given, NOT_GIVEN_UP_YET);
    } finally {
      deadline.end();
    }
  }

  /** On a shared disk the mark says whose checkpoints stand, and an order here does not change it. Errors: `not-supported`. */
  #assertPlacesAreOwn(command: string): void {
    if (this.#options.state.record.mode !== "shared") return;
    throw new ColobusError(
      "not-supported",
      `the mark of a shared disk names its secondaries, and \`colobus ${command}\` does not change it`,
      "One that is away is left behind, and holds nobody up; a new one gets a place by a larger --secondaries.",
    );
  }

  async startAlone({ force }: StartAloneRequest): Promise<StartAloneAnswer> {
    return { released: await this.#primary("start-alone").startAlone(force) };
  }

  /** The secondary takes over as Primary, with everything that was written; this side becomes its secondary. */
  async switchover(request: SwitchoverRequest, signal: AbortSignal): Promise<SwitchoverAnswer> {
    const { roles, state, exports, random } = this.#options;
    const primary = this.#primary("switchover");
    const writers = exports.list().filter((one) => !one.readOnly && exports.clientsOf(one.name) > 0);
    if (writers.length > 0 && !request.closeClients) {
      throw new ColobusError(
        "clients-connected",
        `clients that may write are connected to ${writers.map(({ name }) => name).join(", ")}`,
        "Stop the VM, or move it away; or say --close-clients.",
      );
    }
    const deadline = this.#deadline(request.timeoutMs, signal);
    try {
      const lineage = newId(random);
      await primary.handOver(lineage, request.timeoutMs, signal, request.peer);
      const isOver = (): boolean => roles.active.role === "Secondary" || state.record.handOver === null;
      await this.#until(deadline, isOver, "the secondary was asked to take the role, and has not said so yet");
      if (roles.active.role === "Primary") {
        throw new ColobusError(
          "no-peer",
          "the secondary has not taken the role: this side goes on as Primary",
          "See the secondary's log, and try again.",
        );
      }
      return { role: "Secondary", lineage };
    } finally {
      deadline.end();
    }
  }

  /**
   * Has another agent take the place of a peer, which is lost: from here on that one is refused, and a blank one gets
   * everything. Errors: as `placeToReplace`; `timed-out`, and the order stands.
   */
  async #acceptNewPeer(request: ConnectRequest, deadline: Deadline): Promise<ConnectAnswer> {
    const { roles, state } = this.#options;
    const { dryRun, insteadOf } = request;
    const primary = this.#primary("connect --accept-new-peer");
    if (request.discardMyData) {
      throw new ColobusError("usage", "a side that gives its data up has no new peer to accept");
    }
    if (primary.places.length > 1) this.#assertPlacesAreOwn("connect --accept-new-peer");
    const choose = (): { place: SecondaryPlace; url: string | undefined } => {
      const place = placeToReplace(primary.places, insteadOf);
      const dialled = primary.places.length === 1 ? state.record.peers[0] : place.replicator.url;
      return { place, url: request.peer ?? dialled ?? undefined };
    };
    if (dryRun) return this.#askNewPeer(choose(), deadline);
    const given = roles.inTurn(primary, async () => {
      const { place, url } = choose();
      const found = { before: this.#lastVerdict(), known: primary.places.map(({ peerId }) => peerId) };
      await primary.giveUp(place, url);
      roles.redial();
      return found;
    });
    const { before, known } = await deadline.race(given, NOT_GIVEN_UP_YET);
    const newcomer = (): SecondaryPlace | undefined =>
      primary.places.find(({ replicator, peerId }) => replicator.isConnected && !known.includes(peerId));
    const isOther = (judged: Judged | undefined): boolean =>
      judged !== before && judged?.verdict.kind !== "sync" && judged?.verdict.rule !== "replaced-peer";
    const isAnswered = (): boolean => newcomer() !== undefined || isOther(this.#lastVerdict());
    await this.#until(deadline, isAnswered, "no new peer has connected yet; it is accepted when it does");
    const found = newcomer();
    const judged = found?.judged ?? this.#lastVerdict();
    assert(judged !== undefined);
    return { dryRun: false, connected: found !== undefined, verdict: this.#describe(judged) };
  }

  /** What this side and the agent at `url` would do if the place were free. */
  async #askNewPeer(
    { place, url }: { readonly place: SecondaryPlace; readonly url: string | undefined },
    deadline: Deadline,
  ): Promise<ConnectAnswer> {
    if (url === undefined) {
      throw new ColobusError(
        "usage",
        "this agent dials nobody, so there is nobody to ask",
        "Say --peer WS_URL; or ask on the other host: `colobus connect --dry-run`.",
      );
    }
    const asked = new AbortController();
    try {
      const asIf = (record: StateRecord): StateRecord => peerGivenUp(record, place.slot);
      const asking = this.#options.roles.probe(url, asked.signal, { asIf });
      const judged = await deadline.race(asking, `the agent at ${url} has not answered yet`);
      return { dryRun: true, connected: false, verdict: this.#describe(judged) };
    } finally {
      asked.abort();
    }
  }

  /** `named`: whom alone this side dials from then on, where that is said; else whom a primary has dialled for that peer. */
  async #discard(deadline: Deadline, judged: Judged, named: string | undefined): Promise<void> {
    const { verdict, peer } = judged;
    const { roles, state } = this.#options;
    if (verdict.kind === "sync") {
      throw new ColobusError(
        "not-applicable",
        "the two are a pair: nothing has to be given up",
        "Leave out --discard-my-data; `colobus status` shows how far the sync is.",
      );
    }
    const { active } = roles;
    // The primary of one that was rolled back has nobody to follow yet.
    const canFollow = active.role === "Secondary" ? ["unrelated", "rolled-back"] : ["unrelated"];
    if (verdict.kind === "refused" && !canFollow.includes(verdict.rule)) throw refusal(verdict, state.record.agentId);
    const { agentId } = peer;
    let url = named;
    if (active.role === "Primary") {
      const place = active.primary.places.find((one) => one.judged?.peer.agentId === agentId);
      url ??= judged.url ?? place?.replicator.url ?? undefined;
      await roles.demote({ discardsOwn: true, newer: agentId, peer: url });
    }
    const dialled = url === undefined ? {} : { peers: [url] };
    const change = (record: StateRecord): StateRecord => givenUpFor({ ...record, ...dialled }, agentId);
    await this.#obey(deadline, { primary: agentId, url, change });
  }

  /** Dials, where there is somebody to dial, and resolves with what the next handshake comes to. `url`: as of `AgentRoles.redial`. */
  async #handshake(deadline: Deadline, url?: string): Promise<Judged> {
    const before = this.#lastVerdict();
    this.#options.roles.redial(url);
    return this.#nextVerdict(deadline, before, url ?? this.#options.state.record.peers[0]);
  }

  /** Resolves with what the first handshake after the one of `before` comes to, of this agent's own or of the peer's making. */
  async #nextVerdict(deadline: Deadline, before: Judged | undefined, url: string | undefined): Promise<Judged> {
    let judged: Judged | undefined;
    const isJudged = (): boolean => {
      const last = this.#lastVerdict();
      if (last !== before && this.#isOf(last, url)) judged = last;
      return judged !== undefined;
    };
    const what = url === undefined ? "no peer has connected yet" : `the agent at ${url} has not answered yet`;
    await this.#until(deadline, isJudged, what);
    assert(judged !== undefined);
    return judged;
  }

  /** Whether the handshake was with the peer at `url`: of several, another one may dial this side meanwhile. */
  #isOf(judged: Judged | undefined, url: string | undefined): boolean {
    const { active } = this.#options.roles;
    if (url === undefined || active.role === "Secondary" || judged === undefined) return true;
    return mayBeAt(active.primary.places, judged, url);
  }

  /** What the two would do, as soon as the agent at `url` says so. Errors: why it does not; `timed-out`. */
  async #askUntilAnswered(deadline: Deadline, url: string): Promise<Judged> {
    const { roles, clock } = this.#options;
    const given = new AbortController();
    let unanswered = "";
    const asking = async (): Promise<Judged> => {
      for (let pauseMs = RECONNECT_MIN_MS; ; pauseMs = Math.min(pauseMs * 2, RECONNECT_MAX_MS)) {
        try {
          return await roles.probe(url, given.signal);
        } catch (error) {
          const reason = asColobusError(error);
          if (!reason.row.retry || given.signal.aborted) throw reason;
          unanswered = `: ${reason.message}`;
        }
        await sleep(clock, pauseMs);
      }
    };
    try {
      return await deadline.race(asking(), () => `the agent at ${url} has not answered yet${unanswered}`);
    } finally {
      given.abort();
    }
  }

  /** What the two would do, as the peer's history is now. Who dials nobody waits for the peer's own next handshake. */
  async #ask(deadline: Deadline): Promise<Judged> {
    const { roles, state } = this.#options;
    const before = this.#lastVerdict();
    const [url] = state.record.peers;
    const given = new AbortController();
    try {
      if (url === undefined) return await this.#nextVerdict(deadline, before, url);
      return await deadline.race(roles.probe(url, given.signal), `the agent at ${url} has not answered yet`);
    } catch (error) {
      if (!(error instanceof ColobusError) || !UNANSWERED.includes(error.code)) throw error;
      throw new ColobusError(error.code, `${error.message}; ${this.#describeBefore(before)}`, error.action);
    } finally {
      given.abort();
    }
  }

  /** What is known of the peer without its answer. */
  #describeBefore(judged: Judged | undefined): string {
    if (judged === undefined) return "this agent has spoken to no peer since its start";
    const { kind, rule, meaning, changedBytes } = this.#describe(judged);
    const found = `the last handshake, with ${judged.peer.agentId}, came to "${kind}" (${rule}): ${meaning}`;
    return `${found}${found.endsWith(".") ? "" : "."} By now ${changedBytes.here} bytes have changed here`;
  }

  /** Of several peers, the one with which this side is no pair, if there is one. */
  #gravest(): Judged | undefined {
    const { active } = this.#options.roles;
    if (active.role === "Primary") return gravestOf(active.primary.places);
    const { lastVerdict, ownVerdict } = active.secondary;
    // Nothing is given up for one that is behind.
    return lastVerdict?.verdict.kind === "outdated" ? ownVerdict : lastVerdict;
  }

  #lastVerdict(): Judged | undefined {
    const { active } = this.#options.roles;
    return active.role === "Primary" ? active.primary.lastVerdict : active.secondary.lastVerdict;
  }

  /** The same, but not of a stranger that was refused beside the peer which is connected. */
  #ownVerdict(): Judged | undefined {
    const { active } = this.#options.roles;
    return active.role === "Primary" ? active.primary.ownVerdict : active.secondary.ownVerdict;
  }

  #isConnected(): boolean {
    const { active } = this.#options.roles;
    return active.role === "Primary" ? active.primary.isConnected : active.secondary.isConnected;
  }

  #describe(judged: Judged): VerdictAnswer {
    const { state, roles } = this.#options;
    const { agentId: self, disks } = state.record;
    const diskBytes = disks.reduce((sum, { sizeBytes }) => sum + (sizeBytes ?? 0), 0);
    const { active } = roles;
    const changedHere =
      active.role === "Primary" ? changedBytesFor(active.primary.places, judged.peer.agentId) : active.tracking.bytes;
    const peers = active.role === "Primary" ? active.primary.status.describePeers() : [active.secondary.describePeer()];
    const isWithPeer = ({ agentId, connection, replication }: PeerStatus): boolean =>
      agentId === judged.peer.agentId && connection === "Connected" && isInSync(replication);
    return describeVerdict({ judged, self, changedHere, diskBytes, isInSync: peers.some(isWithPeer) });
  }

  #primary(command: string): PrimaryRole {
    const { active } = this.#options.roles;
    if (active.role === "Primary") return active.primary;
    throw new ColobusError(
      "not-primary",
      `"${command}" is for the primary, and this agent is Secondary`,
      "Run it against the primary's --run directory.",
    );
  }

  /** Errors: `timed-out`, with `what`. */
  async #until(deadline: Deadline, isTrue: () => boolean, what: string | (() => string)): Promise<void> {
    let look = (): void => undefined;
    const reached = new Promise<void>((resolve) => {
      look = () => {
        if (isTrue()) resolve();
      };
    });
    this.#waiters.add(look);
    look();
    try {
      await deadline.race(reached, what);
    } finally {
      this.#waiters.delete(look);
    }
  }

  #deadline(timeoutMs: number, signal: AbortSignal): Deadline {
    return new Deadline(this.#options.clock, timeoutMs, signal);
  }
}

/** Only a side that is behind rejoins: one with changes of its own would lose them. */
function assertBehind({ verdict, peer }: Judged, self: string): void {
  if (verdict.kind === "hand-over") return;
  if (verdict.kind === "outdated" && verdict.agent === self) return;
  if (verdict.kind === "sync") {
    throw new ColobusError(
      "not-applicable",
      "the peer is this side's secondary: there is nothing to rejoin",
      "To swap the roles: `colobus switchover`.",
    );
  }
  if (verdict.kind === "split-brain") throw parted(peer);
  throw refusal(verdict, self);
}

function parted({ changedBytes }: Judged["peer"]): ColobusError {
  return new ColobusError(
    "split-brain",
    `this side has changes that the peer has not, and the peer has ${changedBytes} bytes of changes that this side has not`,
    "Choose the side whose changes are given up, and on it: `colobus connect --discard-my-data --peer WS_URL`.",
  );
}

function notSecondary(): ColobusError {
  return new ColobusError(
    "not-secondary",
    "this side has become Primary meanwhile",
    "See `colobus status` on both sides.",
  );
}

function isOfSame(one: Judged, other: Judged): boolean {
  return one.peer.agentId === other.peer.agentId;
}

function refusal(verdict: Verdict, self: string): ColobusError {
  const reason = refusalOf(verdict, self);
  assert(reason !== undefined, "the two are no pair");
  return reason;
}

/** An order about a place waits for those before it, and for its record. */
const NOT_GIVEN_UP_YET = "the record is not written yet; it is given up when it is";
/** Nobody has answered: what is known from before is told with it. */
const UNANSWERED: readonly ErrorCode[] = ["timed-out", "connection-lost", "peer-timeout"];
