import { ColobusError } from "../proto/errors.ts";
import { OVERLAY_HIGH_WATER } from "../proto/limits.ts";

/** What the overlays of all disks take, in bytes of storage. */
export interface OverlayUsage {
  readonly totalBytes: number;
  /** The part that a commit makes dispensable: everything but what belongs to kept checkpoints, or goes by itself. */
  readonly freeableBytes: number;
}

/**
 * Owns the limit that an operator has set to the overlays of one agent. Every overlay asks before it takes storage.
 *
 * Between measurements it counts what was asked for, which is never less than what is taken; it measures again only
 * where the count reaches the limit or the high-water mark.
 */
export class OverlayQuota {
  readonly limitBytes: number;
  readonly #measure: () => OverlayUsage;
  readonly #reachedMark: () => void;
  readonly #markBytes: number;
  #totalBytes = Infinity;
  #freeableBytes = Infinity;
  #aboveMark = false;
  /** What was taken since the last save was complete. */
  #unsettledBytes = 0;
  /** What the save would have taken that was denied last: there is no room before it fits. */
  #deniedBytes = 0;
  #lifted = false;

  /** `reachedMark` is called when a commit has become worth its while, and again only after it was not. */
  constructor(limitBytes: number, measure: () => OverlayUsage, reachedMark: () => void) {
    this.limitBytes = limitBytes;
    this.#measure = measure;
    this.#reachedMark = reachedMark;
    this.#markBytes = limitBytes * OVERLAY_HIGH_WATER;
  }

  get isAboveMark(): boolean {
    return this.#aboveMark;
  }

  /** Counts `bytes` that an overlay is about to take. Errors: `overlay-full`; nothing is counted then. */
  take(bytes: number): void {
    if (this.#lifted) return;
    const mayReachMark = !this.#aboveMark && this.#freeableBytes + bytes >= this.#markBytes;
    if (mayReachMark || this.#totalBytes + bytes > this.limitBytes) this.measure();
    if (this.#totalBytes + bytes > this.limitBytes) {
      this.#deniedBytes = this.#unsettledBytes + bytes;
      this.#unsettledBytes = 0;
      throw this.#full();
    }
    this.#unsettledBytes += bytes;
    this.#totalBytes += bytes;
    this.#freeableBytes += bytes;
    if (this.#aboveMark || this.#freeableBytes < this.#markBytes) return;
    this.#aboveMark = true;
    this.#reachedMark();
  }

  /**
   * Counts `bytes` of a copy, which takes the place of overlays that are counted: they make no commit worth its while, and
   * where they are denied nobody waits for room. Errors: `overlay-full`; nothing is counted then.
   */
  takeForCopy(bytes: number): void {
    if (!this.hasRoomFor(bytes)) throw this.#full();
    this.#totalBytes += bytes;
  }

  /** Whether so much can be taken now. */
  hasRoomFor(bytes: number): boolean {
    if (this.#lifted) return true;
    if (this.#totalBytes + bytes > this.limitBytes) this.measure();
    return this.#totalBytes + bytes <= this.limitBytes;
  }

  /** What was taken is held: a later denial is not about it. */
  settle(): void {
    this.#unsettledBytes = 0;
  }

  /** What the overlays take now. To be called when some were dropped, so that the mark can be reached again. */
  measure(): OverlayUsage {
    const usage = this.#measure();
    this.#totalBytes = usage.totalBytes;
    this.#freeableBytes = usage.freeableBytes;
    if (usage.freeableBytes < this.#markBytes) this.#aboveMark = false;
    return usage;
  }

  /** Bytes that must be freed before writes are taken again; 0 when there is room, or nothing to be freed. */
  missingBytes(): number {
    if (this.#lifted) return 0;
    const { totalBytes } = this.measure();
    const aboveBytes = Math.max(totalBytes - this.#markBytes, totalBytes + this.#deniedBytes - this.limitBytes, 0);
    return Math.min(totalBytes, Math.ceil(aboveBytes));
  }

  /** What was denied counts no more: there is room. */
  forgetDenied(): void {
    this.#deniedBytes = 0;
  }

  /** There is no limit from here on: a promoted disk's guest is not to see it. */
  lift(): void {
    this.#lifted = true;
  }

  #full(): ColobusError {
    return new ColobusError(
      "overlay-full",
      `the overlays take ${this.#totalBytes} of the ${this.limitBytes} bytes that --overlay-limit allows`,
      "Commit a checkpoint, or start the secondary with a higher --overlay-limit.",
    );
  }
}
