import { ColobusError } from "../proto/errors.ts";
import { JOB_CHUNK_BYTES, SYNC_HOLE_BYTES, SYNC_STEP_BYTES, SYNC_STEP_PIECES } from "../proto/limits.ts";
import { clusterEndOffset, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { DiskCopy } from "./disk-copy.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

interface Piece {
  readonly offset: number;
  readonly length: number;
  readonly isHole: boolean;
}

/**
 * Brings a copy what it lacks, with the disk's present content, holes as holes and zeroes as zeroes, each piece while its
 * range of the disk is held. A step has several pieces under way.
 */
export class CopySync {
  readonly #disk: ReplicatedDisk;
  readonly #copy: DiskCopy;
  readonly #geometry: ClusterGeometry;
  /** Whole chunks for the next pieces: new ones for each would keep the garbage collector busy. */
  readonly #spare: Buffer[] = [];
  #doneBytes = 0;
  #requestsSeen: number;

  constructor(disk: ReplicatedDisk, copy: DiskCopy, geometry: ClusterGeometry) {
    this.#disk = disk;
    this.#copy = copy;
    this.#geometry = geometry;
    this.#requestsSeen = disk.requests;
  }

  /** What was brought so far, holes included, and with it what the copy lacks. */
  get progress(): { readonly doneBytes: number; readonly totalBytes: number } {
    return { doneBytes: this.#doneBytes, totalBytes: this.#doneBytes + this.#copy.dirtyBytes };
  }

  /**
   * Brings the next stretches, of about `bytesMax`. Resolves with the bytes that it read, or undefined when nothing was
   * dirty. Errors: why the disk cannot be read, or the copy is broken; nothing is under way then, but for what was given up.
   */
  async step(bytesMax: number): Promise<number | undefined> {
    const besideGuests = this.#disk.requests !== this.#requestsSeen;
    this.#requestsSeen = this.#disk.requests;
    const pieces = await this.#nextPieces(Math.min(bytesMax, besideGuests ? JOB_CHUNK_BYTES : SYNC_STEP_BYTES));
    if (pieces.length === 0) return undefined;
    const outcomes = await Promise.allSettled(pieces.map((piece) => this.#bring(piece)));
    let bytes = 0;
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") throw outcome.reason;
      bytes += outcome.value;
    }
    return bytes;
  }

  /** The next dirty stretches, `bytesMax` together or a little more, and holes between them, which take nothing of that. */
  async #nextPieces(bytesMax: number): Promise<Piece[]> {
    const { clusterBytes } = this.#geometry;
    const clustersMax = Math.max(1, Math.floor(SYNC_HOLE_BYTES / clusterBytes));
    const chunkMax = Math.min(JOB_CHUNK_BYTES, bytesMax);
    const chunkBytes = Math.max(1, Math.floor(chunkMax / clusterBytes)) * clusterBytes;
    const pieces: Piece[] = [];
    let bytes = 0;
    let from = 0;
    while (bytes < bytesMax && pieces.length < SYNC_STEP_PIECES) {
      const run = this.#copy.dirty.nextRun(from, clustersMax);
      if (run === undefined) break;
      const offset = run.first * clusterBytes;
      const length = clusterEndOffset(this.#geometry, run.end) - offset;
      const startsWithHole = length > chunkBytes && this.#disk.startsWithHole(offset, chunkBytes);
      const isHole = startsWithHole instanceof Promise ? await startsWithHole : startsWithHole;
      const piece = { offset, length: isHole ? length : Math.min(length, chunkBytes), isHole };
      pieces.push(piece);
      if (!isHole) bytes += piece.length;
      from = Math.ceil((offset + piece.length) / clusterBytes);
    }
    return pieces;
  }

  /** Resolves with the bytes that were read. */
  async #bring({ offset, length, isHole }: Piece): Promise<number> {
    let buffer: Buffer | undefined;
    try {
      const covered = await this.#disk.readForSync(
        offset,
        length,
        (bytes) => (buffer = this.#take(Math.min(bytes, JOB_CHUNK_BYTES))),
        this.#geometry.clusterBytes,
        (content) => this.#copy.place(offset, content),
      );
      this.#doneBytes += covered;
      return isHole ? 0 : covered;
    } catch (error) {
      // What was given up may still be read, whenever the copy comes to it.
      if (error instanceof ColobusError && error.code === "child-timed-out") buffer = undefined;
      throw error;
    } finally {
      if (buffer !== undefined) this.#giveBack(buffer);
    }
  }

  #take(length: number): Buffer {
    if (length < JOB_CHUNK_BYTES) return Buffer.allocUnsafe(length);
    return this.#spare.pop() ?? Buffer.allocUnsafeSlow(JOB_CHUNK_BYTES);
  }

  #giveBack(buffer: Buffer): void {
    if (buffer.length === JOB_CHUNK_BYTES) this.#spare.push(buffer);
  }
}
