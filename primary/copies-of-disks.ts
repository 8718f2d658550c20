import type { ChildStatus } from "../proto/control-api.ts";
import { ColobusError } from "../proto/errors.ts";
import type { Child } from "../shared/block/block-device.ts";
import { clusterRuns } from "../shared/block/cluster-bitmap.ts";
import { clusterGeometry, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import type { ChildrenContext } from "./children-context.ts";
import { DiskChildren } from "./disk-children.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

/** The copies of all disks of a primary, by the disks' indexes; none, where `context` is undefined. */
export class CopiesOfDisks {
  readonly #context: ChildrenContext | undefined;
  readonly #disks: readonly { readonly name: string; readonly children: DiskChildren }[];

  /** `freeze` has guests wait for an operator. */
  constructor(
    context: ChildrenContext | undefined,
    images: readonly { readonly name: string; readonly child: Child }[],
    geometries: readonly ClusterGeometry[],
    freeze: () => void,
  ) {
    this.#context = context;
    if (context === undefined) {
      this.#disks = [];
      return;
    }
    const { clusterBytes } = context.state.record;
    this.#disks = images.map(({ name, child }, index) => {
      const geometry = geometries[index] ?? clusterGeometry(child.sizeBytes, clusterBytes);
      return { name, children: new DiskChildren({ ...context, disk: name, local: child, geometry, freeze }) };
    });
  }

  /** What a disk's requests go to; undefined: to its image. */
  childOf(disk: number): Child | undefined {
    return this.#disks[disk]?.children.child;
  }

  start(disks: readonly ReplicatedDisk[]): void {
    for (const [index, disk] of disks.entries()) this.#disks[index]?.children.start(disk);
  }

  /** Empty where the disk's image is the only copy. */
  describe(disk: number): ChildStatus[] {
    return this.#disks[disk]?.children.describe() ?? [];
  }

  /** The copies of a disk, for an operator's changes. Errors: `not-found`, `not-supported`. */
  of(name: string): DiskChildren {
    const disk = this.#disks.find((candidate) => candidate.name === name);
    if (disk !== undefined) return disk.children;
    if (this.#context !== undefined) {
      throw new ColobusError("not-found", `there is no disk ${name}`, "See `colobus status`.");
    }
    throw new ColobusError(
      "not-supported",
      `disk ${name} takes no copies beside its image here`,
      "A disk of mode `shared` never does; a promoted agent does when its merge is over and it was restarted.",
    );
  }

  /**
   * Ends all copies' part in the role. `demoted` is the peer's bitmap where the images alone are gone on with: what an image
   * lacks, the peer is to send then. Errors: why it lacks that.
   */
  async stop(reason: ColobusError, demoted: Pick<PeerTracking, "add"> | undefined): Promise<void> {
    let fault: ColobusError | undefined;
    for (const [index, { children }] of this.#disks.entries()) {
      await children.stop(reason);
      const lacks = children.localFault;
      if (lacks === undefined || demoted === undefined) continue;
      fault = lacks;
      await demoted.add(index, [...clusterRuns(children.localDirty)]);
    }
    if (fault !== undefined) throw fault;
  }
}
