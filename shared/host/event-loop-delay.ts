/**
 * How late this process gets to what is due: a timer of EVENT_LOOP_SAMPLE_MS tells by how much later it fires. While the
 * event loop is held up, by a long computation, a slow system call, or because the process is stopped or gets no
 * processor, no request is answered and no peer is heard. A delay is known as soon as it is over.
 *
 * The figures are of about the last minute: of slices that are begun one after the other, the oldest is dropped. Node's own
 * monitorEventLoopDelay is not used, as it misses the delay in which its histogram is emptied, and calls nobody.
 */
import { createHistogram } from "node:perf_hooks";
import { EVENT_LOOP_SAMPLE_MS, EVENT_LOOP_SLICE_MS, EVENT_LOOP_SLICES } from "../../proto/limits.ts";
import type { Clock, Timer } from "./clock.ts";

/** Microseconds; two digits count. A longer delay counts as the longest. */
const HISTOGRAM = { lowest: 1, highest: 24 * 3600 * 1_000_000, figures: 2 } as const;
const US_PER_MS = 1000;

export interface DelayFigures {
  /** How far back the figures go. */
  readonly overMs: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly p999Ms: number;
  readonly maxMs: number;
}

export class EventLoopDelay {
  readonly #clock: Clock;
  readonly #slices = Array.from({ length: EVENT_LOOP_SLICES }, () => createHistogram(HISTOGRAM));
  /** When each slice was begun; the first ones all with the process. */
  readonly #begunMs: number[];
  #current = 0;
  #sampledMs: number;
  #timer: Timer | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#sampledMs = clock.nowMs();
    this.#begunMs = this.#slices.map(() => this.#sampledMs);
  }

  /** Measures from now on, until it is stopped, and calls `listener` with each delay when it is over. Called once. */
  start(listener: (delayMs: number) => void): void {
    this.#sampledMs = this.#clock.nowMs();
    this.#begunMs.fill(this.#sampledMs);
    const again = (): void => {
      this.#timer = this.#clock.after(EVENT_LOOP_SAMPLE_MS, () => {
        again();
        listener(this.#sample());
      });
    };
    again();
  }

  getFigures(): DelayFigures {
    const all = createHistogram(HISTOGRAM);
    for (const slice of this.#slices) all.add(slice);
    const percentileMs = (percentile: number): number => all.percentile(percentile) / US_PER_MS;
    return {
      overMs: this.#clock.nowMs() - Math.min(...this.#begunMs),
      p50Ms: percentileMs(50),
      p99Ms: percentileMs(99),
      p999Ms: percentileMs(99.9),
      maxMs: all.max / US_PER_MS,
    };
  }

  stop(): void {
    this.#timer?.cancel();
  }

  #sample(): number {
    const nowMs = this.#clock.nowMs();
    const delayMs = Math.max(0, nowMs - this.#sampledMs - EVENT_LOOP_SAMPLE_MS);
    this.#sampledMs = nowMs;
    if (nowMs - (this.#begunMs[this.#current] ?? 0) >= EVENT_LOOP_SLICE_MS) this.#beginSlice(nowMs);
    const us = Math.min(Math.max(Math.round(delayMs * US_PER_MS), HISTOGRAM.lowest), HISTOGRAM.highest);
    this.#slices[this.#current]?.record(us);
    return delayMs;
  }

  #beginSlice(nowMs: number): void {
    this.#current = (this.#current + 1) % this.#slices.length;
    this.#slices[this.#current]?.reset();
    this.#begunMs[this.#current] = nowMs;
  }
}
