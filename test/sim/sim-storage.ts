import assert from "node:assert/strict";
import { posix } from "node:path";
import { ColobusError } from "../../proto/errors.ts";
import type { FileKind, OpenOptions, Storage, StorageFile } from "../../shared/host/storage.ts";
import { PAGE_BYTES } from "./page-table.ts";
import { diskError, SimDirectory, type SimDisk } from "./sim-disk.ts";
import type { SimProcess } from "./sim-host.ts";
import { SECTOR_BYTES, SimInode, type SharedMedium } from "./sim-inode.ts";
import { SimulatedCrash } from "./simulated-crash.ts";
import type { StorageOp } from "./storage-faults.ts";
import type { SimWorld } from "./world.ts";

/** What a slow disk zeroes at a time. */
const ZERO_PIECE_BYTES = 8 * 1024 * 1024;

/**
 * A host's disk as one process sees it: Storage, with virtual delays, faults and death.
 *
 * Every call passes one gate. There a fault rule may turn it into an error or make it the last of the process; when it
 * dies the call has had no effect, all of it, or part of it (a write: up to a sector boundary). From then on every
 * call throws SimulatedCrash, and promises that were given out never settle.
 *
 * What a caller must not rely on is spoilt on purpose: a target that `tryRead` did not fill, or that a `read` is still
 * filling, holds rubbish; a `read` sees, page by page, what was there when it began or when it ended.
 */
export class SimStorage implements Storage {
  readonly #world: SimWorld;
  readonly #disk: SimDisk;
  readonly #process: SimProcess;
  readonly #files = new Set<SimFile>();

  constructor(world: SimWorld, disk: SimDisk, process: SimProcess) {
    this.#world = world;
    this.#disk = disk;
    this.#process = process;
  }

  open(path: string, options: OpenOptions): StorageFile {
    return this.#call("open", path, options.kind, () => {
      const node = this.#disk.find(path);
      if (node instanceof SimDirectory) throw diskError("EISDIR", path, "open");
      if (node === undefined && options.create === "never") {
        if (options.kind !== "image") throw diskError("ENOENT", path, "open");
        throw new ColobusError("image-missing", `the image ${path} does not exist`, "Check the path.");
      }
      if (node !== undefined && options.create === "new") {
        throw diskError("EEXIST", path, "create");
      }
      const inode = node ?? this.#disk.create(path);
      const lock = options.lock === true;
      const locker = inode.shared?.locksApart === true ? this.#disk : inode;
      if (lock && inode.locks.has(locker)) {
        throw new ColobusError("image-busy", `another process has locked ${path}`, "Stop that process.");
      }
      inode.references++;
      if (lock) inode.locks.add(locker);
      if (inode.shared !== undefined) openShared(inode, inode.shared, this.#disk, options);
      const file = new SimFile(this.#world, this.#disk, this.#process, inode, path, options, (closed) => {
        this.#files.delete(closed);
        if (lock) inode.locks.delete(locker);
        this.#disk.release(inode);
      });
      this.#files.add(file);
      return file;
    });
  }

  exists(path: string): boolean {
    return this.#call("exists", path, undefined, () => this.#disk.find(path) !== undefined);
  }

  list(directory: string): string[] {
    return this.#call("list", directory, undefined, () =>
      [...this.#disk.directory(directory, "list").names.keys()].sort(),
    );
  }

  /** Makes missing parents too; one that is there already will do. */
  makeDirectory(path: string): void {
    this.#call("makeDirectory", path, undefined, () => this.#disk.makeDirectory(path));
  }

  remove(path: string): void {
    this.#call("remove", path, undefined, () => this.#disk.remove(path));
  }

  removeBehind(path: string): Promise<void> {
    const error = admit(this.#world, this.#disk, this.#process, "removeBehind", path, undefined, 0, 0);
    const remove = (): void => {
      const node = this.#disk.find(path);
      assert(node === undefined || (node instanceof SimInode && node.references === 1), `${path} is still open`);
      this.#disk.remove(path);
    };
    const early = error === undefined && this.#disk.find(path) !== undefined && this.#disk.random.chance(0.5);
    if (early) remove();
    return finishLater(this.#world, this.#disk, this.#process, this.#disk.profile.removeMs, () => {
      if (error !== undefined) throw error;
      if (!early) remove();
    });
  }

  rename(from: string, to: string): void {
    this.#call("rename", from, undefined, () => this.#disk.rename(from, to));
  }

  renameNew(from: string, to: string): void {
    this.#call("rename", from, undefined, () => this.#disk.renameNew(from, to));
  }

  syncDirectory(path: string): Promise<void> {
    const error = admit(this.#world, this.#disk, this.#process, "syncDirectory", path, undefined, 0, 0);
    const directory = this.#disk.find(path);
    if (!(directory instanceof SimDirectory)) return Promise.reject(diskError("ENOENT", path, "sync the directory"));
    const position = directory.position;
    return finishLater(this.#world, this.#disk, this.#process, this.#disk.profile.syncMs, () => {
      if (error !== undefined) throw error;
      this.#disk.makeDurable(directory, position);
    });
  }

  freeBytes(path: string): number {
    return this.#call("freeBytes", path, undefined, () => {
      this.#disk.directory(this.#disk.find(path) instanceof SimDirectory ? path : posix.dirname(path), "measure");
      return Math.min(this.#disk.freePages * PAGE_BYTES, Number.MAX_SAFE_INTEGER);
    });
  }

  /** What the kernel does for a process that is gone: closes its files and drops its locks. */
  releaseAll(): void {
    for (const file of this.#files) file.release();
  }

  #call<T>(op: StorageOp, path: string, kind: FileKind | undefined, effect: () => T): T {
    const error = admit(this.#world, this.#disk, this.#process, op, path, kind, 0, 0, effect);
    if (error !== undefined) throw error;
    return effect();
  }
}

class SimFile implements StorageFile {
  readonly path: string;
  readonly #world: SimWorld;
  readonly #disk: SimDisk;
  readonly #process: SimProcess;
  readonly #inode: SimInode;
  readonly #kind: FileKind;
  readonly #readOnly: boolean;
  /** Read past this host's caches. */
  readonly #direct: boolean;
  readonly #released: (file: SimFile) => void;
  #open = true;
  #zeroing: Promise<void> = Promise.resolve();

  constructor(
    world: SimWorld,
    disk: SimDisk,
    process: SimProcess,
    inode: SimInode,
    path: string,
    options: OpenOptions,
    released: (file: SimFile) => void,
  ) {
    this.path = path;
    this.#world = world;
    this.#disk = disk;
    this.#process = process;
    this.#inode = inode;
    this.#kind = options.kind;
    this.#readOnly = options.readOnly === true;
    this.#direct = options.direct === true;
    this.#released = released;
  }

  get isDevice(): boolean {
    return this.#inode.isDevice;
  }

  sizeBytes(): number {
    return this.#call("sizeBytes", 0, 0, () => this.#inode.content.sizeBytes);
  }

  tryRead(target: Uint8Array, offset: number): boolean {
    return this.#call("tryRead", offset, target.length, () => {
      const { content } = this.#inode;
      if (this.#direct) return false;
      if (offset + target.length > content.sizeBytes || this.#disk.random.chance(this.#disk.profile.coldProbability)) {
        spoil(target);
        return false;
      }
      this.#load(target, offset);
      return true;
    });
  }

  read(target: Uint8Array, offset: number): Promise<void> {
    const error = this.#admit("read", offset, target.length);
    const { random } = this.#disk;
    const start = Math.min(target.length, Math.max(0, this.#inode.content.sizeBytes - offset));
    const early = random.chance(0.5);
    if (early) this.#load(target.subarray(0, start), offset);
    else spoil(target);
    return finishLater(this.#world, this.#disk, this.#process, this.#disk.profile.readMs, () => {
      if (error !== undefined) throw error;
      this.#assertWithinFile(target, offset);
      for (let done = 0; done < target.length;) {
        const length = Math.min(target.length - done, PAGE_BYTES - ((offset + done) % PAGE_BYTES));
        const late = !early || done + length > start || random.chance(0.5);
        if (late) this.#load(target.subarray(done, done + length), offset + done);
        done += length;
      }
    });
  }

  readNow(target: Uint8Array, offset: number): void {
    this.#call("readNow", offset, target.length, () => {
      this.#assertWithinFile(target, offset);
      this.#load(target, offset);
    });
  }

  write(source: Uint8Array, offset: number): void {
    const apply = (length: number): void => {
      const fitting = this.#inode.content.fitting(offset, length, this.#disk.freePages);
      if (fitting > 0) {
        const fits = fitting === source.length ? source : source.subarray(0, fitting);
        this.#disk.change(this.#inode, () => this.#inode.write(fits, offset));
      }
      if (fitting < length) throw diskError("ENOSPC", this.path, "write");
    };
    this.#change("write", offset, source.length, apply, source);
  }

  zero(offset: number, length: number): Promise<void> | undefined {
    return this.#zero(offset, length, (at, part) => {
      this.#change("zero", at, part, (some) => {
        this.#disk.change(this.#inode, () => this.#inode.zero(at, some, false));
      });
    });
  }

  zeroAllocated(offset: number, length: number): Promise<void> | undefined {
    return this.#zero(offset, length, (at, part) => {
      this.#change("zeroAllocated", at, part, (some) => {
        if (this.#inode.content.missing(at, some) > this.#disk.freePages) throw diskError("ENOSPC", this.path, "zero");
        this.#disk.change(this.#inode, () => this.#inode.zero(at, some, true));
      });
    });
  }

  get #knowsNoHoles(): boolean {
    return this.#direct || this.isDevice || this.#isSlowDevice;
  }

  get #isSlowDevice(): boolean {
    return this.#kind === "image" && this.#disk.profile.zeroBytesPerMs !== Infinity;
  }

  /** At once, or piece by piece, and one range after the other, where that takes its time. */
  #zero(offset: number, length: number, apply: (offset: number, length: number) => void): Promise<void> | undefined {
    const { zeroBytesPerMs } = this.#disk.profile;
    if (!this.#isSlowDevice || length === 0) {
      apply(offset, length);
      return undefined;
    }
    const before = this.#zeroing;
    const zeroing = (async () => {
      await before;
      for (let at = offset; at < offset + length; at += ZERO_PIECE_BYTES) {
        const part = Math.min(ZERO_PIECE_BYTES, offset + length - at);
        await new Promise<void>((resolve) => {
          this.#world.schedule(part / zeroBytesPerMs, resolve, this.#process);
        });
        if (!this.#open) throw new ColobusError("shutting-down", `${this.path} is closed while it is zeroed`);
        apply(at, part);
      }
    })();
    this.#zeroing = zeroing.catch(() => undefined);
    return zeroing;
  }

  allocate(offset: number, length: number): void {
    this.#change("allocate", offset, length, (part) => {
      if (this.#inode.content.missing(offset, part) > this.#disk.freePages)
        throw diskError("ENOSPC", this.path, "allocate");
      this.#disk.change(this.#inode, () => this.#inode.allocate(offset, part));
    });
  }

  truncate(sizeBytes: number): void {
    this.#assertWritable();
    this.#call("truncate", sizeBytes, 0, () => {
      if (this.isDevice) throw diskError("EINVAL", this.path, "truncate");
      this.#disk.change(this.#inode, () => this.#inode.truncate(sizeBytes));
    });
  }

  sync(): Promise<void> {
    const error = this.#admit("sync", 0, 0);
    // What another host has written is in that host's cache; that of this one may have what an earlier process wrote.
    const { shared } = this.#inode;
    const isOthers = shared !== undefined && !shared.isPagewise && shared.writer !== this.#disk;
    const position = isOthers ? 0 : this.#inode.position;
    return finishLater(this.#world, this.#disk, this.#process, this.#disk.profile.syncMs, () => {
      if (error === undefined) this.#disk.makeDurable(this.#inode, position);
      else {
        this.#inode.makeUncertain(position, this.#disk.random);
        throw error;
      }
    });
  }

  nextData(offset: number): number | undefined {
    if (this.#knowsNoHoles)
      return this.#call("nextData", offset, 0, () => (offset < this.sizeBytes() ? offset : undefined));
    return this.#call("nextData", offset, 0, () =>
      this.#inode.content.nextData(offset, this.#disk.profile.unwrittenIsData),
    );
  }

  nextHole(offset: number): number {
    if (this.#knowsNoHoles) return this.#call("nextHole", offset, 0, () => Math.max(offset, this.sizeBytes()));
    return this.#call("nextHole", offset, 0, () =>
      this.#inode.content.nextHole(offset, this.#disk.profile.unwrittenIsData),
    );
  }

  prefetch(offset: number, length: number): void {
    this.#call("prefetch", offset, length, () => undefined);
  }

  allocatedBytes(): number {
    return this.#call("allocatedBytes", 0, 0, () => this.#inode.content.pageCount * PAGE_BYTES);
  }

  changeMark(): string {
    return this.#call("changeMark", 0, 0, () => (this.isDevice ? "" : String(this.#inode.position)));
  }

  close(): void {
    this.#call("close", 0, 0, () => this.release());
  }

  release(): void {
    this.#open = false;
    this.#released(this);
  }

  /** Fills `target` with what this host finds: in its cache, or on a medium that another host writes. */
  #load(target: Uint8Array, offset: number): void {
    const { shared, content } = this.#inode;
    if (shared === undefined || shared.writer === this.#disk) content.read(target, offset);
    else if (this.#direct) this.#inode.readMedium(target, offset, this.#disk.random);
    else readThroughCache(this.#inode, shared, this.#disk, target, offset);
  }

  #assertWritable(): void {
    assert(!this.#readOnly || !this.#process.alive, `${this.path} is open for reading only`);
  }

  #assertWithinFile(target: Uint8Array, offset: number): void {
    if (offset + target.length <= this.#inode.content.sizeBytes) return;
    throw new ColobusError(
      "io-error",
      `cannot read at ${offset} of ${this.path}: the file ends before`,
      "Check the file.",
    );
  }

  #call<T>(op: StorageOp, offset: number, length: number, effect: () => T): T {
    const error = this.#admit(op, offset, length, effect);
    if (error !== undefined) throw error;
    return effect();
  }

  /** A call that changes content: under a fault any part of it may happen. */
  #change(op: StorageOp, offset: number, length: number, apply: (length: number) => void, source?: Uint8Array): void {
    this.#assertWritable();
    if (source !== undefined) this.#world.traceBytes(source);
    const applySome = (): void => {
      const sectors = Math.ceil(length / SECTOR_BYTES);
      const boundary = (Math.floor(offset / SECTOR_BYTES) + this.#disk.random.below(sectors + 1)) * SECTOR_BYTES;
      const part = Math.min(length, boundary - offset);
      if (part > 0) apply(part);
    };
    const error = this.#admit(op, offset, length, applySome);
    if (error !== undefined) {
      try {
        applySome();
      } catch (second) {
        // The part that was to happen met a full disk: the injected error is the one to report.
        assert(second instanceof ColobusError);
      }
      throw error;
    }
    apply(length);
  }

  #admit(op: StorageOp, offset: number, length: number, effect?: () => unknown): ColobusError | undefined {
    if (this.#process.alive) assert(this.#open, `${op} on ${this.path}, which is closed`);
    assert(offset >= 0 && length >= 0 && Number.isSafeInteger(offset + length), `${op} at ${offset} of ${length}`);
    return admit(this.#world, this.#disk, this.#process, op, this.path, this.#kind, offset, length, effect);
  }
}

/** Who opens a shared file for writing has it in its cache from then on. */
function openShared(inode: SimInode, shared: SharedMedium, disk: SimDisk, options: OpenOptions): void {
  if (options.fresh === true) shared.caches.delete(disk);
  if (options.readOnly === true || options.direct === true || shared.writer === disk) return;
  assert(
    shared.isPagewise || inode.unsyncedCount === 0,
    "the other host's cache still holds writes: it was not fenced",
  );
  assert(!shared.caches.has(disk), "what this host's cache holds of the shared file is old");
  shared.writer = disk;
}

/** A page cache: what was read once is not looked for on the medium again. */
function readThroughCache(
  inode: SimInode,
  shared: SharedMedium,
  disk: SimDisk,
  target: Uint8Array,
  offset: number,
): void {
  let pages = shared.caches.get(disk);
  if (pages === undefined) shared.caches.set(disk, (pages = new Map()));
  for (let done = 0; done < target.length;) {
    const index = Math.floor((offset + done) / PAGE_BYTES);
    const start = offset + done - index * PAGE_BYTES;
    const length = Math.min(target.length - done, PAGE_BYTES - start);
    let page = pages.get(index);
    if (page === undefined) {
      page = new Uint8Array(Math.min(PAGE_BYTES, inode.content.sizeBytes - index * PAGE_BYTES));
      inode.readMedium(page, index * PAGE_BYTES, disk.random);
      pages.set(index, page);
    }
    target.set(page.subarray(start, start + length), done);
    done += length;
  }
}

const ERRNO_OF_FAULT = { "io-error": "EIO", "out-of-space": "ENOSPC", "permission-denied": "EACCES" } as const;

/**
 * The gate of every call. Returns the error that the call is to meet, if any; throws SimulatedCrash when the process is
 * dead, or dies here, before or after `effect`.
 */
function admit(
  world: SimWorld,
  disk: SimDisk,
  process: SimProcess,
  op: StorageOp,
  path: string,
  kind: FileKind | undefined,
  offset: number,
  length: number,
  effect?: () => unknown,
): ColobusError | undefined {
  if (!process.alive) throw new SimulatedCrash(process.label);
  world.trace(process.traceLine(op, path), offset, length);
  const fault = disk.faults.judge(op, path, kind, offset, length);
  if (fault === undefined) return undefined;
  if ("error" in fault) {
    world.trace(`${process.label} meets ${fault.error}`);
    return diskError(ERRNO_OF_FAULT[fault.error], path, op);
  }
  if (disk.random.chance(0.5)) {
    try {
      effect?.();
    } catch (error) {
      // The call failed by itself and then its process died: nobody is left to be told.
      if (!(error instanceof ColobusError)) throw error;
    }
  }
  process.host.crash(fault.crash);
  throw new SimulatedCrash(process.label);
}

/** Does `finish` after a delay of the device, and settles like it; never, if the process is dead by then. */
async function finishLater(
  world: SimWorld,
  disk: SimDisk,
  process: SimProcess,
  delayMs: readonly [number, number],
  finish: () => void,
): Promise<void> {
  const { random, profile } = disk;
  const delay = random.within(random.chance(profile.stallProbability) ? profile.stallMs : delayMs);
  await new Promise<void>((resolve) => {
    world.schedule(delay, resolve, process);
  });
  finish();
}

/** Rubbish where no caller may look. */
function spoil(target: Uint8Array): void {
  target.fill(0xdb, 0, Math.min(target.length, 64));
}
