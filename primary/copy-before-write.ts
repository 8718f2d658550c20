/**
 * Owns: which clusters of one shared disk may be overwritten (mode `shared`).
 *
 * How: before the first change of a cluster in an epoch its original is read and sent, and the change waits until the
 * secondaries have that stable. Originals of one event-loop turn travel in one message, and come back with one
 * acknowledgement, so what a change waits for is a round trip for each batch. Later changes of the cluster in the same
 * epoch, on the same session, cost a look into a bitmap. What is a hole is not copied to be zeroed: it does not change.
 * Where the image moves content in units larger than a cluster (a format behind its server), originals are copied in whole
 * units: what the secondary reads of the disk itself lies in units that nothing was changed in since the last checkpoint,
 * so that it lies where the secondary knows it to lie.
 *
 * Invariants: from the look that finds a cluster copied to the change itself nothing else runs. A copy counts for the
 * epoch and for the session that it was sent in, and for no other. While the original of a cluster is under way every
 * change of it waits, so what is read is what was there at the last barrier, or is held by the secondary already.
 *
 * Does not: order overlapping requests (`ReplicatedDisk` holds their ranges), or decide what happens without a secondary
 * (`SharedDisks`).
 */
import assert from "node:assert/strict";
import { ORIGINAL_MAX_BYTES, ORIGINALS_READ_MAX_BYTES } from "../proto/limits.ts";
import type { Child, Extent, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import {
  clusterEndOffset,
  endClusterOf,
  firstClusterOf,
  type ClusterGeometry,
} from "../shared/block/cluster-geometry.ts";
import { withoutFua } from "../shared/block/without-fua.ts";
import { isZero } from "../shared/block/zeroes.ts";
import type { SourceSession } from "./source-session.ts";

/** Whoever takes originals, for as long as these are the same secondaries, in the same sessions. */
export interface OriginalsSession extends Pick<SourceSession, "isFull" | "room"> {
  /** Puts an original into the stream, `payload` as a view. Done when it is stable, or a session is lost. */
  send(...original: Parameters<SourceSession["send"]>): Pending;
}

/** Where originals go, and what to do where there is nobody to take them. */
export interface OriginalsStream {
  /** Who takes originals now: all that may have a checkpoint; undefined: not all of them do. */
  session(): OriginalsSession | undefined;
  /** Whether no secondary can hold originals of these disks, so that they may be overwritten without. */
  isUnwatched(): boolean;
  /** Done when it may be looked again. Errors: why guests are refused. */
  wait(): Pending;
  /** Counts a change, in the epoch that is open as it happens. */
  overwritten(length: number): void;
}

export class CopyBeforeWrite implements Child {
  readonly sizeBytes: number;
  readonly #child: Child;
  readonly #disk: number;
  readonly #geometry: ClusterGeometry;
  readonly #stream: OriginalsStream;
  /** Originals are copied in whole units of so many clusters. */
  readonly #unitClusters: number;
  /** What the secondary of `#session` has stable, of the open epoch. */
  readonly #copied = new ClusterBitmap();
  #session: OriginalsSession | undefined;
  /** Clusters whose originals are being read, sent, or waited for. */
  readonly #underWay = new Map<number, Promise<void>>();
  /** Changes with each barrier and each session: what was begun before counts no more. */
  #era = 0;
  /** Changes that the child has not finished. */
  #changing = 0;
  #unchanging: (() => void) | undefined;
  /** Set while a barrier waits for them: no new change begins. */
  #barrier: { readonly over: Promise<void>; readonly end: () => void } | undefined;
  #readingBytes = 0;
  #readers: (() => void)[] = [];

  constructor(disk: number, child: Child, geometry: ClusterGeometry, stream: OriginalsStream) {
    this.sizeBytes = child.sizeBytes;
    this.#disk = disk;
    this.#child = child;
    this.#geometry = geometry;
    this.#stream = stream;
    this.#unitClusters = Math.max(1, (child.placementBytes ?? 0) / geometry.clusterBytes);
    assert(Number.isInteger(this.#unitClusters), "both are powers of two");
  }

  get placementBytes(): number | undefined {
    return this.#child.placementBytes;
  }

  get asksForExtents(): boolean {
    return this.#child.asksForExtents === true;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#child.read(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    if (this.#mayChange(offset, source.length)) return this.#write(source, offset, flags);
    return this.#copyFirst(offset, source.length, () => this.#write(source, offset, flags));
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    if (this.#mayChange(offset, length)) return this.#zero(offset, length, flags);
    return this.#zeroInSteps(offset, length, flags);
  }

  flush(): Pending {
    return this.#child.flush();
  }

  prefetch(offset: number, length: number): void {
    this.#child.prefetch(offset, length);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    return this.#child.extents(offset, length, maxExtents);
  }

  /** Begins to copy what a change of the range will need. A hint: whoever changes the range waits for it, and has its errors. */
  prepare(offset: number, length: number): void {
    if (this.#mayChange(offset, length)) return;
    const session = this.#currentSession();
    if (session === undefined || this.#barrier !== undefined) return;
    const { first, end } = this.#unitsOf(offset, Math.min(length, ORIGINAL_MAX_BYTES));
    for (const copy of this.#copyMissing(session, first, end)) copy.catch(() => undefined); // the change has the error
  }

  /**
   * Keeps new changes from beginning, until `beginEpoch`. Done when none is under way on the child any more. One barrier
   * at a time.
   */
  holdChanges(): Pending {
    let end = (): void => undefined;
    const over = new Promise<void>((resolve) => {
      end = resolve;
    });
    this.#barrier = { over, end };
    if (this.#changing === 0) return undefined;
    return new Promise((resolve) => {
      this.#unchanging = resolve;
    });
  }

  /** The barrier has its place in the stream, or was given up: changes go on, and nothing is copied yet. */
  beginEpoch(): void {
    this.#unchanging = undefined;
    this.#forgetCopies();
    this.#barrier?.end();
    this.#barrier = undefined;
  }

  /** Whether a change of the range may begin now. */
  #mayChange(offset: number, length: number): boolean {
    if (this.#barrier !== undefined) return false;
    if (this.#currentSession() === undefined) return this.#stream.isUnwatched();
    const { first, end } = this.#unitsOf(offset, length);
    if (end - first === 1) return this.#copied.has(first);
    return this.#copied.rangeCardinality(first, end) === end - first;
  }

  #currentSession(): OriginalsSession | undefined {
    const session = this.#stream.session();
    if (session !== this.#session) {
      this.#session = session;
      this.#forgetCopies();
    }
    return session;
  }

  #forgetCopies(): void {
    this.#era += 1;
    this.#copied.clear();
    this.#underWay.clear();
  }

  #write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    this.#stream.overwritten(source.length);
    return this.#changed(this.#child.write(source, offset, withoutFua(flags)), flags.fua);
  }

  #zero(offset: number, length: number, flags: ZeroFlags): Pending {
    this.#stream.overwritten(length);
    return this.#changed(this.#child.zero(offset, length, { fua: false, mayUnmap: flags.mayUnmap }), flags.fua);
  }

  #changed(change: Pending, fua: boolean): Pending {
    if (change === undefined) return fua ? this.#child.flush() : undefined;
    this.#changing += 1;
    const done = change.finally(() => {
      this.#changing -= 1;
      if (this.#changing === 0) this.#unchanging?.();
    });
    return fua ? done.then(() => this.#child.flush()) : done;
  }

  /** Zeroes what is not zero already, a bounded stretch of originals at a time. */
  async #zeroInSteps(offset: number, length: number, flags: ZeroFlags): Promise<void> {
    const end = offset + length;
    const noFua = { fua: false, mayUnmap: flags.mayUnmap };
    for (let at = offset; at < end;) {
      const extents = this.#child.extents(at, end - at, 1);
      const [extent] = extents instanceof Promise ? await extents : extents;
      const found = Math.min(extent?.length ?? end - at, end - at);
      const from = at;
      const unchanged = extent?.zero === true ? this.#unmoved(at, found, extent.hole) : 0;
      const step = unchanged > 0 ? unchanged : Math.min(found, this.#copyStep(at));
      const zero = (): Pending => this.#zero(from, step, noFua);
      const pending = unchanged > 0 ? zero() : this.#copyFirst(from, step, zero);
      if (pending !== undefined) await pending;
      at += step;
    }
    if (flags.fua) await this.#child.flush();
  }

  /**
   * How much of a stretch of zeroes at `offset` may be zeroed and leaves everything where it is: where content has units,
   * whole ones that nothing is stored for, since to zero a part of one may free all of it.
   */
  #unmoved(offset: number, length: number, isHole: boolean): number {
    if (this.#unitClusters === 1 && this.placementBytes === undefined) return length;
    const unitBytes = Math.max(this.placementBytes ?? 0, this.#geometry.clusterBytes);
    if (!isHole || offset % unitBytes > 0) return 0;
    return Math.floor(length / unitBytes) * unitBytes;
  }

  /** How much from `offset` on is copied to be zeroed at a time: up to where the next step may find a whole unit. */
  #copyStep(offset: number): number {
    const alignment = Math.min(this.placementBytes ?? ORIGINAL_MAX_BYTES, ORIGINAL_MAX_BYTES);
    return offset % alignment > 0 ? alignment - (offset % alignment) : ORIGINAL_MAX_BYTES;
  }

  async #copyFirst(offset: number, length: number, change: () => Pending): Promise<void> {
    while (!this.#mayChange(offset, length)) await this.#copy(offset, length);
    const pending = change();
    if (pending !== undefined) await pending;
  }

  /** Copies what of the range is not copied yet, or waits for what keeps it from that: a barrier, or the want of a secondary. */
  async #copy(offset: number, length: number): Promise<void> {
    if (this.#barrier !== undefined) return this.#barrier.over;
    const session = this.#currentSession();
    if (session === undefined) return this.#stream.wait();
    const { first, end } = this.#unitsOf(offset, length);
    await Promise.all(this.#copyMissing(session, first, end));
  }

  /** The clusters of the units that a change of the range touches. */
  #unitsOf(offset: number, length: number): { readonly first: number; readonly end: number } {
    const first = firstClusterOf(this.#geometry, offset);
    const end = endClusterOf(this.#geometry, offset, length);
    const unit = this.#unitClusters;
    if (unit === 1) return { first, end };
    return {
      first: Math.floor(first / unit) * unit,
      end: Math.min(Math.ceil(end / unit) * unit, this.#geometry.clusterCount),
    };
  }

  /** Begins to copy what of [first, end) is not copied, and returns what there is to wait for. */
  #copyMissing(session: OriginalsSession, first: number, end: number): Promise<void>[] {
    const runMax = Math.max(1, ORIGINAL_MAX_BYTES / this.#geometry.clusterBytes);
    const copies: Promise<void>[] = [];
    for (let cluster = first; cluster < end;) {
      if (this.#copied.has(cluster)) {
        cluster += 1;
        continue;
      }
      const known = this.#underWay.get(cluster);
      if (known !== undefined) {
        if (copies.at(-1) !== known) copies.push(known);
        cluster += 1;
        continue;
      }
      let runEnd = cluster + 1;
      while (runEnd < end && runEnd - cluster < runMax && this.#isMissing(runEnd)) runEnd += 1;
      const era = this.#era;
      const from = cluster;
      const copy = this.#copyRun(session, from, runEnd).finally(() => {
        if (era === this.#era) for (let index = from; index < runEnd; index += 1) this.#underWay.delete(index);
      });
      for (let index = from; index < runEnd; index += 1) this.#underWay.set(index, copy);
      copies.push(copy);
      cluster = runEnd;
    }
    return copies;
  }

  #isMissing(cluster: number): boolean {
    return !this.#copied.has(cluster) && !this.#underWay.has(cluster);
  }

  /** Reads and sends the originals of [first, end), and resolves when they are stable, or count no more. Errors: the child's. */
  async #copyRun(session: OriginalsSession, first: number, end: number): Promise<void> {
    const era = this.#era;
    const offset = first * this.#geometry.clusterBytes;
    const length = clusterEndOffset(this.#geometry, end) - offset;
    while (session.isFull || this.#readingBytes >= ORIGINALS_READ_MAX_BYTES) {
      await (session.room() ?? this.#untilRead());
      if (era !== this.#era) return;
    }
    const content = this.#readOriginal(offset, length);
    const original = content instanceof Promise ? await content : content;
    // The session may be another one by now, and the epoch.
    if (era !== this.#era || this.#currentSession() !== session) return;
    const range = { disk: this.#disk, firstCluster: first, endCluster: end };
    const stable = isZero(original)
      ? session.send("zero-original", range, offset, length, undefined)
      : session.send("original", range, offset, length, original);
    if (stable !== undefined) await stable;
    if (era === this.#era && this.#currentSession() === session) this.#copied.addRange(first, end);
  }

  #readOriginal(offset: number, length: number): Buffer | Promise<Buffer> {
    const content = Buffer.allocUnsafe(length);
    const reading = this.#child.read(content, offset);
    if (reading === undefined) return content;
    this.#readingBytes += length;
    return reading
      .finally(() => {
        this.#readingBytes -= length;
        for (const wake of this.#readers.splice(0)) wake();
      })
      .then(() => content);
  }

  #untilRead(): Promise<void> {
    return new Promise((resolve) => {
      this.#readers.push(resolve);
    });
  }
}
