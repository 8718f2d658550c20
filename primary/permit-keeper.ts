import type { ArbiterEntry, ArbiterRecord } from "../proto/arbiter-record.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { ANCESTORS_MAX, LEASE_RENEWALS, SECONDARIES_MAX } from "../proto/limits.ts";
import type { Hello } from "../proto/replication-messages.ts";
import type { EventType } from "../proto/words.ts";
import type { ArbiterState } from "../shared/arbiter/arbiter.ts";
import { decideServing, vouchesFor } from "../shared/arbiter/claim-rules.ts";
import type { OwnLease } from "../shared/arbiter/own-lease.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { arbiterSettled, knownBy, mayHaveSucceeded, relatedPeersOf } from "../shared/replication/lineage.ts";
import { peersOf } from "../shared/replication/peer-slots.ts";
import type { Pulse } from "../shared/replication/pulse.ts";
import { Beats } from "./beats.ts";
import { outdated } from "./guest-policy.ts";
import { ServingPermit } from "./serving-permit.ts";

export interface PermitKeeperOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  readonly lease: OwnLease;
  readonly isConnected: (peer: string) => boolean;
  readonly isEstablished: (peer: string) => boolean;
  /** The last checkpoint that a peer is known to have committed; 0: none. */
  readonly committedBy: (peer: string) => number;
  /** The last one that was told to be committed. */
  readonly committed: () => number;
  /** Whom this side dials, and where. */
  readonly dialled: () => NonNullable<ArbiterEntry["peers"]>;
  /** The arbiter says that no peer was promoted while this side was away. */
  readonly vouched: () => void;
  /** Another side's history goes on, and this one's does not. */
  readonly isOutdated: () => boolean;
}

/** Lineages that begin, or have begun, and that not everybody who may take over has heard of. */
interface Plan {
  /** The last one that all of these know. */
  readonly before: string;
  /** The newest first. */
  readonly lineages: readonly string[];
  /** Which of the judgements the newest was. */
  readonly judgement: number;
  /** The newest has begun, and those that get what guests write have heard of it. */
  readonly isHeard: boolean;
}

/** What helps guests that wait for a permit, and are not refused. */
const WAY_OUT =
  "Wait until the arbiter lets this side serve, or the other side is connected. When neither is to come, and the other side surely serves nobody: start this agent without `--arbiter` and `--failover`.";

/** A turn that comes this much before the next renewal is due renews as well. */
const RENEWED_EARLY = 1 / 2;

/**
 * Keeps this primary's permit to serve: claims the lease where the arbiter's record allows it, renews it, and keeps the
 * record true. What has to be known to the arbiter first is waited for: that a secondary lacks what guests, or an operator, are
 * told. What only lets it take over again comes behind: that it has committed.
 *
 * Invariant: each peer that may have this side's history has committed every checkpoint that was told to be, and is
 * connected or has missed no write, or the arbiter's record names it as outdated.
 */
export class PermitKeeper {
  readonly permit: ServingPermit;
  readonly #options: PermitKeeperOptions;
  #timer: Timer | undefined;
  #stopped = false;
  #turn: Promise<void> | undefined;
  /** The record is behind what this side would write. */
  #isStale = false;
  /** Peers that lack what was, or is about to be, acknowledged, and which of the judgements said so. Changed by `#judge` only. */
  readonly #behind = new Map<string, number>();
  #plan: Plan | undefined;
  /** How often either has changed, and the change that the arbiter's record is known to have. */
  #judgements = 0;
  #recorded = -1;
  #hasTakenUp = false;
  #renewalDueMs = 0;
  /** The operator says that nobody else serves, now. */
  #insists = false;
  /** Peers that come from another primary, and are not recorded yet: the newest. */
  #joining: readonly string[] = [];
  #marking: { readonly done: Promise<void>; readonly settle: (reason?: ColobusError) => void } | undefined;
  /** Nobody waits for the arbiter any more. */
  #ended: ColobusError | undefined;
  #why = "the arbiter has not answered yet";

  constructor(options: PermitKeeperOptions) {
    this.#options = options;
    this.permit = new ServingPermit({
      clock: options.clock,
      lease: options.lease,
      isStoodDown: () => options.state.record.handOver !== null,
      mayTakeOver: () => [...this.#related].filter((peer) => !this.#isMarked(peer)),
      waiting: (isWaiting) => this.#waiting(isWaiting),
    });
  }

  /** What this side's pings in one session are about; `peer`: whose it is, once that is known. */
  pulse(peer: () => string | undefined): Pulse {
    const beats = new Beats(this.#options.clock);
    return {
      of: "Primary",
      everyMs: this.#options.lease.ttlMs / (2 * LEASE_RENEWALS),
      beat: () => beats.beat(),
      heard: (at, promiseMs) => {
        const sent = beats.answered(at);
        const promising = peer();
        if (sent !== undefined && promising !== undefined) this.permit.promised(promising, sent, promiseMs);
      },
    };
  }

  start(): void {
    this.#look();
  }

  /** Why guests wait, and what helps. */
  describe(): string {
    const { message = this.#why, action = WAY_OUT } = this.refusal ?? {};
    return `This side may not serve for now: ${message}. ${action}`;
  }

  /**
   * Why guests wait for the arbiter, where they are not refused: `arbiter-unreachable`; `lease-held` where it answers, and
   * another may have the lease. undefined: they do not.
   */
  get wait(): ColobusError | undefined {
    if (this.permit.isValid || this.refusal !== undefined) return undefined;
    const { state } = this.#options.lease.describe();
    const code = state === "other" || state === "free" ? "lease-held" : "arbiter-unreachable";
    return new ColobusError(code, `this side may not serve for now: ${this.#why}`, WAY_OUT);
  }

  /** Those who wait for a permit fail from now on. */
  leave(): void {
    const reason = new ColobusError("shutting-down", "the agent is being stopped while guests wait for the arbiter");
    this.#marking?.settle(reason);
    if (!this.permit.isValid && this.permit.refusal === undefined) this.permit.refuse(reason);
  }

  /** This side serves nobody any more, whatever the arbiter says: who waits fails with `reason`. */
  refuseGuests(reason: ColobusError): void {
    this.endWaiting(reason);
    this.permit.refuse(reason);
  }

  /** The role ends, or is another side's: nobody waits any more for what the arbiter is to know. */
  endWaiting(reason: ColobusError): void {
    this.#ended = reason;
    this.#marking?.settle(reason);
  }

  /** Gives the lease up. Nothing is acknowledged after this. */
  async stop(reason: ColobusError): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    this.refuseGuests(reason);
    await this.#turn;
    await this.#options.lease.release();
  }

  /**
   * Done when a write may be acknowledged that a secondary does not have: each is there, and takes nothing over by that, or the
   * arbiter knows that it is outdated. Errors: why this side may not serve.
   */
  mayGoAlone(): Pending {
    return this.#marked(() => [...this.#related].filter((peer) => !this.#options.isConnected(peer)));
  }

  /** Done when a checkpoint may be told to be committed: of each peer that lacks it the arbiter knows. Errors: as `mayGoAlone`. */
  mayTell(isCommittedBy: (peer: string) => boolean): Pending {
    return this.#marked(() => [...this.#related].filter((peer) => !isCommittedBy(peer)));
  }

  /**
   * Done when a peer may be told of this side's history: the arbiter knows of one that has followed another primary that it
   * lacks what this side has acknowledged. Errors: as `mayGoAlone`.
   */
  mayJoin({ agentId, lineage }: Pick<Hello, "agentId" | "lineage">): Pending {
    if (lineage === null || this.#related.has(agentId)) return undefined;
    return this.#marked(() => {
      if (!this.#joining.includes(agentId)) {
        // Whatever the arbiter has once been told of it, the record may not name it any more.
        this.#behind.delete(agentId);
        this.#joining = [agentId, ...this.#joining].slice(0, SECONDARIES_MAX);
      }
      return [agentId];
    });
  }

  /**
   * Done when `lineage` may begin, or is not needed any more: the arbiter knows that it is about to, or that nobody may take
   * over, so who does, and has not heard of it, supersedes it. Errors: as `mayGoAlone`.
   */
  mayBegin(lineage: string, isNeeded: () => boolean): Pending {
    if (!isNeeded() || this.isPlanned(lineage)) return undefined;
    const refusal = this.#ended ?? this.permit.refusal;
    if (refusal !== undefined) return Promise.reject(refusal);
    if (this.#plan?.lineages[0] !== lineage) {
      this.#judgements += 1;
      this.#isStale = true;
      const { before = this.#options.state.record.lineage ?? "", lineages = [] } = this.#plan ?? {};
      const newest = [lineage, ...lineages].slice(0, ANCESTORS_MAX);
      this.#plan = { before, lineages: newest, judgement: this.#judgements, isHeard: false };
    }
    return this.#settled().then(() => this.mayBegin(lineage, isNeeded));
  }

  /** Whether whoever may take over supersedes the lineage, heard of or not. */
  isPlanned(lineage: string): boolean {
    const isRecorded = this.#plan?.lineages[0] === lineage && this.#isPlanRecorded;
    return isRecorded || [...this.#related].every((peer) => this.#isMarked(peer));
  }

  /** A lineage has begun, and those that get what guests write have heard of it. */
  hasBegun(): void {
    const judgements = this.#judgements;
    if (this.#plan !== undefined) this.#plan = { ...this.#plan, isHeard: true };
    this.#endPlan();
    if (this.#judgements !== judgements) this.#look();
  }

  /** Whether guests wait until the arbiter knows of a lineage, though this side may serve. */
  get isPlanAwaited(): boolean {
    return this.#plan !== undefined && !this.#isPlanRecorded && this.#marking !== undefined;
  }

  get #isPlanRecorded(): boolean {
    return this.#recorded >= (this.#plan?.judgement ?? 0);
  }

  /** Everybody who may take over knows the present lineage: the record needs to name no other. */
  #endPlan(): void {
    const { record } = this.#options.state;
    if (this.#plan?.isHeard !== true || this.#plan.before === record.lineage) return;
    const known = knownBy(record);
    if (![...this.#related].every((peer) => known.includes(peer) || this.#isMarked(peer))) return;
    this.#plan = undefined;
    this.#judgements += 1;
    this.#isStale = true;
  }

  /** Whether the peer lacks, by this side's own judgement, what was acknowledged: its next commit ends that. */
  isBehind(peer: string): boolean {
    return this.#behind.has(peer);
  }

  /** As `isBehind`, or the arbiter's record says so, also where it is not told yet that this has ended. */
  isOutdated(peer: string): boolean {
    return this.isBehind(peer) || this.#options.lease.known?.record?.outdated.includes(peer) === true;
  }

  /** Whether the peer could take over by itself if this side died now, as far as this side knows. */
  mayTakeOver(peer: string): boolean {
    const { known } = this.#options.lease;
    return known?.record !== undefined && !this.isOutdated(peer) && this.#options.committedBy(peer) > 0;
  }

  /** Done when the arbiter knows of all of `lacking` that they are outdated. Errors: why this side may not serve. */
  #marked(lacking: () => readonly string[]): Pending {
    const unmarked = lacking().filter((peer) => !this.#isMarked(peer));
    if (unmarked.length === 0) return undefined;
    const refusal = this.#ended ?? this.permit.refusal;
    if (refusal !== undefined) return Promise.reject(refusal);
    for (const peer of unmarked) this.#judge(peer, true);
    return this.#settled().then(() => this.#marked(lacking));
  }

  /** Resolves when the arbiter's record, or what hangs on it, has changed. Rejects with why this side may not serve. */
  #settled(): Promise<void> {
    if (this.#marking !== undefined) return this.#marking.done;
    let settle: (reason?: ColobusError) => void = () => undefined;
    const done = new Promise<void>((resolve, reject) => {
      settle = (reason) => {
        this.#marking = undefined;
        if (reason === undefined) resolve();
        else reject(reason);
      };
    });
    this.#marking = { done, settle };
    // It may be settled by this already: where this side has learned that it is behind.
    this.#look();
    return done;
  }

  /** Guests have gone on without the secondary, which lacks what they write, under another lineage. */
  wentAlone(): void {
    for (const peer of this.#related) this.#judge(peer, true);
    this.#isStale = true;
    this.#look();
  }

  /** An operator has given a peer up, and nothing is to wait for it. */
  givenUp(peer: string): void {
    this.#judge(peer, true);
    this.#look();
  }

  /** A session with a secondary was opened, gets what guests write, or is lost. */
  connectionChanged(): void {
    this.#marking?.settle();
  }

  /** A checkpoint is told to be committed. */
  committed(): void {
    const { isEstablished, committedBy, committed } = this.#options;
    const judgements = this.#judgements;
    for (const peer of this.#related) {
      if (isEstablished(peer) && committedBy(peer) >= committed()) this.#judge(peer, false);
    }
    this.#endPlan();
    // What lets a secondary take over again is told at once; the number goes with the next renewal.
    this.#isStale = true;
    if (this.#judgements !== judgements) this.#look();
  }

  /** Why this side may not serve, where waiting does not help. */
  get refusal(): ColobusError | undefined {
    return this.permit.refusal;
  }

  /**
   * An operator says that nobody else serves: whatever the arbiter's record says is overwritten, now or not at all. By the time the
   * arbiter answers again, another side may serve. Errors: `arbiter-unreachable`, and why.
   */
  async overrule(): Promise<void> {
    this.#insists = true;
    await this.#turn; // it may have looked before
    this.#look();
    await this.#turn;
    this.#insists = false;
    if (this.refusal === undefined) return;
    throw new ColobusError(
      "arbiter-unreachable",
      `the arbiter could not be told that this side serves alone: ${this.#why}`,
      "Guests are refused still. Try again when the arbiter answers.",
    );
  }

  /** The role is not being handed over any more. */
  resume(): void {
    // The record may name the peer, whatever was heard of that.
    this.#isStale = true;
    this.permit.changed();
    this.#look();
  }

  /**
   * Lays the permit down for the peer, under the lineage that it will begin. The state record says already that the role is
   * being handed over. Errors: `arbiter-unreachable`, `lease-held`: the arbiter does not name the peer, or perhaps it does.
   */
  async standDown(peer: string, lineage: string): Promise<void> {
    const { lease } = this.#options;
    await this.#turn;
    if (!lease.isInForce) await this.#claim();
    const own = this.#entry();
    const entry = { ...own, lineage, holder: peer, outdated: own.outdated.filter((one) => one !== peer) };
    // The second time it is compared with what is there.
    if (!(await lease.amend(entry)) && !(await lease.amend(entry))) {
      throw new ColobusError("lease-held", "this side has not got the lease now", "Try again.");
    }
    await lease.release();
  }

  /** The peer is behind, and the arbiter's record says so. */
  #isMarked(peer: string): boolean {
    return this.#recorded >= (this.#behind.get(peer) ?? Number.POSITIVE_INFINITY);
  }

  #judge(peer: string, isBehind: boolean): void {
    if (this.#behind.has(peer) === isBehind) return;
    this.#isStale = true;
    this.#judgements += 1;
    if (isBehind) this.#behind.set(peer, this.#judgements);
    else this.#behind.delete(peer);
  }

  get #related(): ReadonlySet<string> {
    return relatedPeersOf(this.#options.state.record);
  }

  /**
   * Whether nobody else serves, whatever the record says: its holder follows this side, and has promised not to take over. What
   * others have promised says nothing of the holder, whom an operator may have given up.
   */
  #isFollowedBy(holder: string | undefined): boolean {
    return holder !== undefined && this.#options.isConnected(holder) && this.permit.isPromisedBy(holder);
  }

  /** What the arbiter's record is to say. Reads what this side knows at the moment at which it is sent. */
  #entry(): ArbiterEntry {
    const { state, lease, committed, dialled } = this.#options;
    const { record } = state;
    const related = this.#related;
    const isNamed = (peer: string): boolean => related.has(peer) || this.#joining.includes(peer);
    return {
      vm: record.vm,
      lineage: this.#plan?.before ?? record.lineage ?? "",
      next: [...(this.#plan?.lineages ?? [])],
      holder: record.agentId,
      committed: committed(),
      outdated: [...this.#behind.keys()].filter(isNamed),
      peers: dialled(),
      ttlMs: lease.ttlMs,
    };
  }

  /** Asks the arbiter now, or once more after what is under way. */
  #look(): void {
    this.#timer?.cancel();
    if (this.#stopped) return;
    if (this.#turn !== undefined) {
      this.#isStale = true;
      return;
    }
    this.#turn = this.#keep().finally(() => {
      this.#turn = undefined;
      this.permit.changed();
      if (this.#stopped) return;
      const { lease, clock } = this.#options;
      this.#timer = clock.after(lease.ttlMs / LEASE_RENEWALS, () => this.#look());
    });
  }

  async #keep(): Promise<void> {
    const { lease, state, clock } = this.#options;
    try {
      do {
        // While the role is being handed over, the record is the peer's to change.
        if (state.record.handOver !== null || this.#stopped) return;
        if (this.#options.isOutdated()) {
          // What an operator has ordered before that was known is not to take the lease from who serves now.
          this.#insists = false;
          this.endWaiting(outdated());
          return;
        }
        if (lease.isInForce && lease.known !== undefined && !this.#hasTakenUp) this.#takeUp(lease.known);
        const isToBeTold = this.#insists || state.record.arbiterUntold === true;
        if (!lease.isOwn || !lease.isInForce || isToBeTold) await this.#claim();
        else {
          // The lease first: amending does not extend it.
          if (clock.nowMs() >= this.#renewalDueMs) await this.#renew();
          if (this.#isStale && lease.isOwn) await this.#amend();
        }
        this.permit.changed();
      } while (this.#isStale && lease.isInForce && lease.isOwn);
    } catch (error) {
      this.#why = asColobusError(error).message;
    }
  }

  async #claim(): Promise<void> {
    const { lease, state } = this.#options;
    const seen = await lease.read();
    const { agentId, lineage } = state.record;
    const holder = seen.record?.holder;
    const isFollowed = this.#isFollowedBy(holder);
    const decision = decideServing({ state: seen, agentId, lineage: lineage ?? "", isFollowed });
    if (decision.kind !== "claim" && !this.#overrules(seen.record)) {
      this.#why = decision.why;
      if (decision.kind === "refused" && !this.permit.isPromisedBy(holder ?? "")) this.#refuse(decision.why);
      return;
    }
    if (!this.#hasTakenUp) this.#takeUp(seen);
    const isForced = this.#insists || decision.kind !== "claim";
    if (!(await this.#sent((entry) => lease.claim(seen, entry, isForced)))) return;
    this.#insists = false;
    this.permit.allow();
    if (vouchesFor(seen.record, state.record)) this.#options.vouched();
    if (state.record.arbiterUntold === true) await state.update(arbiterSettled);
  }

  /**
   * Whether an operator's word counts more than the record. Of the two, that which has forced this side's promotion is from before:
   * who may have taken over from this side since serves by right. A claim may have come to the arbiter, and its answer never here.
   */
  #overrules(found: ArbiterRecord | undefined): boolean {
    const { record } = this.#options.state;
    if (this.#insists || record.arbiterUntold !== true) return this.#insists;
    return found === undefined || !mayHaveSucceeded(record, found.holder, found.lineage);
  }

  async #renew(): Promise<void> {
    const { lease, clock } = this.#options;
    const sentMs = clock.nowMs();
    await lease.renew();
    this.#renewalDueMs = sentMs + (lease.ttlMs / LEASE_RENEWALS) * RENEWED_EARLY;
  }

  async #amend(): Promise<void> {
    const { lease } = this.#options;
    if (!(await this.#sent((entry) => lease.amend(entry)))) await lease.renew();
  }

  /** Sends what the record is to say. Where that is not known to have arrived, it is still to be sent. */
  async #sent(send: (entry: ArbiterEntry) => Promise<boolean>): Promise<boolean> {
    const judgement = this.#judgements;
    let isDone = false;
    this.#isStale = false;
    try {
      isDone = await send(this.#entry());
    } finally {
      if (!isDone) this.#isStale = true;
    }
    if (isDone) {
      this.#recorded = judgement;
      this.#marking?.settle();
    }
    return isDone;
  }

  /** What an earlier process of this side has written of its peers holds until a commit. */
  #takeUp({ record }: ArbiterState): void {
    this.#hasTakenUp = true;
    const isFirst = this.#judgements === 0;
    for (const peer of this.#related) if (record?.outdated.includes(peer) === true) this.#judge(peer, true);
    if (isFirst) {
      const { agentId, lineage } = this.#options.state.record;
      if (record?.holder === agentId && record.next.includes(lineage ?? "")) {
        this.#plan = { before: record.lineage, lineages: record.next, judgement: this.#judgements, isHeard: true };
      }
      this.#recorded = this.#judgements;
    }
    // Nothing is promised by who has no place any more.
    const placed = peersOf(this.#options.state.record);
    for (const peer of this.#related) if (!placed.includes(peer)) this.#judge(peer, true);
  }

  #refuse(why: string): void {
    if (this.permit.refusal !== undefined) return;
    const reason = new ColobusError(
      "lease-refused",
      why,
      "See `colobus status` on the other side; when it surely serves nobody: `colobus start-alone` here.",
    );
    this.#options.emit("lease-refused", reason.toJSON());
    this.#marking?.settle(reason);
    this.permit.refuse(reason);
  }

  #waiting(isWaiting: boolean): void {
    const { emit } = this.#options;
    if (isWaiting) emit("guests-held", { reason: this.describe() });
    else if (this.permit.refusal === undefined) emit("guests-released", {});
  }
}
