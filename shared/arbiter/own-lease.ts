import type { ArbiterEntry } from "../../proto/arbiter-record.ts";
import type { Status } from "../../proto/status.ts";
import { asColobusError, type ColobusError } from "../../proto/errors.ts";
import { LEASE_MARGIN_MIN_MS, LEASE_MARGIN_SHARE } from "../../proto/limits.ts";
import type { ArbiterStateWord, EventType } from "../../proto/words.ts";
import type { Clock } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import type { Arbiter, ArbiterState } from "./arbiter.ts";
import { isBefore, later, momentOf, type Moment } from "./term.ts";

export interface OwnLeaseOptions {
  readonly arbiter: Arbiter;
  readonly agentId: string;
  readonly ttlMs: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
}

/**
 * Owns what this agent knows of the arbiter, and until when the agent may rely on its own lease there: counted from
 * before the request was sent that began or renewed it, less a margin for clocks that differ and for a process that is
 * late. One call is under way at a time, so that none overtakes another.
 *
 * It decides nothing: `claim-rules.ts` does.
 */
export class OwnLease {
  readonly ttlMs: number;
  readonly #options: OwnLeaseOptions;
  #known: ArbiterState | undefined;
  #end: Moment | undefined;
  #lastError: ColobusError | undefined;
  #calls: Promise<unknown> = Promise.resolve();

  constructor(options: OwnLeaseOptions) {
    this.#options = options;
    this.ttlMs = options.ttlMs;
  }

  /** Whether this side may rely on its lease now. Asked again before anything that relies on it. */
  get isInForce(): boolean {
    return isBefore(this.#options.clock, this.#end);
  }

  /** Whether the lease was this agent's when the arbiter was last heard. */
  get isOwn(): boolean {
    return this.#known?.leaseHolder === this.#options.agentId;
  }

  /** What a term of `ms` is shortened by before anything relies on it. */
  usable(ms: number): number {
    return ms - Math.max(LEASE_MARGIN_MIN_MS, this.ttlMs * LEASE_MARGIN_SHARE);
  }

  read(): Promise<ArbiterState> {
    return this.#call(async () => (this.#known = await this.#options.arbiter.read()));
  }

  /** False when it was not as `state` says any more. */
  claim(state: ArbiterState, entry: ArbiterEntry, force = false): Promise<boolean> {
    return this.#call(async () => {
      const { arbiter, agentId, clock, emit } = this.#options;
      const sent = momentOf(clock);
      const claimed = await arbiter.claim(state.revision, entry, force);
      if (claimed === undefined) return false;
      const wasOwn = this.isOwn && this.isInForce;
      this.#known = claimed;
      this.#extend(sent);
      if (!wasOwn) emit("lease-acquired", { agent: agentId, lineage: entry.lineage });
      return true;
    });
  }

  /** Extends the lease, if it is still this agent's. */
  renew(): Promise<ArbiterState> {
    return this.#call(async () => {
      const { arbiter, agentId, clock, emit } = this.#options;
      const sent = momentOf(clock);
      const state = await arbiter.renew();
      if (state.leaseHolder === agentId) this.#extend(sent);
      else {
        this.#end = undefined;
        emit("lease-lost", { agent: agentId, holder: state.leaseHolder });
      }
      this.#known = state;
      return state;
    });
  }

  /** Changes the record as it was last seen, while the lease is this agent's. False: it was not so; it is seen anew then. */
  amend(entry: ArbiterEntry): Promise<boolean> {
    return this.#call(async () => {
      const { arbiter } = this.#options;
      const { revision } = this.#known ?? (await arbiter.read());
      const amended = await arbiter.amend(revision, entry);
      // Another has changed it, or an earlier call has taken effect late: what is known is not so any more.
      this.#known = amended ?? (await arbiter.read());
      return amended !== undefined;
    });
  }

  /**
   * Writes the record, under a new lease, in the place of the one with which this side has claimed `lineage`, whose lease may
   * have run out since. False: another has claimed, and the record is that one's.
   */
  replace(lineage: string, entry: ArbiterEntry): Promise<boolean> {
    return this.#call(async () => {
      const { arbiter, agentId, clock } = this.#options;
      const seen = await arbiter.read();
      const isStanding = seen.record?.holder === agentId && seen.record.lineage === lineage;
      const sent = momentOf(clock);
      const claimed = isStanding ? await arbiter.claim(seen.revision, entry, false) : undefined;
      this.#known = claimed ?? seen;
      if (claimed !== undefined) this.#extend(sent);
      return claimed !== undefined;
    });
  }

  /** From now on this side does not rely on its lease, whatever the arbiter says. */
  forgo(): void {
    this.#end = undefined;
  }

  /** Gives the lease up. Where the arbiter cannot be told it expires by itself. */
  async release(): Promise<void> {
    this.forgo();
    if (!this.isOwn) return;
    try {
      await this.#call(() => this.#options.arbiter.release());
      if (this.#known !== undefined) this.#known = { ...this.#known, leaseHolder: null };
    } catch (error) {
      this.#options.log.warn({ reason: asColobusError(error) }, "the lease is not given up, and expires by itself");
    }
  }

  describe(): NonNullable<Status["failover"]["arbiter"]> {
    const { clock } = this.#options;
    const left = this.#end === undefined ? 0 : Math.max(0, this.#end.nowMs - clock.nowMs());
    return {
      state: this.#word(),
      holder: this.#known?.leaseHolder ?? null,
      leaseMsLeft: this.isInForce ? left : 0,
      lastError: this.#lastError?.toJSON() ?? null,
    };
  }

  /** What the arbiter was last heard to say. */
  get known(): ArbiterState | undefined {
    return this.#known;
  }

  #word(): ArbiterStateWord {
    if (this.#lastError !== undefined) return "unreachable";
    if (this.#known === undefined) return "unknown";
    if (this.#known.leaseHolder === null) return "free";
    return this.isOwn ? "own" : "other";
  }

  #extend(sent: Moment): void {
    this.#end = later(sent, this.usable(this.ttlMs));
  }

  #call<T>(call: () => Promise<T>): Promise<T> {
    const result = this.#calls.then(() => this.#heard(call));
    this.#calls = result.catch(() => undefined); // the caller has the error
    return result;
  }

  async #heard<T>(call: () => Promise<T>): Promise<T> {
    const { emit } = this.#options;
    try {
      const answer = await call();
      if (this.#lastError !== undefined) emit("arbiter-reachable", {});
      this.#lastError = undefined;
      return answer;
    } catch (error) {
      const reason = asColobusError(error);
      if (this.#lastError === undefined) {
        emit("arbiter-unreachable", reason.toJSON());
      }
      this.#lastError = reason;
      throw reason;
    }
  }
}
