import type { Operation } from "../proto/replication-messages.ts";
import { ClusterBitmap, clusterRuns } from "../shared/block/cluster-bitmap.ts";
import {
  clusterEndOffset,
  endClusterOf,
  firstClusterOf,
  type ClusterGeometry,
} from "../shared/block/cluster-geometry.ts";
import type { ReadOriginal } from "./original-copy.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

/** A stretch of whole clusters, and what they held: bytes, or zeroes. */
interface Stretch {
  readonly offset: number;
  readonly length: number;
  readonly content: Buffer | undefined;
}

/**
 * The originals of one disk that a primary has sent in one batch, as far as they are not held yet (mode `shared`). Of a
 * cluster that is sent twice the first counts: what comes later may have been read after the change.
 */
class ReceivedOriginals {
  /** Clusters whose originals are in here. */
  readonly clusters = new ClusterBitmap();
  readonly #geometry: ClusterGeometry;
  readonly #stretches: Stretch[] = [];
  #sorted = true;

  constructor(geometry: ClusterGeometry) {
    this.#geometry = geometry;
  }

  /** Takes an operation whose clusters in `unsaved` are not held yet. The payload is kept as a view. */
  add(operation: Operation, unsaved: ClusterBitmap): void {
    const fresh = ClusterBitmap.andNot(unsaved, this.clusters);
    if (fresh.isEmpty) return;
    for (const { first, end } of clusterRuns(fresh)) {
      const offset = first * this.#geometry.clusterBytes;
      const length = clusterEndOffset(this.#geometry, end) - offset;
      const from = offset - operation.offset;
      const content = operation.kind === "original" ? operation.payload.subarray(from, from + length) : undefined;
      const last = this.#stretches.at(-1);
      if (last !== undefined && last.offset > offset) this.#sorted = false;
      this.#stretches.push({ offset, length, content });
    }
    this.clusters.orInPlace(fresh);
  }

  /** Fills `target`, which lies within `clusters`, with what they held. */
  readonly read: ReadOriginal = (target, offset) => {
    if (!this.#sorted) {
      this.#stretches.sort((one, other) => one.offset - other.offset);
      this.#sorted = true;
    }
    const end = offset + target.length;
    let index = this.#findStretch(offset);
    for (let at = offset; at < end;) {
      const stretch = this.#stretches[index];
      if (stretch === undefined) throw new RangeError(`the original at ${at} was not received`);
      const stretchEnd = Math.min(end, stretch.offset + stretch.length);
      const piece = target.subarray(at - offset, stretchEnd - offset);
      if (stretch.content === undefined) piece.fill(0);
      else piece.set(stretch.content.subarray(at - stretch.offset, stretchEnd - stretch.offset));
      at = stretchEnd;
      index += 1;
    }
    return undefined;
  };

  /** The stretch that `offset` lies in. */
  #findStretch(offset: number): number {
    let low = 0;
    let high = this.#stretches.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if ((this.#stretches[middle]?.offset ?? Infinity) <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

/** What is to be saved of each disk, as the call that does it. */
export type Saves = Map<ReplicaDisk, () => Promise<void>>;

/** What of a batch of originals its disks do not hold yet. */
export function collectReceived(batch: readonly Operation[], diskOf: (operation: Operation) => ReplicaDisk): Saves {
  const received = new Map<ReplicaDisk, ReceivedOriginals>();
  for (const operation of batch) {
    const disk = diskOf(operation);
    const { geometry } = disk.context;
    let originals = received.get(disk);
    if (originals === undefined) received.set(disk, (originals = new ReceivedOriginals(geometry)));
    const unsaved = new ClusterBitmap();
    const { offset, length } = operation;
    disk.hidden.collectUnsaved(firstClusterOf(geometry, offset), endClusterOf(geometry, offset, length), unsaved);
    originals.add(operation, unsaved);
  }
  const saves: Saves = new Map();
  for (const [disk, { clusters, read }] of received) {
    if (!clusters.isEmpty) saves.set(disk, () => disk.hidden.saveFrom(read, clusters));
  }
  return saves;
}

/** Whether an original covers whole clusters, the last one of the disk as far as that reaches. */
export function coversWholeClusters(geometry: ClusterGeometry, { offset, length }: Operation): boolean {
  const end = endClusterOf(geometry, offset, length);
  return (
    offset === firstClusterOf(geometry, offset) * geometry.clusterBytes &&
    offset + length === clusterEndOffset(geometry, end)
  );
}
