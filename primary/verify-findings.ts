import type { VerifyResult } from "../proto/status.ts";
import { VERIFY_DIFFERENCES_MAX } from "../proto/limits.ts";
import { ClusterBitmap, clusterRuns, type ClusterRun } from "../shared/block/cluster-bitmap.ts";
import { clusterEndOffset, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";

export interface VerifiedDisk {
  readonly name: string;
  readonly geometry: ClusterGeometry;
}

type Difference = VerifyResult["differences"][number];

/**
 * What a verify has found: every differing cluster, and the first ranges that they form, each of which is told of when
 * its end is known. Clusters come in ascending order, disk after disk.
 */
export class VerifyFindings {
  readonly #disks: readonly VerifiedDisk[];
  readonly #tell: (difference: Difference) => void;
  readonly #clusters: readonly ClusterBitmap[];
  readonly #listed: Difference[] = [];
  /** The range that the next cluster may go on. */
  #latest: { readonly disk: number; readonly offset: number; length: number } | undefined;
  #ranges = 0;
  #bytes = 0;

  constructor(disks: readonly VerifiedDisk[], tell: (difference: Difference) => void) {
    this.#disks = disks;
    this.#tell = tell;
    this.#clusters = disks.map(() => new ClusterBitmap());
  }

  add(disk: number, cluster: number): void {
    const { geometry } = this.#diskAt(disk);
    const offset = cluster * geometry.clusterBytes;
    const length = clusterEndOffset(geometry, cluster + 1) - offset;
    this.#clusters[disk]?.add(cluster);
    this.#bytes += length;
    const latest = this.#latest;
    if (latest?.disk === disk && latest.offset + latest.length === offset) {
      latest.length += length;
      return;
    }
    this.close();
    this.#ranges += 1;
    this.#latest = { disk, offset, length };
  }

  /** No further cluster goes on the latest range. */
  close(): void {
    if (this.#latest === undefined) return;
    const difference = this.#describe(this.#latest);
    this.#latest = undefined;
    if (this.#listed.length >= VERIFY_DIFFERENCES_MAX) return;
    this.#listed.push(difference);
    this.#tell(difference);
  }

  describe(): Pick<VerifyResult, "differences" | "ranges" | "differingBytes"> {
    const isListed = this.#latest !== undefined && this.#listed.length < VERIFY_DIFFERENCES_MAX;
    const latest = isListed && this.#latest !== undefined ? [this.#describe(this.#latest)] : [];
    return { differences: [...this.#listed, ...latest], ranges: this.#ranges, differingBytes: this.#bytes };
  }

  /** All of them, disk by disk. */
  *runs(): Iterable<readonly [disk: number, run: ClusterRun]> {
    for (const [disk, clusters] of this.#clusters.entries()) {
      for (const run of clusterRuns(clusters)) yield [disk, run];
    }
  }

  #describe({ disk, offset, length }: { disk: number; offset: number; length: number }): Difference {
    return { disk: this.#diskAt(disk).name, offset, length };
  }

  #diskAt(index: number): VerifiedDisk {
    const disk = this.#disks[index];
    if (disk === undefined) throw new RangeError(`there is no disk ${index}`);
    return disk;
  }
}
