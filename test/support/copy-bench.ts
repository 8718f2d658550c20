import { DiskCopy, type DiskCopyOptions } from "../../primary/disk-copy.ts";
import { GuestGate } from "../../primary/guest-gate.ts";
import { ReplicatedDisk, type Forwarding } from "../../primary/replicated-disk.ts";
import type { Child } from "../../shared/block/block-device.ts";
import { clusterGeometry, type ClusterGeometry } from "../../shared/block/cluster-geometry.ts";
import { DirtyMap } from "../../shared/replication/dirty-map.ts";
import { ManualClock } from "./manual-clock.ts";
import { MemoryDevice } from "./memory-device.ts";

export const COPY_CLUSTER_BYTES = 4096;
export const COPY_TIMEOUT_MS = 1_000;

/** A disk without a secondary, and copies of it, all in memory. */
export class CopyBench {
  readonly clock = new ManualClock();
  readonly geometry: ClusterGeometry;
  readonly local: MemoryDevice;
  readonly disk: ReplicatedDisk;
  /** What the disk's child was reported to have refused. */
  readonly refused: string[] = [];

  constructor(clusters: number, makeChild: (local: MemoryDevice) => Child = (local) => local) {
    this.geometry = clusterGeometry(clusters * COPY_CLUSTER_BYTES, COPY_CLUSTER_BYTES);
    this.local = new MemoryDevice(this.geometry.sizeBytes);
    this.disk = new ReplicatedDisk("vda", this.geometry, makeChild(this.local), new GuestGate(), this.#forwarding());
  }

  /** A copy that lacks everything, unless `options` says otherwise. */
  copy(child: Child, options: Partial<DiskCopyOptions> = {}): DiskCopy {
    const dirty = new DirtyMap(this.geometry);
    if (options.state !== "sound") dirty.addAll();
    return new DiskCopy({
      disk: "vda",
      name: "b",
      child,
      geometry: this.geometry,
      dirty,
      clock: this.clock,
      timeoutMs: COPY_TIMEOUT_MS,
      state: "syncing",
      ...options,
    });
  }

  #forwarding(): Forwarding {
    return {
      mark: () => undefined,
      forward: () => undefined,
      room: () => undefined,
      flush: () => undefined,
      failed: (offset, length) => this.refused.push(`write ${offset}+${length}`),
      refused: (during, offset, length) => this.refused.push(`${during} ${offset}+${length}`),
    };
  }
}
