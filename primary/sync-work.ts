import { ColobusError } from "../proto/errors.ts";
import {
  DISK_RETRY_MS,
  JOB_CHUNK_BYTES,
  SYNC_HOLE_BYTES,
  SYNC_STEP_BYTES,
  SYNC_STEP_PIECES,
  SYNC_WINDOW_SHARE,
  SYNC_WINDOW_SHARE_BESIDE_GUESTS,
} from "../proto/limits.ts";
import type { JobState } from "../proto/words.ts";
import { clusterEndOffset, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { JobWork } from "../shared/jobs/job.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { Replicator } from "./replicator.ts";
import type { SourceSession } from "./source-session.ts";

export interface SyncWorkOptions {
  readonly type: "full-sync" | "resync";
  readonly replicator: Replicator;
  readonly disks: readonly ReplicatedDisk[];
  readonly geometries: readonly ClusterGeometry[];
  readonly windowBytes: number;
}

/** A stretch of dirty clusters that is read, and sent, as one. */
interface Piece {
  readonly disk: number;
  readonly offset: number;
  readonly length: number;
  readonly isHole: boolean;
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
  /** What was sent and is not known to have arrived, oldest first. */
  readonly #underWay: { readonly sequence: number; readonly buffer: Buffer | undefined; readonly bytes: number }[] = [];
  /** Whole chunks for the next pieces: new ones for each would keep the garbage collector busy. */
  readonly #spare: Buffer[] = [];
  #underWayBytes = 0;
  #requestsSeen: number;
  #wasPaused = false;

  constructor(options: SyncWorkOptions) {
    this.#options = options;
    this.#session = options.replicator.session;
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

  async step(bytesMax: number): Promise<number | undefined> {
    const { replicator, windowBytes } = this.#options;
    const requests = this.guestRequests();
    const besideGuests = requests !== this.#requestsSeen;
    this.#requestsSeen = requests;
    await this.#untilRoom(windowBytes * (besideGuests ? SYNC_WINDOW_SHARE_BESIDE_GUESTS : SYNC_WINDOW_SHARE));
    const pieces = await this.#nextPieces(Math.min(bytesMax, besideGuests ? JOB_CHUNK_BYTES : SYNC_STEP_BYTES));
    if (pieces.length === 0) return replicator.tryFinishSync(this.#session) ? undefined : lost();
    // All of them settle before a failure is reported: nothing is under way behind a job that has paused.
    const outcomes = await Promise.allSettled(pieces.map((piece) => this.#send(piece)));
    let bytes = 0;
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") throw outcome.reason;
      bytes += outcome.value;
    }
    return bytes;
  }

  /** Waits until less than `limitBytes` of this sync, and less than the window as a whole, are under way. */
  async #untilRoom(limitBytes: number): Promise<void> {
    const { replicator } = this.#options;
    for (let oldest = this.#underWay[0]; oldest !== undefined; oldest = this.#underWay[0]) {
      const arriving = replicator.syncedThrough(this.#session, oldest.sequence);
      if (arriving !== undefined) {
        if (this.#underWayBytes < limitBytes) break;
        await arriving;
      }
      this.#underWay.shift();
      this.#underWayBytes -= oldest.bytes;
      if (oldest.buffer !== undefined) this.#giveBack(oldest.buffer);
    }
    const room = this.#session.room();
    if (room !== undefined) await room;
  }

  /** The next dirty stretches, `bytesMax` together or a little more, and holes between them, which take nothing of that. */
  async #nextPieces(bytesMax: number): Promise<Piece[]> {
    const pieces: Piece[] = [];
    let bytes = 0;
    for (const [disk, geometry] of this.#options.geometries.entries()) {
      const clustersMax = Math.max(1, Math.floor(SYNC_HOLE_BYTES / geometry.clusterBytes));
      const chunkMax = Math.min(JOB_CHUNK_BYTES, bytesMax);
      const chunkBytes = Math.max(1, Math.floor(chunkMax / geometry.clusterBytes)) * geometry.clusterBytes;
      let from = 0;
      while (bytes < bytesMax && pieces.length < SYNC_STEP_PIECES) {
        const run = this.#options.replicator.nextDirty(disk, from, clustersMax);
        if (run === undefined) break;
        const offset = run.first * geometry.clusterBytes;
        const length = clusterEndOffset(geometry, run.end) - offset;
        const startsWithHole = length > chunkBytes && this.#disk(disk).startsWithHole(offset, chunkBytes);
        const isHole = startsWithHole instanceof Promise ? await startsWithHole : startsWithHole;
        const piece = { disk, offset, length: isHole ? length : Math.min(length, chunkBytes), isHole };
        pieces.push(piece);
        if (!isHole) bytes += piece.length;
        from = Math.ceil((offset + piece.length) / geometry.clusterBytes);
      }
    }
    return pieces;
  }

  /** Resolves with the bytes that were read. */
  async #send({ disk, offset, length, isHole }: Piece): Promise<number> {
    const { replicator, geometries } = this.#options;
    const clusterBytes = geometries[disk]?.clusterBytes ?? length;
    let buffer: Buffer | undefined;
    const take = (bytes: number): Buffer => (buffer = this.#take(Math.min(bytes, JOB_CHUNK_BYTES)));
    let isInUse = false;
    const covered = await this.#disk(disk).readForSync(offset, length, take, clusterBytes, (content) => {
      const sequence = replicator.sendSynced(this.#session, disk, offset, content);
      if (sequence === undefined) lost();
      isInUse = typeof content !== "number";
      const bytes = typeof content === "number" ? 0 : content.length;
      this.#underWay.push({ sequence, buffer: isInUse ? buffer : undefined, bytes });
      this.#underWayBytes += bytes;
    });
    if (buffer !== undefined && !isInUse) this.#giveBack(buffer);
    return isHole ? 0 : covered;
  }

  #take(length: number): Buffer {
    if (length < JOB_CHUNK_BYTES) return Buffer.allocUnsafe(length);
    return this.#spare.pop() ?? Buffer.allocUnsafeSlow(JOB_CHUNK_BYTES);
  }

  /** The bytes have arrived, or were not sent: nobody reads them any more. */
  #giveBack(buffer: Buffer): void {
    if (buffer.length === JOB_CHUNK_BYTES) this.#spare.push(buffer);
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
