import { ClusterBitmap, clusterRuns, intersectsRange, type ClusterRun } from "../block/cluster-bitmap.ts";
import { clustersToBytes, endClusterOf, firstClusterOf, type ClusterGeometry } from "../block/cluster-geometry.ts";

/** The clusters of one disk that a peer may lack, in memory. */
export class DirtyMap {
  readonly #geometry: ClusterGeometry;
  readonly #clusters = new ClusterBitmap();

  constructor(geometry: ClusterGeometry) {
    this.#geometry = geometry;
  }

  get isEmpty(): boolean {
    return this.#clusters.isEmpty;
  }

  get bytes(): number {
    return clustersToBytes(this.#geometry, this.#clusters.size);
  }

  addAll(): void {
    this.#clusters.addRange(0, this.#geometry.clusterCount);
  }

  addBitmap(clusters: ClusterBitmap): void {
    this.#clusters.orInPlace(clusters);
  }

  /** The dirty clusters. The caller owns the bitmap. */
  dirtyClusters(): ClusterBitmap {
    return this.#clusters.clone();
  }

  addClusters(first: number, end: number): void {
    this.#clusters.addRange(first, end);
  }

  removeClusters(first: number, end: number): void {
    this.#clusters.removeRange(first, end);
  }

  addBytes(offset: number, length: number): void {
    this.#clusters.addRange(firstClusterOf(this.#geometry, offset), endClusterOf(this.#geometry, offset, length));
  }

  /** Whether every cluster that the range touches is dirty. */
  covers(offset: number, length: number): boolean {
    const first = firstClusterOf(this.#geometry, offset);
    return this.#clusters.hasRange(first, endClusterOf(this.#geometry, offset, length));
  }

  /** Whether any cluster that the range touches is dirty. */
  touches(offset: number, length: number): boolean {
    if (this.#clusters.isEmpty) return false;
    const first = firstClusterOf(this.#geometry, offset);
    return intersectsRange(this.#clusters, first, endClusterOf(this.#geometry, offset, length));
  }

  /** The runs of dirty clusters within [first, end), as they are now, ascending. */
  runsIn(first: number, end: number): Iterable<ClusterRun> {
    return clusterRuns(ClusterBitmap.and(this.#clusters, ClusterBitmap.fromRange(first, end)));
  }

  /** The first run of dirty clusters from `from` on, at most `maxClusters` long. */
  nextRun(from: number, maxClusters: number): ClusterRun | undefined {
    const clusters = this.#clusters;
    // Not `at`: it counts the whole set first.
    const first = clusters.select(from === 0 ? 0 : clusters.rank(from - 1));
    if (first === undefined) return undefined;
    const limit = Math.min(first + maxClusters, this.#geometry.clusterCount);
    // Whole-disk runs are common: try the longest one first.
    if (clusters.hasRange(first, limit)) return { first, end: limit };
    // The range up to `end` is dirty, and the one up to `beyond` is not.
    let end = first + 1;
    let beyond = limit;
    while (beyond - end > 1) {
      const middle = Math.floor((end + beyond) / 2);
      if (clusters.hasRange(end, middle)) end = middle;
      else beyond = middle;
    }
    return { first, end };
  }
}
