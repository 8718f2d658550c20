import type { Clock } from "../shared/host/clock.ts";
import { momentOf, type Moment } from "../shared/arbiter/term.ts";

/** Beats that were sent and not answered, at most: an answer to an older one proves nothing. */
const BEATS_KEPT = 32;

/** Owns when the pings of one session were sent that the secondary has not answered yet. Each is answered once. */
export class Beats {
  readonly #clock: Clock;
  #sent: Moment[] = [];

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** The clock that a ping carries which is sent now. */
  beat(): number {
    const moment = momentOf(this.#clock);
    this.#sent = [...this.#sent.slice(1 - BEATS_KEPT), moment];
    return moment.nowMs;
  }

  /** When the ping of that clock was sent; undefined: none was, or it is answered already. */
  answered(at: number): Moment | undefined {
    const sent = this.#sent.find(({ nowMs }) => nowMs === at);
    if (sent !== undefined) this.#sent = this.#sent.filter(({ nowMs }) => nowMs > at);
    return sent;
  }
}
