import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { join } from "node:path";
import type { StateRecord } from "../proto/state-record.ts";
import { ColobusError } from "../proto/errors.ts";
import type { DiskImage, ImageSource, ImageUse } from "../shared/block/disk-image.ts";
import type { Stretch } from "../shared/block/data-stretches.ts";
import { assertSizeAsRecorded, changedBehind, cutToRecord, FileImages } from "../shared/block/file-images.ts";
import { parseImageLocation, type ImageFormat, type ImageLocation } from "../shared/block/image-location.ts";
import type { StreamSource } from "../shared/host/byte-stream.ts";
import type { Clock } from "../shared/host/clock.ts";
import { createFormatImage } from "../shared/host/create-format-image.ts";
import { readFormatFacts, type FormatFacts } from "../shared/host/format-facts.ts";
import { readTopLayer } from "../shared/host/format-layers.ts";
import { FormatServer } from "../shared/host/format-server.ts";
import type { Log } from "../shared/host/log.ts";
import { ServerAddress } from "../shared/host/node-byte-stream.ts";
import type { Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import { ForeignNbdImage } from "../shared/nbd/foreign-nbd-image.ts";
import { NbdImage } from "../shared/nbd/nbd-image.ts";

/** Formats that can be read while another host writes them, as long as it moves nothing that is read. */
export const SHARED_FORMATS: readonly ImageFormat[] = ["qcow2", "vmdk", "vdi", "vpc"];

/** Of a location's digest in the name of its server's socket: a socket's path is short. */
const SOCKET_DIGITS = 8;

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
  /** The servers that read what another host writes, by location. */
  readonly #readers = new Map<string, StreamSource>();
  /** What is known of images that two hosts use, by location. */
  readonly #facts = new Map<string, SharedFacts>();
  /** Images that were connected before their disks are opened, by location. */
  readonly #connected = new Map<string, NbdImage>();
  /** Those that are about to be among them. */
  readonly #connecting = new Map<string, Promise<NbdImage>>();
  /** Images that are being made, by path: who asks for the same one waits, and finds it. */
  readonly #creating = new Map<string, Promise<unknown>>();

  constructor(options: AgentImagesOptions) {
    this.#options = options;
    this.#files = new FileImages(options.storage, options.log);
  }

  async measure(location: string, use: ImageUse = "own"): Promise<number> {
    const parsed = parseImageLocation(location);
    if (parsed.kind === "file") return this.#files.measure(location, use);
    if (use !== "own") return (await this.#look(location, parsed)).sizeBytes;
    const image = this.#connected.get(location) ?? (await this.#connect(location, parsed));
    return image.sizeBytes;
  }

  async measureFor(location: string, diskBytes: number): Promise<number> {
    const { kind } = parseImageLocation(location);
    if (kind === "file") return this.#files.measureFor(location, diskBytes);
    const sizeBytes = await this.measure(location);
    return kind === "nbd" ? Math.min(sizeBytes, diskBytes) : sizeBytes;
  }

  async haveLostWrites(disks: StateRecord["disks"], use: ImageUse): Promise<boolean> {
    let isAnyKilled = false;
    for (const disk of disks) {
      const parsed = parseImageLocation(disk.image);
      if (parsed.kind !== "file" && (await this.#source(disk.image, parsed, use).wasKilled())) isAnyKilled = true;
    }
    return isAnyKilled;
  }

  async prepare(disks: StateRecord["disks"], use: ImageUse = "own"): Promise<void> {
    for (const disk of disks) {
      const parsed = parseImageLocation(disk.image);
      if (parsed.kind === "file" || disk.sizeBytes === null) continue;
      if (use === "own") await this.#prepareOwn(disk, parsed);
      else assertSizeAsRecorded(disk, (await this.#look(disk.image, parsed)).sizeBytes);
    }
  }

  release(location?: string): void {
    for (const known of location === undefined ? [...this.#connected.keys()] : [location]) {
      this.#connected.get(known)?.close();
      this.#connected.delete(known);
    }
  }

  open(disk: StateRecord["disks"][number], use: ImageUse = "own"): DiskImage {
    const parsed = parseImageLocation(disk.image);
    if (parsed.kind === "file") return this.#files.open(disk, use);
    if (use !== "own") return this.#openShared(disk.image, parsed, use);
    const connected = this.#connected.get(disk.image);
    if (connected === undefined) {
      this.#assertAsLeft(disk, parsed);
      const { sizeBytes } = disk;
      return new NbdImage({ ...this.#imageOptions(disk.image, parsed), sizeBytes: sizeBytes ?? undefined });
    }
    cutToRecord(connected, disk);
    assertSizeAsRecorded(disk, connected.sizeBytes);
    this.#connected.delete(disk.image);
    return connected;
  }

  async topLayer(location: string): Promise<readonly Stretch[] | undefined> {
    const parsed = parseImageLocation(location);
    return parsed.kind === "format" ? readTopLayer(parsed) : undefined;
  }

  canCreate(location: string): boolean {
    const parsed = parseImageLocation(location);
    if (parsed.kind === "file") return this.#files.canCreate(location);
    return parsed.kind === "format" && !this.#options.storage.exists(parsed.path);
  }

  async create(location: string, sizeBytes: number): Promise<void> {
    const parsed = parseImageLocation(location);
    if (parsed.kind === "nbd") {
      throw new ColobusError("image-missing", `${location} cannot be made from here`, "Serve an image of that size.");
    }
    const { path } = parsed;
    const made = (this.#creating.get(path) ?? Promise.resolve()).then(async () => {
      if (parsed.kind === "file") await this.#files.create(location, sizeBytes);
      else if (this.canCreate(location)) {
        await createFormatImage(this.#options.storage, parsed.format, path, sizeBytes);
      }
    });
    const settled = made.catch(() => undefined); // the caller has the error
    this.#creating.set(path, settled);
    await settled;
    if (this.#creating.get(path) === settled) this.#creating.delete(path);
    return made;
  }

  async grow(location: string, sizeBytes: number): Promise<void> {
    const parsed = parseImageLocation(location);
    if (parsed.kind === "file") return this.#files.grow(location, sizeBytes);
    const image = await NbdImage.connect({ ...this.#imageOptions(location, parsed), sizeBytes: undefined });
    try {
      await image.grow(sizeBytes);
    } finally {
      image.close();
    }
  }

  async #prepareOwn(disk: StateRecord["disks"][number], parsed: ServedLocation): Promise<void> {
    if (this.#connected.has(disk.image)) return;
    this.#assertAsLeft(disk, parsed);
    await this.#connect(disk.image, parsed);
  }

  /** To be asked while no server has the image. Errors: `image-changed`; why nobody can tell. */
  #assertAsLeft(disk: StateRecord["disks"][number], parsed: ServedLocation): void {
    if (disk.cleanMark === null) return;
    if (this.#source(disk.image, parsed).changeMark() !== disk.cleanMark) throw changedBehind(disk);
  }

  /**
   * A server that writes an image is not started before it has something to do: until a primary has spoken to its peer,
   * another host may be the one that writes it, and to open a format for writing may be to write it.
   */
  #openShared(location: string, parsed: ServedLocation, use: "shared" | "foreign"): DiskImage {
    const facts = this.#facts.get(location);
    assert(facts !== undefined, "a shared image was looked at before it is opened");
    const { sizeBytes, unitBytes } = facts;
    const isShared = parsed.kind === "nbd";
    const options = { ...this.#imageOptions(location, parsed, use), sizeBytes, isShared };
    if (use === "foreign") return new ForeignNbdImage(options);
    return new NbdImage({ ...options, onDemand: true, placementBytes: unitBytes });
  }

  /**
   * Looks at an image that two hosts use. Errors: `not-supported`, those of opening it.
   *
   * A server that both hosts reach is what makes them see one disk: its connections have to share one cache. It has to
   * take writes from either host too, which a promotion would find out too late.
   */
  async #look(location: string, parsed: ServedLocation): Promise<SharedFacts> {
    if (parsed.kind === "format" && !SHARED_FORMATS.includes(parsed.format)) {
      throw new ColobusError(
        "not-supported",
        `${location} cannot be a shared disk: ${parsed.format} is not known to be readable while another host writes it`,
        `Formats that are: ${SHARED_FORMATS.join(", ")}; or name a raw file or a block device.`,
      );
    }
    const facts = parsed.kind === "format" ? await readFormatFacts(parsed) : await this.#lookAtExport(location, parsed);
    this.#facts.set(location, facts);
    return facts;
  }

  async #lookAtExport(location: string, parsed: ServedLocation): Promise<SharedFacts> {
    const options = this.#imageOptions(location, parsed, "shared");
    const image = await NbdImage.connect({ ...options, sizeBytes: undefined, isShared: true });
    const { sizeBytes } = image;
    image.close();
    return { sizeBytes, unitBytes: undefined };
  }

  /** Whoever asks while it is being connected gets the same one: a second connection would end the first one's server. */
  #connect(location: string, parsed: ServedLocation): Promise<NbdImage> {
    const known = this.#connecting.get(location);
    if (known !== undefined) return known;
    const connecting = NbdImage.connect({ ...this.#imageOptions(location, parsed), sizeBytes: undefined })
      .then((image) => {
        this.#connected.set(location, image);
        return image;
      })
      .finally(() => this.#connecting.delete(location));
    this.#connecting.set(location, connecting);
    return connecting;
  }

  #imageOptions(location: string, parsed: ServedLocation, use: ImageUse = "own") {
    const { clock, random, log } = this.#options;
    const exportName = parsed.kind === "nbd" ? parsed.exportName : "";
    return { source: this.#source(location, parsed, use), exportName, clock, random, log };
  }

  /** Who writes an image, alone or not, does so through the same server, and the same socket in every process. */
  #source(location: string, parsed: ServedLocation, use: ImageUse = "own"): StreamSource {
    const sources = use === "foreign" ? this.#readers : this.#sources;
    const known = sources.get(location);
    if (known !== undefined) return known;
    const { runDirectory, log } = this.#options;
    // The same in every process, whichever of the disks has the image by then.
    const digest = createHash("sha256").update(location).digest("hex").slice(0, SOCKET_DIGITS);
    const socket = `image-${digest}${use === "foreign" ? "-r" : ""}.sock`;
    const source =
      parsed.kind === "nbd"
        ? new ServerAddress(location, parsed.address)
        : new FormatServer({ ...parsed, use, socketPath: join(runDirectory, socket), log });
    sources.set(location, source);
    return source;
  }
}

type ServedLocation = Exclude<ImageLocation, { kind: "file" }>;

/** `unitBytes`: undefined where one server knows, for both hosts, where it keeps what. */
type SharedFacts = Omit<FormatFacts, "unitBytes"> & { readonly unitBytes: number | undefined };
