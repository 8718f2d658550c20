import type { Clock } from "../shared/host/clock.ts";
import type { Pulse } from "../shared/replication/pulse.ts";

/**
 * Owns what this side has promised its primary: not to take over for a time after each ping that it has heard. An earlier
 * process of this agent may have promised as well, so the first promise begins with the process.
 */
export class TakeoverPromise {
  readonly #clock: Clock;
  readonly #ttlMs: number;
  #givenMs: number;

  constructor(clock: Clock, ttlMs: number) {
    this.#clock = clock;
    this.#ttlMs = ttlMs;
    this.#givenMs = clock.nowMs();
  }

  get pulse(): Pulse {
    return {
      of: "Secondary",
      promise: () => {
        this.#givenMs = this.#clock.nowMs();
        return this.#ttlMs;
      },
    };
  }

  /** How much longer it binds, when the primary relies on promises of `ttlMs`; 0: not any more. */
  leftMs(ttlMs: number): number {
    return Math.max(0, this.#givenMs + Math.max(ttlMs, this.#ttlMs) - this.#clock.nowMs());
  }
}
