import { ColobusError } from "../proto/errors.ts";
import type { ChildStatus } from "../proto/status.ts";
import type { Child } from "../shared/block/block-device.ts";
import { clusterRuns } from "../shared/block/cluster-bitmap.ts";
import { clusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import { cannotGrow } from "../shared/block/growth.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import type { ChildrenContext } from "./children-context.ts";
import { DiskChildren, type PivotedDisk } from "./disk-children.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

export interface DiskCopiesOptions {
  /** undefined: the disks have no copies beside their images, and none may be added. */
  readonly context: ChildrenContext | undefined;
  /** In mode `shared`. */
  readonly sharesDisks: boolean;
  readonly images: readonly { readonly name: string; readonly child: Child }[];
  readonly trackings: readonly { readonly tracking: Pick<PeerTracking, "add"> }[];
  /** Guests are not to change anything before an operator has looked: as `QuorumOptions.freeze`. */
  readonly freeze: (difference: ColobusError) => void;
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

  /** Errors: `not-supported`, `child-refused`: why the disk cannot be made longer, as far as that is known before it is tried. */
  assertMayGrow(disk: number, { name, child }: Pick<ReplicatedDisk, "name" | "child">): void {
    const copies = this.#disks[disk];
    if (copies !== undefined) copies.assertMayGrow();
    else if (child.grow === undefined) throw cannotGrow(name);
  }

  /** Makes all images of a disk longer. Durable when the promise resolves. Errors: why not; none is then. */
  growImages(disk: number, { name, child }: Pick<ReplicatedDisk, "name" | "child">, sizeBytes: number): Promise<void> {
    const copies = this.#disks[disk];
    if (copies !== undefined) return copies.growImages(sizeBytes);
    return child.grow?.(sizeBytes) ?? Promise.reject(cannotGrow(name));
  }

  /** The images have grown, and the disk has `sizeBytes` from now on. */
  grow(disk: number, sizeBytes: number): void {
    this.#disks[disk]?.grow(sizeBytes);
  }

  /** See `DiskChildren.begin`. */
  async begin(): Promise<void> {
    for (const copies of this.#disks) await copies.begin();
  }

  start(disks: readonly ReplicatedDisk[]): void {
    for (const [index, disk] of disks.entries()) this.#disks[index]?.start(disk);
  }

  describe(disk: number): ChildStatus[] {
    return this.#disks[disk]?.describe() ?? [];
  }

  /** For an operator's changes. Errors: `not-found`, `not-supported`. */
  of(name: string): DiskChildren {
    const { images, sharesDisks } = this.#options;
    if (!images.some((image) => image.name === name)) {
      throw new ColobusError("not-found", `there is no disk ${name}`, "See `colobus status`.");
    }
    const copies = this.#find(name);
    if (copies !== undefined) return copies;
    throw new ColobusError(
      "not-supported",
      `disk ${name} takes no copies beside its image here`,
      sharesDisks
        ? "A shared disk has no copies: use a mode other than `shared`."
        : "This side was promoted: restart the agent when no merge is left.",
    );
  }

  /** Why a disk's own image is not to be relied on by itself. */
  localFault(name: string): ColobusError | undefined {
    return this.#find(name)?.localFault;
  }

  /** See `DiskChildren.pivot`. */
  async pivot(name: string, image: DiskImage, record: () => Promise<void>): Promise<PivotedDisk> {
    const copies = this.#find(name);
    if (copies !== undefined) return copies.pivot(image, record);
    await record();
    return { child: image, left: Promise.resolve() };
  }

  /**
   * Nothing is written to the copies any more but what their disks are. Errors: where `isDemoted`, and the images alone are
   * gone on with: why one of them is not what its disk was.
   */
  async stop(reason: ColobusError, isDemoted: boolean): Promise<void> {
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

  /** No request comes any more. Errors: as `stop`, of what has been lost since. */
  async close(isDemoted: boolean): Promise<void> {
    let fault: ColobusError | undefined;
    for (const copies of this.#disks) {
      await copies.close();
      if (isDemoted) fault ??= copies.localFault;
    }
    if (fault !== undefined) throw fault;
  }

  #find(name: string): DiskChildren | undefined {
    return this.#disks[this.#options.images.findIndex((image) => image.name === name)];
  }
}
