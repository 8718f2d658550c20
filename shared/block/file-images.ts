import { dirname } from "node:path";
import { ColobusError } from "../../proto/errors.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Storage } from "../host/storage.ts";
import type { ImageSource, ImageUse } from "./disk-image.ts";
import { parseImageLocation } from "./image-location.ts";
import { createImage, openForeignImage, openImage, openSharedImage, type Image } from "./image.ts";

/** Images that are files or block devices of this host: their location is the path, or raw: and the path. */
export class FileImages implements ImageSource {
  readonly #storage: Storage;

  constructor(storage: Storage) {
    this.#storage = storage;
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

  open(disk: StateRecord["disks"][number], use: ImageUse = "own"): Image {
    const image = this.#open(disk.image, use);
    try {
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

/** Throws `image-changed` when the image of a recorded disk has another size than recorded. */
export function assertSizeAsRecorded(disk: StateRecord["disks"][number], sizeBytes: number): void {
  if (disk.sizeBytes === null || disk.sizeBytes === sizeBytes) return;
  throw new ColobusError(
    "image-changed",
    `image ${disk.image} of disk ${disk.name} has ${sizeBytes} bytes, and the state directory records ${disk.sizeBytes}`,
    ADOPT,
  );
}

export function changedBehind(disk: StateRecord["disks"][number]): ColobusError {
  return new ColobusError(
    "image-changed",
    `image ${disk.image} of disk ${disk.name} was changed by another program since this agent was stopped`,
    ADOPT,
  );
}

const ADOPT =
  "Start with the image as the agent left it. On a primary, --adopt-image takes it as it is and sends everything again; " +
  "on a secondary, start with an empty state directory for a full sync.";
