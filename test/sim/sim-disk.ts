import assert from "node:assert/strict";
import { constants } from "node:os";
import { posix } from "node:path";
import type { ColobusError } from "../../proto/errors.ts";
import { osError } from "../../shared/host/os-error.ts";
import { PAGE_BYTES, type PageTable } from "./page-table.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { type Sharing, SimInode } from "./sim-inode.ts";
import type { CrashKind } from "./simulated-crash.ts";
import { StorageFaults } from "./storage-faults.ts";

/**
 * The file system of one simulated host: the tree of names, the files, the space, and the faults. It outlives the
 * processes that use it (through SimStorage).
 *
 * Names are as volatile as content: a directory has durable names and, in order, the changes since. A loss of power
 * keeps a prefix of them, for each directory on its own. A file whose name is lost is gone; a file whose removal
 * is lost is back, with what was durable of its content. A rename is one change, and stays within its directory.
 *
 * Methods here are immediate and know no faults: they are also what a test uses to look at, and to prepare, a disk.
 */
export interface StorageProfile {
  /** How often `tryRead` finds that it would have to wait. */
  readonly coldProbability: number;
  readonly readMs: readonly [number, number];
  readonly syncMs: readonly [number, number];
  /** Of a removal behind the path. */
  readonly removeMs: readonly [number, number];
  /** How often a read or a sync takes very long. */
  readonly stallProbability: number;
  readonly stallMs: readonly [number, number];
  /** Images are devices that write so many zeroes, off the event loop, and know no holes. Infinite: they are files. */
  readonly zeroBytesPerMs: number;
  /** Whether the file system takes allocated but unwritten pages for data. */
  readonly unwrittenIsData: boolean;
}

export const STORAGE_PROFILE: StorageProfile = {
  coldProbability: 0.1,
  readMs: [0.05, 2],
  syncMs: [0.1, 5],
  removeMs: [0.05, 2],
  stallProbability: 0.001,
  stallMs: [20, 500],
  zeroBytesPerMs: Infinity,
  unwrittenIsData: false,
};

interface NameChange {
  readonly set?: { readonly name: string; readonly node: SimNode };
  readonly unset?: string;
}

/** Decides what survives a loss of power. */
export interface Survival {
  /** How many of a directory's unsynced changes survive. */
  keptNames(directory: SimDirectory): number;
  losePower(inode: SimInode): void;
}

function randomSurvival(random: SeededRandom): Survival {
  return {
    keptNames: (directory) => random.below(directory.unsyncedCount + 1),
    losePower: (inode) => inode.losePower(random),
  };
}

export class SimDirectory {
  readonly names = new Map<string, SimNode>();
  #durable = new Map<string, SimNode>();
  #unsynced: NameChange[] = [];
  #firstUnsynced = 0;

  get durableNames(): ReadonlyMap<string, SimNode> {
    return this.#durable;
  }

  /** To be given to `makeDurable`: covers every change so far. */
  get position(): number {
    return this.#firstUnsynced + this.#unsynced.length;
  }

  change(change: NameChange): void {
    applyChange(this.names, change);
    this.#unsynced.push(change);
  }

  makeDurable(position: number): void {
    const taken = this.#unsynced.splice(0, Math.max(0, position - this.#firstUnsynced));
    this.#firstUnsynced += taken.length;
    for (const change of taken) applyChange(this.#durable, change);
  }

  /** Changes that a loss of power may undo, from the last one backwards. */
  get unsyncedCount(): number {
    return this.#unsynced.length;
  }

  /** Everything that a name in here leads to, or may lead to after a loss of power. */
  *nodes(): Iterable<SimNode> {
    yield* this.#durable.values();
    for (const { set } of this.#unsynced) if (set !== undefined) yield set.node;
    yield* this.names.values();
  }

  /** Of the unsynced changes the first `kept` survive. */
  losePower(kept: number): void {
    this.makeDurable(this.#firstUnsynced + kept);
    this.#firstUnsynced += this.#unsynced.length;
    this.#unsynced = [];
    this.names.clear();
    for (const [name, node] of this.#durable) this.names.set(name, node);
  }

  fork(copyOf: (node: SimNode) => SimNode): SimDirectory {
    const copy = new SimDirectory();
    for (const [name, node] of this.names) copy.names.set(name, copyOf(node));
    for (const [name, node] of this.#durable) copy.#durable.set(name, copyOf(node));
    copy.#unsynced = this.#unsynced.map(({ set, unset }) => ({
      ...(set === undefined ? {} : { set: { name: set.name, node: copyOf(set.node) } }),
      ...(unset === undefined ? {} : { unset }),
    }));
    return copy;
  }
}

export type SimNode = SimDirectory | SimInode;

export class SimDisk {
  readonly profile: StorageProfile;
  readonly faults: StorageFaults;
  readonly #random: SeededRandom;
  #root = new SimDirectory();
  #capacityPages = Number.POSITIVE_INFINITY;
  #usedPages = 0;
  #forks = 0;
  /**
   * Called before each change of what readers see or of what the medium holds: for tests that look at, or end, the
   * moment before it. What it throws goes to the caller of the change, which has not happened then.
   */
  beforeChange: (() => void) | undefined;

  constructor(random: SeededRandom, profile: Partial<StorageProfile> = {}) {
    this.#random = random;
    this.profile = { ...STORAGE_PROFILE, ...profile };
    this.faults = new StorageFaults(random.fork("faults"));
  }

  /** For delays and luck of the calls on this disk. */
  get random(): SeededRandom {
    return this.#random;
  }

  // Space

  /** Space of the file system in bytes; unlimited by default. */
  set capacityBytes(bytes: number) {
    this.#capacityPages = Math.floor(bytes / PAGE_BYTES);
  }

  get usedBytes(): number {
    return this.#usedPages * PAGE_BYTES;
  }

  /** Pages that may still be allocated. */
  get freePages(): number {
    return Math.max(0, this.#capacityPages - this.#usedPages);
  }

  /** Changes a file, keeping count of the space. */
  change<T>(inode: SimInode, effect: () => T): T {
    this.beforeChange?.();
    const before = inode.content.pageCount;
    try {
      return effect();
    } finally {
      this.#usedPages += inode.content.pageCount - before;
    }
  }

  // Names

  find(path: string): SimNode | undefined {
    let node: SimNode = this.#root;
    for (const name of namesOf(path)) {
      if (!(node instanceof SimDirectory)) return undefined;
      const next = node.names.get(name);
      if (next === undefined) return undefined;
      node = next;
    }
    return node;
  }

  /** Errors: `not-found`. */
  directory(path: string, operation: string): SimDirectory {
    const node = this.find(path);
    if (node instanceof SimDirectory) return node;
    throw diskError("ENOENT", path, operation);
  }

  /** Creates an empty file. The name must not be taken, and the directory must exist. */
  create(path: string): SimInode {
    const parent = this.directory(posix.dirname(path), "create");
    assert(this.find(path) === undefined, `${path} is there already`);
    const inode = new SimInode();
    inode.references = 1;
    this.beforeChange?.();
    parent.change({ set: { name: posix.basename(path), node: inode } });
    return inode;
  }

  makeDirectory(path: string): void {
    let node = this.#root;
    for (const name of namesOf(path)) {
      let next = node.names.get(name);
      if (next === undefined) {
        next = new SimDirectory();
        this.beforeChange?.();
        node.change({ set: { name, node: next } });
      }
      if (!(next instanceof SimDirectory)) throw diskError("ENOTDIR", path, "make the directory");
      node = next;
    }
  }

  /** Errors: `not-found`. A directory must be empty. */
  remove(path: string): void {
    const parent = this.directory(posix.dirname(path), "remove");
    const name = posix.basename(path);
    const node = parent.names.get(name);
    if (node === undefined) throw diskError("ENOENT", path, "remove");
    assert(node instanceof SimInode || node.names.size === 0, `${path} is a directory with files in it`);
    this.beforeChange?.();
    parent.change({ unset: name });
    if (node instanceof SimInode) this.release(node);
  }

  /** Errors: `not-found`. What `to` named before is gone. */
  rename(from: string, to: string): void {
    const parent = this.directory(posix.dirname(from), "rename");
    assert(this.directory(posix.dirname(to), "rename") === parent, "renames between directories are not simulated");
    const node = parent.names.get(posix.basename(from));
    if (node === undefined) throw diskError("ENOENT", from, "rename");
    const replaced = parent.names.get(posix.basename(to));
    if (replaced === node) return;
    this.beforeChange?.();
    parent.change({ set: { name: posix.basename(to), node }, unset: posix.basename(from) });
    if (replaced instanceof SimInode) this.release(replaced);
  }

  /** Errors: `not-found`; `io-error` where `to` names something. */
  renameNew(from: string, to: string): void {
    if (this.find(to) !== undefined) throw diskError("EEXIST", to, "rename");
    this.rename(from, to);
  }

  /** A name or an open file less; with the last one the space is free. */
  release(inode: SimInode): void {
    inode.references--;
    if (inode.references === 0) this.#usedPages -= inode.content.pageCount;
  }

  // Durability

  /** What was done before `position` reaches the medium, of a file's content or of a directory's names. */
  makeDurable(node: SimNode, position: number): void {
    this.beforeChange?.();
    node.makeDurable(position);
  }

  // Death

  /**
   * What the death of the host's process does to the disk, apart from its open files and their locks, which the
   * process's SimStorage gives back: nothing, or with the power the loss of a part of what was not synced: an arbitrary
   * one, unless the test has chosen it.
   */
  crash(kind: CrashKind, survival: Survival = randomSurvival(this.#random)): void {
    if (kind === "process") return;
    this.#usedPages = 0;
    const visit = (directory: SimDirectory): void => {
      directory.losePower(survival.keptNames(directory));
      for (const node of directory.names.values()) {
        if (node instanceof SimDirectory) visit(node);
        else if (node.shared !== undefined && node.shared.writer !== this) {
          node.shared.caches.delete(this); // what is unsynced is in another host's cache
        } else {
          survival.losePower(node);
          node.references = 1;
          this.#usedPages += node.content.pageCount;
        }
      }
    };
    visit(this.#root);
  }

  // For tests

  /** Prepares a durable file, and durable directories on the way to it. */
  addFile(path: string, sizeBytes: number, content: Uint8Array = new Uint8Array(0)): void {
    this.addDirectory(posix.dirname(path));
    const inode = this.create(path);
    this.change(inode, () => {
      inode.truncate(sizeBytes);
      if (content.length > 0) inode.write(content, 0);
    });
    inode.makeDurable(inode.position);
    const parent = this.directory(posix.dirname(path), "addFile");
    parent.makeDurable(parent.position);
  }

  /** The file is a block device of that size from now on, with `content` for what is added. */
  makeDevice(path: string, sizeBytes: number, content: Uint8Array = new Uint8Array(0)): void {
    const inode = this.file(path);
    const formerBytes = inode.content.sizeBytes;
    inode.isDevice = true;
    this.change(inode, () => {
      inode.truncate(sizeBytes);
      if (content.length > 0) inode.write(content, formerBytes);
    });
    inode.makeDurable(inode.position);
  }

  /** Puts a file of `owner` into this file system too: a disk that both hosts can reach. `owner` writes it for now. */
  addShared(path: string, owner: SimDisk, { isPagewise = false, locksApart = false }: Sharing = {}): void {
    const inode = owner.file(path);
    inode.shared ??= { writer: owner, caches: new Map(), isPagewise, locksApart };
    inode.references += 1;
    const parent = this.directory(posix.dirname(path), "addShared");
    parent.change({ set: { name: posix.basename(path), node: inode } });
    parent.makeDurable(parent.position);
  }

  /** Every directory and file that is there, or may be after a loss of power, each once, in an order of its own. */
  nodes(): Set<SimNode> {
    const found = new Set<SimNode>();
    const visit = (node: SimNode): void => {
      if (found.has(node)) return;
      found.add(node);
      if (node instanceof SimDirectory) for (const child of node.nodes()) visit(child);
    };
    visit(this.#root);
    return found;
  }

  /** Paths of all files as readers see them, sorted. */
  paths(): string[] {
    const paths: string[] = [];
    const visit = (directory: SimDirectory, path: string): void => {
      for (const [name, node] of directory.names) {
        if (node instanceof SimDirectory) visit(node, `${path}/${name}`);
        else paths.push(`${path}/${name}`);
      }
    };
    visit(this.#root, "");
    return paths.sort();
  }

  /** Prepares a durable directory. */
  addDirectory(path: string): void {
    this.makeDirectory(path);
    let node: SimNode | undefined = this.#root;
    for (const name of ["", ...namesOf(path)]) {
      if (name !== "") node = node.names.get(name);
      assert(node instanceof SimDirectory);
      node.makeDurable(node.position);
    }
  }

  /** The file behind a name. */
  file(path: string): SimInode {
    const node = this.find(path);
    assert(node instanceof SimInode, `there is no file ${path}`);
    return node;
  }

  /** What readers of a file see now. */
  readFile(path: string): Buffer {
    return bytesOf(this.file(path).content);
  }

  /** What of a file is certain to survive a loss of power (its name apart). */
  readDurable(path: string): Buffer {
    return bytesOf(this.file(path).durableContent);
  }

  /** Flips bits of one byte, in the cache and on the medium. */
  corrupt(path: string, offset: number, mask = 0x01): void {
    this.file(path).corrupt(offset, mask);
  }

  /**
   * An independent copy, unsynced state included and without open files, for a world of its own: to see what a crash at
   * this moment would leave, without harm to this world.
   */
  fork(name = `fork ${this.#forks++}`): SimDisk {
    const copy = new SimDisk(this.#random.fork(name), this.profile);
    const copies = new Map<SimNode, SimNode>();
    const copyOf = (node: SimNode): SimNode => {
      const known = copies.get(node);
      if (known !== undefined) return known;
      const made = node instanceof SimInode ? node.fork() : node.fork(copyOf);
      copies.set(node, made);
      return made;
    };
    const root = copyOf(this.#root);
    assert(root instanceof SimDirectory);
    copy.#root = root;
    copy.#capacityPages = this.#capacityPages;
    const count = (directory: SimDirectory): void => {
      for (const node of directory.names.values()) {
        if (node instanceof SimDirectory) count(node);
        else {
          node.references = 1;
          copy.#usedPages += node.content.pageCount;
        }
      }
    };
    count(root);
    return copy;
  }
}

function applyChange(names: Map<string, SimNode>, { set, unset }: NameChange): void {
  if (unset !== undefined) names.delete(unset);
  if (set !== undefined) names.set(set.name, set.node);
}

function namesOf(path: string): string[] {
  return posix
    .resolve("/", path)
    .split("/")
    .slice(1)
    .filter((name) => name !== "");
}

function bytesOf(table: PageTable): Buffer {
  const bytes = Buffer.alloc(table.sizeBytes);
  table.read(bytes, 0);
  return bytes;
}

/** The error that the kernel's number stands for, in the words of the real storage. */
export function diskError(errno: keyof typeof constants.errno, path: string, operation: string): ColobusError {
  return osError(`cannot ${operation} ${path}`, path, constants.errno[errno]);
}
