import { ColobusError } from "../proto/errors.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";

export interface TimeLimitOptions {
  readonly clock: Clock;
  readonly limitMs: number;
  /** Who does not answer, for the error's sentence. */
  readonly whom: () => string;
  /** Whether anybody is better off without what has not answered; otherwise it is waited for, however long it takes. */
  readonly mayGiveUp: () => boolean;
}

interface Waiting {
  readonly dueMs: number;
  readonly giveUp: () => void;
}

/**
 * Owns which operations of one copy are under way, and for how long: what takes longer than the limit is given up, all of
 * them by one timer. An operation that was given up may still take effect, at any time until it settles.
 */
export class TimeLimit {
  readonly #options: TimeLimitOptions;
  /** In the order in which they began, which is that of their ends. */
  readonly #waiting = new Set<Waiting>();
  #abandoned = 0;
  #timer: Timer | undefined;

  constructor(options: TimeLimitOptions) {
    this.#options = options;
  }

  /** Operations that were given up, and have not settled. */
  get abandoned(): number {
    return this.#abandoned;
  }

  /** Settles as `pending` does, or is rejected with `child-timed-out` when that takes too long. */
  guard(pending: Promise<void>): Promise<void> {
    let isAbandoned = false;
    let giveUp = (_: Error): void => undefined;
    const overdue = new Promise<never>((_, reject) => {
      giveUp = reject;
    });
    const waiting: Waiting = {
      dueMs: this.#options.clock.nowMs() + this.#options.limitMs,
      giveUp: () => {
        isAbandoned = true;
        this.#abandoned += 1;
        giveUp(this.#error());
      },
    };
    this.#waiting.add(waiting);
    this.#schedule();
    const settling = pending.finally(() => {
      if (isAbandoned) this.#abandoned -= 1;
      else this.#waiting.delete(waiting);
      if (this.#waiting.size === 0) this.stop();
    });
    return Promise.race([settling, overdue]);
  }

  /** Nothing is given up any more, unless something else begins. */
  stop(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  /** What is under way is given up at once: who waits for it goes on without. */
  close(): void {
    this.stop();
    for (const waiting of this.#waiting) {
      this.#waiting.delete(waiting);
      waiting.giveUp();
    }
  }

  #schedule(): void {
    if (this.#timer !== undefined) return;
    const [oldest] = this.#waiting;
    if (oldest === undefined) return;
    const { clock, limitMs } = this.#options;
    const inMs = oldest.dueMs - clock.nowMs();
    // What is overdue and may not be given up is looked at again now and then.
    this.#timer = clock.after(inMs > 0 ? inMs : limitMs / 4, () => {
      this.#timer = undefined;
      this.#giveUpOverdue();
      this.#schedule();
    });
  }

  #giveUpOverdue(): void {
    const nowMs = this.#options.clock.nowMs();
    for (const waiting of this.#waiting) {
      if (waiting.dueMs > nowMs || !this.#options.mayGiveUp()) return;
      this.#waiting.delete(waiting);
      waiting.giveUp();
    }
  }

  #error(): ColobusError {
    const { whom, limitMs } = this.#options;
    return new ColobusError(
      "child-timed-out",
      `${whom()} has not done a request for ${limitMs} ms`,
      "Look at its device or server; it is tried again, and then gets what it lacks.",
    );
  }
}
