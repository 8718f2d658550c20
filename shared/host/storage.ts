/**
 * Files as the agents see them: the only door to the file system. In production it is the kernel's (`node-storage.ts`);
 * in the simulator it is a disk with a volatile cache, torn sectors, EIO and ENOSPC.
 *
 * Methods that return no promise hand the data to the kernel's page cache (or take it from there) and return at once.
 * What they wrote survives the death of this process; only after `sync()` does it survive the loss of power.
 * Creations, renames and removals of names are durable only after `syncDirectory()` of their directory.
 *
 * Every method throws, or rejects with, a ColobusError: `out-of-space`, `io-error`, `permission-denied`,
 * `image-missing`, `image-busy` …; the message names the path and the operation.
 */

/** What a file is for, so that a test can fail, or crash, at exactly the call that it means. */
export type FileKind = "image" | "state" | "generation-data" | "active-data" | "buffer-log" | "journal" | "other";

export interface OpenOptions {
  readonly kind: FileKind;
  /** `never`: the file must exist (else `image-missing`, or `not-found` where it is no image). `new`: it must not exist. `if-missing`: either. */
  readonly create: "never" | "new" | "if-missing";
  readonly readOnly?: boolean;
  /**
   * Another host writes the file: each read asks the device, past every cache of this host. For reading only; nothing is
   * said of holes, since what the file system keeps of them may be old. `not-supported` where the file system cannot.
   */
  readonly direct?: boolean;
  /** Another host may have written the file while this one had it not open: what its caches hold of it is dropped. */
  readonly fresh?: boolean;
  /** Take an exclusive lock for as long as the file is open; `image-busy` if another process, or open file, has it. */
  readonly lock?: boolean;
}

export interface StorageFile {
  readonly path: string;
  /** It is a block device: whoever made it decides its size. */
  readonly isDevice: boolean;
  /** Current size in bytes; for a block device, the device's size. */
  sizeBytes(): number;
  /** Fills `target` from `offset` if that needs no waiting for the device; false (and `target` undefined) if it would. */
  tryRead(target: Uint8Array, offset: number): boolean;
  /** Fills `target` from `offset`, off the event loop. `io-error` when the file ends before. The caller leaves `target` alone until the promise settles. */
  read(target: Uint8Array, offset: number): Promise<void>;
  /** Fills `target` from `offset` and waits for the device: for start-up and recovery only. */
  readNow(target: Uint8Array, offset: number): void;
  /** Writes all of `source` at `offset`. The caller may reuse `source` at once. After an error any part may have been written. */
  write(source: Uint8Array, offset: number): void;
  /**
   * Makes [offset, offset+length) read as zeroes, freeing the space where the file system can. Does not change the size.
   * Where that takes long, as on a device that has to be told each zero, it is done off the event loop, a piece at a time,
   * and one range of the file after the other: nothing else may change the range until the promise settles. After an
   * error any part may read as zeroes; `shutting-down` when the file is closed before it is done.
   */
  zero(offset: number, length: number): Promise<void> | undefined;
  /** As `zero`, and keeps space allocated for the range (a later write cannot run out of space). */
  zeroAllocated(offset: number, length: number): Promise<void> | undefined;
  /** Allocates space for [offset, offset+length) without changing what reads back; grows the file if needed. */
  allocate(offset: number, length: number): void;
  truncate(sizeBytes: number): void;
  /** Everything written so far is durable when the promise resolves. After a rejection the file's unsynced content is unknown. */
  sync(): Promise<void>;
  /** The first offset at or after `offset` that is not known to be a hole; undefined when only a hole remains. */
  nextData(offset: number): number | undefined;
  /** The first offset at or after `offset` that lies in a hole; the file's end counts as one. */
  nextHole(offset: number): number;
  /** Asks the kernel to read [offset, offset+length) ahead. A hint. */
  prefetch(offset: number, length: number): void;
  /** Bytes of storage that the file occupies. */
  allocatedBytes(): number;
  /** Differs from an earlier answer when the content was changed in between, by anyone; empty where that cannot be told. */
  changeMark(): string;
  /** Closes the file and drops its lock. Every later call is a bug. Pending `read` and `sync` promises still settle. */
  close(): void;
}

export interface Storage {
  open(path: string, options: OpenOptions): StorageFile;
  exists(path: string): boolean;
  /** Names in the directory, sorted, without `.` and `..`. */
  list(directory: string): string[];
  makeDirectory(path: string): void;
  remove(path: string): void;
  /** Removes the name, and frees what it named, off the event loop: freeing a large file takes long. The file must be closed. */
  removeBehind(path: string): Promise<void>;
  rename(from: string, to: string): void;
  /** As `rename`, to a name that nothing has; a crash may leave both. Errors: `io-error` where something has it. */
  renameNew(from: string, to: string): void;
  syncDirectory(path: string): Promise<void>;
  /** Bytes that an unprivileged writer may still allocate in the file system of `path`. */
  freeBytes(path: string): number;
}
