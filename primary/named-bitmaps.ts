import assert from "node:assert/strict";
import type { BitmapStatus } from "../proto/control-api.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { BITMAPS_MAX } from "../proto/limits.ts";
import { DIRTY_BITMAP_FLAG, DIRTY_BITMAP_NAMESPACE } from "../proto/nbd-protocol.ts";
import type { BitmapFault } from "../proto/words.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import {
  clusterEndOffset,
  endClusterOf,
  firstClusterOf,
  growGeometry,
  type ClusterGeometry,
} from "../shared/block/cluster-geometry.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import { RepeatedWork } from "../shared/host/repeated-work.ts";
import type { Storage } from "../shared/host/storage.ts";
import type { BitmapEntry } from "../shared/journal/bitmap-entry.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { MetaContext, MetaExtent } from "../shared/nbd/meta-context.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import { DirtyTracker, type DirtyTrackerOptions } from "../shared/replication/dirty-tracker.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

export interface NamedBitmapsOptions {
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly state: StateFile;
  readonly stateDirectory: string;
  readonly disks: readonly { readonly name: string; readonly geometry: ClusterGeometry }[];
  readonly extentBytes: number;
  readonly settleEveryMs: number;
  readonly dirtyFileMinBytes?: number | undefined;
}

/** One bitmap that counts: its entry in the record, and what it has counted. */
interface LiveBitmap {
  readonly entry: BitmapEntry;
  readonly tracker: DirtyTracker;
}

const NOT_IN_FLIGHT = { inFlight: () => new ClusterBitmap(), flush: () => Promise.resolve() } as const;

/**
 * Owns the named dirty bitmaps of a primary's disks: each has every cluster that a guest has changed since it was added,
 * or cleared, and after a crash some more, never fewer. The state record lists them; the clusters of each lie in
 * `bitmaps/N/` as those of a DirtyTracker, which enters an extent durably before its first change.
 *
 * A bitmap that may lack a change is *inconsistent*, in the record before anything else happens, and for good: it can be
 * removed only. A cleared bitmap is a new one in another directory, which takes the old one's place with one record.
 */
export class NamedBitmaps {
  readonly #options: NamedBitmapsOptions;
  readonly #root: string;
  /** Of each disk, those that count. */
  readonly #live: LiveBitmap[][];
  /** Those that are given up, and the record does not say so yet. */
  readonly #unrecorded = new Map<number, BitmapFault>();
  /** What could not be begun, and may be in the record on the disk all the same: it counts until it surely is not. */
  #undecided: BitmapEntry | undefined;
  #losing: Promise<void> | undefined;
  /** Additions and removals, one after the other. */
  #changing: Promise<unknown> = Promise.resolve();
  #disks: readonly ReplicatedDisk[] = [];
  #openEpoch: () => number = () => 0;
  readonly #settling: RepeatedWork;
  #closed = false;

  /** Takes up what the record lists. */
  constructor(options: NamedBitmapsOptions) {
    this.#options = options;
    this.#root = `${options.stateDirectory}/bitmaps`;
    this.#live = options.disks.map(() => []);
    this.#settling = new RepeatedWork({
      clock: options.clock,
      everyMs: options.settleEveryMs,
      work: () => this.#settle(),
      failed: (error) => options.log.warn({ reason: asColobusError(error) }, "a bitmap could not be settled"),
    });
    const unreadable: BitmapEntry[] = [];
    for (const entry of this.#entries) {
      if (entry.fault !== null) continue;
      const disk = this.#indexOf(entry.disk);
      const tracker = DirtyTracker.open(this.#trackerOptions(disk, entry.id));
      if (tracker === undefined) unreadable.push(entry);
      else this.#live[disk]?.push({ entry, tracker });
    }
    this.#removeOrphans();
    // Where that fails, the first change tries again.
    if (unreadable.length > 0) this.#lose(unreadable, "unreadable").catch(() => undefined);
  }

  /** Begins to settle what is idle, until `close`. `disks` are those of the options. */
  start(disks: readonly ReplicatedDisk[], openEpoch: () => number): void {
    this.#disks = disks;
    this.#openEpoch = openEpoch;
    this.#settling.start();
  }

  /**
   * To be awaited before a range is changed, under its lock: from then on every bitmap of the disk has it, durably.
   * undefined at once in the steady state. Errors: those of the state record, when a bitmap cannot be given up either.
   */
  mark(disk: number, offset: number, length: number): Pending {
    const live = this.#live[disk];
    let all: Pending = this.#unrecorded.size > 0 ? this.#recordLosses() : undefined;
    if (live === undefined || live.length === 0) return all;
    for (const { entry, tracker } of live) {
      tracker.addBytes(offset, length);
      let marked: Pending;
      try {
        marked = tracker.mark(offset, length)?.catch((error: unknown) => this.#failed(entry, error));
      } catch (error) {
        marked = this.#failed(entry, error);
      }
      if (marked !== undefined) all = all === undefined ? marked : Promise.all([all, marked]).then(() => undefined);
    }
    return all;
  }

  /** The disk has `sizeBytes` from now on: every bitmap has what is behind its former end. */
  grow(disk: number, sizeBytes: number): void {
    const geometry = this.#options.disks[disk]?.geometry;
    if (geometry === undefined || sizeBytes <= geometry.sizeBytes) return;
    const first = firstClusterOf(geometry, geometry.sizeBytes);
    growGeometry(geometry, sizeBytes);
    for (const { tracker } of this.#live[disk] ?? []) tracker.addGrown(first);
  }

  list(): BitmapStatus[] {
    return this.#entries.map((entry) => this.#describe(entry));
  }

  /** Begins a bitmap. Errors: `bitmap-exists`, `not-found` for an unknown disk, `usage` for a name, `not-applicable` when there are too many; the storage's. */
  add(disk: string, name: string): Promise<BitmapStatus> {
    return this.#change(async () => {
      assertName(name);
      if (!this.#options.disks.some((one) => one.name === disk)) throw noDisk(disk);
      if (this.#find(disk, name) !== undefined) {
        throw new ColobusError("bitmap-exists", `${disk} has a bitmap "${name}" already`, "Choose another name.");
      }
      if (this.#entries.length >= BITMAPS_MAX) {
        throw new ColobusError("not-applicable", `there are ${BITMAPS_MAX} bitmaps already`, "Remove one of them.");
      }
      return this.#begin(disk, name, undefined);
    });
  }

  /** Forgets what a bitmap has, and goes on. Errors: `not-found`, `bitmap-inconsistent`; the storage's: it is as before then. */
  clear(disk: string, name: string): Promise<BitmapStatus> {
    return this.#change(async () => {
      const entry = this.#get(disk, name);
      if (entry.fault !== null) throw inconsistent(entry);
      return this.#begin(disk, name, entry);
    });
  }

  /** Errors: `not-found`; the storage's: it is as before then. */
  remove(disk: string, name: string): Promise<BitmapStatus> {
    return this.#change(async () => {
      const entry = this.#get(disk, name);
      const status = this.#describe(entry);
      await this.#record((entries) => entries.filter(({ id }) => id !== entry.id));
      await this.#drop(entry);
      return status;
    });
  }

  /** What NBD clients can ask for of a disk. */
  contextsOf(disk: string): MetaContext[] {
    return this.#entries
      .filter((entry) => entry.disk === disk && this.#describe(entry).state === "recording")
      .map(({ name }) => ({
        name: `${DIRTY_BITMAP_NAMESPACE}${name}`,
        extents: (offset, length, maxExtents) => this.#extents(disk, name, offset, length, maxExtents),
      }));
  }

  /** For a clean stop, with no change under way: what the bitmaps have is exact then. */
  async close(): Promise<void> {
    this.#closed = true;
    const settled = this.#settling.stop();
    await this.#changing;
    await settled;
    for (const { entry, tracker } of this.#live.splice(0).flat()) {
      try {
        await tracker.settleAll(NOT_IN_FLIGHT);
      } catch (error) {
        // It has more than need be then.
        this.#options.log.warn({ reason: asColobusError(error), bitmap: entry.name }, "a bitmap could not be settled");
      }
      await tracker.settled(); // a write that waits for its mark is refused after it
      tracker.close();
    }
  }

  get #entries(): readonly BitmapEntry[] {
    return this.#options.state.record.bitmaps ?? [];
  }

  /** A new bitmap, in place of `old`. Until the record names it the old one counts as well. */
  async #begin(disk: string, name: string, old: BitmapEntry | undefined): Promise<BitmapStatus> {
    const { storage, stateDirectory } = this.#options;
    const index = this.#indexOf(disk);
    const id = this.#freeId();
    const options = this.#trackerOptions(index, id);
    for (const directory of [this.#root, options.directory]) storage.makeDirectory(directory);
    for (const directory of [this.#root, stateDirectory]) await storage.syncDirectory(directory);
    const tracker = await DirtyTracker.create(options, "clean");
    const live = { entry: { disk, name, id, epoch: 0, fault: null }, tracker };
    this.#live[index]?.push(live);
    try {
      // What had passed before it counted may go into the stream later, and belongs to no later epoch than this one.
      await this.#disks[index]?.settled();
      const epoch = this.#openEpoch();
      const isWhole = this.#live[index]?.includes(live) === true;
      if (!isWhole) throw inconsistent(live.entry);
      const entry = { ...live.entry, epoch };
      await this.#record((entries) => [...entries.filter((other) => other.id !== old?.id), entry]);
      Object.assign(live, { entry });
    } catch (error) {
      this.#undecided = live.entry;
      throw error;
    }
    if (old !== undefined) await this.#drop(old);
    return this.#describe(this.#get(disk, name));
  }

  /** A record that is durable says that what could not be begun is not there. Errors: those of the state record. */
  async #decide(): Promise<void> {
    const undecided = this.#undecided;
    if (undecided === undefined) return;
    await this.#record((entries) => [...entries]);
    this.#undecided = undefined;
    this.#unrecorded.delete(undecided.id);
    await this.#drop(undecided);
  }

  /** The record does not name it any more. What cannot be removed of it now, the next start removes. */
  async #drop({ id, name }: BitmapEntry): Promise<void> {
    for (const bitmaps of this.#live) {
      const at = bitmaps.findIndex(({ entry }) => entry.id === id);
      if (at < 0) continue;
      const [dropped] = bitmaps.splice(at, 1);
      await dropped?.tracker.settled(); // a write may wait for its mark
      await dropped?.tracker.forget().catch((error: unknown) => {
        this.#options.log.warn({ reason: asColobusError(error), bitmap: name }, "a bitmap's file cannot be removed");
      });
    }
  }

  #extents(disk: string, name: string, offset: number, length: number, maxExtents: number): MetaExtent[] {
    const entry = this.#get(disk, name);
    const index = this.#indexOf(disk);
    const live = this.#live[index]?.find((one) => one.entry.id === entry.id);
    const geometry = this.#options.disks[index]?.geometry;
    if (live === undefined || geometry === undefined) throw inconsistent(entry);
    const extents: MetaExtent[] = [];
    const end = offset + length;
    let at = offset;
    const add = (to: number, flags: number): void => {
      if (to > at && extents.length < maxExtents) extents.push({ length: to - at, flags });
      at = Math.max(at, to);
    };
    const clusters = { first: firstClusterOf(geometry, offset), end: endClusterOf(geometry, offset, length) };
    for (const run of live.tracker.runsIn(clusters.first, clusters.end)) {
      if (extents.length >= maxExtents) return extents;
      add(run.first * geometry.clusterBytes, 0);
      add(Math.min(end, clusterEndOffset(geometry, run.end)), DIRTY_BITMAP_FLAG.DIRTY);
    }
    add(end, 0);
    return extents;
  }

  #describe(entry: BitmapEntry): BitmapStatus {
    const { disk, name, epoch, fault } = entry;
    const live = this.#live[this.#indexOf(disk)]?.find((one) => one.entry.id === entry.id);
    const known = fault ?? this.#unrecorded.get(entry.id) ?? null;
    return {
      disk,
      name,
      state: known === null ? "recording" : "inconsistent",
      fault: known,
      epoch,
      dirtyBytes: live?.tracker.bytes ?? 0,
      granularityBytes: this.#options.state.record.clusterBytes,
    };
  }

  #failed(entry: BitmapEntry, error: unknown): Promise<void> {
    this.#options.log.warn({ reason: asColobusError(error), bitmap: entry.name }, "a bitmap cannot be written");
    return this.#lose([entry], "write-failed");
  }

  /** No later process may believe them. Resolves when the record says so. */
  #lose(entries: readonly BitmapEntry[], fault: BitmapFault): Promise<void> {
    for (const { id } of entries) this.#unrecorded.set(id, fault);
    for (const [disk, bitmaps] of this.#live.entries()) {
      for (const { entry, tracker } of bitmaps) if (this.#unrecorded.has(entry.id)) tracker.close();
      this.#live[disk] = bitmaps.filter(({ entry }) => !this.#unrecorded.has(entry.id));
    }
    return this.#recordLosses();
  }

  /** While the record cannot be written, nothing is changed on the disks: the next change tries again. */
  async #recordLosses(): Promise<void> {
    while (this.#unrecorded.size > 0) {
      this.#losing ??= this.#recordThese(new Map(this.#unrecorded)).finally(() => {
        this.#losing = undefined;
      });
      await this.#losing;
    }
  }

  async #recordThese(lost: ReadonlyMap<number, BitmapFault>): Promise<void> {
    await this.#record((entries) =>
      entries.map((entry) => ({ ...entry, fault: entry.fault ?? lost.get(entry.id) ?? null })),
    );
    for (const id of lost.keys()) this.#unrecorded.delete(id);
  }

  #record(change: (entries: readonly BitmapEntry[]) => BitmapEntry[]): Promise<unknown> {
    return this.#options.state.update((record) => ({ ...record, bitmaps: change(record.bitmaps ?? []) }));
  }

  #change<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(async () => {
      if (this.#closed) throw new ColobusError("shutting-down", "the role is being laid down");
      await this.#decide();
      return change();
    });
    this.#changing = result.catch(() => undefined); // the caller has the error
    return result;
  }

  async #settle(): Promise<void> {
    if (this.#undecided !== undefined) await this.#change(() => Promise.resolve());
    for (const [disk, bitmaps] of this.#live.entries()) {
      for (const { tracker } of bitmaps) {
        const isBusy = (offset: number, length: number): boolean => this.#disks[disk]?.isBusy(offset, length) ?? true;
        await tracker.settle({ ...NOT_IN_FLIGHT, isBusy });
      }
    }
  }

  /** What additions have left that were not finished. */
  #removeOrphans(): void {
    const { storage } = this.#options;
    if (!storage.exists(this.#root)) return;
    const used = new Set(this.#entries.filter(({ fault }) => fault === null).map(({ id }) => String(id)));
    for (const name of storage.list(this.#root)) {
      if (!used.has(name)) DirtyTracker.remove({ storage, directory: `${this.#root}/${name}` });
    }
  }

  #freeId(): number {
    const used = new Set(this.#entries.map(({ id }) => id));
    let id = 1;
    while (used.has(id)) id += 1;
    return id;
  }

  #find(disk: string, name: string): BitmapEntry | undefined {
    return this.#entries.find((entry) => entry.disk === disk && entry.name === name);
  }

  #get(disk: string, name: string): BitmapEntry {
    const entry = this.#find(disk, name);
    if (entry !== undefined) return entry;
    throw new ColobusError("not-found", `${disk} has no bitmap "${name}"`, "See `colobus bitmap list`.");
  }

  #indexOf(disk: string): number {
    const index = this.#options.disks.findIndex(({ name }) => name === disk);
    assert(index >= 0, "the record names bitmaps of its own disks only");
    return index;
  }

  #trackerOptions(disk: number, id: number): DirtyTrackerOptions {
    const { storage, random, state, disks, extentBytes, dirtyFileMinBytes } = this.#options;
    const { durability } = state.record;
    const geometry = disks[disk]?.geometry;
    assert(geometry !== undefined);
    const directory = `${this.#root}/${id}`;
    return { storage, random, directory, geometry, extentBytes, durability, fileMinBytes: dirtyFileMinBytes };
  }
}

/** Done when the bitmaps of the peers and those for backup tools both have the range. Errors: those of either. */
export function markedBoth(
  tracking: Pick<PeerTracking, "mark">,
  bitmaps: Pick<NamedBitmaps, "mark">,
  disk: number,
  offset: number,
  length: number,
): Pending {
  const named = bitmaps.mark(disk, offset, length);
  if (named === undefined) return tracking.mark(disk, offset, length);
  return named.then(() => tracking.mark(disk, offset, length));
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

function assertName(name: string): void {
  if (NAME.test(name)) return;
  throw new ColobusError(
    "usage",
    `"${name.slice(0, 80)}" cannot be the name of a bitmap`,
    "Take letters, digits, dots, underscores and dashes, at most 64, the first a letter or a digit.",
  );
}

function noDisk(disk: string): ColobusError {
  return new ColobusError("not-found", `there is no disk "${disk}"`, "See `colobus status`.");
}

function inconsistent({ disk, name }: Pick<BitmapEntry, "disk" | "name">): ColobusError {
  return new ColobusError(
    "bitmap-inconsistent",
    `the bitmap "${name}" of ${disk} may lack changes`,
    `Take a full backup; \`colobus bitmap remove ${disk} ${name}\`, and add it anew.`,
  );
}
