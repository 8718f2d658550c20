import { BUFFER_APPLY_BYTES, BUFFER_APPLY_STRETCHES, SYNC_HOLE_BYTES } from "../proto/limits.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { ClusterBitmap, clusterRuns } from "../shared/block/cluster-bitmap.ts";
import { clusterEndOffset, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import type { EpochBuffer } from "./epoch-buffer.ts";
import { DISCARD_POSITION, positionBehind } from "./fragment-index.ts";

/** A longer stretch counts as several. */
const STRETCH_BYTES = 16 * 1024;

/** A part of a cluster, and which buffer has it. */
interface Part {
  readonly start: number;
  readonly end: number;
  readonly buffer: EpochBuffer;
  readonly position: number;
}

/** Where merged buffers are written to. */
export interface MergeTarget {
  /** `source` is the caller's again when that is done. */
  write(source: Buffer, offset: number): Pending;
  zero(offset: number, length: number, isDiscard: boolean): Pending;
}

/** The base as the target of a merge. */
export function intoBase(base: DiskImage): MergeTarget {
  return {
    write: (source, offset) => base.write(source, offset, { fua: false, isLent: true }),
    zero: (offset, length, isDiscard) => base.zero(offset, length, { fua: false, mayUnmap: isDiscard }),
  };
}

/**
 * Writes what `buffers`, oldest first, have to `target`: each byte once, the newest one, in ascending order but for whole
 * clusters of zeroes, which go first; adjacent bytes together. `rest` is awaited every so often; when it resolves with
 * false, nothing more is written. Resolves with whether everything is. Errors: those of the target and of the logs.
 */
export async function mergeBuffers(
  buffers: readonly EpochBuffer[],
  geometry: ClusterGeometry,
  target: MergeTarget,
  rest: () => Promise<boolean>,
): Promise<boolean> {
  const union = new ClusterBitmap();
  const zeroed = new ClusterBitmap();
  for (const { index } of buffers.toReversed()) {
    for (const isDiscard of [false, true]) {
      const clusters = isDiscard ? index.onlyDiscarded() : index.onlyZeroed();
      clusters.andNotInPlace(union);
      zeroed.orInPlace(clusters);
      if (!(await zeroRuns(clusters, geometry, target, isDiscard, rest))) return false;
    }
    union.orInPlace(index.held());
  }
  union.andNotInPlace(zeroed);
  const writer = new StretchWriter(geometry, target);
  try {
    for (const { first, end } of clusterRuns(union)) {
      for (let cluster = first; cluster < end; cluster += 1) {
        const base = cluster * geometry.clusterBytes;
        for (const part of partsOf(buffers, cluster, clusterEndOffset(geometry, cluster + 1) - base)) {
          const putting = writer.put(part, base);
          if (putting !== undefined) await putting;
        }
        if (writer.cost < BUFFER_APPLY_STRETCHES) continue;
        writer.cost = 0;
        await writer.flush();
        if (!(await rest())) return false;
      }
    }
    await writer.flush();
    return true;
  } catch (error) {
    await writer.settled();
    throw error;
  }
}

async function zeroRuns(
  clusters: ClusterBitmap,
  geometry: ClusterGeometry,
  target: MergeTarget,
  isDiscard: boolean,
  rest: () => Promise<boolean>,
): Promise<boolean> {
  let stretches = 0;
  for (const { first, end } of clusterRuns(clusters)) {
    const endOffset = clusterEndOffset(geometry, end);
    for (let at = first * geometry.clusterBytes; at < endOffset; at += SYNC_HOLE_BYTES) {
      await target.zero(at, Math.min(SYNC_HOLE_BYTES, endOffset - at), isDiscard);
      stretches += 1;
      if (stretches % BUFFER_APPLY_STRETCHES === 0 && !(await rest())) return false;
    }
  }
  return true;
}

/** What the buffers have of the cluster, the newest of each byte, ascending. */
function partsOf(buffers: readonly EpochBuffer[], cluster: number, clusterBytes: number): Part[] {
  const parts: Part[] = [];
  for (let at = buffers.length - 1; at >= 0; at -= 1) {
    const buffer = buffers[at];
    if (buffer === undefined) continue;
    const { index } = buffer;
    for (let fragment = index.first(cluster); fragment >= 0; fragment = index.next(fragment)) {
      const start = index.startOf(fragment);
      addUncovered(parts, {
        start,
        end: start + index.lengthOf(fragment),
        buffer,
        position: index.positionOf(fragment),
      });
    }
    const zeroes = index.zeroesOf(cluster);
    if (zeroes === undefined) continue;
    addUncovered(parts, { start: 0, end: clusterBytes, buffer, position: zeroes });
    break;
  }
  return parts;
}

/** Adds what no part has of `part` yet, in its place. */
function addUncovered(parts: Part[], part: Part): void {
  const last = parts.at(-1);
  if (last === undefined || last.end <= part.start) {
    parts.push(part);
    return;
  }
  const gaps: Part[] = [];
  let at = part.start;
  const addGap = (end: number): void => {
    const position = positionBehind(part.position, at - part.start);
    gaps.push({ start: at, end, buffer: part.buffer, position });
  };
  for (const { start, end } of parts) {
    if (end <= at) continue;
    if (start >= part.end) break;
    if (start > at) addGap(start);
    at = end;
  }
  if (at < part.end) addGap(part.end);
  parts.push(...gaps);
  parts.sort((one, other) => one.start - other.start);
}

/** Gathers adjacent parts, and writes them together. A part that stays alone is written from where it lies. */
class StretchWriter {
  /** What was written, in stretches of usual length. */
  cost = 0;
  readonly #target: MergeTarget;
  readonly #scratch: Buffer;
  #offset = 0;
  #length = 0;
  /** All that is gathered, where it is one part that its log has in memory. */
  #alone: Buffer | undefined;
  #reads: Promise<void>[] = [];

  constructor(geometry: ClusterGeometry, target: MergeTarget) {
    this.#target = target;
    this.#scratch = Buffer.allocUnsafeSlow(Math.max(BUFFER_APPLY_BYTES, geometry.clusterBytes));
  }

  /** Takes the part of the cluster that begins at `base`. */
  put(part: Part, base: number): Pending {
    const offset = base + part.start;
    const length = part.end - part.start;
    const isAdjacent = part.position >= 0 && offset === this.#offset + this.#length;
    if (this.#length === 0 || (isAdjacent && this.#length + length <= this.#scratch.length)) {
      return this.#take(part, offset, length);
    }
    const flushing = this.flush();
    return flushing === undefined
      ? this.#take(part, offset, length)
      : flushing.then(() => this.#take(part, offset, length));
  }

  /** Writes what is gathered. */
  flush(): Pending {
    if (this.#length === 0) return undefined;
    if (this.#reads.length === 0) return this.#write();
    return Promise.all(this.#reads).then(() => {
      this.#reads = [];
      return this.#write();
    });
  }

  /** Nothing is read into the scratch buffer any more: for the end after an error. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#reads);
  }

  #take(part: Part, offset: number, length: number): Pending {
    if (part.position < 0) {
      this.cost += 1;
      return this.#target.zero(offset, length, part.position === DISCARD_POSITION);
    }
    if (this.#length === 0) {
      this.#offset = offset;
      this.#alone = part.buffer.tryView(part.position, length);
      if (this.#alone !== undefined) {
        this.#length = length;
        return undefined;
      }
    } else if (this.#alone !== undefined) {
      this.#alone.copy(this.#scratch);
      this.#alone = undefined;
    }
    const into = this.#scratch.subarray(this.#length, this.#length + length);
    const reading = part.buffer.readAt(into, part.position, 0);
    if (reading !== undefined) this.#reads.push(reading);
    this.#length += length;
    return undefined;
  }

  #write(): Pending {
    const length = this.#length;
    this.#length = 0;
    this.cost += Math.ceil(length / STRETCH_BYTES);
    const gathered = this.#alone ?? this.#scratch.subarray(0, length);
    this.#alone = undefined;
    return this.#target.write(gathered, this.#offset);
  }
}
