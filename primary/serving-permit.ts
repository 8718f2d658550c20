import type { ColobusError } from "../proto/errors.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { OwnLease } from "../shared/arbiter/own-lease.ts";
import { isBefore, later, type Moment } from "../shared/arbiter/term.ts";

export interface ServingPermitOptions {
  readonly clock: Clock;
  readonly lease: OwnLease;
  /** The role is being handed over: nothing is acknowledged, whatever the grounds. */
  readonly isStoodDown: () => boolean;
  /** The peers that could take over, as far as is known of what the arbiter knows. */
  readonly mayTakeOver: () => readonly string[];
  /** Somebody begins to wait, or everybody goes on. */
  readonly waiting: (isWaiting: boolean) => void;
}

/**
 * Owns until when this primary may acknowledge requests, reads too, where an arbiter decides who serves. There are two
 * grounds, and one of them is enough: the lease, and the promise of a secondary not to take over, which counts from before the
 * ping was sent that it has answered; of several secondaries, that of each which could take over. Both end by themselves; no timer is needed to
 * stop this side, which may itself have been stopped (SIGSTOP, a suspended host) for any time.
 *
 * Invariant: whoever acknowledges looks at this after the request is done, in the same turn of the event loop.
 */
export class ServingPermit {
  readonly #options: ServingPermitOptions;
  /** Until when each peer's promise is in force. */
  readonly #promises = new Map<string, Moment>();
  #refusal: ColobusError | undefined;
  #waiters: { readonly resolve: () => void; readonly reject: (reason: ColobusError) => void }[] = [];

  constructor(options: ServingPermitOptions) {
    this.#options = options;
  }

  /** Whether a request may be acknowledged now. */
  get isValid(): boolean {
    const { lease, isStoodDown } = this.#options;
    return this.#refusal === undefined && !isStoodDown() && (lease.isInForce || this.isPromised);
  }

  /** Whether nobody takes over, by the promises of those who could: at least one is in force. */
  get isPromised(): boolean {
    if (![...this.#promises.keys()].some((peer) => this.isPromisedBy(peer))) return false;
    return this.#options.mayTakeOver().every((peer) => this.isPromisedBy(peer));
  }

  /** Whether the peer's promise is in force. */
  isPromisedBy(peer: string): boolean {
    return isBefore(this.#options.clock, this.#promises.get(peer));
  }

  /** Why this side may not serve, where waiting does not help. */
  get refusal(): ColobusError | undefined {
    return this.#refusal;
  }

  /** To be passed at the beginning and at the end of a request. undefined: it may go on. Errors: why never. */
  admit(): Pending {
    if (this.isValid) return undefined;
    if (this.#refusal !== undefined) return Promise.reject(this.#refusal);
    if (this.#waiters.length === 0) this.#options.waiting(true);
    const renewed = new Promise<void>((resolve, reject) => {
      this.#waiters.push({ resolve, reject });
    });
    return renewed.then(() => this.admit());
  }

  /** The peer has heard a ping that was sent at `sent`, and will not take over for `promiseMs` from then on. */
  promised(peer: string, sent: Moment, promiseMs: number): void {
    const { lease } = this.#options;
    for (const known of this.#promises.keys()) if (!this.isPromisedBy(known)) this.#promises.delete(known);
    this.#promises.set(peer, later(sent, lease.usable(Math.min(promiseMs, lease.ttlMs))));
    this.changed();
  }

  /** The grounds may be others now: who waits looks again. */
  changed(): void {
    if (this.isValid) this.#settle(({ resolve }) => resolve());
  }

  /** Another side serves: who waits fails, and everybody who comes, until `allow`. */
  refuse(reason: ColobusError): void {
    this.#refusal = reason;
    this.#settle(({ reject }) => reject(reason));
  }

  allow(): void {
    this.#refusal = undefined;
  }

  #settle(how: (waiter: { resolve: () => void; reject: (reason: ColobusError) => void }) => void): void {
    const waiters = this.#waiters;
    if (waiters.length === 0) return;
    this.#waiters = [];
    for (const waiter of waiters) how(waiter);
    this.#options.waiting(false);
  }
}
