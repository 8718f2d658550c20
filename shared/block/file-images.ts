import { dirname } from "node:path";
import { ColobusError } from "../../proto/errors.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Log } from "../host/log.ts";
import type { Storage } from "../host/storage.ts";
import type { ImageSource, ImageUse } from "./disk-image.ts";
import { parseImageLocation } from "./image-location.ts";
import { createImage, openForeignImage, openImage, openSharedImage, type Image } from "./image.ts";

type RecordedDisk = StateRecord["disks"][number];

/** Images that are files or block devices of this host: their location is the path, or raw: and the path. */
export class FileImages implements ImageSource {
  readonly #storage: Storage;
  readonly #log: Log | undefined;
  /** Devices whose surplus was told of. */
  readonly #told = new Set<string>();

  /** `log` is told which devices are longer than their disks. */
  constructor(storage: Storage, log?: Log) {
    this.#storage = storage;
    this.#log = log;
  }

  haveLostWrites(): Promise<boolean> {
    return Promise.resolve(false);
  }

  prepare(): Promise<void> {
    return Promise.resolve();
  }

  release(): void {
    // Nothing is opened before it is asked for.
  }

  async measure(location: string, use: ImageUse = "own"): Promise<number> {
    const image = this.#open(location, use);
    image.close();
    return Promise.resolve(image.sizeBytes);
  }

  async measureFor(location: string, diskBytes: number): Promise<number> {
    const image = this.#open(location, "own");
    image.close();
    return Promise.resolve(image.isDevice ? Math.min(image.sizeBytes, diskBytes) : image.sizeBytes);
  }

  open(disk: RecordedDisk, use: ImageUse = "own"): Image {
    const image = this.#open(disk.image, use);
    try {
      if (image.isDevice) this.#cut(image, disk);
      assertSizeAsRecorded(disk, image.sizeBytes);
      // That another host has changed it is no fault where two use it.
      if (use === "own" && disk.cleanMark !== null && disk.cleanMark !== image.changeMark()) throw changedBehind(disk);
      return image;
    } catch (error) {
      image.close();
      throw error;
    }
  }

  canCreate(location: string): boolean {
    return !this.#storage.exists(pathOf(location));
  }

  async create(location: string, sizeBytes: number): Promise<void> {
    if (this.canCreate(location)) await createImage(this.#storage, pathOf(location), sizeBytes);
    // An earlier process may have made the image, and died before its name was durable.
    else await this.#storage.syncDirectory(dirname(pathOf(location)));
  }

  async grow(location: string, sizeBytes: number): Promise<void> {
    const image = this.#open(location, "own");
    try {
      await image.grow(sizeBytes);
    } finally {
      image.close();
    }
  }

  #cut(image: Image, disk: RecordedDisk): void {
    const { sizeBytes: deviceBytes } = image;
    cutToRecord(image, disk);
    if (image.sizeBytes === deviceBytes || this.#told.has(image.path)) return;
    this.#told.add(image.path);
    this.#log?.info(
      { disk: disk.name, image: image.path, deviceBytes, diskBytes: image.sizeBytes },
      "a block device is longer than its disk, which has the first part of it",
    );
  }

  #open(location: string, use: ImageUse): Image {
    const parsed = parseImageLocation(location);
    const options = { isRaw: parsed.kind === "file" && parsed.isExplicit };
    if (use === "foreign") return openForeignImage(this.#storage, pathOf(location), options);
    if (use === "shared") return openSharedImage(this.#storage, pathOf(location), options);
    return openImage(this.#storage, pathOf(location), options);
  }
}

function pathOf(location: string): string {
  const parsed = parseImageLocation(location);
  if (parsed.kind === "file") return parsed.path;
  throw new ColobusError("usage", `${location} is not a file`, "Name a raw file or a block device.");
}

/**
 * Has an image whose size others decide be as long as its recorded disk: it may have been made longer for a resize that is
 * still to come, or in units of its own. The disk is its first part.
 */
export function cutToRecord(image: Pick<Image, "sizeBytes" | "cutTo">, { sizeBytes }: RecordedDisk): void {
  if (sizeBytes !== null && image.sizeBytes > sizeBytes) image.cutTo(sizeBytes);
}

/** Throws `image-changed` when the image of a recorded disk has another size than recorded. */
export function assertSizeAsRecorded(disk: RecordedDisk, sizeBytes: number): void {
  if (disk.sizeBytes === null || disk.sizeBytes === sizeBytes) return;
  throw new ColobusError(
    "image-changed",
    `image ${disk.image} of disk ${disk.name} has ${sizeBytes} bytes, and the state directory records ${disk.sizeBytes}`,
    ADOPT,
  );
}

export function changedBehind(disk: RecordedDisk): ColobusError {
  return new ColobusError(
    "image-changed",
    `image ${disk.image} of disk ${disk.name} was changed by another program since this agent was stopped`,
    ADOPT,
  );
}

const ADOPT =
  "Start with the image as the agent left it. On a primary, --adopt-image takes it as it is and sends everything again; " +
  "on a secondary, start with an empty state directory for a full sync.";
