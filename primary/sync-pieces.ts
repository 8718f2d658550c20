import { JOB_CHUNK_BYTES, SYNC_HOLE_BYTES, SYNC_STEP_BYTES, SYNC_STEP_PIECES } from "../proto/limits.ts";
import type { ClusterRun } from "../shared/block/cluster-bitmap.ts";
import { clusterEndOffset, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

/** A disk that somebody lacks clusters of. */
export interface SyncSource {
  readonly disk: Pick<ReplicatedDisk, "startsWithHole">;
  readonly geometry: ClusterGeometry;
  /** The next dirty clusters from `from` on, at most `maxClusters`; undefined when there are none. */
  readonly nextDirty: (from: number, maxClusters: number) => ClusterRun | undefined;
}

/** A stretch of dirty clusters that is read, and brought, as one. */
export interface SyncPiece {
  /** Which of the sources it is of. */
  readonly source: number;
  readonly offset: number;
  readonly length: number;
  readonly isHole: boolean;
}

/** How much one step of a sync brings, where a job may take `bytesMax`: beside guests they are not to wait long for it. */
export function stepBytes(bytesMax: number, besideGuests: boolean): number {
  return Math.min(bytesMax, besideGuests ? JOB_CHUNK_BYTES : SYNC_STEP_BYTES);
}

/**
 * The next dirty stretches, `bytesMax` together or a little more, of which holes take `holeShare` of their length: nothing
 * travels, and a disk may have to write all of it. By default a hole takes what a chunk does, however much of it is one.
 * Errors: why a disk cannot be asked for its holes.
 */
export async function nextPieces(
  sources: readonly SyncSource[],
  bytesMax: number,
  holeShare = JOB_CHUNK_BYTES / SYNC_HOLE_BYTES,
): Promise<SyncPiece[]> {
  const pieces: SyncPiece[] = [];
  let bytes = 0;
  for (const [source, { disk, geometry, nextDirty }] of sources.entries()) {
    const { clusterBytes } = geometry;
    const clustersMax = Math.max(1, Math.floor(SYNC_HOLE_BYTES / clusterBytes));
    const chunkMax = Math.min(JOB_CHUNK_BYTES, bytesMax);
    const chunkBytes = Math.max(1, Math.floor(chunkMax / clusterBytes)) * clusterBytes;
    let from = 0;
    while (bytes < bytesMax && pieces.length < SYNC_STEP_PIECES) {
      const run = nextDirty(from, clustersMax);
      if (run === undefined) break;
      const offset = run.first * clusterBytes;
      const length = clusterEndOffset(geometry, run.end) - offset;
      const startsWithHole = length > chunkBytes && disk.startsWithHole(offset, chunkBytes);
      const isHole = startsWithHole instanceof Promise ? await startsWithHole : startsWithHole;
      const piece = { source, offset, length: isHole ? length : Math.min(length, chunkBytes), isHole };
      pieces.push(piece);
      bytes += isHole ? piece.length * holeShare : piece.length;
      from = Math.ceil((offset + piece.length) / clusterBytes);
    }
  }
  return pieces;
}

/**
 * Brings the pieces side by side. Resolves with the bytes that were read, which `bring` resolves with. All of them settle
 * before a failure is reported: nothing is under way behind a job that has paused.
 */
export async function bringAll(
  pieces: readonly SyncPiece[],
  bring: (piece: SyncPiece) => Promise<number>,
): Promise<number> {
  const outcomes = await Promise.allSettled(pieces.map(bring));
  let bytes = 0;
  for (const outcome of outcomes) {
    if (outcome.status === "rejected") throw outcome.reason;
    bytes += outcome.value;
  }
  return bytes;
}
