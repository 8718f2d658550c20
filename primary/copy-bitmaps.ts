import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import { DirtyTracker, type DirtyTrackerOptions } from "../shared/replication/dirty-tracker.ts";
import type { ChildrenContext } from "./children-context.ts";
import type { CopyIdentity } from "./children-record.ts";

export interface CopyBitmapsOptions extends Pick<
  ChildrenContext,
  "storage" | "random" | "state" | "stateDirectory" | "extentBytes" | "dirtyFileMinBytes"
> {
  readonly disk: string;
  readonly geometry: ClusterGeometry;
}

/** Where the dirty bitmaps of one disk's copies lie: each in a directory of its own, `copies/DISK.BITMAP`. */
export class CopyBitmaps {
  readonly #options: CopyBitmapsOptions;

  constructor(options: CopyBitmapsOptions) {
    this.#options = options;
  }

  /** What an earlier process has left of a copy; undefined when nothing whole is there. */
  open(identity: CopyIdentity): DirtyTracker | undefined {
    return DirtyTracker.open(this.#trackerOptions(identity));
  }

  /** A new bitmap, in which everything is dirty. Durable when the promise resolves. Errors: `io-error`, `out-of-space`. */
  async create(identity: CopyIdentity): Promise<DirtyTracker> {
    const { storage, stateDirectory } = this.#options;
    const options = this.#trackerOptions(identity);
    for (const directory of [`${stateDirectory}/copies`, stateDirectory]) await storage.syncDirectory(directory);
    return DirtyTracker.create(options, "all-dirty");
  }

  remove(identity: CopyIdentity): void {
    DirtyTracker.remove({ storage: this.#options.storage, directory: this.#directoryOf(identity) });
  }

  #trackerOptions(identity: CopyIdentity): DirtyTrackerOptions {
    const { storage, random, geometry, extentBytes, state, dirtyFileMinBytes } = this.#options;
    const { durability } = state.record;
    const directory = this.#directoryOf(identity);
    storage.makeDirectory(`${this.#options.stateDirectory}/copies`);
    storage.makeDirectory(directory);
    return { storage, random, directory, geometry, extentBytes, durability, fileMinBytes: dirtyFileMinBytes };
  }

  #directoryOf({ name, bitmap = name }: CopyIdentity): string {
    const { stateDirectory, disk } = this.#options;
    return `${stateDirectory}/copies/${disk}.${bitmap}`;
  }
}
