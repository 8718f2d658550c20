import roaring from "roaring";
import type { JournalEntry } from "../../proto/cluster-journal-format.ts";

/** A set of cluster indexes (a compressed bitmap; `roaring` is a CommonJS package, hence this door). */
export const ClusterBitmap = roaring.RoaringBitmap32;
export type ClusterBitmap = roaring.RoaringBitmap32;

/** Clusters [first, end). */
export interface ClusterRun {
  readonly first: number;
  readonly end: number;
}

/** The runs of adjacent clusters of a bitmap, ascending. */
export function* clusterRuns(clusters: ClusterBitmap): Generator<ClusterRun> {
  let first = -1;
  let end = -1;
  for (const cluster of clusters) {
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
