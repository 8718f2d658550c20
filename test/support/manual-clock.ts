import type { Clock, Timer } from "../../shared/host/clock.ts";

/** A clock that moves only when the test says so. */
export class ManualClock implements Clock {
  #nowMs = 0;
  #deferred: (() => void)[] = [];
  #timers: { readonly dueMs: number; readonly callback: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  wallMs(): number {
    return 1_700_000_000_000 + this.#nowMs;
  }

  after(delayMs: number, callback: () => void): Timer {
    const timer = { dueMs: this.#nowMs + delayMs, callback };
    this.#timers.push(timer);
    return {
      cancel: () => {
        this.#timers = this.#timers.filter((other) => other !== timer);
      },
    };
  }

  defer(callback: () => void): void {
    this.#deferred.push(callback);
  }

  /** The process that has set timers is gone. */
  forget(): void {
    this.#timers = [];
    this.#deferred = [];
  }

  get pendingTimers(): number {
    return this.#timers.length;
  }

  /** Ends the turn: runs what was deferred, and what that defers in turn. False when there was nothing. */
  endTurn(): boolean {
    if (this.#deferred.length === 0) return false;
    while (this.#deferred.length > 0) {
      const due = this.#deferred;
      this.#deferred = [];
      for (const callback of due) callback();
    }
    return true;
  }

  /** Moves on by `ms`, running timers as they fall due and ending the turn after each. */
  advance(ms: number): void {
    const untilMs = this.#nowMs + ms;
    for (;;) {
      const due = this.#timers.filter((timer) => timer.dueMs <= untilMs).sort((a, b) => a.dueMs - b.dueMs)[0];
      if (due === undefined) break;
      this.#timers = this.#timers.filter((timer) => timer !== due);
      this.#nowMs = Math.max(this.#nowMs, due.dueMs);
      due.callback();
      this.endTurn();
    }
    this.#nowMs = untilMs;
  }
}
