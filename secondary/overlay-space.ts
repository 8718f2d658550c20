import { ColobusError } from "../proto/errors.ts";
import {
  OVERLAY_BACKOFF_MAX_MS,
  OVERLAY_RESERVE_BYTES,
  OVERLAY_RETRY_MS,
  OVERLAY_SETTLED_MS,
} from "../proto/limits.ts";
import type { EventType } from "../proto/words.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Storage } from "../shared/host/storage.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { OverlayQuota, type OverlayUsage } from "./overlay-quota.ts";
import type { BufferMemory } from "./buffer-memory.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

export interface OverlaySpaceOptions {
  readonly storage: Storage;
  readonly clock: Clock;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  readonly stateDirectory: string;
  /** undefined: the file system alone is the limit. */
  readonly limitBytes: number | undefined;
  readonly disks: () => readonly ReplicaDisk[];
  readonly bufferMemory: Pick<BufferMemory, "isIndexFull" | "isAboveMark">;
  /** Drops the oldest kept checkpoint; false when there is none. */
  readonly makeRoom: () => Promise<boolean>;
  /** A commit would free much of the limit. */
  readonly wanted: () => void;
  /** There is room again. */
  readonly freed: () => void;
}

/**
 * Owns whether the secondary's overlays can take writes: the operator's limit, the file systems' free space, and the
 * stall while there is too little of either. It is looked at every so often, and after each commit. Where what comes
 * fills them again at once, they are left alone for longer each time, so that the pair does not go to and fro.
 */
export class OverlaySpace {
  /** undefined: no limit was set. */
  readonly quota: OverlayQuota | undefined;
  readonly #options: OverlaySpaceOptions;
  #reason: ColobusError | undefined;
  #full: ColobusError | undefined;
  #notBeforeMs = 0;
  /** When there was room last after a stall. */
  #freedMs = -Infinity;
  #backoffMs = 0;
  #backoffUntilMs = 0;
  #timer: Timer | undefined;
  #ending = false;

  constructor(options: OverlaySpaceOptions) {
    this.#options = options;
    const { limitBytes } = options;
    if (limitBytes === undefined) return;
    this.quota = new OverlayQuota(
      limitBytes,
      () => usageOf(options.disks()),
      () => this.want(),
    );
  }

  /** A checkpoint has become worth its while: asks for one, where there can be one. */
  want(): void {
    if (!this.#mayWant) return;
    this.#options.emit("checkpoint-wanted", { ...this.describeWanted() });
    this.#options.wanted();
  }

  /** Whether a checkpoint is worth its while. */
  get isWanting(): boolean {
    if (!this.#mayWant) return false;
    return this.quota?.isAboveMark === true || this.#options.bufferMemory.isAboveMark;
  }

  /** In mode `mirror` overlays grow in a sync only, in which no checkpoint can be taken. */
  get #mayWant(): boolean {
    return this.#options.state.record.mode !== "mirror";
  }

  /** Why the overlays cannot take writes now, with the figures, if they cannot. */
  get full(): ColobusError | undefined {
    return this.#full;
  }

  /** What a commit would free, and the limit. */
  describeWanted(): { readonly freeableBytes: number; readonly limitBytes: number } {
    const { freeableBytes } = usageOf(this.#options.disks());
    return { freeableBytes, limitBytes: this.quota?.limitBytes ?? 0 };
  }

  /** The stream has found no room: what can be spared goes, and until that suffices, writes are not taken. */
  report(reason: ColobusError): void {
    const isNews = this.#full === undefined;
    if (isNews) this.#backOff();
    this.#reason = reason;
    // Where there seems to be room (a quota of the file system's, its last inode), trying at once would fail at once.
    this.#notBeforeMs = this.#hasRoom() ? this.#options.clock.nowMs() + OVERLAY_RETRY_MS : 0;
    this.#full = this.#withFigures(reason);
    if (isNews) this.#options.emit("overlay-full", this.#full.toJSON());
    void this.#makeRoom();
    this.#retryLater();
  }

  /** Looks again; when there is room, the stall is over. */
  retry(): void {
    if (this.#reason === undefined || this.#options.clock.nowMs() < this.#notBeforeMs) return;
    if (this.#isBackingOff() || !this.#hasRoom()) {
      this.#full = this.#withFigures(this.#reason);
      return;
    }
    this.#freedMs = this.#options.clock.nowMs();
    this.#reason = undefined;
    this.#full = undefined;
    this.quota?.forgetDenied();
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#options.emit("overlay-freed", {});
    this.#options.freed();
  }

  /** Overlays were dropped: the mark can be reached again. */
  measure(): void {
    this.quota?.measure();
  }

  /** Ends the looking. Nothing is taken from the limit any more when the role ends. */
  end(): void {
    this.#ending = true;
    this.#timer?.cancel();
  }

  /** The role goes on after all. */
  resume(): void {
    this.#ending = false;
    if (this.#reason !== undefined) this.#retryLater();
  }

  /** The overlays are full: are they so again at once? On a shared disk guests wait for room, and nothing is put off. */
  #backOff(): void {
    const { clock, state } = this.#options;
    const isAgain = clock.nowMs() < this.#freedMs + OVERLAY_SETTLED_MS && state.record.mode !== "shared";
    this.#backoffMs = isAgain ? Math.min(Math.max(2 * this.#backoffMs, OVERLAY_RETRY_MS), OVERLAY_BACKOFF_MAX_MS) : 0;
    this.#backoffUntilMs = clock.nowMs() + this.#backoffMs;
  }

  /** Where the checkpoint was given up, nothing is kept any more that could fill them. */
  #isBackingOff(): boolean {
    const { clock, state } = this.#options;
    return clock.nowMs() < this.#backoffUntilMs && state.record.committed.epoch > 0;
  }

  async #makeRoom(): Promise<void> {
    try {
      // What is kept is given up for the overlays' sake only: it makes no room on the images' file systems.
      while (!this.#ending && !this.#hasRoomForOverlays() && (await this.#options.makeRoom()));
      this.retry();
    } catch (error) {
      this.#options.log.warn({ error }, "retained checkpoints could not be dropped to make room");
    }
  }

  #hasRoom(): boolean {
    return this.#hasRoomForOverlays() && isEnough(this.#freeBytes());
  }

  #hasRoomForOverlays(): boolean {
    if (this.#options.bufferMemory.isIndexFull) return false;
    return (this.quota?.missingBytes() ?? 0) === 0 && isEnough(this.#freeBytes({ withImages: false }));
  }

  /** Of the file system with the least; undefined where it cannot be told now: it is asked again. */
  #freeBytes({ withImages } = { withImages: true }): number | undefined {
    const { storage, stateDirectory, state } = this.#options;
    try {
      const images = state.record.disks.map((disk) => disk.image).filter((path) => withImages && storage.exists(path));
      return Math.min(...[stateDirectory, ...images].map((path) => storage.freeBytes(path)));
    } catch (error) {
      if (error instanceof ColobusError) return undefined;
      throw error;
    }
  }

  /** The reason, with what is free, what has to be, and what to do. */
  #withFigures(reason: ColobusError): ColobusError {
    const missing = this.quota?.missingBytes() ?? 0;
    const free = this.#freeBytes();
    const figures = this.#isBackingOff()
      ? `they were full again soon after there was room, and are left alone for ${Math.round(this.#backoffMs / 1000)} s`
      : missing > 0
        ? `at least ${missing} bytes of the overlays must be freed to go on`
        : `at least ${OVERLAY_RESERVE_BYTES} bytes must be free to go on, and ${free ?? "an unknown number"} are`;
    const more = missing > 0 ? "start the secondary with a higher --overlay-limit" : "free space on the secondary";
    return new ColobusError(
      reason.code,
      `${reason.message}; ${figures}`,
      `Commit a prepared checkpoint, ${more}, or give the checkpoint up there: \`colobus resync --give-up-checkpoint\`.`,
      { cause: reason },
    );
  }

  #retryLater(): void {
    this.#timer ??= this.#options.clock.after(OVERLAY_RETRY_MS, () => {
      this.#timer = undefined;
      this.retry();
      if (this.#reason !== undefined && !this.#ending) this.#retryLater();
    });
  }
}

function isEnough(freeBytes: number | undefined): boolean {
  return freeBytes !== undefined && freeBytes >= OVERLAY_RESERVE_BYTES;
}

function usageOf(disks: readonly ReplicaDisk[]): OverlayUsage {
  let totalBytes = 0;
  let keptBytes = 0;
  for (const { epochs, active } of disks) {
    totalBytes += epochs.allocatedBytes + active.allocatedBytes;
    keptBytes += epochs.keptBytes;
  }
  return { totalBytes, freeableBytes: totalBytes - keptBytes };
}
