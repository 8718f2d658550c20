import { ColobusError } from "../proto/errors.ts";
import type { MirrorRequest } from "../proto/control-api.ts";
import type { MirrorTargets as Targets } from "../primary/mirrors.ts";
import type { ReplicatedDisk } from "../primary/replicated-disk.ts";
import { dataStretches, type Stretch } from "../shared/block/data-stretches.ts";
import type { DiskImage, ImageSource } from "../shared/block/disk-image.ts";
import { formatImageLocation, parseImageLocation, type ImageLocation } from "../shared/block/image-location.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Clock } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { DirtyTrackerOptions } from "../shared/replication/dirty-tracker.ts";

export interface MirrorTargetsOptions {
  readonly state: StateFile;
  readonly images: ImageSource;
  readonly clock: Clock;
  /** The URI under which clients reach an export of this agent. */
  readonly exportUri: (name: string) => string;
  readonly assertImageAllowed?: ((image: string) => void) | undefined;
  readonly tracker: (slot: number, geometry: ClusterGeometry) => DirtyTrackerOptions;
  readonly pivoted: (disk: string, image: DiskImage, left: Promise<void>) => void;
}

/** Opens what mirrors copy to: any image that a disk could have, and that this agent does not use already. */
export class MirrorTargets implements Targets {
  readonly tracker: Targets["tracker"];
  readonly pivoted: Targets["pivoted"];
  readonly #options: MirrorTargetsOptions;

  constructor(options: MirrorTargetsOptions) {
    this.#options = options;
    this.tracker = options.tracker;
    this.pivoted = options.pivoted;
  }

  async open(request: MirrorRequest, sizeBytes: number, signal: AbortSignal): Promise<DiskImage> {
    const location = parseImageLocation(request.target);
    const { clock, images } = this.#options;
    this.#options.assertImageAllowed?.(request.target);
    this.#assertNotOwn(location, request.target);
    const deadline = new Deadline(clock, request.timeoutMs, signal);
    const opening = this.#open(request, sizeBytes);
    try {
      return await deadline.race(opening, `${request.target} cannot be opened yet`);
    } catch (error) {
      // Whoever gives up on it leaves nothing open.
      opening.then(
        (image) => image.close(),
        () => images.release(),
      );
      throw error;
    } finally {
      deadline.end();
    }
  }

  reopen(target: string, sizeBytes: number): DiskImage {
    return this.#options.images.open({ name: "", image: target, sizeBytes, cleanMark: null });
  }

  async topLayer(disk: ReplicatedDisk): Promise<readonly Stretch[]> {
    const image = this.#options.state.record.disks.find(({ name }) => name === disk.name)?.image ?? "";
    const location = parseImageLocation(image);
    if (location.kind === "file") return dataStretches(disk.child, 0, disk.sizeBytes);
    await disk.flushChild();
    const stretches = await this.#options.images.topLayer?.(image);
    if (stretches !== undefined) return stretches;
    throw new ColobusError(
      "not-supported",
      `the layers of ${image} are not known here: its server does not tell them`,
      "Copy everything: --sync full.",
    );
  }

  async #open({ target, create }: MirrorRequest, sizeBytes: number): Promise<DiskImage> {
    const { images } = this.#options;
    if (create && images.canCreate(target)) await images.create(target, sizeBytes);
    const found = await images.measure(target);
    const image = this.reopen(target, found);
    if (found === sizeBytes) return image;
    image.close();
    throw new ColobusError(
      "size-mismatch",
      `${target} has ${found} bytes, and the disk has ${sizeBytes}`,
      "Give the target the disk's size, or name one that does not exist, with --create.",
    );
  }

  #assertNotOwn(location: ImageLocation, target: string): void {
    const { state, exportUri } = this.#options;
    for (const { name, image } of state.record.disks) {
      const own = parseImageLocation(image);
      if (isSame(own, location) || (location.kind === "nbd" && isSameServer(location, exportUri(name)))) {
        throw new ColobusError(
          "image-busy",
          `${target} is disk ${name} of this agent itself`,
          "Name an image that nobody uses.",
        );
      }
    }
  }
}

/** Whether two locations name one image, as far as they tell. */
function isSame(one: ImageLocation, other: ImageLocation): boolean {
  if (one.kind !== "nbd" && other.kind !== "nbd") return one.path === other.path;
  return formatImageLocation(one) === formatImageLocation(other);
}

/** Whether an image is an export of the server that has the one of that URI. */
function isSameServer({ address }: ImageLocation & { kind: "nbd" }, uri: string): boolean {
  const served = parseImageLocation(uri);
  return served.kind === "nbd" && JSON.stringify(served.address) === JSON.stringify(address);
}
