import { NBD_STALLED_CLIENT_MS } from "../../proto/limits.ts";
import type { Clock, Timer } from "../host/clock.ts";

/** Of a write whose payload is arriving. */
export interface PayloadState {
  /** Grows whenever the client does anything. */
  readonly progress: number;
  /** The disk works on what has come: it is not the client's turn. */
  readonly isDisksTurn: boolean;
  readonly isWaitedFor: () => boolean;
}

/**
 * Tells of a client that has stopped in the middle of a write while others wait for its range: they may wait for as long as
 * a client takes, but not for one that has stopped. Two looks in a row make that sure: when this process had stopped
 * itself, what the client has sent meanwhile is read between them.
 */
export class PayloadWatch {
  readonly #clock: Clock;
  readonly #look: () => PayloadState | undefined;
  readonly #stalled: () => void;
  #timer: Timer | undefined;
  #seenProgress = 0;
  #idleLooks = 0;

  /** `look` gives undefined where no payload is arriving any more: the watch ends then. */
  constructor(clock: Clock, look: () => PayloadState | undefined, stalled: () => void) {
    this.#clock = clock;
    this.#look = look;
    this.#stalled = stalled;
  }

  /** A payload begins to arrive. */
  begin(): void {
    this.#timer ??= this.#clock.after(NBD_STALLED_CLIENT_MS / 2, () => this.#lookAgain());
  }

  cancel(): void {
    this.#timer?.cancel();
  }

  #lookAgain(): void {
    this.#timer = undefined;
    const state = this.#look();
    if (state === undefined) return;
    const isIdle = state.progress === this.#seenProgress && !state.isDisksTurn;
    this.#idleLooks = isIdle ? this.#idleLooks + 1 : 0;
    this.#seenProgress = state.progress;
    if (this.#idleLooks >= 2 && state.isWaitedFor()) this.#stalled();
    else this.begin();
  }
}
