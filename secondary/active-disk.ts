import { WHOLE_CLUSTER_MASK, type JournalEntry } from "../proto/cluster-journal-format.ts";
import { ClusterBitmap, intersectsRange } from "../shared/block/cluster-bitmap.ts";
import { clusterEndOffset } from "../shared/block/cluster-geometry.ts";
import { SharedSync } from "../shared/host/shared-sync.ts";
import { lostSync } from "../shared/journal/lost-syncs.ts";
import { listOverlayEpochs, OverlayFiles, type OverlayContext } from "./overlay-files.ts";

/** A cluster is tracked in 32 parts, so that a small write needs no copy of the rest of its cluster. */
const PARTS = 32;
/** Clusters held in part, at most; beyond it a write fills its cluster from below. */
const PARTIAL_CLUSTERS_MAX = 65_536;

/** Reads what lies below the active disk. */
export type ReadBelow = (target: Uint8Array, offset: number) => Promise<void> | undefined;

/**
 * Owns the active disk of one disk: writes that lie above the committed checkpoint of `epoch`. Before a failover they
 * are the secondary VM's own, and the next commit empties it; after one they are the guest's, until the merge.
 *
 * The data goes to a sparse file, each byte at its own offset, and the journal names the 32nds of clusters that are
 * held. A write survives kill -9 at once. `flush` fsyncs the data, appends a sync mark, and fsyncs the journal; after
 * a loss of power only what a sync mark covers is believed, so no entry can name data that did not reach the disk.
 *
 * Callers serialize overlapping writes (a range lock aligned to `partBytes`).
 */
export class ActiveDisk {
  readonly #context: OverlayContext;
  readonly #files: OverlayFiles;
  readonly #whole = new ClusterBitmap();
  readonly #partial = new Map<number, number>();
  readonly #partBytes: number;
  /** Frames of the journal up to here are covered by a durable sync mark. */
  #coveredSequence = 0;
  /** A flush that has failed: the kernel may have forgotten writes, and no later flush would notice. */
  #failed: Promise<void> | undefined;
  readonly #flushes = new SharedSync(() => this.#flush());
  /** Does what needs a little space for a flush. A promoted side has some set aside. */
  withReserve: (work: () => void) => void = (work) => work();

  constructor(context: OverlayContext, epoch: number) {
    this.#context = context;
    this.#files = new OverlayFiles(context, "active", epoch);
    this.#partBytes = context.geometry.clusterBytes / PARTS;
  }

  /**
   * Reads back the active disk of `epoch` and removes those of any other. `afterPowerLoss`: the host has booted since;
   * what no sync mark covers is dropped.
   */
  static recover(context: OverlayContext, epoch: number, afterPowerLoss: boolean): ActiveDisk {
    for (const other of listOverlayEpochs(context.storage, context.directory, "active")) {
      if (other !== epoch) new OverlayFiles(context, "active", other).removeFiles();
    }
    const active = new ActiveDisk(context, epoch);
    const isThere = active.#files.recover((entry) => active.#apply(entry), { onlySynced: afterPowerLoss });
    if (isThere && !afterPowerLoss && context.lost?.has(active.#files.journal.id) === true) {
      active.#failed = Promise.reject(lostSync(`the active disk in ${context.directory}`));
      active.#failed.catch(() => undefined); // whoever flushes is told
    }
    return active;
  }

  /** The disk is to have `sizeBytes`. Errors: the storage's. */
  lengthen(sizeBytes: number): void {
    this.#files.lengthen(sizeBytes);
  }

  /** Writes must be locked in multiples of this many bytes. */
  get partBytes(): number {
    return this.#partBytes;
  }

  get isEmpty(): boolean {
    return this.#whole.isEmpty && this.#partial.size === 0;
  }

  get allocatedBytes(): number {
    return this.#files.allocatedBytes;
  }

  /** The clusters held, whole or in part. The caller owns the bitmap. */
  clusters(): ClusterBitmap {
    const clusters = this.#whole.clone();
    clusters.addMany(this.#partial.keys());
    return clusters;
  }

  has(cluster: number): boolean {
    return this.#whole.has(cluster) || this.#partial.has(cluster);
  }

  intersects(first: number, end: number): boolean {
    if (intersectsRange(this.#whole, first, end)) return true;
    if (this.#partial.size === 0) return false;
    if (end - first > this.#partial.size) {
      for (const cluster of this.#partial.keys()) if (cluster >= first && cluster < end) return true;
      return false;
    }
    for (let cluster = first; cluster < end; cluster += 1) if (this.#partial.has(cluster)) return true;
    return false;
  }

  /** The parts of the cluster that are held, one bit each, bit 0 the first. */
  mask(cluster: number): number {
    return this.#whole.has(cluster) ? WHOLE_CLUSTER_MASK : (this.#partial.get(cluster) ?? 0);
  }

  /** Where [offset, offset+length) of one cluster changes between held and not: the end of the leading stretch. */
  stretch(offset: number, end: number): { readonly held: boolean; readonly end: number } {
    const { clusterBytes } = this.#context.geometry;
    const cluster = Math.floor(offset / clusterBytes);
    const mask = this.mask(cluster);
    const start = cluster * clusterBytes;
    let part = Math.floor((offset - start) / this.#partBytes);
    const held = ((mask >>> part) & 1) === 1;
    while (part < PARTS && (((mask >>> part) & 1) === 1) === held) part += 1;
    return { held, end: Math.min(start + part * this.#partBytes, end) };
  }

  /** Fills `target` from the data file, whatever is held. */
  readData(target: Uint8Array, offset: number): Promise<void> | undefined {
    return this.#files.data.tryRead(target, offset) ? undefined : this.#files.data.read(target, offset);
  }

  /**
   * Writes `source`, or zeroes where it is a length, at `offset`. Parts that are written only in part, and not held
   * yet, are filled up from below first. Errors: `overlay-full`, `io-error`; nothing new is held then.
   */
  write(source: Uint8Array | number, offset: number, readBelow: ReadBelow): Promise<void> | undefined {
    const length = typeof source === "number" ? source : source.length;
    const gaps = this.#gaps(offset, offset + length);
    if (gaps.length === 0) return this.#writeHeld(source, offset, offset, offset + length);
    return this.#fillThenWrite(source, offset, length, gaps, readBelow);
  }

  /**
   * Makes everything written so far durable. After an fsync that has failed every later call fails as well, until the disk is
   * emptied. Errors: `out-of-space` where there is no room to say so; `io-error`.
   */
  flush(): Promise<void> {
    return this.#failed ?? this.#flushes.run();
  }

  /** What it lies on could not be made durable. Rejects with `error` once that is noted, and so does every later flush. */
  failBelow(error: unknown): Promise<void> {
    this.#failed ??= this.#noteLoss(error);
    return this.#failed;
  }

  async #flush(): Promise<void> {
    // The one that this one has waited for.
    if (this.#failed !== undefined) return this.#failed;
    if (!this.#files.exists) return;
    const { journal } = this.#files;
    const covered = journal.sequence;
    await this.#sync(() => this.#files.syncData());
    if (covered <= this.#coveredSequence) return;
    const isLatest = journal.sequence === covered;
    // Where there is no room for it, nothing is lost: the next flush tries again.
    this.withReserve(() => journal.appendSyncMark(covered));
    // A mark needs no mark of its own: or every flush of an idle disk would add one.
    const coveredByMark = isLatest ? journal.sequence : covered;
    await this.#sync(() => journal.sync());
    this.#coveredSequence = coveredByMark;
  }

  /** An fsync: where it fails, every later flush does. */
  async #sync(sync: () => Promise<void>): Promise<void> {
    try {
      await sync();
    } catch (error) {
      this.#failed = this.#noteLoss(error);
      await this.#failed;
    }
  }

  async #noteLoss(error: unknown): Promise<never> {
    await this.#context.lost?.note(this.#nameOfLoss());
    throw error;
  }

  /** What a note of a loss names: the active disk's files, or, where there is no room even for these, the disk's image. */
  #nameOfLoss(): string | null {
    try {
      return this.#files.journal.id;
    } catch {
      return null; // the caller has another error to tell
    }
  }

  close(): void {
    this.#files.close();
  }

  removeFiles(): void {
    this.#files.removeFiles();
  }

  /** Frees the storage off the event loop. Nobody may use the active disk any more. */
  removeBehind(): Promise<void> {
    return this.#files.removeBehind();
  }

  /** Ranges outside [offset, end) that must be filled from below for whole parts to be held: at most two, or many where clusters are filled whole. */
  #gaps(offset: number, end: number): { offset: number; end: number }[] {
    const { geometry } = this.#context;
    const crowded = this.#partial.size >= PARTIAL_CLUSTERS_MAX;
    const unit = crowded ? geometry.clusterBytes : this.#partBytes;
    const from = Math.floor(offset / unit) * unit;
    const to = Math.min(Math.ceil(end / unit) * unit, geometry.sizeBytes);
    const gaps: { offset: number; end: number }[] = [];
    for (const [gapFrom, gapEnd] of [
      [from, offset],
      [end, to],
    ] as const) {
      for (let at = gapFrom; at < gapEnd;) {
        const stretch = this.stretch(at, gapEnd);
        if (!stretch.held) gaps.push({ offset: at, end: stretch.end });
        at = stretch.end;
      }
    }
    return gaps;
  }

  async #fillThenWrite(
    source: Uint8Array | number,
    offset: number,
    length: number,
    gaps: readonly { offset: number; end: number }[],
    readBelow: ReadBelow,
  ): Promise<void> {
    const fills: { bytes: Buffer; offset: number }[] = [];
    let from = offset;
    let end = offset + length;
    for (const gap of gaps) {
      const bytes = Buffer.allocUnsafe(gap.end - gap.offset);
      await readBelow(bytes, gap.offset);
      fills.push({ bytes, offset: gap.offset });
      from = Math.min(from, gap.offset);
      end = Math.max(end, gap.end);
    }
    for (const fill of fills) this.#fillUnheld(fill.bytes, fill.offset);
    await this.#writeHeld(source, offset, from, end);
  }

  /** Writes what was read from below where it is still what a reader sees: another part may have been written meanwhile. */
  #fillUnheld(bytes: Buffer, offset: number): void {
    const end = offset + bytes.length;
    for (let at = offset; at < end;) {
      const stretch = this.stretch(at, end);
      if (!stretch.held) this.#files.data.write(bytes.subarray(at - offset, stretch.end - offset), at);
      at = stretch.end;
    }
  }

  /** Writes the data, then the journal entries that make the parts of [from, end) held. */
  #writeHeld(source: Uint8Array | number, offset: number, from: number, end: number): Promise<void> | undefined {
    const { data } = this.#files;
    if (typeof source === "number") {
      const zeroing = data.zero(offset, source);
      if (zeroing !== undefined) return zeroing.then(() => this.#hold(this.#newlyHeld(from, end)));
    }
    const entries = this.#newlyHeld(from, end);
    if (typeof source !== "number") {
      if (entries.length > 0) this.#context.quota?.take(source.length);
      data.write(source, offset);
    }
    this.#hold(entries);
    return undefined;
  }

  #hold(entries: readonly JournalEntry[]): void {
    if (entries.length === 0) return;
    this.#files.journal.append(entries);
    for (const entry of entries) this.#apply(entry);
    this.#context.quota?.settle();
  }

  /** Entries for the parts of [from, end) that are not held yet: adjacent whole clusters in one entry. */
  #newlyHeld(from: number, end: number): JournalEntry[] {
    const { geometry } = this.#context;
    const entries: JournalEntry[] = [];
    const firstCluster = Math.floor(from / geometry.clusterBytes);
    const endCluster = Math.ceil(end / geometry.clusterBytes);
    for (let cluster = firstCluster; cluster < endCluster; cluster += 1) {
      const start = cluster * geometry.clusterBytes;
      const clusterEnd = clusterEndOffset(geometry, cluster + 1);
      const had = this.mask(cluster);
      if (had === WHOLE_CLUSTER_MASK) continue;
      const whole = from <= start && end >= clusterEnd;
      const mask = whole
        ? WHOLE_CLUSTER_MASK
        : (had | maskOf(Math.max(from - start, 0), Math.min(end, clusterEnd) - start, this.#partBytes)) >>> 0;
      if (mask === had) continue;
      const last = entries.at(-1);
      if (
        mask === WHOLE_CLUSTER_MASK &&
        last?.mask === WHOLE_CLUSTER_MASK &&
        last.firstCluster + last.clusterCount === cluster
      ) {
        entries[entries.length - 1] = { ...last, clusterCount: last.clusterCount + 1 };
      } else {
        entries.push({ firstCluster: cluster, clusterCount: 1, mask, operation: "held" });
      }
    }
    return entries;
  }

  #apply(entry: JournalEntry): void {
    const end = entry.firstCluster + entry.clusterCount;
    if (entry.mask === WHOLE_CLUSTER_MASK) {
      this.#whole.addRange(entry.firstCluster, end);
      if (this.#partial.size > 0) {
        for (let cluster = entry.firstCluster; cluster < end; cluster += 1) this.#partial.delete(cluster);
      }
    } else if (!this.#whole.has(entry.firstCluster)) {
      this.#partial.set(entry.firstCluster, entry.mask);
    }
  }
}

/** Bits of the parts that [from, end) of a cluster touches. */
function maskOf(from: number, end: number, partBytes: number): number {
  const first = Math.floor(from / partBytes);
  const afterLast = Math.ceil(end / partBytes);
  const below = afterLast >= PARTS ? WHOLE_CLUSTER_MASK : (1 << afterLast) - 1;
  return (below & ~((1 << first) - 1)) >>> 0;
}
