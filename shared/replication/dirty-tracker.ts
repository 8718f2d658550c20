import {
  JOURNAL_FRAME_MAX_ENTRIES,
  WHOLE_CLUSTER_MASK,
  type JournalEntry,
} from "../../proto/cluster-journal-format.ts";
import { DIRTY_FILE_MIN_BYTES } from "../../proto/limits.ts";
import type { Durability } from "../../proto/words.ts";
import type { Pending } from "../block/block-device.ts";
import {
  applyJournalEntry,
  ClusterBitmap,
  clusterRuns,
  intersectsRange,
  type ClusterRun,
} from "../block/cluster-bitmap.ts";
import { firstClusterOf, type ClusterGeometry } from "../block/cluster-geometry.ts";
import type { Random } from "../host/random.ts";
import { SharedSync } from "../host/shared-sync.ts";
import type { Storage } from "../host/storage.ts";
import { ClusterJournal } from "../journal/cluster-journal.ts";
import { DirtyMap } from "./dirty-map.ts";

export interface DirtyTrackerOptions {
  readonly storage: Storage;
  readonly random: Random;
  /** Holds the tracker's files, `dirty.N.journal`. */
  readonly directory: string;
  readonly geometry: ClusterGeometry;
  /** The unit in which ranges are marked. */
  readonly extentBytes: number;
  readonly durability: Durability;
  /** From which length on the journal may be written anew; undefined: DIRTY_FILE_MIN_BYTES. */
  readonly fileMinBytes?: number | undefined;
}

/** What `settle` asks about the disk. */
export interface SettleSource {
  /** Clusters that were sent to the peer and are not known to be stable there, as of now. The caller owns the bitmap. */
  readonly inFlight: () => ClusterBitmap;
  /** Whether a change of any byte of the range is under way on the local image. */
  readonly isBusy: (offset: number, length: number) => boolean;
  /** Makes everything written to the local image so far durable. */
  readonly flush: () => Promise<void>;
}

const FILE_NAME = /^dirty\.(\d+)\.journal$/;
const GROWTH_MAX = 4;
/** Runs that one `settle` enters as clean: the rest is left to the next ones. */
const SETTLE_RUNS_MAX = 65_536;
/** Frames of a journal that is written anew before others have their turn. */
const FRAMES_AT_A_TIME = 16;
/** An extent that was not touched for one to two ages of this many calls of `settle` is idle. */
const CALLS_IN_AGE = 6;

/**
 * The clusters of one disk that a peer may lack, exact in memory and conservative on the disk: whatever may differ after
 * a crash is dirty then.
 *
 * Before a write first touches an extent, the whole extent is entered as dirty and, under `power`, fsynced; the extent is
 * *marked* then, and later writes to it cost nothing. An extent that has not been touched for a while is settled: the
 * local image is fsynced, and its clusters that the peer surely has are entered as clean. Each clean entry is true by
 * itself, so a torn tail, or one that was never fsynced, only leaves more dirty than need be.
 *
 * The journal is written anew, under the next number, when it has grown. The new file counts from its first sync mark on,
 * and the old one is removed only when that is durable.
 */
export class DirtyTracker extends DirtyMap {
  readonly #options: DirtyTrackerOptions;
  readonly #extentClusters: number;
  #number: number;
  #journal: ClusterJournal;
  /** The length of the journal when it was last written anew. */
  #wholeBytes: number;
  /** What the journal names as dirty. */
  readonly #recorded: ClusterBitmap;
  /** Extents that may be written to: durably dirty as a whole, until they are settled. */
  readonly #marked = new ClusterBitmap();
  /** Extents entered since the sync that is under way began. */
  #entered = new ClusterBitmap();
  #enteredEarlier = new ClusterBitmap();
  readonly #syncs = new SharedSync(() => this.#syncEntered());
  /** Extents touched in the present age, in the one before it, and since `settle` last flushed the image. */
  #touched = new ClusterBitmap();
  #touchedEarlier = new ClusterBitmap();
  #sinceFlush = new ClusterBitmap();
  #lastTouched = -1;
  #calls = 0;
  /** Entries made while the journal is being written anew. */
  #late: JournalEntry[] | undefined;

  private constructor(options: DirtyTrackerOptions, number: number, journal: ClusterJournal, recorded: ClusterBitmap) {
    super(options.geometry);
    this.#options = options;
    this.#extentClusters = Math.max(1, Math.floor(options.extentBytes / options.geometry.clusterBytes));
    this.#number = number;
    this.#journal = journal;
    this.#wholeBytes = journal.sizeBytes;
    this.#recorded = recorded;
    this.addBitmap(recorded);
  }

  /** A new tracker in place of what is there, with `initial` dirty. Durable when the promise resolves. Errors: `io-error`, `out-of-space`. */
  static async create(
    options: DirtyTrackerOptions,
    initial: "clean" | "all-dirty" | ClusterBitmap,
  ): Promise<DirtyTracker> {
    const { geometry } = options;
    const recorded =
      initial === "clean"
        ? new ClusterBitmap()
        : initial === "all-dirty"
          ? ClusterBitmap.fromRange(0, geometry.clusterCount)
          : initial.clone();
    const older = listNumbers(options);
    const number = (older[0] ?? 0) + 1;
    const journal = newJournal(options, number);
    try {
      for (const entries of inFrames(clusterRuns(recorded), "held")) journal.append(entries);
      await journal.sync();
      await options.storage.syncDirectory(options.directory);
      journal.appendSyncMark(journal.sequence);
      await journal.sync();
      for (const one of older) options.storage.remove(pathOf(options, one));
    } catch (error) {
      journal.close();
      throw error;
    }
    return new DirtyTracker(options, number, journal, recorded);
  }

  /** What an earlier process has left; undefined when nothing whole is there. */
  static open(options: DirtyTrackerOptions): DirtyTracker | undefined {
    for (const number of listNumbers(options)) {
      const recorded = new ClusterBitmap();
      const { sizeBytes, clusterBytes } = options.geometry;
      const expected = { kind: "dirty", diskSizeBytes: sizeBytes, clusterBytes, epoch: number } as const;
      const journal = ClusterJournal.open(
        options.storage,
        pathOf(options, number),
        expected,
        (entry) => applyJournalEntry(recorded, entry),
        { begun: (header) => addGrown(recorded, header.diskSizeBytes, options.geometry) },
      );
      if (journal?.hasSyncMark === true) {
        // It may be in the page cache alone, and what is entered behind it must be found after a loss of power.
        journal.distrust();
        for (const other of listNumbers(options)) {
          if (other !== number) options.storage.remove(pathOf(options, other));
        }
        return new DirtyTracker(options, number, journal, recorded);
      }
      journal?.close();
    }
    return undefined;
  }

  /** Removes what an earlier process has left, if anything. */
  static remove({ storage, directory }: Pick<DirtyTrackerOptions, "storage" | "directory">): void {
    if (!storage.exists(directory)) return;
    for (const name of storage.list(directory)) if (FILE_NAME.test(name)) storage.remove(`${directory}/${name}`);
  }

  /**
   * To be awaited before the local image is changed in a range: from then on a crash leaves the range dirty. undefined at
   * once where the range is marked, which is the steady state. Errors: the storage's; nothing new is marked then.
   */
  mark(offset: number, length: number): Pending {
    const extentBytes = this.#extentClusters * this.#options.geometry.clusterBytes;
    const first = Math.floor(offset / extentBytes);
    const end = Math.floor((offset + length - 1) / extentBytes) + 1;
    if (end - first === 1) {
      if (first === this.#lastTouched) return undefined;
      this.#touched.add(first);
      this.#sinceFlush.add(first);
      if (this.#marked.has(first)) {
        this.#lastTouched = first;
        return undefined;
      }
    } else {
      this.#touched.addRange(first, end);
      this.#sinceFlush.addRange(first, end);
      if (this.#marked.rangeCardinality(first, end) === end - first) return undefined;
    }
    return this.#enter(first, end);
  }

  /**
   * What may have been changed since it was last settled, and with it since the image was last flushed, beside what is
   * dirty. The caller owns the bitmap.
   */
  unsettled(): ClusterBitmap {
    return this.#recorded.clone();
  }

  /**
   * The disk has grown: the clusters from `first` on, which lay behind its end or had it in them, are dirty. Durable without
   * an entry, once the record has the new size: the journal's header says for which size it was begun.
   */
  addGrown(first: number): void {
    const { clusterCount } = this.#options.geometry;
    this.#recorded.addRange(first, clusterCount);
    this.addClusters(first, clusterCount);
  }

  /** Adds clusters that differ for another reason than a write here. Durable when the promise resolves. */
  async addRuns(runs: readonly ClusterRun[]): Promise<void> {
    for (const { first, end } of runs) this.addClusters(first, end);
    this.#append(runs.map(({ first, end }) => dirtyEntry(first, end)));
    await this.#journal.sync();
  }

  /**
   * Enters as clean what the peer surely has, of extents that nobody has touched for a while. Writes the journal anew
   * when it has grown. Errors: the storage's; nothing is taken for clean that is not.
   */
  async settle(source: SettleSource): Promise<void> {
    const idle = this.#recorded.clone();
    idle.andNotInPlace(this.dirtyClusters());
    this.#subtractExtents(idle, this.#touched);
    this.#subtractExtents(idle, this.#touchedEarlier);
    keepFirstRuns(idle, SETTLE_RUNS_MAX);
    this.#calls += 1;
    if (this.#calls % CALLS_IN_AGE === 0) this.#age();
    this.#subtractBusy(idle, source);
    if (!idle.isEmpty) {
      this.#sinceFlush = new ClusterBitmap();
      this.#lastTouched = -1;
      await source.flush();
      // What was touched since then may be on neither medium.
      this.#subtractExtents(idle, this.#sinceFlush);
      this.#release(idle, source.inFlight());
    }
    const minBytes = this.#options.fileMinBytes ?? DIRTY_FILE_MIN_BYTES;
    if (this.#journal.sizeBytes > Math.max(minBytes, GROWTH_MAX * this.#wholeBytes)) await this.#writeAnew();
  }

  /** For a clean stop, with no change under way: what is left dirty on the disk is exact then. */
  async settleAll(source: Pick<SettleSource, "inFlight" | "flush">): Promise<void> {
    await source.flush();
    this.#release(this.#recorded.clone(), source.inFlight());
    await this.#journal.sync();
  }

  /** Removes the files: the peer is not tracked any more. */
  async forget(): Promise<void> {
    this.close();
    DirtyTracker.remove(this.#options);
    await this.#options.storage.syncDirectory(this.#options.directory);
  }

  /** Resolves when no mark is waited for any more, whatever has become of it: who waits has the error. */
  settled(): Promise<void> {
    return this.#syncs.settled();
  }

  /** For an end in good order, once `settled`. */
  close(): void {
    this.#journal.close();
  }

  /** Enters the extents of [first, end) that are not marked, and resolves when they are. */
  #enter(first: number, end: number): Pending {
    const isPower = this.#options.durability === "power";
    const entries: JournalEntry[] = [];
    let isSyncing = false;
    for (let extent = first; extent < end; extent += 1) {
      if (this.#marked.has(extent) || this.#entered.has(extent)) continue;
      if (this.#enteredEarlier.has(extent)) {
        isSyncing = true;
        continue;
      }
      const last = entries.at(-1);
      const [from, to] = this.#clustersOf(extent);
      if (last !== undefined && last.firstCluster + last.clusterCount === from) {
        entries[entries.length - 1] = dirtyEntry(last.firstCluster, to);
      } else entries.push(dirtyEntry(from, to));
    }
    this.#append(entries);
    if (!isPower) {
      this.#marked.addRange(first, end);
      return undefined;
    }
    for (const { firstCluster, clusterCount } of entries) {
      const to = Math.ceil((firstCluster + clusterCount) / this.#extentClusters);
      this.#entered.addRange(Math.floor(firstCluster / this.#extentClusters), to);
    }
    // What only waits for the sync under way is not kept for the next one.
    if (isSyncing && !intersectsRange(this.#entered, first, end)) return this.#syncs.running;
    return this.#syncs.run();
  }

  async #syncEntered(): Promise<void> {
    this.#enteredEarlier = this.#entered;
    this.#entered = new ClusterBitmap();
    try {
      await this.#journal.sync();
      this.#marked.orInPlace(this.#enteredEarlier);
    } finally {
      this.#enteredEarlier = new ClusterBitmap();
    }
  }

  #append(entries: readonly JournalEntry[]): void {
    if (entries.length === 0) return;
    this.#journal.append(entries);
    for (const entry of entries) applyJournalEntry(this.#recorded, entry);
    if (this.#late !== undefined) for (const entry of entries) this.#late.push(entry);
  }

  #age(): void {
    this.#touchedEarlier = this.#touched;
    this.#touched = new ClusterBitmap();
    this.#lastTouched = -1;
  }

  /** Enters as clean what of `clusters` is neither dirty nor in flight. */
  #release(clusters: ClusterBitmap, inFlight: ClusterBitmap): void {
    clusters.andNotInPlace(inFlight);
    clusters.andNotInPlace(this.dirtyClusters());
    this.#lastTouched = -1;
    for (const released of inFrames(clusterRuns(clusters), "released")) {
      for (const { firstCluster, clusterCount } of released) {
        const end = Math.ceil((firstCluster + clusterCount) / this.#extentClusters);
        this.#marked.removeRange(Math.floor(firstCluster / this.#extentClusters), end);
      }
      this.#append(released);
    }
  }

  #subtractExtents(clusters: ClusterBitmap, extents: ClusterBitmap): void {
    for (const { first, end } of clusterRuns(extents)) {
      clusters.removeRange(first * this.#extentClusters, end * this.#extentClusters);
    }
  }

  /** Takes out the extents in which a change is under way on the local image. */
  #subtractBusy(clusters: ClusterBitmap, { isBusy }: SettleSource): void {
    const { clusterBytes } = this.#options.geometry;
    const extentBytes = this.#extentClusters * clusterBytes;
    const busy = new ClusterBitmap();
    for (const { first, end } of clusterRuns(clusters)) {
      const from = Math.floor(first / this.#extentClusters);
      const to = Math.ceil(end / this.#extentClusters);
      if (!isBusy(from * extentBytes, (to - from) * extentBytes)) continue;
      for (let extent = from; extent < to; extent += 1) {
        if (isBusy(extent * extentBytes, extentBytes)) busy.add(extent);
      }
    }
    this.#subtractExtents(clusters, busy);
  }

  async #writeAnew(): Promise<void> {
    const number = this.#number + 1;
    const journal = newJournal(this.#options, number);
    this.#late = [];
    try {
      let frames = 0;
      // What is entered meanwhile is behind this in the file.
      for (const entries of inFrames(clusterRuns(this.#recorded.clone()), "held")) {
        if (frames > 0 && frames % FRAMES_AT_A_TIME === 0) await journal.sync(); // others have their turn
        journal.append(entries);
        frames += 1;
      }
      await journal.sync();
      await this.#options.storage.syncDirectory(this.#options.directory);
      journal.append(this.#late);
      journal.appendSyncMark(journal.sequence);
    } catch (error) {
      journal.close();
      this.#options.storage.remove(pathOf(this.#options, number));
      throw error;
    } finally {
      this.#late = undefined;
    }
    const [old, oldNumber] = [this.#journal, this.#number];
    this.#journal = journal;
    this.#number = number;
    this.#wholeBytes = journal.sizeBytes;
    // Until this is durable the old file counts; what is entered meanwhile waits for the same fsync.
    await this.#syncs.running?.catch(() => undefined); // who waits for that one has the error
    try {
      await journal.sync();
    } finally {
      old.close();
    }
    this.#options.storage.remove(pathOf(this.#options, oldNumber));
  }

  #clustersOf(extent: number): [first: number, end: number] {
    const first = extent * this.#extentClusters;
    return [first, Math.min(first + this.#extentClusters, this.#options.geometry.clusterCount)];
  }
}

/** What lies behind the former end of a disk that has grown is dirty, but for what is said of it later. */
function addGrown(recorded: ClusterBitmap, formerBytes: number, geometry: ClusterGeometry): void {
  if (formerBytes >= geometry.sizeBytes) return;
  recorded.addRange(firstClusterOf(geometry, formerBytes), geometry.clusterCount);
}

function newJournal({ storage, random, geometry, directory }: DirtyTrackerOptions, number: number): ClusterJournal {
  return ClusterJournal.create(storage, `${directory}/dirty.${number}.journal`, {
    kind: "dirty",
    diskSizeBytes: geometry.sizeBytes,
    clusterBytes: geometry.clusterBytes,
    epoch: number,
    id: random.bytes(16),
  });
}

function pathOf({ directory }: DirtyTrackerOptions, number: number): string {
  return `${directory}/dirty.${number}.journal`;
}

/** The numbers of the files that are there, the newest first. */
function listNumbers({ storage, directory }: DirtyTrackerOptions): number[] {
  return storage
    .list(directory)
    .flatMap((name) => FILE_NAME.exec(name)?.[1] ?? [])
    .map(Number)
    .sort((one, other) => other - one);
}

/** Entries for the runs, a frame's at a time: there may be millions of them. */
function* inFrames(runs: Iterable<ClusterRun>, operation: JournalEntry["operation"]): Generator<JournalEntry[]> {
  let entries: JournalEntry[] = [];
  for (const { first, end } of runs) {
    if (entries.length === JOURNAL_FRAME_MAX_ENTRIES) {
      yield entries;
      entries = [];
    }
    entries.push({ ...dirtyEntry(first, end), operation });
  }
  if (entries.length > 0) yield entries;
}

/** Takes out what lies behind the first `most` runs. */
function keepFirstRuns(clusters: ClusterBitmap, most: number): void {
  let runs = 0;
  for (const { end } of clusterRuns(clusters)) {
    runs += 1;
    if (runs < most) continue;
    clusters.removeRange(end, clusters.maximum() + 1);
    return;
  }
}

function dirtyEntry(first: number, end: number): JournalEntry {
  return { firstCluster: first, clusterCount: end - first, mask: WHOLE_CLUSTER_MASK, operation: "held" };
}
