import { join } from "node:path";
import type { StateRecord } from "../proto/state-record.ts";
import { ColobusError } from "../proto/errors.ts";
import type { DiskImage, ImageSource, ImageUse } from "../shared/block/disk-image.ts";
import { assertSizeAsRecorded, changedBehind, FileImages } from "../shared/block/file-images.ts";
import { parseImageLocation, type ImageLocation } from "../shared/block/image-location.ts";
import type { StreamSource } from "../shared/host/byte-stream.ts";
import type { Clock } from "../shared/host/clock.ts";
import { createFormatImage } from "../shared/host/create-format-image.ts";
import { FormatServer } from "../shared/host/format-server.ts";
import type { Log } from "../shared/host/log.ts";
import { ServerAddress } from "../shared/host/node-byte-stream.ts";
import type { Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import { NbdImage } from "../shared/nbd/nbd-image.ts";

export interface AgentImagesOptions {
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Gets the sockets of format servers. */
  readonly runDirectory: string;
}

/** The images of one agent: files, exports of NBD servers, and files of other formats behind format servers of its own. */
export class AgentImages implements ImageSource {
  readonly #options: AgentImagesOptions;
  readonly #files: FileImages;
  /** By location. One for each, so that a server is not started while the last one still has the image. */
  readonly #sources = new Map<string, StreamSource>();
  /** Images that were connected before their disks are opened, by location. */
  readonly #connected = new Map<string, NbdImage>();

  constructor(options: AgentImagesOptions) {
    this.#options = options;
    this.#files = new FileImages(options.storage);
  }

  async measure(location: string, use: ImageUse = "own"): Promise<number> {
    const parsed = parseImageLocation(location);
    if (parsed.kind === "file") return this.#files.measure(location, use);
    assertOwn(location, use);
    const image = this.#connected.get(location) ?? (await this.#connect(location, parsed));
    return image.sizeBytes;
  }

  async haveLostWrites(disks: StateRecord["disks"]): Promise<boolean> {
    let isAnyKilled = false;
    for (const disk of disks) {
      const parsed = parseImageLocation(disk.image);
      if (parsed.kind !== "file" && (await this.#source(disk.image, parsed).wasKilled())) isAnyKilled = true;
    }
    return isAnyKilled;
  }

  async prepare(disks: StateRecord["disks"]): Promise<void> {
    for (const disk of disks) {
      const parsed = parseImageLocation(disk.image);
      if (parsed.kind === "file" || disk.sizeBytes === null || this.#connected.has(disk.image)) continue;
      const mark = this.#source(disk.image, parsed).changeMark();
      if (disk.cleanMark !== null && disk.cleanMark !== mark) throw changedBehind(disk);
      await this.#connect(disk.image, parsed);
    }
  }

  release(): void {
    for (const image of this.#connected.values()) image.close();
    this.#connected.clear();
  }

  open(disk: StateRecord["disks"][number], use: ImageUse = "own"): DiskImage {
    const parsed = parseImageLocation(disk.image);
    if (parsed.kind === "file") return this.#files.open(disk, use);
    assertOwn(disk.image, use);
    const connected = this.#connected.get(disk.image);
    if (connected === undefined) {
      const { sizeBytes } = disk;
      return new NbdImage({ ...this.#imageOptions(disk.image, parsed), sizeBytes: sizeBytes ?? undefined });
    }
    assertSizeAsRecorded(disk, connected.sizeBytes);
    this.#connected.delete(disk.image);
    return connected;
  }

  canCreate(location: string): boolean {
    const parsed = parseImageLocation(location);
    if (parsed.kind === "file") return this.#files.canCreate(location);
    return parsed.kind === "format" && !this.#options.storage.exists(parsed.path);
  }

  async create(location: string, sizeBytes: number): Promise<void> {
    const parsed = parseImageLocation(location);
    if (parsed.kind === "file") return this.#files.create(location, sizeBytes);
    if (parsed.kind === "nbd") {
      throw new ColobusError("image-missing", `${location} cannot be made from here`, "Serve an image of that size.");
    }
    if (!this.canCreate(location)) return;
    await createFormatImage(this.#options.storage, parsed.format, parsed.path, sizeBytes);
  }

  async #connect(location: string, parsed: ServedLocation): Promise<NbdImage> {
    const image = await NbdImage.connect({ ...this.#imageOptions(location, parsed), sizeBytes: undefined });
    this.#connected.set(location, image);
    return image;
  }

  #imageOptions(location: string, parsed: ServedLocation) {
    const { clock, random, log } = this.#options;
    const exportName = parsed.kind === "nbd" ? parsed.exportName : "";
    return { source: this.#source(location, parsed), exportName, clock, random, log };
  }

  #source(location: string, parsed: ServedLocation): StreamSource {
    const known = this.#sources.get(location);
    if (known !== undefined) return known;
    const { runDirectory, log } = this.#options;
    const source =
      parsed.kind === "nbd"
        ? new ServerAddress(location, parsed.address)
        : new FormatServer({ ...parsed, socketPath: join(runDirectory, `image-${this.#sources.size}.sock`), log });
    this.#sources.set(location, source);
    return source;
  }
}

type ServedLocation = Exclude<ImageLocation, { kind: "file" }>;

function assertOwn(location: string, use: ImageUse): void {
  if (use === "own") return;
  throw new ColobusError(
    "not-supported",
    `${location} cannot be a shared disk: it lies behind an NBD server`,
    "In mode `shared`, name a raw file or a block device that both hosts see.",
  );
}
