import { ColobusError } from "../proto/errors.ts";
import type { Durability } from "../proto/words.ts";
import type { Child, Extent, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import { ClusterBitmap, intersectsRange } from "../shared/block/cluster-bitmap.ts";
import {
  clusterEndOffset,
  clustersToBytes,
  endClusterOf,
  firstClusterOf,
  growGeometry,
} from "../shared/block/cluster-geometry.ts";
import { RangeLock } from "../shared/block/range-lock.ts";
import { isZero } from "../shared/block/zeroes.ts";
import { mergeUnfinished } from "../shared/jobs/merge-unfinished.ts";
import { MergeJournal } from "./merge-journal.ts";
import { removeOverlayFiles, type OverlayContext } from "./overlay-files.ts";
import type { OverlayStack } from "./overlay-stack.ts";
import type { ViewGate } from "./view-gate.ts";

/** The merge copies at most this much at once: so long is the range held, and so much memory used. */
const MERGE_PIECE_BYTES = { process: 1024 * 1024, power: 4 * 1024 * 1024 } as const satisfies Record<
  Durability,
  number
>;

/**
 * A disk after its promotion: served from the committed view at once, while the overlays are merged into the base.
 *
 * A cluster that the overlays decide takes writes in the active disk, so the newest data lies on top; any other takes
 * them in the base. The merge copies a stretch of the view into the base and then names it in the merge journal: from
 * that record on the overlays say nothing about these clusters. The base is fsynced before the record, and the record
 * before the stretch is released, under `process` as well: guests have flushed what the overlays hold. Where the record
 * cannot be fsynced, guests' flushes do it, or fail. Interrupted anywhere, the merge goes on from its journal.
 */
export class PromotedDisk implements Child {
  readonly #context: OverlayContext;
  readonly #gate: ViewGate;
  readonly #lock = new RangeLock();
  readonly #base: OverlayStack["base"];
  readonly #unmerged: ClusterBitmap;
  readonly #totalBytes: number;
  #stack: OverlayStack | undefined;
  /** Everything of it is merged, and its files may still be there. */
  #left: OverlayStack | undefined;
  /** A count that grows with every request of a guest. */
  #requests = 0;
  readonly #journal: MergeJournal;
  /** The flush of what lies below the active disk. */
  #belowFlushed: Promise<void> | undefined;

  /** `epoch` is the committed one on which the overlays lie. */
  constructor(context: OverlayContext, stack: OverlayStack, gate: ViewGate, epoch: number) {
    this.#context = context;
    this.#gate = gate;
    this.#base = stack.base;
    this.#stack = stack;
    const merged = new ClusterBitmap();
    this.#journal = new MergeJournal(context, epoch, merged);
    stack.merged = merged;
    stack.active.withReserve = (work) => this.#journal.withReserve(work);
    this.#unmerged = stack.coveredClusters();
    this.#totalBytes = clustersToBytes(context.geometry, this.#unmerged.size);
  }

  get sizeBytes(): number {
    return this.#context.geometry.sizeBytes;
  }

  /** Where the base can. Errors: `merge-unfinished`. */
  get grow(): Child["grow"] {
    const base = this.#base;
    if (base.grow === undefined) return undefined;
    return async (sizeBytes) => {
      if (this.#stack !== undefined) throw mergeUnfinished();
      await base.grow?.(sizeBytes);
      if (sizeBytes > this.sizeBytes) growGeometry(this.#context.geometry, sizeBytes);
    };
  }

  get mergeTotalBytes(): number {
    return this.#totalBytes;
  }

  get mergedBytes(): number {
    return this.#totalBytes - clustersToBytes(this.#context.geometry, this.#unmerged.size);
  }

  /** Storage of the overlays, as status names it. */
  get storage(): { readonly hiddenBytes: number; readonly bufferBytes: number; readonly activeBytes: number } {
    const stack = this.#stack;
    if (stack === undefined) return { hiddenBytes: 0, bufferBytes: 0, activeBytes: 0 };
    return { ...stack.hidden.storage, activeBytes: stack.active.allocatedBytes };
  }

  get requests(): number {
    return this.#requests;
  }

  read(target: Uint8Array, offset: number): Pending {
    this.#requests += 1;
    const stack = this.#stack;
    if (stack === undefined) return this.#base.read(target, offset);
    return this.#gate.run(() =>
      this.#stack === undefined ? this.#base.read(target, offset) : stack.read(target, offset),
    );
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    this.#requests += 1;
    if (this.#stack === undefined) return this.#base.write(source, offset, flags);
    const isLent = flags.isLent === true;
    return this.#locked(offset, source.length, () =>
      this.#change(offset, source.length, flags.fua, (from, end, stack) => {
        const piece = source.subarray(from - offset, end - offset);
        return stack === undefined
          ? this.#base.write(piece, from, { fua: false, isLent })
          : this.#writeActive(stack, piece, from, isLent);
      }),
    );
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    this.#requests += 1;
    if (this.#stack === undefined) return this.#base.zero(offset, length, flags);
    return this.#locked(offset, length, () =>
      this.#change(offset, length, flags.fua, (from, end, stack) =>
        stack === undefined
          ? this.#base.zero(from, end - from, { fua: false, mayUnmap: flags.mayUnmap })
          : this.#writeActive(stack, end - from, from, false),
      ),
    );
  }

  flush(): Pending {
    if (this.#stack === undefined) return this.#base.flush();
    // Through the gate: the overlays' files must not be closed under a flush.
    return this.#gate.run(() => (this.#stack === undefined ? this.#base.flush() : this.#flushAll(this.#stack)));
  }

  prefetch(offset: number, length: number): void {
    this.#base.prefetch(offset, length);
  }

  get fault(): ColobusError | undefined {
    return this.#base.fault;
  }

  get placementBytes(): number | undefined {
    return this.#base.placementBytes;
  }

  get asksForExtents(): boolean {
    return this.#base.asksForExtents === true;
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    return (this.#stack ?? this.#base).extents(offset, length, maxExtents);
  }

  /**
   * Merges the next stretch. Resolves with its bytes, or undefined when nothing is left to merge. Errors: those of the
   * base (`out-of-space`, `io-error`) and of the merge journal; the call can be repeated.
   */
  async mergeNext(): Promise<number | undefined> {
    const first = this.#unmerged.minimum();
    if (this.#unmerged.isEmpty) return undefined;
    const { geometry } = this.#context;
    const limit = first + this.#pieceClusters;
    let end = first + 1;
    while (end < limit && this.#unmerged.has(end)) end += 1;
    const bytes = clusterEndOffset(geometry, end) - first * geometry.clusterBytes;
    await this.#locked(first * geometry.clusterBytes, bytes, () => this.#merge(first, end));
    return bytes;
  }

  /**
   * Everything is merged and the agent's record says so: frees the overlays. The disk is its base from now on. Errors:
   * `io-error`; the call can be repeated.
   */
  async dropOverlays(): Promise<void> {
    if (this.#stack !== undefined) {
      await this.#gate.close();
      this.#left = this.#stack;
      this.#stack = undefined;
      this.#gate.open();
    }
    if (this.#left === undefined) return;
    await this.#left.hidden.removeBehind();
    await this.#left.active.removeBehind();
    this.#journal.close();
    removeOverlayFiles(this.#context.storage, this.#context.directory);
    this.#left = undefined;
  }

  /** Makes what the merge has put into the base durable. */
  async syncBase(): Promise<void> {
    await this.#base.syncOwn();
  }

  /** The base's mark: differs when anyone has changed the image in between. */
  changeMark(): string | Promise<string> {
    return this.#base.changeMark();
  }

  async ready(): Promise<void> {
    await this.#base.ready?.();
  }

  /** Everything is merged, or the base stays this side's. */
  async letGo(): Promise<void> {
    if (this.#stack === undefined) await this.#base.letGo?.();
  }

  /** Closes it without writing anything more to the base. */
  abandon(): void {
    this.#closeOverlays();
    if (this.#base.abandon === undefined) this.#base.close();
    else this.#base.abandon();
  }

  close(): void {
    this.#closeOverlays();
    this.#base.close();
  }

  #closeOverlays(): void {
    const stack = this.#stack ?? this.#left;
    stack?.hidden.close();
    stack?.active.close();
    this.#journal.close();
  }

  #locked(offset: number, length: number, work: () => Pending): Pending {
    const unit = this.#context.geometry.clusterBytes;
    const from = Math.floor(offset / unit) * unit;
    const hold = this.#lock.acquire(from, Math.ceil((offset + length) / unit) * unit - from);
    if (hold instanceof Promise) return hold.then((later) => this.#releasing(later, work));
    return this.#releasing(hold, work);
  }

  #releasing(hold: Awaited<ReturnType<RangeLock["acquire"]>>, work: () => Pending): Pending {
    let pending: Pending;
    try {
      pending = work();
    } catch (error) {
      this.#lock.release(hold);
      throw error;
    }
    if (pending === undefined) {
      this.#lock.release(hold);
      return undefined;
    }
    return pending.finally(() => this.#lock.release(hold));
  }

  /** Calls `write` for each stretch of the range that goes to one place: the active disk of a stack, or the base. */
  #change(
    offset: number,
    length: number,
    fua: boolean,
    write: (from: number, end: number, stack: OverlayStack | undefined) => Pending,
  ): Pending {
    const { geometry } = this.#context;
    const rangeEnd = offset + length;
    let pending: Pending;
    const then = (next: () => Pending): void => {
      pending = pending === undefined ? next() : pending.then(next);
    };
    // A guest may trim gigabytes at once: where nothing is left to merge, no cluster needs to be looked at.
    const first = firstClusterOf(geometry, offset);
    const isBare = !intersectsRange(this.#unmerged, first, endClusterOf(geometry, offset, length));
    for (let from = offset; from < rangeEnd;) {
      const covered = !isBare && this.#stack?.covers(firstClusterOf(geometry, from)) === true;
      let end = isBare ? rangeEnd : from;
      while (end < rangeEnd && (this.#stack?.covers(firstClusterOf(geometry, end)) === true) === covered) {
        end = Math.min(rangeEnd, clusterEndOffset(geometry, firstClusterOf(geometry, end) + 1));
      }
      const start = from;
      const stack = covered ? this.#stack : undefined;
      then(() => write(start, end, stack));
      from = end;
    }
    if (fua) then(() => this.flush());
    return pending;
  }

  /** A write above the overlays. Where the active disk cannot grow, the clusters are merged first and take it in the base. */
  #writeActive(stack: OverlayStack, source: Uint8Array | number, offset: number, isLent: boolean): Pending {
    const length = typeof source === "number" ? source : source.length;
    const intoBase = async (error: unknown): Promise<void> => {
      if (!(error instanceof ColobusError) || error.code !== "out-of-space") throw error;
      const { geometry } = this.#context;
      const end = endClusterOf(geometry, offset, length);
      for (let first = firstClusterOf(geometry, offset); first < end; first += this.#pieceClusters) {
        await this.#merge(first, Math.min(end, first + this.#pieceClusters));
      }
      await (typeof source === "number"
        ? this.#base.zero(offset, source, { fua: false, mayUnmap: true })
        : this.#base.write(source, offset, { fua: false, isLent }));
    };
    try {
      const pending = stack.active.write(source, offset, (target, at) => stack.readBelow(target, at));
      return pending?.catch(intoBase);
    } catch (error) {
      return intoBase(error);
    }
  }

  get #pieceClusters(): number {
    const { geometry, durability } = this.#context;
    return Math.max(1, MERGE_PIECE_BYTES[durability] / geometry.clusterBytes);
  }

  /** Copies the view of clusters [first, end), a piece at most, into the base and records it. The range is locked. */
  async #merge(first: number, end: number): Promise<void> {
    const stack = this.#stack;
    if (stack === undefined) return;
    const { geometry } = this.#context;
    const offset = first * geometry.clusterBytes;
    const content = Buffer.allocUnsafe(clusterEndOffset(geometry, end) - offset);
    const reading = stack.read(content, offset);
    if (reading !== undefined) await reading;
    const writing = isZero(content)
      ? this.#base.zero(offset, content.length, { fua: false, mayUnmap: true })
      : this.#base.write(content, offset, { fua: false });
    if (writing !== undefined) await writing;
    await this.#base.syncOwn();
    this.#journal.append(first, end);
    // The next process reads it, also where it is not made durable now: what guests write there from here on is the base's.
    stack.merged?.addRange(first, end);
    this.#unmerged.removeRange(first, end);
    await this.#journal.sync();
  }

  /**
   * A guest's flush: its writes lie in the base, in the active disk, or in clusters that the merge journal names, beside
   * what it has found in the overlays below.
   */
  async #flushAll(stack: OverlayStack): Promise<void> {
    await Promise.all([this.#base.flush(), stack.active.flush(), this.#journal.sync(), this.#flushBelow(stack)]);
  }

  /** Under `process` nobody has fsynced the overlays below the active disk, which nobody changes any more. */
  #flushBelow(stack: OverlayStack): Pending {
    if (this.#context.durability === "power") return undefined;
    this.#belowFlushed ??= stack.hidden.flush().catch((error: unknown) => stack.active.failBelow(error));
    return this.#belowFlushed;
  }
}
