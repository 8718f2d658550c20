/**
 * Owns: one image of a disk, a raw file or a block device, for as long as it is open.
 *
 * How: writes go to the page cache at once; reads are answered from there, or by a promise when the device must be
 * waited for. Flushes are shared: those that arrive while a sync runs, which may have passed by their writes already,
 * wait for one more, together.
 *
 * Invariants: the image is locked against other agents from `openImage` to `close`. After a sync has failed the kernel
 * forgets which writes it lost, and a later sync would succeed without them: so every later flush fails too, until the
 * owner says that it writes again whatever no flush has covered (`rewritten`).
 *
 * Does not: check ranges (whoever takes requests from outside does), or order overlapping requests (`RangeLock` does).
 */
import assert from "node:assert/strict";
import { dirname } from "node:path";
import { ColobusError } from "../../proto/errors.ts";
import type { OpenOptions, Storage, StorageFile } from "../host/storage.ts";
import type { BlockDevice, Extent, OpenWrite, Pending, WriteFlags, ZeroFlags } from "./block-device.ts";
import type { DiskImage, ImageNotes } from "./disk-image.ts";

const SECTOR_BYTES = 512;
/** qcow2 specification, "Header": magic. */
const QCOW2_MAGIC = Buffer.from("QFI\xfb", "latin1");

export class Image implements BlockDevice, DiskImage {
  readonly sizeBytes: number;
  /** undefined: given back, until the next request. */
  #opened: StorageFile | undefined;
  readonly #reopen: (() => StorageFile) | undefined;
  #isClosed = false;
  /** A stretch without holes: to find its end takes some file systems as long as it has pages. */
  #data = { start: 0, end: 0 };
  /** The sync that runs. */
  #running: Promise<void> | undefined;
  /** The sync that starts when the running one has ended. */
  #next: Promise<void> | undefined;
  /** The last sync of the owner's. */
  #owners: Promise<void> | undefined;
  /** The sync that failed. */
  #failed: Promise<void> | undefined;
  #notes: Pick<ImageNotes, "lost"> | undefined;

  /** Takes over `file`, of which the first `sizeBytes` are the disk. `reopen` opens it again once it was let go. */
  constructor(file: StorageFile, sizeBytes: number, reopen?: () => StorageFile) {
    this.#opened = file;
    this.#reopen = reopen;
    this.sizeBytes = sizeBytes;
  }

  get #file(): StorageFile {
    if (this.#opened !== undefined) return this.#opened;
    assert(this.#reopen !== undefined && !this.#isClosed, "the image is open, or can be opened again");
    this.#data = { start: 0, end: 0 };
    this.#opened = this.#reopen();
    return this.#opened;
  }

  get path(): string {
    return this.#file.path;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#file.tryRead(target, offset) ? undefined : this.#file.read(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    this.#file.write(source, offset);
    return flags.fua ? this.flush() : undefined;
  }

  openWrite(offset: number, length: number, flags: WriteFlags): OpenWrite {
    return new ImageWrite(this, offset, length, flags);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    if (offset < this.#data.end && offset + length > this.#data.start) this.#data = { start: 0, end: 0 };
    if (flags.mayUnmap) this.#file.zero(offset, length);
    else this.#file.zeroAllocated(offset, length);
    return flags.fua ? this.flush() : undefined;
  }

  flush(): Promise<void> {
    if (this.#opened === undefined && this.#failed === undefined) return Promise.resolve();
    if (this.#next !== undefined) return this.#next;
    if (this.#running === undefined) return this.#sync();
    const syncAgain = (): Promise<void> => {
      this.#next = undefined;
      return this.#sync();
    };
    this.#next = this.#running.then(syncAgain, syncAgain);
    return this.#next;
  }

  get hasLostWrites(): boolean {
    return this.#failed !== undefined;
  }

  noteWith(notes: Pick<ImageNotes, "lost">): void {
    this.#notes = notes;
  }

  distrust(reason: ColobusError): void {
    this.#failed = Promise.reject(reason);
    this.#failed.catch(() => undefined); // whoever flushes is told
  }

  rewritten(): void {
    this.#failed = undefined;
  }

  async syncOwn(): Promise<void> {
    const before = this.#owners;
    const syncing = (async () => {
      await before?.catch(() => undefined); // a failure is told once: of two at a time one would not hear of it
      await (this.#failed === undefined ? this.flush() : this.#file.sync());
    })();
    this.#owners = syncing;
    await syncing;
  }

  prefetch(offset: number, length: number): void {
    this.#opened?.prefetch(offset, length);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] {
    const end = offset + length;
    const extents: Extent[] = [];
    let at = offset;
    while (at < end && extents.length < maxExtents) {
      const data = this.#isData(at) ? at : (this.#file.nextData(at) ?? end);
      const hole = data > at;
      const stop = Math.min(hole ? data : this.#endOfData(at), end);
      extents.push({ length: stop - at, hole, zero: hole });
      at = stop;
    }
    return extents;
  }

  #isData(offset: number): boolean {
    return offset >= this.#data.start && offset < this.#data.end;
  }

  /** Where the data that lies at `offset` ends. */
  #endOfData(offset: number): number {
    if (!this.#isData(offset)) {
      const hole = this.#file.nextHole(offset);
      // A file system that contradicts itself is believed where it says data.
      this.#data = { start: offset, end: hole > offset ? hole : this.sizeBytes };
    }
    return this.#data.end;
  }

  /** Bytes of storage that the image occupies. */
  allocatedBytes(): number {
    return this.#file.allocatedBytes();
  }

  changeMark(): string {
    return this.#opened?.changeMark() ?? "";
  }

  async letGo(): Promise<void> {
    await this.flush();
    if (this.#reopen === undefined) return;
    this.#opened?.close();
    this.#opened = undefined;
  }

  /** Drops the lock. What was not flushed is in the page cache only. */
  close(): void {
    assert(!this.#isClosed, "an image is closed once");
    this.#isClosed = true;
    this.#opened?.close();
    this.#opened = undefined;
  }

  #sync(): Promise<void> {
    if (this.#failed !== undefined) return this.#failed;
    const running = this.#file.sync().then(
      () => {
        if (this.#running === running) this.#running = undefined;
      },
      async (error: unknown) => {
        this.#failed = running;
        this.#running = undefined;
        await this.#notes?.lost();
        throw error;
      },
    );
    this.#running = running;
    return running;
  }
}

/** A write whose pieces go to the file as they come. */
class ImageWrite implements OpenWrite {
  readonly #image: Image;
  readonly #end: number;
  readonly #flags: WriteFlags;
  #at: number;

  constructor(image: Image, offset: number, length: number, flags: WriteFlags) {
    this.#image = image;
    this.#at = offset;
    this.#end = offset + length;
    this.#flags = flags;
  }

  push(piece: Uint8Array): Pending {
    assert(this.#at + piece.length <= this.#end, "more was pushed than the write is long");
    const at = this.#at;
    this.#at += piece.length;
    return this.#image.write(piece, at, { fua: false });
  }

  end(): Pending {
    assert.equal(this.#at, this.#end, "the write ends before its length");
    return this.#flags.fua ? this.#image.flush() : undefined;
  }

  abandon(): void {
    // Nothing is held: what was pushed is written, as it may be.
  }
}

interface RawOption {
  /** It is a raw image, whatever its first bytes look like. */
  readonly isRaw?: boolean;
}

/**
 * Opens and locks the raw image at `path`, whose size is the disk's.
 * Throws `image-missing`, `image-busy` or `image-format`.
 */
export function openImage(
  storage: Storage,
  path: string,
  { isRaw, ...options }: Pick<OpenOptions, "readOnly" | "fresh"> & RawOption = {},
): Image {
  const open = (): StorageFile => openOrExplain(storage, path, { ...options, lock: true });
  const file = open();
  return imageOf(file, path, isRaw, options.fresh === true ? open : undefined);
}

/** Opens an image that another host writes, for reading, and without a lock. Errors as `openImage`; `not-supported`. */
export function openForeignImage(storage: Storage, path: string, { isRaw }: RawOption = {}): Image {
  return imageOf(openOrExplain(storage, path, { readOnly: true, direct: true }), path, isRaw);
}

function imageOf(file: StorageFile, path: string, isRaw = false, reopen?: () => StorageFile): Image {
  try {
    const sizeBytes = file.sizeBytes();
    // The format first: the advice about a size would spoil an image of another format, which may have any size.
    if (!isRaw && sizeBytes >= QCOW2_MAGIC.length) assertRaw(path, file);
    assertSize(path, sizeBytes);
    return new Image(file, sizeBytes, reopen);
  } catch (error) {
    file.close();
    throw error;
  }
}

/**
 * Makes a sparse image that reads as zeroes; durable, name and size, when the promise resolves. A crash on the way
 * leaves no image, at most a file beside its place that the next try takes over.
 */
export async function createImage(storage: Storage, path: string, sizeBytes: number): Promise<void> {
  assertSize(path, sizeBytes);
  if (storage.exists(path)) {
    throw new ColobusError(
      "io-error",
      `cannot create ${path}: it exists already`,
      `Remove ${path}, or use it as it is.`,
    );
  }
  const unfinished = `${path}.creating`;
  const file = storage.open(unfinished, { kind: "image", create: "if-missing", lock: true });
  try {
    file.truncate(0);
    file.truncate(sizeBytes);
    await file.sync();
    storage.rename(unfinished, path);
  } finally {
    file.close();
  }
  await storage.syncDirectory(dirname(path));
}

function openOrExplain(
  storage: Storage,
  path: string,
  options: Pick<OpenOptions, "readOnly" | "fresh" | "direct" | "lock">,
): StorageFile {
  try {
    return storage.open(path, { kind: "image", create: "never", ...options });
  } catch (error) {
    if (!(error instanceof ColobusError) || error.code !== "image-missing") throw error;
    throw new ColobusError(
      "image-missing",
      `the image ${path} does not exist`,
      `Check the path, or make an image of the disk's size: \`truncate -s SIZE ${path}\`. A secondary started with --create makes its images itself.`,
      { cause: error },
    );
  }
}

function assertSize(path: string, sizeBytes: number): void {
  if (sizeBytes > 0 && sizeBytes % SECTOR_BYTES === 0) return;
  throw new ColobusError(
    "image-format",
    `the image ${path} has ${sizeBytes} bytes, and a disk has at least one sector and whole ones of ${SECTOR_BYTES} bytes`,
    `Give the image the disk's size: \`truncate -s SIZE ${path}\`.`,
  );
}

/** A guest that sees the inside of an image format as its disk would destroy it. */
function assertRaw(path: string, file: StorageFile): void {
  const head = Buffer.alloc(QCOW2_MAGIC.length);
  file.readNow(head, 0);
  if (!head.equals(QCOW2_MAGIC)) return;
  throw new ColobusError(
    "image-format",
    `the image ${path} begins like a qcow2 image, and a path alone names a raw one`,
    `Name it as qcow2:${path}; or as raw:${path}, if it is the disk of a VM that keeps a qcow2 image on it.`,
  );
}
