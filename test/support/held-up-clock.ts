import { ManualClock } from "./manual-clock.ts";

/** A clock of a process that can be held up: all timers that are set then fire so much later. */
export class HeldUpClock extends ManualClock {
  #lateMs = 0;

  override nowMs(): number {
    return super.nowMs() + this.#lateMs;
  }

  holdUp(ms: number): void {
    this.#lateMs += ms;
  }
}
