import type { Pending } from "../block/block-device.ts";
import type { ClusterBitmap, ClusterRun } from "../block/cluster-bitmap.ts";
import type { ClusterGeometry } from "../block/cluster-geometry.ts";
import type { Clock } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import type { Random } from "../host/random.ts";
import type { Storage } from "../host/storage.ts";
import type { Durability } from "../../proto/words.ts";
import { DirtyMap } from "./dirty-map.ts";

// STUB until the durable one is merged.
export interface DirtyTrackerOptions {
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly directory: string;
  readonly geometry: ClusterGeometry;
  readonly durability: Durability;
}
export class DirtyTracker extends DirtyMap {
  static create(options: DirtyTrackerOptions, initial: "clean" | "all-dirty" | ClusterBitmap): Promise<DirtyTracker> {
    const made = new DirtyTracker(options.geometry);
    if (initial === "all-dirty") made.addClusters(0, options.geometry.clusterCount);
    else if (initial !== "clean") made.addBitmap(initial);
    return Promise.resolve(made);
  }
  static open(_options: DirtyTrackerOptions): DirtyTracker | undefined {
    return undefined;
  }
  mark(_offset: number, _length: number): Pending {
    return undefined;
  }
  addRuns(runs: readonly ClusterRun[]): Promise<void> {
    for (const { first, end } of runs) this.addClusters(first, end);
    return Promise.resolve();
  }
  settle(_inFlight: ClusterBitmap, _flush: () => Promise<void>): Promise<void> {
    return Promise.resolve();
  }
  settleAll(_inFlight: ClusterBitmap, _flush: () => Promise<void>): Promise<void> {
    return Promise.resolve();
  }
  forget(): Promise<void> {
    return Promise.resolve();
  }
  close(): void {}
}
