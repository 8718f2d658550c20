import type { ArbiterEntry } from "../proto/arbiter-record.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { LEASE_RENEWALS } from "../proto/limits.ts";
import type { EventType } from "../proto/words.ts";
import type { ArbiterState } from "../shared/arbiter/arbiter.ts";
import { decideServing } from "../shared/arbiter/claim-rules.ts";
import type { OwnLease } from "../shared/arbiter/own-lease.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { Pulse } from "../shared/replication/pulse.ts";
import { ServingPermit } from "./serving-permit.ts";

export interface PermitKeeperOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  readonly lease: OwnLease;
  readonly isConnected: () => boolean;
  readonly isEstablished: () => boolean;
  /** The checkpoint that the secondary is known to have committed. */
  readonly committed: () => number;
}

/** A turn that comes this much before the next renewal is due renews as well. */
const RENEWED_EARLY = 1 / 2;

/**
 * Keeps this primary's permit to serve: claims the lease where the arbiter's record allows it, renews it, and keeps the
 * record true. What has to be known to the arbiter first is waited for: that the secondary lacks what guests are told.
 * What only lets the secondary take over again comes behind: that it has committed.
 */
export class PermitKeeper {
  readonly permit: ServingPermit;
  readonly #options: PermitKeeperOptions;
  #timer: Timer | undefined;
  #stopped = false;
  #turn: Promise<void> | undefined;
  /** The record is behind what this side would write. */
  #isStale = false;
  /** The secondary lacks writes that were, or are about to be, acknowledged. Changed by `#judgePeer` only. */
  #isPeerBehind = false;
  /** How often that has changed, and the change that the arbiter's record is known to have. */
  #judgements = 0;
  #recorded = -1;
  #hasTakenUp = false;
  #renewalDueMs = 0;
  /** The operator says that nobody else serves. */
  #insists = false;
  #marking: { readonly done: Promise<void>; readonly settle: (reason?: ColobusError) => void } | undefined;
  #why = "the arbiter has not answered yet";

  constructor(options: PermitKeeperOptions) {
    this.#options = options;
    this.permit = new ServingPermit({
      clock: options.clock,
      lease: options.lease,
      isStoodDown: () => options.state.record.handOver !== null,
      waiting: (isWaiting) => this.#waiting(isWaiting),
    });
  }

  /** What this side's pings to its secondary are about. */
  get pulse(): Pulse {
    return {
      of: "Primary",
      everyMs: this.#options.lease.ttlMs / (2 * LEASE_RENEWALS),
      beat: () => this.permit.beat(),
      heard: (at, promiseMs) => this.permit.heard(at, promiseMs),
    };
  }

  start(): void {
    this.#look();
  }

  /** Why guests wait. */
  describe(): string {
    return `This side may not serve for now: ${this.permit.refusal?.message ?? this.#why}.`;
  }

  /** Those who wait for a permit fail from now on. */
  leave(): void {
    const reason = new ColobusError("guests-held", "the agent is being stopped while guests wait for the arbiter");
    this.#marking?.settle(reason);
    if (!this.permit.isValid) this.permit.refuse(reason);
  }

  /** Gives the lease up. Nothing is acknowledged after this. */
  async stop(reason: ColobusError): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    this.permit.refuse(reason);
    this.#marking?.settle(reason);
    await this.#turn;
    await this.#options.lease.release();
  }

  /**
   * Done when a write may be acknowledged that the secondary does not have: the arbiter knows, or the secondary is there
   * and takes nothing over. Errors: why this side may not serve.
   */
  mayGoAlone(): Pending {
    const { isConnected } = this.#options;
    if (isConnected() || this.#peer === null || this.#isPeerMarked) return undefined;
    if (this.permit.refusal !== undefined) return Promise.reject(this.permit.refusal);
    this.#judgePeer(true);
    if (this.#marking === undefined) {
      let settle: (reason?: ColobusError) => void = () => undefined;
      const done = new Promise<void>((resolve, reject) => {
        settle = (reason) => {
          this.#marking = undefined;
          if (reason === undefined) resolve();
          else reject(reason);
        };
      });
      this.#marking = { done, settle };
      this.#look();
    }
    return this.#marking.done.then(() => this.mayGoAlone());
  }

  /** Guests have gone on without the secondary, which lacks what they write, under another lineage. */
  wentAlone(): void {
    this.#judgePeer(true);
    this.#isStale = true;
    this.#look();
  }

  /** The session with the secondary was opened, or is lost. */
  connectionChanged(): void {
    if (this.#options.isConnected()) this.#marking?.settle();
  }

  /** The secondary has committed a checkpoint. */
  committed(): void {
    if (!this.#options.isEstablished()) return;
    const wasBehind = this.#isPeerBehind;
    this.#judgePeer(false);
    // What lets the secondary take over again is told at once; the number goes with the next renewal.
    this.#isStale = true;
    if (wasBehind) this.#look();
  }

  /** Why this side may not serve, where waiting does not help. */
  get refusal(): ColobusError | undefined {
    return this.permit.refusal;
  }

  /** An operator says that nobody else serves: whatever the arbiter's record says is overwritten. */
  insist(): void {
    this.#insists = true;
    this.#look();
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
    const entry = { ...this.#entry(), lineage, holder: peer, outdated: [] };
    // The second time it is compared with what is there.
    if (!(await lease.amend(entry)) && !(await lease.amend(entry))) {
      throw new ColobusError("lease-held", "this side has not got the lease now", "Try again.");
    }
    await lease.release();
  }

  /** The arbiter's record has what this side knows of its secondary, and that is behind. */
  get #isPeerMarked(): boolean {
    return this.#isPeerBehind && this.#recorded === this.#judgements;
  }

  #judgePeer(isBehind: boolean): void {
    if (this.#isPeerBehind === isBehind) return;
    this.#isPeerBehind = isBehind;
    this.#isStale = true;
    this.#judgements += 1;
  }

  get #peer(): string | null {
    return this.#options.state.record.pairing?.peer ?? null;
  }

  /** What the arbiter's record is to say. Reads what this side knows at the moment at which it is sent. */
  #entry(): ArbiterEntry {
    const { state, lease, committed } = this.#options;
    const { record } = state;
    return {
      vm: record.vm,
      lineage: record.lineage ?? "",
      holder: record.agentId,
      committed: committed(),
      outdated: this.#isPeerBehind && this.#peer !== null ? [this.#peer] : [],
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
        if (lease.isInForce && lease.known !== undefined && !this.#hasTakenUp) this.#takeUp(lease.known);
        if (!lease.isOwn || !lease.isInForce || this.#insists) await this.#claim();
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
    const { lease, state, isConnected } = this.#options;
    const seen = await lease.read();
    const { agentId, lineage } = state.record;
    const decision = decideServing({
      state: seen,
      agentId,
      lineage: lineage ?? "",
      hasSecondary: isConnected() && this.permit.isPromised,
    });
    if (decision.kind !== "claim" && !this.#insists) {
      this.#why = decision.why;
      if (decision.kind === "refused" && !this.permit.isPromised) this.#refuse(decision.why);
      return;
    }
    if (!this.#hasTakenUp) this.#takeUp(seen);
    if (!(await this.#sent((entry) => lease.claim(seen, entry, this.#insists)))) return;
    this.#insists = false;
    this.permit.allow();
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
      if (this.#isPeerMarked) this.#marking?.settle();
    }
    return isDone;
  }

  /** What an earlier process of this side has written of its peer holds until a commit. */
  #takeUp({ record }: ArbiterState): void {
    this.#hasTakenUp = true;
    if (this.#peer === null || record?.outdated.includes(this.#peer) !== true) return;
    this.#judgePeer(true);
    this.#recorded = this.#judgements;
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
