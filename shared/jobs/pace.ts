import type { JobSpeed } from "../../proto/status.ts";
import { JOB_YIELDING_SHARE } from "../../proto/limits.ts";

/** A timer that fires this late is made up for by the next pieces; a longer pause of a job is not. */
const LATENESS_MAX_MS = 20;
/** Shorter rests than a timer can keep are saved up. */
const REST_MIN_MS = 1;
/** A piece lasts about this long at a fixed speed, so that a slow job does not go by fits and starts. */
const PIECE_MS = 100;

export interface Piece {
  readonly startedMs: number;
  readonly endedMs: number;
  /** What the piece moved; what costs nothing, such as a hole, does not count. */
  readonly bytes: number;
  /** Whether guests asked for anything since the piece before this one. */
  readonly guestsActive: boolean;
}

/**
 * How fast a job goes. With a fixed speed it keeps to that many bytes per second. With `dynamic` it goes as fast as it
 * can while guests are idle, and rests after each piece while they are not, so that it is at work for a share of the
 * time alone: whatever it and they compete for (this process, the disk, the link), most of it is the guests', and the
 * job still comes to its end.
 */
export class Pace {
  #speed: JobSpeed;
  /** When the next piece may begin. */
  #dueMs = -Infinity;

  constructor(speed: JobSpeed) {
    this.#speed = speed;
  }

  get speed(): JobSpeed {
    return this.#speed;
  }

  set speed(speed: JobSpeed) {
    this.#speed = speed;
    this.#dueMs = -Infinity;
  }

  /** What the next piece should move at most. */
  get pieceBytes(): number {
    return this.#speed === "dynamic" || this.#speed === 0 ? Infinity : (this.#speed * PIECE_MS) / 1000;
  }

  /** How long to rest after a piece, in ms. */
  restMs(piece: Piece): number {
    const { startedMs, endedMs } = piece;
    const isLate = startedMs - this.#dueMs > LATENESS_MAX_MS;
    this.#dueMs = (isLate ? startedMs : this.#dueMs) + this.#costMs(piece);
    // A piece that took longer than it may is not made up for.
    this.#dueMs = Math.max(this.#dueMs, endedMs);
    const restMs = this.#dueMs - endedMs;
    return restMs < REST_MIN_MS ? 0 : restMs;
  }

  #costMs({ startedMs, endedMs, bytes, guestsActive }: Piece): number {
    if (this.#speed !== "dynamic") return this.#speed > 0 ? (bytes / this.#speed) * 1000 : 0;
    return guestsActive ? (endedMs - startedMs) / JOB_YIELDING_SHARE : 0;
  }
}
