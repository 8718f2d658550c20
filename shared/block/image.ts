/**
 * Owns: one image of a disk, a raw file or a block device, for as long as it is open.
 *
 * How: writes go to the page cache at once; reads are answered from there, or by a promise when the device must be
 * waited for, as zeroes may have to. Flushes are shared: those that arrive while a sync runs, which may have passed by their writes already,
 * wait for one more, together.
 *
 * Invariants: the image is locked against other agents from `openImage` to `close`; one that two hosts use only while this
 * one has requests for it (`openSharedImage`). After a sync has failed the kernel
 * forgets which writes it lost, and a later sync would succeed without them: so every later flush fails too, until the
 * owner says that it writes again whatever no flush has covered (`rewritten`).
 *
 * Does not: check ranges (whoever takes requests from outside does), or order overlapping requests (`RangeLock` does).
 */
import assert from "node:assert/strict";
import { dirname } from "node:path";
import { asColobusError, ColobusError } from "../../proto/errors.ts";
import type { OpenOptions, Storage, StorageFile } from "../host/storage.ts";
import type { BlockDevice, Extent, OpenWrite, Pending, WriteFlags, ZeroFlags } from "./block-device.ts";
import type { DiskImage, ImageNotes } from "./disk-image.ts";

const SECTOR_BYTES = 512;
/** qcow2 specification, "Header": magic. */
const QCOW2_MAGIC = Buffer.from("QFI\xfb", "latin1");

export class Image implements BlockDevice, DiskImage {
  #sizeBytes: number;
  #file: StorageFile;
  /** For an image that two hosts use: how to open it for requests, and otherwise. */
  readonly #use: SharedUse | undefined;
  #isTaken: boolean;
  /** A `grow` has made the file longer. */
  #isLengthened = false;
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

  /** Takes over `file`, of which the first `sizeBytes` are the disk. With `use` it is opened again by the first request. */
  constructor(file: StorageFile, sizeBytes: number, use?: SharedUse) {
    this.#file = file;
    this.#sizeBytes = sizeBytes;
    this.#use = use;
    this.#isTaken = use === undefined;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** The file as requests use it. Errors: `image-busy` and the others of opening it. */
  get #taken(): StorageFile {
    if (!this.#isTaken) this.#take();
    return this.#file;
  }

  #take(): void {
    if (this.#use !== undefined && !this.#isTaken) this.#replaceFile(this.#use.take());
    this.#isTaken = true;
  }

  #replaceFile(file: StorageFile): void {
    this.#file.close();
    this.#file = file;
    this.#data = { start: 0, end: 0 };
  }

  get path(): string {
    return this.#file.path;
  }

  get isDevice(): boolean {
    return this.#file.isDevice;
  }

  /** The disk has these bytes of the device. */
  cutTo(sizeBytes: number): void {
    assert(this.isDevice && this.sizeBytes >= sizeBytes, "a device has room for its disk");
    this.#sizeBytes = sizeBytes;
  }

  read(target: Uint8Array, offset: number): Pending {
    const file = this.#taken;
    return file.tryRead(target, offset) ? undefined : file.read(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    this.#taken.write(source, offset);
    return flags.fua ? this.flush() : undefined;
  }

  openWrite(offset: number, length: number, flags: WriteFlags): OpenWrite {
    return new ImageWrite(this, offset, length, flags);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    const file = this.#taken;
    const zeroing = flags.mayUnmap ? file.zero(offset, length) : file.zeroAllocated(offset, length);
    if (zeroing !== undefined) return this.#zeroed(zeroing, offset, length, flags);
    this.#forgetData(offset, length);
    return flags.fua ? this.flush() : undefined;
  }

  async #zeroed(zeroing: Promise<void>, offset: number, length: number, { fua }: ZeroFlags): Promise<void> {
    try {
      await zeroing;
    } finally {
      this.#forgetData(offset, length);
    }
    if (fua) await this.flush();
  }

  /** There are holes in the range, or may be. */
  #forgetData(offset: number, length: number): void {
    if (offset < this.#data.end && offset + length > this.#data.start) this.#data = { start: 0, end: 0 };
  }

  flush(): Promise<void> {
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
    if (this.#isTaken) this.#file.prefetch(offset, length);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] {
    this.#take();
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

  async grow(sizeBytes: number): Promise<void> {
    const file = this.#taken;
    assertSize(file.path, sizeBytes);
    const formerBytes = file.sizeBytes();
    if (formerBytes < sizeBytes) lengthen(file, sizeBytes);
    try {
      await this.syncOwn();
    } catch (error) {
      if (formerBytes < sizeBytes) await this.#shorten(file, formerBytes);
      throw error;
    }
    if (formerBytes < sizeBytes) this.#isLengthened = true;
    this.#data = { start: 0, end: 0 };
    this.#sizeBytes = Math.max(this.#sizeBytes, sizeBytes);
  }

  /** Durable when the promise resolves: nothing is recorded any more then of why the file could be longer. */
  async #shorten(file: StorageFile, sizeBytes: number): Promise<void> {
    file.truncate(sizeBytes);
    await this.syncOwn();
  }

  async ungrow(sizeBytes: number): Promise<void> {
    this.#data = { start: 0, end: 0 };
    this.#sizeBytes = sizeBytes;
    // A device is as long as its maker has made it.
    if (!this.#isLengthened) return;
    await this.#shorten(this.#taken, sizeBytes);
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

  changeMark(): string {
    return this.#file.changeMark();
  }

  ready(): Promise<void> {
    this.#take();
    return Promise.resolve();
  }

  async letGo(): Promise<void> {
    await this.flush();
    if (this.#use === undefined || !this.#isTaken) return;
    this.#replaceFile(this.#use.look());
    this.#isTaken = false;
  }

  /** Drops the lock. What was not flushed is in the page cache only. */
  close(): void {
    this.#file.close();
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

/** How an image that two hosts use is opened here. */
interface SharedUse {
  /** For requests: locked, and nothing of it cached from before. */
  readonly take: () => StorageFile;
  /** Neither, and as a secondary has it: another host may write it. What this host has written can be flushed. */
  readonly look: () => StorageFile;
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
  { isRaw, ...options }: Pick<OpenOptions, "readOnly"> & RawOption = {},
): Image {
  return imageOf(openOrExplain(storage, path, { ...options, lock: true }), path, isRaw);
}

/**
 * Opens an image that this host writes and another one reads. It is locked, and this host's cache of it dropped, by the
 * first request: until this side has spoken to its peer that may be the one that writes it. Errors as `openImage`; its
 * requests have those of the lock.
 */
export function openSharedImage(storage: Storage, path: string, { isRaw }: RawOption = {}): Image {
  const look = (): StorageFile => openOrExplain(storage, path, { readOnly: true, direct: true });
  const take = (): StorageFile => openOrExplain(storage, path, { fresh: true, lock: true });
  return imageOf(look(), path, isRaw, { take, look });
}

/** Opens an image that another host writes, for reading, and without a lock. Errors as `openImage`; `not-supported`. */
export function openForeignImage(storage: Storage, path: string, { isRaw }: RawOption = {}): Image {
  return imageOf(openOrExplain(storage, path, { readOnly: true, direct: true }), path, isRaw);
}

function imageOf(file: StorageFile, path: string, isRaw = false, use?: SharedUse): Image {
  try {
    const sizeBytes = file.sizeBytes();
    // The format first: the advice about a size would spoil an image of another format, which may have any size.
    if (!isRaw && sizeBytes >= QCOW2_MAGIC.length) assertRaw(path, file);
    assertSize(path, sizeBytes);
    return new Image(file, sizeBytes, use);
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
  if (storage.exists(unfinished)) removeLeft(storage, unfinished);
  const file = storage.open(unfinished, { kind: "image", create: "new", lock: true });
  try {
    file.truncate(sizeBytes);
    await file.sync();
    storage.renameNew(unfinished, path);
  } finally {
    file.close();
  }
  await storage.syncDirectory(dirname(path));
}

/** The name alone: a crash may have left it to an image that is whole, and may lie elsewhere by now. Errors: `image-busy`. */
function removeLeft(storage: Storage, unfinished: string): void {
  const file = storage.open(unfinished, { kind: "image", create: "never", lock: true });
  try {
    storage.remove(unfinished);
  } finally {
    file.close();
  }
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

/** A device has the size that its maker has given it. */
function lengthen(file: StorageFile, sizeBytes: number): void {
  try {
    file.truncate(sizeBytes);
  } catch (error) {
    const fault = asColobusError(error);
    throw new ColobusError(
      fault.code,
      `the image ${file.path} has ${file.sizeBytes()} bytes, and cannot be made ${sizeBytes} bytes long: ${fault.message}`,
      "Give it that size first, if it is a block device (`lvextend`); or make room. Then resize again.",
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
