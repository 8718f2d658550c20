import type { Status } from "../proto/status.ts";
import { STALL_MIN_MS, STALL_TELL_EVERY_MS } from "../proto/limits.ts";
import type { EventType } from "../proto/words.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { EventLoopDelay } from "../shared/host/event-loop-delay.ts";

export interface StallWatchOptions {
  /** undefined: nobody measures. */
  readonly eventLoopDelay?: EventLoopDelay;
  readonly clock: Clock;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
}

/** Tells when the process was held up for STALL_MIN_MS or longer: the first time at once, then what has come together. */
export class StallWatch {
  readonly #options: StallWatchOptions;
  #stalls = 0;
  #untold: number[] = [];
  #timer: Timer | undefined;

  constructor(options: StallWatchOptions) {
    this.#options = options;
  }

  start(): void {
    this.#options.eventLoopDelay?.start((delayMs) => {
      if (delayMs >= STALL_MIN_MS) this.#stalled(delayMs);
    });
  }

  describe(): Status["eventLoopDelay"] {
    const { eventLoopDelay } = this.#options;
    return eventLoopDelay === undefined ? null : { ...eventLoopDelay.getFigures(), stalls: this.#stalls };
  }

  stop(): void {
    this.#options.eventLoopDelay?.stop();
    this.#timer?.cancel();
  }

  #stalled(delayMs: number): void {
    this.#stalls += 1;
    this.#untold.push(delayMs);
    if (this.#timer === undefined) this.#tell();
  }

  #tell(): void {
    const { clock, emit } = this.#options;
    this.#timer = undefined;
    if (this.#untold.length === 0) return;
    const data = { stalls: this.#untold.length, longestMs: Math.round(Math.max(...this.#untold)) };
    this.#untold = [];
    this.#timer = clock.after(STALL_TELL_EVERY_MS, () => this.#tell());
    emit("stalled", data);
  }
}
