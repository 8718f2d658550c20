import { ColobusError } from "../../proto/errors.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type {
  BlockDevice,
  Extent,
  OpenWrite,
  Pending,
  WriteFlags,
  ZeroFlags,
} from "../../shared/block/block-device.ts";
import type { DiskImage, ImageSource } from "../../shared/block/disk-image.ts";
import { FileImages } from "../../shared/block/file-images.ts";
import { openImage, type Image } from "../../shared/block/image.ts";
import type { ByteStream, ByteStreamHandlers, StreamSource } from "../../shared/host/byte-stream.ts";
import { ByteBudget } from "../../shared/nbd/byte-budget.ts";
import { NbdConnection, type NbdTransport } from "../../shared/nbd/connection.ts";
import { NbdImage } from "../../shared/nbd/nbd-image.ts";
import { ReplyArenaPool } from "../../shared/nbd/reply-writer.ts";
import { GENEROUS_BUDGET, MemoryLog, TestDirectory, TestExport } from "../support/nbd-harness.ts";
import type { SeededRandom } from "./seeded-random.ts";
import type { SimProcess } from "./sim-host.ts";
import type { SimWorld } from "./world.ts";

/** A byte takes up to this long from an agent to the server of its image, and back. */
const DELAY_MAX_MS = 0.3;
/** A server lives this long at most, if it is one of those that die, where nothing else is said. */
const SERVER_LIFE_MAX_MS = 4_000;
const DEADLY = 0.5;

export interface ServedImagesOptions {
  readonly world: SimWorld;
  readonly process: SimProcess;
  readonly random: SeededRandom;
  /** What the servers leave that were killed, by image: it outlives the agent, until another server is started. */
  readonly killed: Set<string>;
  /** How long servers live that die, at most. */
  readonly lifeMaxMs?: number | undefined;
}

/**
 * The images of an agent in a simulated world, behind NBD servers of the shipping code: bytes take their time, and servers
 * die and come back. One that dies takes along what no flush has covered: the end of it, as far as it likes. Each server works on the file of the disk's image, with the faults that this has.
 */
export class ServedImages implements ImageSource {
  readonly #options: ServedImagesOptions;
  readonly #files: FileImages;

  constructor(options: ServedImagesOptions) {
    this.#options = options;
    this.#files = new FileImages(options.process.storage);
  }

  measure(location: string): Promise<number> {
    return this.#files.measure(location);
  }

  measureFor(location: string, diskBytes: number): Promise<number> {
    return this.#files.measureFor(location, diskBytes);
  }

  haveLostWrites(disks: StateRecord["disks"]): Promise<boolean> {
    return Promise.resolve(disks.some(({ image }) => this.#options.killed.has(image)));
  }

  prepare(): Promise<void> {
    return Promise.resolve();
  }

  release(): void {
    // Nothing is opened before it is asked for.
  }

  open(disk: StateRecord["disks"][number]): DiskImage {
    const { process } = this.#options;
    const mark = new FileImages(process.storage).open(disk); // refused as a file would be
    mark.close();
    return new NbdImage({
      source: new ServedFile(this.#options, disk.image),
      exportName: "disk",
      sizeBytes: disk.sizeBytes ?? undefined,
      clock: process.clock,
      random: process.random,
      log: new MemoryLog().asLog(),
    });
  }

  canCreate(location: string): boolean {
    return this.#files.canCreate(location);
  }

  create(location: string, sizeBytes: number): Promise<void> {
    return this.#files.create(location, sizeBytes);
  }

  grow(location: string, sizeBytes: number): Promise<void> {
    return this.#files.grow(location, sizeBytes);
  }
}

class ServedFile implements StreamSource {
  readonly name: string;
  readonly #options: ServedImagesOptions;
  #session: ServerSession | undefined;
  #growing: Promise<void> | undefined;

  constructor(options: ServedImagesOptions, path: string) {
    this.#options = options;
    this.name = path;
  }

  async dial(): Promise<ByteStream> {
    await this.#growing?.catch(() => undefined); // who has it grow is told
    await this.#session?.gone;
    const { process, killed } = this.#options;
    killed.delete(this.name);
    const session = new ServerSession(this.#options, openImage(process.storage, this.name));
    this.#session = session;
    return session;
  }

  wasKilled(): Promise<boolean> {
    return Promise.resolve(false);
  }

  grow(sizeBytes: number): Promise<void> {
    const growing = this.stop().then(() => new FileImages(this.#options.process.storage).grow(this.name, sizeBytes));
    this.#growing = growing;
    return growing.finally(() => {
      this.#growing = undefined;
    });
  }

  async stop(): Promise<void> {
    await this.#session?.gone;
  }

  changeMark(): string {
    const image = openImage(this.#options.process.storage, this.name);
    try {
      return image.changeMark();
    } finally {
      image.close();
    }
  }
}

/** One server, and the stream of its one client. */
class ServerSession implements ByteStream, NbdTransport {
  readonly gone: Promise<void>;
  readonly #options: ServedImagesOptions;
  readonly #path: string;
  readonly #device: ForgetfulDevice;
  readonly #connection: NbdConnection;
  readonly #toServer: Buffer[] = [];
  readonly #toClient: Buffer[] = [];
  #handlers: ByteStreamHandlers | undefined;
  #isPaused = false;
  #isOver = false;

  constructor(options: ServedImagesOptions, image: Image) {
    const { world, process, random } = options;
    this.#options = options;
    this.#path = image.path;
    this.#device = new ForgetfulDevice(image, process.host.disk.readFile(image.path));
    let left: () => void = () => undefined;
    this.gone = new Promise((resolve) => {
      left = resolve;
    });
    this.#connection = new NbdConnection({
      transport: this,
      directory: new TestDirectory(new TestExport("disk", this.#device)),
      budget: new ByteBudget(GENEROUS_BUDGET, process.clock),
      arenas: new ReplyArenaPool(),
      clock: process.clock,
      log: new MemoryLog().asLog(),
      clientName: "agent",
      onGone: () => {
        image.close();
        left();
      },
    });
    if (random.chance(DEADLY)) {
      const lifeMaxMs = options.lifeMaxMs ?? SERVER_LIFE_MAX_MS;
      world.schedule(random.fraction() * lifeMaxMs, () => this.#die(), process);
    }
  }

  // The client's side

  send(parts: readonly Uint8Array[]): void {
    if (this.#isOver) return;
    this.#toServer.push(Buffer.concat(parts));
    this.#later(() => this.#deliver());
  }

  start(handlers: ByteStreamHandlers): void {
    this.#handlers = handlers;
    this.#later(() => this.#answer());
  }

  close(): void {
    this.#end("this side closed the connection");
  }

  abort(): void {
    this.close();
  }

  // The server's side

  transmit(parts: readonly Buffer[]): void {
    this.#toClient.push(...parts.map((part) => Buffer.from(part)));
    this.#later(() => {
      if (this.#isOver) return;
      this.#answer();
      this.#connection.sent();
    });
  }

  pauseInput(): void {
    this.#isPaused = true;
  }

  resumeInput(): void {
    this.#isPaused = false;
    this.#later(() => this.#deliver());
  }

  end(): void {
    this.#later(() => this.#end("the server closed the connection"));
  }

  destroy(): void {
    this.#end("the server dropped the connection");
  }

  #deliver(): void {
    while (!this.#isPaused && !this.#isOver) {
      const chunk = this.#toServer.shift();
      if (chunk === undefined) return;
      this.#connection.receive(chunk);
    }
  }

  #answer(): void {
    if (this.#handlers === undefined || this.#isOver) return;
    for (let chunk = this.#toClient.shift(); chunk !== undefined; chunk = this.#toClient.shift()) {
      this.#handlers.data(chunk);
    }
  }

  #die(): void {
    if (this.#isOver) return;
    const { world, random, killed } = this.#options;
    world.trace("the server of an image dies");
    killed.add(this.#path);
    this.#device.forget(random);
    this.#end("the server has died");
  }

  #end(why: string): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#later(() => {
      this.#handlers?.closed(new ColobusError("connection-lost", why));
      this.#connection.closed();
    });
  }

  #later(callback: () => void): void {
    const { world, process, random } = this.#options;
    world.schedule(random.fraction() * DELAY_MAX_MS, callback, process);
  }
}

/** An image that can forget what no flush has covered, from some change on. */
class ForgetfulDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly #image: Image;
  /** What the image holds. */
  readonly #content: Buffer;
  #unflushed: { readonly offset: number; readonly before: Buffer }[] = [];

  constructor(image: Image, content: Buffer) {
    this.sizeBytes = image.sizeBytes;
    this.#image = image;
    this.#content = content;
  }

  forget(random: SeededRandom): void {
    const kept = random.below(this.#unflushed.length + 1);
    for (const { offset, before } of this.#unflushed.splice(kept).reverse()) {
      try {
        void this.#image.write(before, offset, { fua: false });
      } catch {
        // A disk that cannot be written does not forget either.
      }
    }
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#image.read(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    const before = Buffer.from(this.#content.subarray(offset, offset + source.length));
    void this.#image.write(source, offset, { fua: false });
    this.#content.set(source, offset);
    this.#unflushed.push({ offset, before });
    return flags.fua ? this.flush() : undefined;
  }

  openWrite(offset: number, _length: number, flags: WriteFlags): OpenWrite {
    let at = offset;
    return {
      push: (piece) => {
        at += piece.length;
        return this.write(piece, at - piece.length, { fua: false });
      },
      end: () => (flags.fua ? this.flush() : undefined),
      abandon: () => undefined,
    };
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    const before = Buffer.from(this.#content.subarray(offset, offset + length));
    void this.#image.zero(offset, length, { fua: false, mayUnmap: flags.mayUnmap });
    this.#content.fill(0, offset, offset + length);
    this.#unflushed.push({ offset, before });
    return flags.fua ? this.flush() : undefined;
  }

  async flush(): Promise<void> {
    const covered = this.#unflushed.length;
    await this.#image.flush();
    this.#unflushed.splice(0, covered);
  }

  prefetch(offset: number, length: number): void {
    this.#image.prefetch(offset, length);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] {
    return this.#image.extents(offset, length, maxExtents);
  }
}
