import assert from "node:assert/strict";
import { ColobusError } from "../../proto/errors.ts";
import { CLUSTER_MAX_BYTES, CLUSTER_MIN_BYTES, DISK_MAX_CLUSTERS } from "../../proto/limits.ts";

/**
 * How a disk divides into clusters. The last cluster may be shorter than the others. All parts of a disk share one geometry,
 * and see it grow (`growGeometry`): what is derived from its size is not kept.
 */
export interface ClusterGeometry {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly clusterCount: number;
}

/** Errors: `usage` when the cluster size is no power of two within the limits, or the disk has too many clusters. */
export function clusterGeometry(sizeBytes: number, clusterBytes: number): ClusterGeometry {
  if (
    !Number.isInteger(Math.log2(clusterBytes)) ||
    clusterBytes < CLUSTER_MIN_BYTES ||
    clusterBytes > CLUSTER_MAX_BYTES
  ) {
    throw new ColobusError(
      "usage",
      `a cluster size of ${clusterBytes} bytes is not possible`,
      `Choose a power of two from ${CLUSTER_MIN_BYTES} to ${CLUSTER_MAX_BYTES}.`,
    );
  }
  const clusterCount = Math.ceil(sizeBytes / clusterBytes);
  if (clusterCount > DISK_MAX_CLUSTERS) {
    throw new ColobusError(
      "usage",
      `a disk of ${sizeBytes} bytes has more than ${DISK_MAX_CLUSTERS} clusters of ${clusterBytes} bytes`,
      "Choose a larger --cluster-size on both agents.",
    );
  }
  return { sizeBytes, clusterBytes, clusterCount };
}

/** The disk has `sizeBytes` from now on. Errors: `usage`, as `clusterGeometry`. */
export function growGeometry(geometry: ClusterGeometry, sizeBytes: number): void {
  assert(sizeBytes >= geometry.sizeBytes, "a disk does not shrink");
  Object.assign(geometry, clusterGeometry(sizeBytes, geometry.clusterBytes));
}

export function firstClusterOf(geometry: ClusterGeometry, offset: number): number {
  return Math.floor(offset / geometry.clusterBytes);
}

/** The cluster after the last one that [offset, offset+length) touches. */
export function endClusterOf(geometry: ClusterGeometry, offset: number, length: number): number {
  return Math.ceil((offset + length) / geometry.clusterBytes);
}

/** Where the clusters [first, end) end in bytes: the disk's end cuts the last one. */
export function clusterEndOffset(geometry: ClusterGeometry, endCluster: number): number {
  return Math.min(endCluster * geometry.clusterBytes, geometry.sizeBytes);
}

/** Bytes that a set of `clusterCount` clusters occupies, counting the last one whole. */
export function clustersToBytes(geometry: ClusterGeometry, clusterCount: number): number {
  return Math.min(clusterCount * geometry.clusterBytes, geometry.sizeBytes);
}
