/**
 * Owns: one file or block device that another host writes, open for reading past this host's page cache.
 *
 * How: O_DIRECT, on the pool, through a buffer that is aligned as the kernel asks. `posix_fadvise(DONTNEED)` at each
 * checkpoint would not do: it leaves pages that are locked by a read-ahead under way, and says nothing of them.
 *
 * Invariants: every read is answered by the device after it was asked for. The descriptor is closed only when no call on
 * the pool uses it.
 *
 * Does not: write, lock, or know holes: the file system may remember those from before the other host's last change.
 */
import assert from "node:assert/strict";
import fs from "node:fs";
import { constants } from "node:os";
import { ColobusError } from "../../proto/errors.ts";
import { errnoOf, fsError, osError } from "./os-error.ts";
import { alignedBuffer, seekEnd } from "./posix.ts";
import type { StorageFile } from "./storage.ts";

/** No device has larger logical blocks. */
const ALIGNMENT_BYTES = 4096;
/** A longer read is made of several. */
const READ_MAX_BYTES = 1024 * 1024;

class DirectFile implements StorageFile {
  readonly path: string;
  readonly isDevice: boolean;
  #fd: number;
  /** Calls on the pool that use the descriptor. */
  #pending = 0;
  #closingFd = -1;

  constructor(path: string, fd: number, isDevice: boolean) {
    this.path = path;
    this.isDevice = isDevice;
    this.#fd = fd;
  }

  sizeBytes(): number {
    assert(this.#fd >= 0, "the file is closed");
    const size = seekEnd(this.#fd);
    if (size < 0) throw osError(`cannot find the size of ${this.path}`, this.path, -size);
    return size;
  }

  tryRead(): boolean {
    return false;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    assert(this.#fd >= 0, "the file is closed");
    const fd = this.#fd;
    this.#pending += 1;
    try {
      for (let at = 0; at < target.length;) {
        const { from, aligned, skip } = stretchAt(offset + at, target.length - at);
        const count = await this.#readAligned(fd, aligned, from);
        at += this.#take(aligned.subarray(skip, count), target, at, offset);
      }
    } finally {
      this.#pending -= 1;
      if (this.#pending === 0 && this.#closingFd >= 0) {
        fs.closeSync(this.#closingFd);
        this.#closingFd = -1;
      }
    }
  }

  readNow(target: Uint8Array, offset: number): void {
    assert(this.#fd >= 0, "the file is closed");
    for (let at = 0; at < target.length;) {
      const { from, aligned, skip } = stretchAt(offset + at, target.length - at);
      const count = this.#readAlignedNow(aligned, from);
      at += this.#take(aligned.subarray(skip, count), target, at, offset);
    }
  }

  sync(): Promise<void> {
    return Promise.resolve(); // nothing was written
  }

  nextData(offset: number): number | undefined {
    return offset < this.sizeBytes() ? offset : undefined;
  }

  nextHole(offset: number): number {
    return Math.max(offset, this.sizeBytes());
  }

  prefetch(): void {
    // There is no cache to read ahead into.
  }

  allocatedBytes(): number {
    return this.sizeBytes();
  }

  changeMark(): string {
    return ""; // that the other host changes it is no news
  }

  close(): void {
    assert(this.#fd >= 0, "the file is closed");
    if (this.#pending > 0) this.#closingFd = this.#fd;
    else fs.closeSync(this.#fd);
    this.#fd = -1;
  }

  write(): void {
    this.#refuse();
  }

  zero(): undefined {
    this.#refuse();
  }

  zeroAllocated(): undefined {
    this.#refuse();
  }

  allocate(): void {
    this.#refuse();
  }

  truncate(): void {
    this.#refuse();
  }

  #refuse(): never {
    assert.fail(`${this.path} is open for reading only`);
  }

  #readAligned(fd: number, aligned: Buffer, from: number): Promise<number> {
    return new Promise((resolve, reject) => {
      fs.read(fd, aligned, 0, aligned.length, from, (error, count) => {
        if (error === null) resolve(count);
        else reject(this.#fault(`read at ${from} of`, error));
      });
    });
  }

  #readAlignedNow(aligned: Buffer, from: number): number {
    try {
      return fs.readSync(this.#fd, aligned, 0, aligned.length, from);
    } catch (error) {
      throw this.#fault(`read at ${from} of`, error);
    }
  }

  /** Copies what was read to its place. Returns how much that was. Errors: `io-error` when the file has ended. */
  #take(found: Uint8Array, target: Uint8Array, at: number, offset: number): number {
    const taken = found.subarray(0, target.length - at);
    if (taken.length === 0) {
      throw new ColobusError(
        "io-error",
        `cannot read ${target.length} bytes at ${offset} of ${this.path}: the file ends at ${offset + at}`,
        `Check whether another program has shortened ${this.path}.`,
      );
    }
    target.set(taken, at);
    return taken.length;
  }

  #fault(operation: string, cause: unknown): ColobusError {
    return fsError(`cannot ${operation} ${this.path}`, this.path, cause);
  }
}

/** An aligned buffer for the beginning of a range, where it is to be read from, and where in it the range begins. */
function stretchAt(offset: number, length: number): { from: number; aligned: Buffer; skip: number } {
  const from = Math.floor(offset / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
  const end = Math.ceil((offset + length) / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
  return { from, aligned: alignedBuffer(Math.min(end - from, READ_MAX_BYTES), ALIGNMENT_BYTES), skip: offset - from };
}

/** Opens a file or block device that another host writes. Errors: `image-missing`, `not-supported`, `io-error` … */
export function openDirectFile(path: string): StorageFile {
  let fd: number;
  try {
    fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_DIRECT);
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === constants.errno.ENOENT) {
      throw new ColobusError("image-missing", `the image ${path} does not exist`, "Check the path.", { cause: error });
    }
    if (errno !== constants.errno.EINVAL) throw fsError(`cannot open ${path}`, path, error);
    throw new ColobusError(
      "not-supported",
      `${path} cannot be read past the page cache (O_DIRECT), so what another host writes would not be seen`,
      "Put the shared disk on a block device, or on a file system that has O_DIRECT.",
      { cause: error },
    );
  }
  try {
    const stat = fs.fstatSync(fd);
    if (stat.isBlockDevice() || stat.isFile()) return new DirectFile(path, fd, stat.isBlockDevice());
    throw new ColobusError(
      "io-error",
      `cannot use ${path}: it is neither a regular file nor a block device`,
      "Name a regular file or a block device.",
    );
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}
