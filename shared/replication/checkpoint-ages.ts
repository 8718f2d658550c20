import { PREPARED_EPOCHS_MAX } from "../../proto/limits.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Clock } from "../host/clock.ts";

type Recorded = StateRecord["committed"];

/**
 * Owns how old checkpoints are, whichever role has taken them: by the monotonic clock since then, so that none gets older
 * or younger when somebody sets the wall clock. Only of what an earlier process has left does the wall clock tell how
 * old it was when this one began.
 *
 * While a host is suspended the monotonic clock stands still. The wall clock would tell of that, but not from one that
 * was set.
 */
export class CheckpointAges {
  readonly #clock: Pick<Clock, "nowMs" | "wallMs">;
  readonly #beganMs: number;
  /** By epoch, on the monotonic clock, which was less than nothing for what an earlier process has taken. */
  readonly #takenMs = new Map<number, number>();

  constructor(
    clock: Pick<Clock, "nowMs" | "wallMs">,
    { committed, prepared, retained }: Pick<StateRecord, "committed" | "prepared" | "retained">,
  ) {
    this.#clock = clock;
    this.#beganMs = clock.nowMs();
    const wallMs = clock.wallMs();
    for (const { epoch, atMs } of [...retained, committed, ...prepared]) {
      if (epoch > 0) this.#takenMs.set(epoch, this.#beganMs - Math.max(0, wallMs - atMs));
    }
  }

  /**
   * The state of the checkpoint `epoch` is what there is now. Returns what the record says of it. Of the earlier ones those in
   * `needed` are remembered, and the last, which may still be under way.
   */
  take(epoch: number, needed: readonly number[]): Recorded {
    const kept = new Set(needed);
    for (const earlier of this.#takenMs.keys()) {
      if (earlier <= epoch - PREPARED_EPOCHS_MAX && !kept.has(earlier)) this.#takenMs.delete(earlier);
    }
    this.#takenMs.set(epoch, this.#clock.nowMs());
    return { epoch, atMs: this.#clock.wallMs() };
  }

  /**
   * Milliseconds since the state of that checkpoint was taken. One that this process knows nothing of counts as old as the oldest
   * that it does know, and no younger than the process.
   */
  ageMs(epoch: number): number {
    const takenMs = this.#takenMs.get(epoch) ?? Math.min(this.#beganMs, ...this.#takenMs.values());
    return this.#clock.nowMs() - takenMs;
  }

  /** What a record says of it now, for a later process; epoch 0: there is none. */
  recorded(epoch: number): Recorded {
    return { epoch, atMs: epoch === 0 ? 0 : this.#clock.wallMs() - this.ageMs(epoch) };
  }
}
