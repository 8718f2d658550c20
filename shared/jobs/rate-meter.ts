import type { Clock } from "../host/clock.ts";

const RATE_WINDOW_MS = 5_000;
const SAMPLES_PER_WINDOW = 20;

/** How fast a count of bytes has grown in the last seconds. */
export class RateMeter {
  readonly #clock: Clock;
  readonly #doneBytes: () => number;
  readonly #samples: { readonly atMs: number; readonly doneBytes: number }[] = [];

  constructor(clock: Clock, doneBytes: () => number) {
    this.#clock = clock;
    this.#doneBytes = doneBytes;
  }

  /** To be called as often as the count may have grown. */
  sample(): void {
    const samples = this.#samples;
    const atMs = this.#clock.nowMs();
    const last = samples.at(-1);
    if (last !== undefined && atMs - last.atMs < RATE_WINDOW_MS / SAMPLES_PER_WINDOW) return;
    samples.push({ atMs, doneBytes: this.#doneBytes() });
    while (samples.length > 2 && atMs - (samples[0]?.atMs ?? atMs) > RATE_WINDOW_MS) samples.shift();
  }

  bytesPerSecond(): number {
    const first = this.#samples[0];
    if (first === undefined) return 0;
    const elapsedMs = this.#clock.nowMs() - first.atMs;
    const bytes = this.#doneBytes() - first.doneBytes;
    return elapsedMs > 0 ? Math.max(0, (bytes / elapsedMs) * 1000) : 0;
  }
}
