import assert from "node:assert/strict";
import { ColobusError } from "../../proto/errors.ts";
import type { FileKind, OpenOptions, Storage, StorageFile } from "../../shared/host/storage.ts";
import { diskError, SimDirectory, SimDisk } from "../sim/sim-disk.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import type { SimInode } from "../sim/sim-inode.ts";
import type { StorageOp } from "../sim/storage-faults.ts";

/**
 * The files of one simulated disk for tests that need no virtual time: calls that hand out no promise take effect at
 * once, reads and syncs that do settle in a later turn of the event loop. Faults are the disk's (`disk.faults`).
 *
 * `crash` is the death of the process between two calls. What is still under way then must have been waited for; the
 * simulator (`test/sim`) is the place for deaths in the middle of a call.
 */
export class MemoryStorage implements Storage {
  readonly disk: SimDisk;
  /** Set to hold back what settles later, until it resolves: for tests of what happens meanwhile. */
  hold: ((op: "read" | "sync" | "zero", path: string) => Promise<void> | undefined) | undefined;
  readonly #files = new Set<MemoryFile>();

  constructor(disk: SimDisk = new SimDisk(new SeededRandom(1), { coldProbability: 0 })) {
    this.disk = disk;
  }

  open(path: string, options: OpenOptions): StorageFile {
    this.admit("open", path, options.kind);
    const node = this.disk.find(path);
    if (node instanceof SimDirectory) throw diskError("EISDIR", path, "open");
    if (node === undefined && options.create === "never") {
      if (options.kind !== "image") throw diskError("ENOENT", path, "open");
      throw new ColobusError("image-missing", `the image ${path} does not exist`, "Check the path.");
    }
    if (node !== undefined && options.create === "new") throw diskError("EEXIST", path, "create");
    const inode = node ?? this.disk.create(path);
    const lock = options.lock === true;
    if (lock && inode.locks.has(inode)) throw new ColobusError("image-busy", `another process has locked ${path}`);
    inode.references += 1;
    if (lock) inode.locks.add(inode);
    const file = new MemoryFile(this, inode, path, options.kind, (closed) => {
      this.#files.delete(closed);
      if (lock) inode.locks.delete(inode);
      this.disk.release(inode);
    });
    this.#files.add(file);
    return file;
  }

  exists(path: string): boolean {
    this.admit("exists", path, undefined);
    return this.disk.find(path) !== undefined;
  }

  list(directory: string): string[] {
    this.admit("list", directory, undefined);
    return [...this.disk.directory(directory, "list").names.keys()].sort();
  }

  makeDirectory(path: string): void {
    this.admit("makeDirectory", path, undefined);
    this.disk.makeDirectory(path);
  }

  remove(path: string): void {
    this.admit("remove", path, undefined);
    this.disk.remove(path);
  }

  async removeBehind(path: string): Promise<void> {
    await turn();
    this.admit("removeBehind", path, undefined);
    this.disk.remove(path);
  }

  rename(from: string, to: string): void {
    this.admit("rename", from, undefined);
    this.disk.rename(from, to);
  }

  renameNew(from: string, to: string): void {
    this.admit("rename", from, undefined);
    this.disk.renameNew(from, to);
  }

  async syncDirectory(path: string): Promise<void> {
    const directory = this.disk.directory(path, "sync");
    const { position } = directory;
    await turn();
    this.admit("syncDirectory", path, undefined);
    directory.makeDurable(position);
  }

  freeBytes(path: string): number {
    this.admit("freeBytes", path, undefined);
    return Math.min(this.disk.freePages * 4096, Number.MAX_SAFE_INTEGER);
  }

  /** Files that are open. */
  get openPaths(): string[] {
    return [...this.#files].map((file) => file.path);
  }

  /** The process dies, or with `power` the machine: every file is closed, and its locks are dropped. */
  crash(kind: "process" | "power"): void {
    for (const file of this.#files) file.abandon();
    this.disk.crash(kind);
  }

  admit(op: StorageOp, path: string, kind: FileKind | undefined, offset = 0, length = 0): void {
    const fault = this.disk.faults.judge(op, path, kind, offset, length);
    if (fault === undefined) return;
    assert("error" in fault, "a process dies by `crash` here");
    throw diskError(
      fault.error === "out-of-space" ? "ENOSPC" : fault.error === "io-error" ? "EIO" : "EACCES",
      path,
      op,
    );
  }
}

/** Resolves in a later turn of the event loop. */
export function turn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

class MemoryFile implements StorageFile {
  readonly path: string;
  readonly #storage: MemoryStorage;
  readonly #inode: SimInode;
  readonly #kind: FileKind;
  readonly #released: (file: MemoryFile) => void;
  #open = true;

  constructor(
    storage: MemoryStorage,
    inode: SimInode,
    path: string,
    kind: FileKind,
    released: (file: MemoryFile) => void,
  ) {
    this.#storage = storage;
    this.#inode = inode;
    this.path = path;
    this.#kind = kind;
    this.#released = released;
  }

  get isDevice(): boolean {
    return this.#inode.isDevice;
  }

  sizeBytes(): number {
    this.#admit("sizeBytes");
    return this.#inode.content.sizeBytes;
  }

  tryRead(target: Uint8Array, offset: number): boolean {
    this.#admit("tryRead", offset, target.length);
    const { random, profile } = this.#storage.disk;
    if (offset + target.length > this.#inode.content.sizeBytes || random.chance(profile.coldProbability)) {
      target.fill(0xdb);
      return false;
    }
    this.#inode.content.read(target, offset);
    return true;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    this.#admit("read", offset, target.length);
    const early = this.#storage.disk.random.chance(0.5);
    if (early) this.#fill(target, offset);
    await (this.#storage.hold?.("read", this.path) ?? turn());
    if (!early) this.#fill(target, offset);
  }

  readNow(target: Uint8Array, offset: number): void {
    this.#admit("readNow", offset, target.length);
    this.#fill(target, offset);
  }

  #fill(target: Uint8Array, offset: number): void {
    if (offset + target.length > this.#inode.content.sizeBytes) {
      throw new ColobusError("io-error", `cannot read at ${offset} of ${this.path}: the file ends before`);
    }
    this.#inode.content.read(target, offset);
  }

  write(source: Uint8Array, offset: number): void {
    this.#admit("write", offset, source.length);
    const { disk } = this.#storage;
    const fitting = this.#inode.content.fitting(offset, source.length, disk.freePages);
    if (fitting > 0) disk.change(this.#inode, () => this.#inode.write(source.subarray(0, fitting), offset));
    if (fitting < source.length) throw diskError("ENOSPC", this.path, "write");
  }

  zero(offset: number, length: number): Promise<void> | undefined {
    this.#admit("zero", offset, length);
    const zero = (): void => {
      this.#storage.disk.change(this.#inode, () => this.#inode.zero(offset, length, false));
    };
    const held = this.#storage.hold?.("zero", this.path);
    if (held !== undefined) return held.then(zero);
    zero();
    return undefined;
  }

  zeroAllocated(offset: number, length: number): undefined {
    this.#admit("zeroAllocated", offset, length);
    this.#assertRoom(offset, length);
    this.#storage.disk.change(this.#inode, () => this.#inode.zero(offset, length, true));
  }

  allocate(offset: number, length: number): void {
    this.#admit("allocate", offset, length);
    this.#assertRoom(offset, length);
    this.#storage.disk.change(this.#inode, () => this.#inode.allocate(offset, length));
  }

  truncate(sizeBytes: number): void {
    this.#admit("truncate", sizeBytes);
    if (this.isDevice) throw diskError("EINVAL", this.path, "truncate");
    this.#storage.disk.change(this.#inode, () => this.#inode.truncate(sizeBytes));
  }

  async sync(): Promise<void> {
    assert(this.#open, `sync of ${this.path}, which is closed`);
    const { position } = this.#inode;
    await (this.#storage.hold?.("sync", this.path) ?? turn());
    try {
      this.#storage.admit("sync", this.path, this.#kind);
    } catch (error) {
      this.#inode.makeUncertain(position, this.#storage.disk.random);
      throw error;
    }
    this.#inode.makeDurable(position);
  }

  nextData(offset: number): number | undefined {
    this.#admit("nextData", offset);
    return this.#inode.content.nextData(offset, this.#storage.disk.profile.unwrittenIsData);
  }

  nextHole(offset: number): number {
    this.#admit("nextHole", offset);
    return this.#inode.content.nextHole(offset, this.#storage.disk.profile.unwrittenIsData);
  }

  prefetch(offset: number, length: number): void {
    this.#admit("prefetch", offset, length);
  }

  allocatedBytes(): number {
    this.#admit("allocatedBytes");
    return this.#inode.content.pageCount * 4096;
  }

  changeMark(): string {
    this.#admit("changeMark");
    return "";
  }

  close(): void {
    this.#admit("close");
    this.abandon();
  }

  abandon(): void {
    this.#open = false;
    this.#released(this);
  }

  #assertRoom(offset: number, length: number): void {
    if (this.#inode.content.missing(offset, length) > this.#storage.disk.freePages) {
      throw diskError("ENOSPC", this.path, "allocate");
    }
  }

  #admit(op: StorageOp, offset = 0, length = 0): void {
    assert(this.#open, `${op} on ${this.path}, which is closed`);
    this.#storage.admit(op, this.path, this.#kind, offset, length);
  }
}
