import { ColobusError } from "../proto/errors.ts";
import {
  DISK_RETRY_MS,
  SYNC_HOLE_FAST_MS,
  SYNC_HOLE_SHARE,
  SYNC_HOLE_SHARE_MIN,
  SYNC_HOLE_SLOW_MS,
  SYNC_WINDOW_SHARE,
  SYNC_WINDOW_SHARE_BESIDE_GUESTS,
} from "../proto/limits.ts";
import type { JobState } from "../proto/words.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { JobSettings, JobWork } from "../shared/jobs/job.ts";
import { ChunkPool } from "./chunk-pool.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { Replicator } from "./replicator.ts";
import type { SourceSession } from "./source-session.ts";
import { bringAll, nextPieces, stepBytes, type SyncPiece, type SyncSource } from "./sync-pieces.ts";

export interface SyncWorkOptions {
  readonly clock: Clock;
  readonly type: "full-sync" | "resync";
  readonly replicator: Replicator;
  readonly disks: readonly ReplicatedDisk[];
  readonly geometries: readonly ClusterGeometry[];
  readonly windowBytes: number;
  /** Has what the job is set to recorded. Durable when the promise resolves. Errors: why it is not; they are logged. */
  readonly keep: (settings: JobSettings) => Promise<void>;
}

/**
 * Sends the clusters that the secondary may lack, with their present content, until none is left. The job belongs to
 * one session: when that is lost, the job ends, and the next session starts another with what is left.
 *
 * A step reads several pieces side by side, so that a disk has more than one request to work on. Only so much of what it
 * sent may be under way: guests' writes share the window, and wait behind it.
 */
export class SyncWork implements JobWork {
  readonly disk = null;
  readonly cancellable = false;
  readonly retryMs = DISK_RETRY_MS;
  readonly #options: SyncWorkOptions;
  readonly #session: SourceSession;
  /** What was sent and is not known to have arrived, or where it was zeroes to be stable, oldest first. */
  readonly #underWay: {
    readonly sequence: number;
    /** undefined: it was zeroes. */
    readonly buffer: Buffer | undefined;
    readonly bytes: number;
    readonly sentMs: number;
  }[] = [];
  readonly #sources: readonly SyncSource[];
  readonly #chunks = new ChunkPool();
  /** Of which a hole counts this share of its length. */
  #underWayBytes = 0;
  #holeShare = SYNC_HOLE_SHARE;
  #requestsSeen: number;
  #wasPaused = false;

  constructor(options: SyncWorkOptions) {
    this.#options = options;
    this.#session = options.replicator.session;
    this.#sources = options.geometries.map((geometry, index) => ({
      disk: this.#disk(index),
      geometry,
      nextDirty: (from, maxClusters) => options.replicator.nextDirty(index, from, maxClusters),
    }));
    this.#requestsSeen = this.guestRequests();
  }

  get type(): "full-sync" | "resync" {
    return this.#options.type;
  }

  progress(): { doneBytes: number; totalBytes: number } {
    return this.#options.replicator.syncProgress;
  }

  guestRequests(): number {
    return this.#options.disks.reduce((sum, disk) => sum + disk.requests, 0);
  }

  /** The secondary shows whether its sync goes on. */
  stateChanged(state: JobState): void {
    if (state === "paused") this.#options.replicator.tellPaused(this.#session, true);
    else if (state === "running" && this.#wasPaused) this.#options.replicator.tellPaused(this.#session, false);
    this.#wasPaused = state === "paused";
  }

  keep(settings: JobSettings): Promise<void> {
    return this.#options.keep(settings);
  }

  async step(bytesMax: number): Promise<number | undefined> {
    const { replicator, windowBytes } = this.#options;
    const requests = this.guestRequests();
    const besideGuests = requests !== this.#requestsSeen;
    this.#requestsSeen = requests;
    await this.#untilRoom(windowBytes * (besideGuests ? SYNC_WINDOW_SHARE_BESIDE_GUESTS : SYNC_WINDOW_SHARE));
    const pieces = await nextPieces(this.#sources, stepBytes(bytesMax, besideGuests), this.#holeShare);
    if (pieces.length === 0) return replicator.tryFinishSync(this.#session) ? undefined : lost();
    return bringAll(pieces, (piece) => this.#send(piece));
  }

  /** Waits until less than `limitBytes` of this sync, and less than the window as a whole, are under way. */
  async #untilRoom(limitBytes: number): Promise<void> {
    const { replicator, clock } = this.#options;
    for (let oldest = this.#underWay[0]; oldest !== undefined; oldest = this.#underWay[0]) {
      // A hole is as nothing to receive, and may take long to write.
      const isHole = oldest.buffer === undefined;
      const arriving = isHole
        ? this.#session.acknowledged(oldest.sequence, "stable")
        : replicator.syncedThrough(this.#session, oldest.sequence);
      if (arriving !== undefined) {
        if (this.#underWayBytes < limitBytes) break;
        await arriving;
      }
      if (isHole) this.#noteHoleTaken(clock.nowMs() - oldest.sentMs, arriving !== undefined);
      this.#underWay.shift();
      this.#underWayBytes -= oldest.bytes;
      if (oldest.buffer !== undefined) this.#chunks.giveBack(oldest.buffer);
    }
    const room = this.#session.room();
    if (room !== undefined) await room;
  }

  /**
   * A secondary that writes zeroes gets as few at a time as guests can wait for, one that cuts holes many. `wasAwaited`: it
   * was taken just now, and not at some time before.
   */
  #noteHoleTaken(tookMs: number, wasAwaited: boolean): void {
    if (tookMs <= SYNC_HOLE_FAST_MS) this.#holeShare = Math.max(this.#holeShare / 2, SYNC_HOLE_SHARE_MIN);
    else if (wasAwaited && tookMs >= SYNC_HOLE_SLOW_MS) {
      this.#holeShare = Math.min(this.#holeShare * 2, SYNC_HOLE_SHARE);
    }
  }

  /** Resolves with the bytes that were read. */
  async #send({ source: disk, offset, length, isHole }: SyncPiece): Promise<number> {
    const { replicator, geometries, clock } = this.#options;
    const clusterBytes = geometries[disk]?.clusterBytes ?? length;
    let buffer: Buffer | undefined;
    const take = (bytes: number): Buffer => (buffer = this.#chunks.take(bytes));
    let isInUse = false;
    const covered = await this.#disk(disk).readForSync(offset, length, take, clusterBytes, (content) => {
      const sequence = replicator.sendSynced(this.#session, disk, offset, content);
      if (sequence === undefined) lost();
      isInUse = typeof content !== "number";
      const bytes = typeof content === "number" ? content * this.#holeShare : content.length;
      this.#underWay.push({ sequence, buffer: isInUse ? buffer : undefined, bytes, sentMs: clock.nowMs() });
      this.#underWayBytes += bytes;
    });
    // What was sent is given back when it has arrived.
    if (buffer !== undefined && !isInUse) this.#chunks.giveBack(buffer);
    return isHole ? 0 : covered;
  }

  #disk(index: number): ReplicatedDisk {
    const disk = this.#options.disks[index];
    if (disk === undefined) throw new RangeError(`there is no disk ${index}`);
    return disk;
  }
}

function lost(): never {
  throw new ColobusError(
    "connection-lost",
    "the session with the secondary ended before everything was sent",
    "Nothing: the next session sends what is left.",
  );
}
