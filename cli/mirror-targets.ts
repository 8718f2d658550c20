import assert from "node:assert/strict";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import type { MirrorRequest } from "../proto/control-api.ts";
import type { MirrorTargets as Targets } from "../primary/mirrors.ts";
import type { ReplicatedDisk } from "../primary/replicated-disk.ts";
import { dataStretches, type Stretch } from "../shared/block/data-stretches.ts";
import type { DiskImage, ImageSource } from "../shared/block/disk-image.ts";
import { formatImageLocation, parseImageLocation, type ImageLocation } from "../shared/block/image-location.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import { noteLosses } from "../shared/block/lost-writes.ts";
import { Deadline } from "../shared/host/deadline.ts";
import type { LostSyncs } from "../shared/journal/lost-syncs.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { DirtyTrackerOptions } from "../shared/replication/dirty-tracker.ts";
import type { AgentOptions } from "./agent-host.ts";

export interface MirrorTargetsOptions {
  readonly agent: AgentOptions;
  readonly state: StateFile;
  readonly childImages: ImageSource;
  readonly lostSyncs: LostSyncs;
  /** A disk has another image from now on. */
  readonly adopted: (disk: string, image: DiskImage) => void;
  /** The same, by the disk's place in the record. Returns the image before, which is to be closed. */
  readonly replaceImage: (index: number, image: DiskImage) => { close(): void } | undefined;
}

/** Opens what mirrors copy to: any image that a disk could have, and that this agent does not use already. */
export class MirrorTargets implements Targets {
  readonly #options: MirrorTargetsOptions;

  constructor(options: MirrorTargetsOptions) {
    this.#options = options;
  }

  tracker(slot: number, geometry: ClusterGeometry): DirtyTrackerOptions {
    const { agent, state } = this.#options;
    const { storage, random } = agent.host;
    const { stateDirectory, extentBytes, dirtyFileMinBytes } = agent.config;
    const directory = `${stateDirectory}/mirrors/${slot}`;
    storage.makeDirectory(`${stateDirectory}/mirrors`);
    storage.makeDirectory(directory);
    const { durability } = state.record;
    return { storage, random, directory, geometry, extentBytes, durability, fileMinBytes: dirtyFileMinBytes };
  }

  pivoted(name: string, image: DiskImage, left: Promise<unknown>): void {
    const { agent, state, adopted, lostSyncs, replaceImage } = this.#options;
    const index = state.record.disks.findIndex((disk) => disk.name === name);
    const disk = state.record.disks[index];
    assert(disk !== undefined, "a disk of the record has got another image");
    noteLosses(image, disk, lostSyncs);
    adopted(name, image);
    const former = replaceImage(index, image);
    left.then(
      () => former?.close(),
      (error: unknown) => agent.host.log.error({ reason: asColobusError(error) }, "an image is left open"),
    );
  }

  async open(request: MirrorRequest, sizeBytes: number, signal: AbortSignal): Promise<DiskImage> {
    const location = parseImageLocation(request.target);
    const { agent, childImages: images } = this.#options;
    const { clock } = agent.host;
    agent.assertImageAllowed?.(request.target);
    this.#assertNotOwn(location, request.target);
    const deadline = new Deadline(clock, request.timeoutMs, signal);
    const opening = this.#open(request, sizeBytes);
    try {
      return await deadline.race(opening, `${request.target} cannot be opened yet`);
    } catch (error) {
      // Whoever gives up on it leaves nothing open.
      opening.then(
        (image) => image.close(),
        () => images.release(request.target),
      );
      throw error;
    } finally {
      deadline.end();
    }
  }

  reopen(target: string, sizeBytes: number, cleanMark: string | null = null): DiskImage {
    return this.#options.childImages.open({ name: "", image: target, sizeBytes, cleanMark });
  }

  async topLayer(disk: ReplicatedDisk): Promise<readonly Stretch[]> {
    const image = this.#options.state.record.disks.find(({ name }) => name === disk.name)?.image ?? "";
    const location = parseImageLocation(image);
    if (location.kind === "file") return dataStretches(disk.child, 0, disk.sizeBytes);
    await disk.flushChild();
    const stretches = await this.#options.childImages.topLayer?.(image);
    if (stretches !== undefined) return stretches;
    throw new ColobusError(
      "not-supported",
      `the layers of ${image} are not known here: its server does not tell them`,
      "Copy everything: --sync full.",
    );
  }

  async #open({ target, create }: MirrorRequest, sizeBytes: number): Promise<DiskImage> {
    const { childImages: images } = this.#options;
    if (create && images.canCreate(target)) await images.create(target, sizeBytes);
    const found = await images.measureFor(target, sizeBytes);
    const image = this.reopen(target, found);
    if (found === sizeBytes) return image;
    image.close();
    throw new ColobusError(
      "size-mismatch",
      `${target} has ${found} bytes, and the disk has ${sizeBytes}`,
      "Give the target the disk's size, or name a longer block device, or one that does not exist, with --create.",
    );
  }

  #assertNotOwn(location: ImageLocation, target: string): void {
    const { agent, state } = this.#options;
    for (const { name, image, quorum } of state.record.disks) {
      const copies = quorum?.children.flatMap((child) => child.image ?? []) ?? [];
      const isOwn = [image, ...copies].some((own) => isSame(parseImageLocation(own), location));
      if (isOwn || (location.kind === "nbd" && isSameServer(location, agent.exportUri(name)))) {
        throw new ColobusError(
          "image-busy",
          `${target} is disk ${name} of this agent itself, or a copy of it`,
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
