import { ColobusError } from "../proto/errors.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { EventType } from "../proto/words.ts";
import {
  clusterGeometry,
  firstClusterOf,
  growGeometry,
  type ClusterGeometry,
} from "../shared/block/cluster-geometry.ts";
import { cannotGrow, growRecorded } from "../shared/block/growth.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { DiskCopies } from "./disk-copies.ts";
import { mergeUnfinished } from "../shared/jobs/merge-unfinished.ts";
import { openMirrors } from "./mirror-record.ts";
import type { NamedBitmaps } from "./named-bitmaps.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { SecondaryPlace } from "./secondary-place.ts";
import type { SourceSession } from "./source-session.ts";

/** Images have whole sectors. */
const SECTOR_BYTES = 512;

export interface ResizesOptions {
  readonly state: StateFile;
  readonly disks: readonly ReplicatedDisk[];
  /** Those of the role, by disk. */
  readonly geometries: readonly ClusterGeometry[];
  readonly bitmaps: NamedBitmaps;
  readonly copies: DiskCopies;
  readonly places: readonly SecondaryPlace[];
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
}

/** The sessions in which secondaries have said that their disk is long enough. */
export type GrownPeers = ReadonlySet<SourceSession>;

/**
 * Has disks of a primary grow, in two steps: first every secondary that is connected makes its disk longer, durably, or says
 * why it cannot; then the image here grows, and with it everything that goes by the disk's size. So a secondary never lacks
 * room for what guests write behind the former end, and one that has grown alone says so at the next handshake and is taken.
 * A secondary that is away follows when it connects: its disk is shorter then than its primary's. Copies here grow with the
 * image, all or none.
 *
 * What is behind the former end is dirty, whatever the images have there, and goes with a sync.
 */
export class Resizes {
  readonly #options: ResizesOptions;

  constructor(options: ResizesOptions) {
    this.#options = options;
  }

  /**
   * The disk's index. Errors: why it cannot grow to that size: `not-found`, `usage`, `not-supported`, `merge-unfinished`,
   * `job-state`, `child-refused`.
   */
  assertPossible(name: string, sizeBytes: number): number {
    const { disks, state, places, copies } = this.#options;
    const index = disks.findIndex((disk) => disk.name === name);
    const disk = disks[index];
    if (disk === undefined) {
      throw new ColobusError("not-found", `there is no disk ${name}`, "See `colobus status`.");
    }
    if (sizeBytes % SECTOR_BYTES !== 0) {
      throw new ColobusError("usage", `a disk has whole sectors of ${SECTOR_BYTES} bytes`, "Choose another size.");
    }
    if (sizeBytes < disk.sizeBytes) {
      throw new ColobusError(
        "not-supported",
        `disk ${name} has ${disk.sizeBytes} bytes, and a disk does not shrink`,
        "Copy what is used to a smaller disk, from inside the VM.",
      );
    }
    clusterGeometry(sizeBytes, state.record.clusterBytes);
    assertUnused(state.record, name);
    if (state.record.mode === "shared") throw cannotGrow(name);
    copies.assertMayGrow(index, disk);
    if (places.some(({ verifies }) => verifies.isRunning)) {
      throw new ColobusError("job-state", "the replicas are being compared", "Wait for it: `colobus jobs`.");
    }
    return index;
  }

  /** Asks the secondaries that are connected. Errors: why one of them cannot; `outcome-unknown`. Nothing has changed here. */
  async askPeers(index: number, sizeBytes: number): Promise<GrownPeers> {
    const grown = new Set<SourceSession>();
    for (const { replicator } of this.#options.places) {
      if (!replicator.isConnected) continue;
      const { session } = replicator;
      await session.request((id) => ({ type: "resize", id, disk: index, sizeBytes }));
      grown.add(session);
    }
    return grown;
  }

  /**
   * Makes the disk here longer. Durable when the promise resolves, and guests may write there. Errors: as `assertPossible`;
   * those of the image and of the record.
   */
  async grow(index: number, sizeBytes: number, grown: GrownPeers): Promise<void> {
    const { disks, geometries, state, places, bitmaps, copies, emit } = this.#options;
    const disk = disks[index];
    const geometry = geometries[index];
    if (disk === undefined || geometry === undefined) throw new RangeError(`there is no disk ${index}`);
    const formerBytes = geometry.sizeBytes;
    if (sizeBytes <= formerBytes) return;
    await growRecorded(state, disk.name, sizeBytes, {
      assertMay: (record) => assertUnused(record, disk.name),
      grow: () => copies.growImages(index, disk, sizeBytes),
    });
    // Nothing is waited for from here on: a request that comes finds all of it, or nothing.
    growGeometry(geometry, sizeBytes);
    copies.grow(index, sizeBytes);
    bitmaps.grow(index, sizeBytes);
    for (const { tracking } of places) tracking.grow(index, sizeBytes);
    const from = firstClusterOf(geometry, formerBytes) * geometry.clusterBytes;
    for (const { replicator } of places) {
      if (replicator.isConnected && grown.has(replicator.session)) {
        replicator.sendAgain(index, from, sizeBytes - from);
      } else {
        // Who has come meanwhile was greeted with the former size.
        replicator.endSession(
          new ColobusError("replaced", `disk ${disk.name} has grown: the two greet each other anew`),
        );
      }
    }
    emit("disk-resized", { disk: disk.name, sizeBytes, formerSizeBytes: formerBytes });
  }
}

/** Errors: what goes by the disk's present size, or forbids another: `outdated`, `merge-unfinished`, `job-state`. */
function assertUnused(record: StateRecord, name: string): void {
  if (record.outdated) {
    throw new ColobusError(
      "outdated",
      "this side is behind the peer's history",
      "Resize on the side that serves; on this one: `colobus rejoin --peer WS_URL`.",
    );
  }
  if (record.merge !== null) throw mergeUnfinished();
  const mirror = openMirrors(record).find(({ disk }) => disk === name);
  if (mirror !== undefined) {
    throw new ColobusError(
      "job-state",
      `${mirror.id} copies disk ${name} to an image of its present size`,
      `Wait for it, or end it with \`colobus job cancel ${mirror.id}\`.`,
    );
  }
}
