import roaring from "roaring";
import type { JournalEntry } from "../../proto/cluster-journal-format.ts";
import { DISK_MAX_CLUSTERS } from "../../proto/limits.ts";

/** Up to so many clusters are walked one by one: that is faster than to look for where runs begin and end. */
const WALKED_MAX = 1024;

/** A set of cluster indexes (a compressed bitmap; `roaring` is a CommonJS package, hence this door). */
export const ClusterBitmap = roaring.RoaringBitmap32;
export type ClusterBitmap = roaring.RoaringBitmap32;

/** Clusters [first, end). */
export interface ClusterRun {
  readonly first: number;
  readonly end: number;
}

/** The runs of adjacent clusters of a bitmap, as it is now, ascending. */
export function clusterRuns(clusters: ClusterBitmap): Iterable<ClusterRun> {
  return clusters.size <= WALKED_MAX ? walkedRuns(clusters) : boundedRuns(clusters);
}

/** Of a small set: cluster by cluster. */
function* walkedRuns(clusters: ClusterBitmap): Generator<ClusterRun> {
  let first = -1;
  let end = -1;
  for (const cluster of clusters.toArray()) {
    if (cluster === end) {
      end += 1;
    } else {
      if (first >= 0) yield { first, end };
      first = cluster;
      end = cluster + 1;
    }
  }
  if (first >= 0) yield { first, end };
}

/** Of a large one, which may be a whole disk of 16 TiB: the clusters whose neighbour is missing are where runs begin and end. */
function* boundedRuns(clusters: ClusterBitmap): Generator<ClusterRun> {
  const behind = ClusterBitmap.addOffset(clusters, 1);
  const ends = ClusterBitmap.andNot(behind, clusters)[Symbol.iterator]();
  for (const first of ClusterBitmap.andNot(clusters, behind)) {
    const end = ends.next();
    // There is no index behind the last possible cluster.
    yield { first, end: end.done === true ? DISK_MAX_CLUSTERS : end.value };
  }
}

/**
 * Whether the bitmap holds any cluster of [first, end). `intersectsWithRange` of roaring 2.7 leaves out the last
 * cluster of the range.
 */
export function intersectsRange(clusters: ClusterBitmap, first: number, end: number): boolean {
  return clusters.rangeCardinality(first, end) > 0;
}

/** Does to the bitmap what a journal entry for whole clusters says. */
export function applyJournalEntry(clusters: ClusterBitmap, entry: JournalEntry): void {
  const end = entry.firstCluster + entry.clusterCount;
  if (entry.operation === "held") clusters.addRange(entry.firstCluster, end);
  else clusters.removeRange(entry.firstCluster, end);
}
