import { ColobusError } from "../proto/errors.ts";
import type { ChildStatus } from "../proto/control-api.ts";
import type { Child } from "../shared/block/block-device.ts";
import { clusterRuns } from "../shared/block/cluster-bitmap.ts";
import { clusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import type { ChildrenContext } from "./children-context.ts";
import { DiskChildren } from "./disk-children.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

export interface DiskCopiesOptions {
  /** undefined: the disks have no copies beside their images, and none may be added. */
  readonly context: ChildrenContext | undefined;
  /** In mode `shared`. */
  readonly sharesDisks: boolean;
  readonly images: readonly { readonly name: string; readonly child: Child }[];
  readonly trackings: readonly { readonly tracking: Pick<PeerTracking, "add"> }[];
  /** Guests are not to change anything before an operator has looked. */
  readonly freeze: () => void;
  /** Whether the disk has another image than the one that it was opened with. */
  readonly hasPivoted: (disk: string) => boolean;
}

/** The copies of all disks of a primary beside their images. */
export class DiskCopies {
  readonly #options: DiskCopiesOptions;
  /** By disk; empty where there are none. */
  readonly #disks: readonly DiskChildren[];

  constructor(options: DiskCopiesOptions) {
    const { context, images, freeze } = options;
    this.#options = options;
    this.#disks =
      context === undefined
        ? []
        : images.map(({ name, child }) => {
            const geometry = clusterGeometry(child.sizeBytes, context.state.record.clusterBytes);
            return new DiskChildren({ ...context, disk: name, local: child, geometry, freeze });
          });
  }

  /** What the writes of a disk go to, by its index; undefined: its image alone. */
  child(disk: number): Child | undefined {
    return this.#disks[disk]?.child;
  }

  /** The image of a disk that has no other copies has `sizeBytes` from now on. */
  grow(disk: number, sizeBytes: number): void {
    this.#disks[disk]?.grow(sizeBytes);
  }

  start(disks: readonly ReplicatedDisk[]): void {
    for (const [index, disk] of disks.entries()) this.#disks[index]?.start(disk);
  }

  describe(disk: number): ChildStatus[] {
    return this.#disks[disk]?.describe() ?? [];
  }

  /** For an operator's changes. Errors: `not-found`, `not-supported`. */
  of(name: string): DiskChildren {
    const { images, sharesDisks, hasPivoted } = this.#options;
    const index = images.findIndex((image) => image.name === name);
    if (index < 0) throw new ColobusError("not-found", `there is no disk ${name}`, "See `colobus status`.");
    const copies = hasPivoted(name) ? undefined : this.#disks[index];
    if (copies !== undefined) return copies;
    throw new ColobusError(
      "not-supported",
      `disk ${name} takes no copies beside its image here`,
      sharesDisks
        ? "A shared disk has no copies: use a mode other than `shared`."
        : "It was promoted, or the disk got another image: restart the agent when no merge is left.",
    );
  }

  /** Errors: where `isDemoted`, and the images alone are gone on with: why one of them is not what its disk was. */
  async leave(reason: ColobusError, isDemoted: boolean): Promise<void> {
    let fault: ColobusError | undefined;
    for (const [index, copies] of this.#disks.entries()) {
      await copies.stop(reason);
      const lacks = copies.localFault;
      if (lacks === undefined || !isDemoted) continue;
      fault = lacks;
      // The peer is to send what the image lacks.
      for (const { tracking } of this.#options.trackings) {
        await tracking.add(index, [...clusterRuns(copies.localDirty)]);
      }
    }
    if (fault !== undefined) throw fault;
  }
}
