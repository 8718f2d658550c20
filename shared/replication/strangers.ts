import { REFUSAL_REASONS_MAX, REFUSAL_TOLD_EVERY_MS } from "../../proto/limits.ts";
import type { Clock } from "../host/clock.ts";

/**
 * Counts the events about those who were refused before they had proved to be the peer. Whoever knocks a million times does
 * not drive all other events out.
 */
export class Strangers {
  readonly #clock: Clock;
  #sinceMs: number;
  #told = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#sinceMs = clock.nowMs();
  }

  /** Somebody was refused: whether that is told. */
  mayTell(): boolean {
    const nowMs = this.#clock.nowMs();
    if (nowMs - this.#sinceMs >= REFUSAL_TOLD_EVERY_MS) {
      this.#sinceMs = nowMs;
      this.#told = 0;
    }
    this.#told += 1;
    return this.#told <= REFUSAL_REASONS_MAX;
  }
}
