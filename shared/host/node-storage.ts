/**
 * Owns: files and directories of the machine, through the kernel's page cache.
 *
 * How: writes, and reads of what is cached, are system calls on the calling thread (`posix.ts`): handing them to the
 * thread pool costs several times the call itself. What would wait for the device goes to the pool: cold reads, fsync,
 * the removal of large files, and zeroes that are not a matter of a file system's metadata alone.
 *
 * Whether a read would wait is answered by the kernel (RWF_NOWAIT). Where it cannot answer, the file system decides,
 * once per open file: files in memory (tmpfs, ramfs) are always read at once, all others always on the pool.
 *
 * Invariants: a descriptor is closed only when no call on the pool uses it any more, since its number may be given to
 * another file at once. No error is lost: each becomes a ColobusError that names the path and the operation.
 *
 * Does not: take O_DIRECT (`direct-file.ts` does), keep a cache, or order anything: calls take effect in the order in which they are made.
 */
import assert from "node:assert/strict";
import fs from "node:fs";
import { constants } from "node:os";
import { ColobusError } from "../../proto/errors.ts";
import { openDirectFile } from "./direct-file.ts";
import { makeDirectory } from "./make-directory.ts";
import { errnoOf, fsError, osError } from "./os-error.ts";
import {
  adviseRandom,
  adviseWillNeed,
  dropCache,
  FALLOCATE,
  fallocate,
  fallocateBehind,
  type FallocateMode,
  lockExclusive,
  preadAll,
  preadCached,
  pwriteAll,
  seekData,
  seekEnd,
  seekHole,
  unlock,
} from "./posix.ts";
import type { FileKind, OpenOptions, Storage, StorageFile } from "./storage.ts";

const { EAGAIN, EBADF, EBUSY, EEXIST, EINVAL, EIO, ENOENT, ENOSPC, ENOSYS, ENXIO, EOPNOTSUPP, EPERM } = constants.errno;
const HAS_NO_LINKS: ReadonlySet<number> = new Set([ENOSYS, EOPNOTSUPP, EPERM]);

const FILE_MODE = 0o600;
const TMPFS_MAGIC = 0x01021994;
const RAMFS_MAGIC = 0x858458f6;
/** `st_blocks` counts these, whatever the file system's block is. */
const STAT_BLOCK_BYTES = 512;
/** No block device has larger logical blocks; the edges of a range that are not aligned to it are written instead. */
const DEVICE_ALIGNMENT_BYTES = 4096;
const ZEROES = Buffer.alloc(256 * 1024);
/** A file system cuts a hole of this length in no time; for more it may have to free what it keeps of many pages. */
const HOLE_AT_ONCE_BYTES = 64 * 1024 * 1024;
/** What zeroes on the pool take at a time: others use it as well, and the device. */
const ZERO_PIECE_BYTES = 8 * 1024 * 1024;

/** Whether fallocate failed because this kind of file, or this alignment, has no such operation. */
function isUnsupported(result: number): boolean {
  return result === -EOPNOTSUPP || result === -ENOSYS || result === -EINVAL || result === -EBUSY;
}

function zeroesUpTo(length: number): Buffer {
  return ZEROES.subarray(0, Math.min(ZEROES.length, length));
}

/** How a read that must not wait is made. */
type CachedRead = "nowait" | "plain" | "pool";

class NodeFile implements StorageFile {
  readonly path: string;
  readonly isDevice: boolean;
  readonly #locked: boolean;
  /** -1 once closed: every later call then fails with EBADF, which `#fault` takes for the bug that it is. */
  #fd: number;
  #cachedRead: CachedRead;
  /** Calls on the pool that use the descriptor. */
  #pending = 0;
  /** The descriptor to close when the last of them is done. */
  #closingFd = -1;
  /** Ends when the last range that is zeroed on the pool is. */
  #zeroing: Promise<void> = Promise.resolve();

  constructor(path: string, fd: number, traits: { isDevice: boolean; locked: boolean; inMemory: boolean }) {
    this.path = path;
    this.#fd = fd;
    this.isDevice = traits.isDevice;
    this.#locked = traits.locked;
    this.#cachedRead = traits.inMemory ? "plain" : "nowait";
  }

  sizeBytes(): number {
    const size = seekEnd(this.#fd);
    if (size < 0) throw this.#fault("find the size of", -size);
    return size;
  }

  tryRead(target: Uint8Array, offset: number): boolean {
    if (this.#cachedRead === "pool") return false;
    if (this.#cachedRead === "plain") {
      const result = preadAll(this.#fd, target, offset);
      if (result < 0) throw this.#rangeFault("read", target.length, offset, -result);
      return result === target.length;
    }
    const result = preadCached(this.#fd, target, offset);
    if (result >= 0) return result === target.length;
    if (result === -EAGAIN) return false;
    if (result === -EOPNOTSUPP || result === -ENOSYS) {
      this.#cachedRead = "pool";
      return false;
    }
    throw this.#rangeFault("read", target.length, offset, -result);
  }

  read(target: Uint8Array, offset: number): Promise<void> {
    const fd = this.#fd;
    return new Promise((resolve, reject) => {
      this.#begin();
      let done = 0;
      const step = (): void => {
        fs.read(fd, target, done, target.length - done, offset + done, (error, count) => {
          if (error === null && count > 0) {
            done += count;
            if (done < target.length) return step();
          }
          this.#finish();
          if (error !== null) reject(this.#rangeFault("read", target.length, offset, errnoOf(error) ?? 0, error));
          else if (done < target.length) reject(this.#endFault(target.length, offset, done));
          else resolve();
        });
      };
      step();
    });
  }

  readNow(target: Uint8Array, offset: number): void {
    const result = preadAll(this.#fd, target, offset);
    if (result < 0) throw this.#rangeFault("read", target.length, offset, -result);
    if (result < target.length) throw this.#endFault(target.length, offset, result);
  }

  write(source: Uint8Array, offset: number): void {
    const result = pwriteAll(this.#fd, source, offset);
    if (result < 0) throw this.#rangeFault("write", source.length, offset, -result);
  }

  zero(offset: number, length: number): Promise<void> | undefined {
    return this.#zeroRange([FALLOCATE.punchHole, FALLOCATE.zeroRange], offset, length);
  }

  zeroAllocated(offset: number, length: number): Promise<void> | undefined {
    return this.#zeroRange([FALLOCATE.zeroRange], offset, length);
  }

  allocate(offset: number, length: number): void {
    if (length === 0) return;
    if (this.isDevice) {
      // All of a device is allocated, and nothing behind its end can be.
      if (offset + length > this.sizeBytes()) {
        throw this.#rangeFault("allocate", length, offset, ENOSPC);
      }
      return;
    }
    const result = fallocate(this.#fd, FALLOCATE.grow, offset, length);
    if (result === 0) return;
    if (!isUnsupported(result)) throw this.#rangeFault("allocate", length, offset, -result);
    this.#allocateByWriting(offset, length);
  }

  truncate(sizeBytes: number): void {
    assert(this.#fd >= 0, "the file is closed");
    try {
      fs.ftruncateSync(this.#fd, sizeBytes);
    } catch (error) {
      throw fsError(`cannot set the size of ${this.path} to ${sizeBytes} bytes`, this.path, error);
    }
  }

  sync(): Promise<void> {
    const fd = this.#fd;
    return new Promise((resolve, reject) => {
      this.#begin();
      fs.fdatasync(fd, (error) => {
        this.#finish();
        if (error === null) resolve();
        else reject(this.#fault("sync", errnoOf(error) ?? 0, error));
      });
    });
  }

  nextData(offset: number): number | undefined {
    const result = seekData(this.#fd, offset);
    if (result >= 0) return result;
    if (result === -ENXIO) return undefined;
    // Block devices do not know holes.
    if (result === -EINVAL) return offset < this.sizeBytes() ? offset : undefined;
    throw this.#fault(`look for data after ${offset} in`, -result);
  }

  nextHole(offset: number): number {
    const result = seekHole(this.#fd, offset);
    if (result >= 0) return result;
    if (result === -ENXIO || result === -EINVAL) return Math.max(offset, this.sizeBytes());
    throw this.#fault(`look for a hole after ${offset} in`, -result);
  }

  prefetch(offset: number, length: number): void {
    const result = adviseWillNeed(this.#fd, offset, length);
    // A hint that is not taken costs nothing but time. A closed file is a bug all the same.
    assert(result !== -EBADF, "the file is closed");
  }

  allocatedBytes(): number {
    if (this.isDevice) return this.sizeBytes();
    assert(this.#fd >= 0, "the file is closed");
    try {
      return fs.fstatSync(this.#fd).blocks * STAT_BLOCK_BYTES;
    } catch (error) {
      throw fsError(`cannot find the allocated size of ${this.path}`, this.path, error);
    }
  }

  changeMark(): string {
    // The time stamps of a device's node say nothing of its content.
    if (this.isDevice) return "";
    assert(this.#fd >= 0, "the file is closed");
    try {
      const { dev, ino, size, mtimeNs } = fs.fstatSync(this.#fd, { bigint: true });
      return `${dev}.${ino}.${size}.${mtimeNs}`;
    } catch (error) {
      throw fsError(`cannot find the time stamps of ${this.path}`, this.path, error);
    }
  }

  close(): void {
    assert(this.#fd >= 0, "the file is closed");
    const fd = this.#fd;
    this.#fd = -1;
    // The lock goes now even if the descriptor has to stay for a while. It cannot fail on an open file.
    if (this.#locked) unlock(fd);
    if (this.#pending > 0) this.#closingFd = fd;
    else closeQuietly(fd);
  }

  #begin(): void {
    assert(this.#fd >= 0, "the file is closed");
    this.#pending += 1;
  }

  #finish(): void {
    this.#pending -= 1;
    if (this.#pending > 0 || this.#closingFd < 0) return;
    closeQuietly(this.#closingFd);
    this.#closingFd = -1;
  }

  #zeroRange(modes: readonly FallocateMode[], offset: number, length: number): Promise<void> | undefined {
    const end = offset + length;
    let from = offset;
    let to = end;
    if (this.isDevice) {
      from = Math.ceil(offset / DEVICE_ALIGNMENT_BYTES) * DEVICE_ALIGNMENT_BYTES;
      to = Math.max(from, Math.floor(end / DEVICE_ALIGNMENT_BYTES) * DEVICE_ALIGNMENT_BYTES);
      this.#writeZeroes(offset, Math.min(from, end));
      this.#writeZeroes(to, end);
    }
    if (from >= to || this.#zeroAtOnce(modes, from, to - from)) return undefined;
    this.#begin();
    const zeroing = this.#zeroBehind(this.#fd, modes, from, to).finally(() => this.#finish());
    this.#zeroing = zeroing.catch(() => undefined); // whoever has asked for it is told
    return zeroing;
  }

  /** False where it would take long: nothing is done then. */
  #zeroAtOnce(modes: readonly FallocateMode[], offset: number, length: number): boolean {
    // A device has to do it, and fallocate waits for that.
    if (this.isDevice || length > HOLE_AT_ONCE_BYTES) return false;
    for (const mode of modes) {
      const result = fallocate(this.#fd, mode, offset, length);
      if (result === 0) return true;
      if (!isUnsupported(result)) throw this.#zeroFault(length, offset, -result);
    }
    if (length > ZEROES.length) return false;
    this.#writeZeroes(offset, offset + length);
    return true;
  }

  async #zeroBehind(fd: number, modes: readonly FallocateMode[], from: number, to: number): Promise<void> {
    await this.#zeroing;
    for (let at = from; at < to; at += ZERO_PIECE_BYTES) {
      if (this.#fd !== fd) throw new ColobusError("shutting-down", `${this.path} is closed while it is zeroed`);
      await this.#zeroPiece(fd, modes, at, Math.min(ZERO_PIECE_BYTES, to - at));
    }
  }

  /** Does the first of `modes` that is supported here, or writes zeroes as far as the file reaches. */
  async #zeroPiece(fd: number, modes: readonly FallocateMode[], offset: number, length: number): Promise<void> {
    for (const mode of modes) {
      const result = await fallocateBehind(fd, mode, offset, length);
      if (result === 0) return;
      if (!isUnsupported(result)) throw this.#zeroFault(length, offset, -result);
    }
    const end = Math.min(offset + length, seekEnd(fd));
    for (let at = offset; at < end;) at += await this.#writeBehind(fd, zeroesUpTo(end - at), at);
  }

  #writeBehind(fd: number, source: Uint8Array, offset: number): Promise<number> {
    return new Promise((resolve, reject) => {
      fs.write(fd, source, 0, source.length, offset, (error, count) => {
        if (error === null && count > 0) resolve(count);
        else reject(this.#zeroFault(source.length, offset, (error && errnoOf(error)) ?? EIO, error ?? undefined));
      });
    });
  }

  /** Writes zeroes over [from, to) as far as the file reaches, so that its size stays. */
  #writeZeroes(from: number, to: number): void {
    if (from >= to) return;
    const end = Math.min(to, this.sizeBytes());
    for (let at = from; at < end; at += ZEROES.length) {
      const result = pwriteAll(this.#fd, zeroesUpTo(end - at), at);
      if (result < 0) throw this.#zeroFault(to - from, from, -result);
    }
  }

  /** For file systems without fallocate: writing back what reads back makes them allocate it. */
  #allocateByWriting(offset: number, length: number): void {
    const buffer = Buffer.allocUnsafe(ZEROES.length);
    const end = offset + length;
    for (let at = offset; at < end; at += buffer.length) {
      const piece = buffer.subarray(0, Math.min(buffer.length, end - at));
      const count = preadAll(this.#fd, piece, at);
      if (count < 0) throw this.#rangeFault("allocate", length, offset, -count);
      piece.fill(0, count);
      const result = pwriteAll(this.#fd, piece, at);
      if (result < 0) throw this.#rangeFault("allocate", length, offset, -result);
    }
  }

  #rangeFault(operation: string, length: number, offset: number, errno: number, cause?: unknown): ColobusError {
    return this.#fault(`${operation} ${length} bytes at ${offset} of`, errno, cause);
  }

  #zeroFault(length: number, offset: number, errno: number, cause?: unknown): ColobusError {
    return this.#rangeFault("zero", length, offset, errno, cause);
  }

  #fault(operation: string, errno: number, cause?: unknown): ColobusError {
    assert(errno !== EBADF, `cannot ${operation} ${this.path}: it is closed, or not open for this`);
    return osError(`cannot ${operation} ${this.path}`, this.path, errno, cause);
  }

  #endFault(length: number, offset: number, done: number): ColobusError {
    return new ColobusError(
      "io-error",
      `cannot read ${length} bytes at ${offset} of ${this.path}: the file ends at ${offset + done}`,
      `Check whether another program has shortened ${this.path}.`,
    );
  }
}

/**
 * Closes a descriptor that nothing uses any more. What a close can still report is a write that a network file system
 * failed to deliver; only `sync` promises delivery, and it reports the same. The descriptor is gone either way.
 */
function closeQuietly(fd: number): void {
  try {
    fs.closeSync(fd);
  } catch (error) {
    assert.notEqual(errnoOf(error), EBADF, "the descriptor was closed by somebody else");
  }
}

function missing(path: string, kind: FileKind, cause: unknown): ColobusError {
  if (kind !== "image") return osError(`cannot open ${path}`, path, ENOENT, cause);
  return new ColobusError(
    "image-missing",
    `the image ${path} does not exist`,
    `Check the path, or make an image of the wanted size: truncate -s SIZE ${path}`,
    { cause },
  );
}

function openDescriptor(path: string, options: OpenOptions): number {
  const access = options.readOnly === true ? fs.constants.O_RDONLY : fs.constants.O_RDWR;
  const creation = {
    "never": 0,
    "new": fs.constants.O_CREAT | fs.constants.O_EXCL,
    "if-missing": fs.constants.O_CREAT,
  }[options.create];
  try {
    return fs.openSync(path, access | creation, FILE_MODE);
  } catch (error) {
    if (errnoOf(error) === ENOENT && options.create === "never") throw missing(path, options.kind, error);
    throw fsError(`cannot ${options.create === "new" ? "create" : "open"} ${path}`, path, error);
  }
}

function lockOrThrow(path: string, fd: number): void {
  const result = lockExclusive(fd);
  if (result === 0) return;
  if (result !== -EAGAIN) throw osError(`cannot lock ${path}`, path, -result);
  throw new ColobusError(
    "image-busy",
    `another process, or another disk of this agent, has locked ${path}`,
    `Stop the other agent or process that uses ${path} (\`fuser -v ${path}\` lists those that have it open).`,
  );
}

/** The kernel's files. It has no state of its own. */
export class NodeStorage implements Storage {
  open(path: string, options: OpenOptions): StorageFile {
    if (options.direct === true) return openDirectFile(path);
    const fd = openDescriptor(path, options);
    try {
      const stat = fs.fstatSync(fd);
      const isDevice = stat.isBlockDevice();
      if (!isDevice && !stat.isFile()) {
        throw new ColobusError(
          "io-error",
          `cannot use ${path}: it is neither a regular file nor a block device`,
          "Name a regular file or a block device.",
        );
      }
      const locked = options.lock === true;
      if (locked) lockOrThrow(path, fd);
      if (options.fresh === true) dropCache(fd);
      // What is read ahead lies in folios of up to some MiB, and ext4 looks at each of their blocks at every later write
      // into one (as `pwriteAll` has it): after a sync of a cold image small writes would cost tens of µs. Only a hint.
      if (options.kind === "image") adviseRandom(fd);
      // A block device's node lies in devtmpfs, which says nothing about the device.
      const inMemory = !isDevice && isInMemory(path);
      return new NodeFile(path, fd, { isDevice, locked, inMemory });
    } catch (error) {
      closeQuietly(fd);
      throw error instanceof ColobusError ? error : fsError(`cannot open ${path}`, path, error);
    }
  }

  exists(path: string): boolean {
    try {
      return fs.statSync(path, { throwIfNoEntry: false }) !== undefined;
    } catch (error) {
      throw fsError(`cannot look for ${path}`, path, error);
    }
  }

  list(directory: string): string[] {
    try {
      return fs.readdirSync(directory).sort();
    } catch (error) {
      throw fsError(`cannot list ${directory}`, directory, error);
    }
  }

  makeDirectory(path: string): void {
    makeDirectory(path);
  }

  remove(path: string): void {
    try {
      fs.unlinkSync(path);
    } catch (error) {
      throw fsError(`cannot remove ${path}`, path, error);
    }
  }

  async removeBehind(path: string): Promise<void> {
    try {
      await fs.promises.unlink(path);
    } catch (error) {
      throw fsError(`cannot remove ${path}`, path, error);
    }
  }

  rename(from: string, to: string): void {
    try {
      fs.renameSync(from, to);
    } catch (error) {
      throw fsError(`cannot rename ${from} to ${to}`, from, error);
    }
  }

  renameNew(from: string, to: string): void {
    try {
      fs.linkSync(from, to);
      fs.unlinkSync(from);
    } catch (error) {
      const errno = errnoOf(error) ?? 0;
      // File systems that know one name for each file.
      if (HAS_NO_LINKS.has(errno) && !this.exists(to)) this.rename(from, to);
      else throw fsError(`cannot rename ${from} to ${to}`, errno === EEXIST ? to : from, error);
    }
  }

  async syncDirectory(path: string): Promise<void> {
    try {
      const directory = await fs.promises.open(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
      try {
        await directory.sync();
      } finally {
        await directory.close();
      }
    } catch (error) {
      throw fsError(`cannot sync the directory ${path}`, path, error);
    }
  }

  freeBytes(path: string): number {
    try {
      const { bavail, bsize } = fs.statfsSync(path);
      return bavail * bsize;
    } catch (error) {
      throw fsError(`cannot find the free space of the file system of ${path}`, path, error);
    }
  }
}

function isInMemory(path: string): boolean {
  const { type } = fs.statfsSync(path);
  return type === TMPFS_MAGIC || type === RAMFS_MAGIC;
}
