import { ColobusError } from "../proto/errors.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import { ChunkPool } from "./chunk-pool.ts";
import type { DiskCopy } from "./disk-copy.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import { bringAll, nextPieces, stepBytes, type SyncPiece, type SyncSource } from "./sync-pieces.ts";

/**
 * Brings a copy what it lacks, with the disk's present content, holes as holes and zeroes as zeroes, each piece while its
 * range of the disk is held. A step has several pieces under way.
 */
export class CopySync {
  readonly #disk: ReplicatedDisk;
  readonly #copy: DiskCopy;
  readonly #geometry: ClusterGeometry;
  readonly #sources: readonly SyncSource[];
  readonly #chunks = new ChunkPool();
  #doneBytes = 0;
  #requestsSeen: number;

  constructor(disk: ReplicatedDisk, copy: DiskCopy, geometry: ClusterGeometry) {
    this.#disk = disk;
    this.#copy = copy;
    this.#geometry = geometry;
    this.#sources = [{ disk, geometry, nextDirty: (from, maxClusters) => copy.dirty.nextRun(from, maxClusters) }];
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
    const pieces = await nextPieces(this.#sources, stepBytes(bytesMax, besideGuests));
    return pieces.length === 0 ? undefined : bringAll(pieces, (piece) => this.#bring(piece));
  }

  /** Resolves with the bytes that were read. */
  async #bring({ offset, length, isHole }: SyncPiece): Promise<number> {
    let buffer: Buffer | undefined;
    try {
      const covered = await this.#disk.readForSync(
        offset,
        length,
        (bytes) => (buffer = this.#chunks.take(bytes)),
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
      if (buffer !== undefined) this.#chunks.giveBack(buffer);
    }
  }
}
