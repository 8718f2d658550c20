/**
 * Owns: one copy of a disk beside the others: its child, which clusters it lacks, and whether it takes the disk's changes.
 *
 *              everything placed, and flushed
 *      sound <──────────────────────────────── syncing <──┐
 *        │                                        │       │ tried again (`beginSync`)
 *        └───── a failure, or an overdue answer ──┴──> broken
 *
 * How: the owner hands it every change of the disk while the disk's range lock is held. A sound copy is written. A syncing
 * one is written where it lacks nothing; elsewhere the change only stays dirty, and `place` brings the content of whole
 * clusters later, under the same lock. A broken one is not asked at all: what it misses is dirty.
 *
 * Invariants: a change that the copy has not surely taken is dirty. A sound copy lacks nothing. What was given up as overdue
 * may still land, so the copy stays broken until all of that has settled. No operation here ever rejects because the copy
 * fails: who waits is told by the outcome.
 *
 * Does not: lock, decide whether the guest's request succeeds, or record anything but its dirty clusters.
 */
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { SYNC_HOLE_BYTES } from "../proto/limits.ts";
import type { ChildState } from "../proto/words.ts";
import type { Child, Extent, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Clock } from "../shared/host/clock.ts";
import { withoutFua } from "../shared/block/without-fua.ts";
import { DirtyMap } from "../shared/replication/dirty-map.ts";
import { DirtyTracker } from "../shared/replication/dirty-tracker.ts";
import type { SyncContent } from "./replicated-disk.ts";
import { TimeLimit } from "./time-limit.ts";

export interface DiskCopyOptions {
  readonly disk: string;
  /** Tells the copies of one disk apart. */
  readonly name: string;
  readonly child: Child;
  readonly geometry: ClusterGeometry;
  /**
   * The clusters that the copy lacks to begin with: a `DirtyTracker` where they are to survive this process. The copy owns
   * it from now on.
   */
  readonly dirty: DirtyMap;
  readonly clock: Clock;
  /** A request that takes longer is given up, and the copy with it. */
  readonly timeoutMs: number;
  /** `broken` takes nothing until `beginSync`. A `sound` one is not to lack anything. */
  readonly state: ChildState;
  /** A flush of it has failed in an earlier process. Default: false. */
  readonly hasLostWrites?: boolean;
  /** Whether changes are written at once; otherwise all of them are dirty until `place` brings them. Default: true. */
  readonly isWrittenThrough?: boolean;
  /** Whether storage of the copy is freed where the disk has zeroes. Default: true. */
  readonly unmap?: boolean;
  /** Whether the copy may be given up while it is sound: not the last one that has everything. Default: always. */
  readonly mayBreak?: () => boolean;
  /** The state has changed. */
  readonly changed?: () => void;
  /** `hasLostWrites` has become true. */
  readonly lostWrites?: () => void;
  /** It has refused something, or not answered in time. */
  readonly refused?: (during: "read" | "write" | "flush", offset: number, length: number, fault: ColobusError) => void;
  /**
   * What the copy lacks cannot be written down any more. Resolves when it is recorded that the copy is to be made anew
   * should this process die. Required with a `DirtyTracker`.
   */
  readonly untracked?: (reason: ColobusError) => Promise<void>;
}

/** undefined: the copy has the change. Otherwise why it has not; the range is dirty, unless the copy may not break. */
export type Outcome = ColobusError | undefined;

const UNMAP: ZeroFlags = { fua: false, mayUnmap: true };
const NO_UNMAP: ZeroFlags = { fua: false, mayUnmap: false };

export class DiskCopy {
  readonly child: Child;
  readonly #options: DiskCopyOptions;
  #name: string;
  readonly #limit: TimeLimit;
  #dirty: DirtyMap;
  #tracker: DirtyTracker | undefined;
  #losingTrack: Promise<void> | undefined;
  #state: ChildState;
  #isWrittenThrough: boolean;
  readonly #mayUnmap: boolean;
  #fault: ColobusError | undefined;
  #lacks: ColobusError;
  /** Flushes that failed: what they covered is dirty again, also where it was placed meanwhile. */
  #losses = 0;
  #hasLostWrites: boolean;
  /** What a flush has lost is not dirty: nobody else had it then. It is once the copy breaks. */
  #owesLosses: boolean;
  /** What of zeroes is under way. */
  #zeroingBytes = 0;
  /** Zeroes whose turn has not come, in their order. */
  readonly #zeroesWaiting: { readonly length: number; readonly begin: () => void }[] = [];
  #isClosed = false;

  constructor(options: DiskCopyOptions) {
    this.#options = options;
    this.#name = options.name;
    this.child = options.child;
    this.#dirty = options.dirty;
    this.#tracker = options.dirty instanceof DirtyTracker ? options.dirty : undefined;
    this.#state = options.state;
    this.#isWrittenThrough = options.isWrittenThrough ?? true;
    this.#mayUnmap = options.unmap ?? true;
    this.#hasLostWrites = options.hasLostWrites ?? false;
    this.#owesLosses = this.#hasLostWrites && options.state === "sound";
    this.#lacks = this.#lacking();
    this.#limit = new TimeLimit({
      clock: options.clock,
      limitMs: options.timeoutMs,
      whom: () => this.#whom,
      mayGiveUp: () => this.#mayBreak,
    });
  }

  get name(): string {
    return this.#name;
  }

  /** It is called so from now on. */
  rename(name: string): void {
    this.#name = name;
    this.#lacks = this.#lacking();
  }

  get state(): ChildState {
    return this.#state;
  }

  /** Why the copy broke, or what it has last refused. Stays until it is sound again. */
  get fault(): ColobusError | undefined {
    return this.#fault;
  }

  get dirtyBytes(): number {
    return this.#dirty.bytes;
  }

  /** Whether the copy lacks nothing. */
  get isClean(): boolean {
    return this.#dirty.isEmpty;
  }

  /** What the copy lacks, for who brings it. */
  get dirty(): DirtyMap {
    return this.#dirty;
  }

  /** What survives this process; undefined where nothing does. */
  get tracker(): DirtyTracker | undefined {
    return this.#tracker;
  }

  /** Whether a later process may believe what survives this one: not while it is being recorded that it may not either. */
  get isTracked(): boolean {
    return this.#tracker !== undefined && this.#losingTrack === undefined;
  }

  /** Whether a flush has failed, and not everything that it covered was placed again. */
  get hasLostWrites(): boolean {
    return this.#hasLostWrites;
  }

  /** Whether something is under way that was given up. */
  get isUnsettled(): boolean {
    return this.#limit.abandoned > 0;
  }

  /** From now on changes are written at once, where the copy lacks nothing. */
  writeThrough(): void {
    this.#isWrittenThrough = true;
  }

  /** From now on no change is written: each is dirty. */
  holdBack(): void {
    this.#isWrittenThrough = false;
  }

  /** Whether the copy has the present content of the whole range. */
  has(offset: number, length: number): boolean {
    if (this.#state === "sound") return true;
    return this.#state === "syncing" && this.#isWrittenThrough && !this.#dirty.touches(offset, length);
  }

  /**
   * To be awaited before any copy is changed in the range: from then on a crash leaves it dirty here. Errors: why neither
   * that nor that it cannot be had is recorded.
   */
  mark(offset: number, length: number): Pending {
    if (this.#tracker === undefined) return this.#losingTrack;
    try {
      return this.#tracker.mark(offset, length)?.catch((error: unknown) => this.#loseTrack(error));
    } catch (error) {
      return this.#loseTrack(error);
    }
  }

  /** Writes a change of the disk. The range is held, and marked. */
  write(source: Uint8Array, offset: number, flags: Pick<WriteFlags, "isLent">): Outcome | Promise<Outcome> {
    if (!this.has(offset, source.length)) return this.#miss(offset, source.length);
    let pending: Pending;
    try {
      pending = this.child.write(source, offset, withoutFua(flags));
    } catch (error) {
      return this.failed("write", error, offset, source.length);
    }
    return pending === undefined ? undefined : this.#outcome(this.#limit.guard(pending), offset, source.length);
  }

  /** As `write`, of zeroes. */
  zero(offset: number, length: number, { mayUnmap }: ZeroFlags): Outcome | Promise<Outcome> {
    if (!this.has(offset, length)) return this.#miss(offset, length);
    const flags = mayUnmap && this.#mayUnmap ? UNMAP : NO_UNMAP;
    if (length > SYNC_HOLE_BYTES) return this.#zeroInPieces(offset, length, flags);
    let pending: Pending;
    try {
      pending = this.#zeroInTurn(offset, length, flags);
    } catch (error) {
      return this.failed("write", error, offset, length);
    }
    return pending === undefined ? undefined : this.#outcome(pending, offset, length);
  }

  /** Each of which has the time that a request has: a disk may have to write its zeroes. */
  async #zeroInPieces(offset: number, length: number, flags: ZeroFlags): Promise<Outcome> {
    try {
      for (let at = offset; at < offset + length; at += SYNC_HOLE_BYTES) {
        const pending = this.#zeroInTurn(at, Math.min(SYNC_HOLE_BYTES, offset + length - at), flags);
        if (pending !== undefined) await pending;
        if (this.#isBroken) break;
      }
    } catch (error) {
      return this.failed("write", error, offset, length);
    }
    return this.#taken(offset, length);
  }

  /**
   * A disk may write one range of zeroes after another, so that a request waits for those before it: what is under way
   * together is no more than one piece, and the time of the next counts from its turn. Nothing is done once it is broken.
   */
  #zeroInTurn(offset: number, length: number, flags: ZeroFlags): Pending {
    if (this.#zeroesWaiting.length === 0 && this.#mayZero(length)) return this.#zeroNow(offset, length, flags);
    return new Promise((resolve) => {
      const begin = async (): Promise<void> => {
        if (this.#isClosed) throw this.#fault ?? this.#lacks;
        if (!this.#isBroken) await this.#zeroNow(offset, length, flags);
      };
      this.#zeroesWaiting.push({ length, begin: () => resolve(begin()) });
    });
  }

  #mayZero(length: number): boolean {
    return this.#zeroingBytes === 0 || this.#zeroingBytes + length <= SYNC_HOLE_BYTES;
  }

  #zeroNow(offset: number, length: number, flags: ZeroFlags): Pending {
    const pending = this.child.zero(offset, length, flags);
    if (pending === undefined) return undefined;
    this.#zeroingBytes += length;
    return this.#limit.guard(pending).finally(() => {
      this.#zeroingBytes -= length;
      // Whoever has asked for it says first whether the copy has broken.
      if (this.#zeroesWaiting.length > 0) this.#options.clock.defer(() => this.#beginZeroes());
    });
  }

  #beginZeroes(): void {
    for (let next = this.#zeroesWaiting[0]; next !== undefined; next = this.#zeroesWaiting[0]) {
      if (!this.#mayZero(next.length)) break;
      this.#zeroesWaiting.shift();
      next.begin();
    }
  }

  /** Makes durable what the copy has taken so far. */
  flush(): Outcome | Promise<Outcome> {
    if (this.#state === "broken") return this.#fault;
    let pending: Pending;
    try {
      pending = this.child.flush();
    } catch (error) {
      return this.#flushFailed(error);
    }
    if (pending === undefined) return undefined;
    return this.#limit.guard(pending).then(
      () => undefined,
      (error: unknown) => this.#flushFailed(error),
    );
  }

  /**
   * Reads for who has seen to it that the copy `has` the range. Rejects with `child-timed-out` when that takes too long:
   * then `target` may still be filled, at any time.
   */
  read(target: Uint8Array, offset: number): Pending {
    return this.#guarded(this.child.read(target, offset));
  }

  /**
   * Puts the disk's present content of whole clusters where the copy lacks it. Their range is held, and `content` is the
   * caller's again when that is done. Errors: why the copy did not take it; it is broken then, and `content` may still be
   * read if that is `child-timed-out`.
   */
  async place(offset: number, content: SyncContent): Promise<void> {
    if (this.#state !== "syncing") throw this.#fault ?? this.#lacks;
    const length = typeof content === "number" ? content : content.length;
    const losses = this.#losses;
    try {
      const pending =
        typeof content === "number"
          ? this.#zeroInTurn(offset, content, this.#mayUnmap ? UNMAP : NO_UNMAP)
          : this.#guarded(this.child.write(content, offset, withoutFua({ isLent: true })));
      if (pending !== undefined) await pending;
    } catch (error) {
      throw this.failed("write", error, offset, length);
    }
    if (this.#losses !== losses || this.#isBroken) throw this.#fault ?? this.#lacks;
    const { clusterBytes } = this.#options.geometry;
    this.#dirty.removeClusters(Math.floor(offset / clusterBytes), Math.ceil((offset + length) / clusterBytes));
  }

  /** The content of the range is not what the disk's is, for whatever reason. It was marked. */
  miss(offset: number, length: number): void {
    this.#dirty.addBytes(offset, length);
    if (this.#state === "sound") this.#set("syncing");
  }

  /** The copy has refused a change, or the content of a range. Returns why. */
  failed(during: "read" | "write" | "flush", thrown: unknown, offset: number, length: number): ColobusError {
    const fault = asColobusError(thrown);
    this.#fault = fault;
    this.#options.refused?.(during, offset, length, fault);
    if (!this.#mayBreak) return fault;
    if (length > 0) this.#dirty.addBytes(offset, length);
    if (this.#owesLosses) this.#addLosses();
    this.#set("broken");
    return fault;
  }

  /** The broken copy was tried again, without success. */
  stillFails(fault: ColobusError): void {
    if (this.#state === "broken") this.#fault = fault;
  }

  /** The copy takes changes again, and lacks what is dirty. Nothing that was given up is under way. */
  beginSync(): void {
    if (this.#state !== "syncing") this.#set("syncing");
  }

  /**
   * Makes durable what was placed. Resolves with whether the copy lacks nothing after that, and has not broken: it is then
   * as good as the others, once the owner calls `becomeSound` in the same turn.
   */
  async finishSync(): Promise<boolean> {
    if (this.#state !== "syncing" || !this.#dirty.isEmpty) return false;
    return (await this.flush()) === undefined && this.#isSyncing && this.#dirty.isEmpty;
  }

  /** The copy has everything, and is written through from now on. */
  becomeSound(): void {
    this.#isWrittenThrough = true;
    this.#fault = undefined;
    this.#hasLostWrites = false;
    this.#set("sound");
  }

  /**
   * The disk has grown by zeroes, and so has the copy: `first` is the cluster that had the former end in it, or lay behind it.
   * What is known of the new ones is not written down, so that a crash leaves them dirty until they are settled.
   */
  grown(first: number): void {
    const wasDirty = this.#dirty.dirtyClusters().has(first);
    const { clusterCount } = this.#options.geometry;
    this.#tracker?.addGrown(first);
    this.#dirty.removeClusters(first, clusterCount);
    if (wasDirty) this.#dirty.addClusters(first, first + 1);
  }

  /** Has what the copy lacks written down from now on. The tracker has it all, and on disk what is under way as well. */
  track(tracker: DirtyTracker): void {
    this.#dirty = tracker;
    this.#tracker = tracker;
  }

  /** Allocation of a range that the copy `has`, at once where its child knows; all data where it does not say in time. */
  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    // Whoever reads it is told why, if it is not this copy's server alone.
    const unknown = (): Extent[] => [{ length, hole: false, zero: false }];
    try {
      const extents = this.child.extents(offset, length, maxExtents);
      return extents instanceof Promise ? this.#inTime(extents).catch(unknown) : extents;
    } catch {
      return unknown();
    }
  }

  /** Nobody waits for the copy any more. Closes what it lacks; the child stays open. */
  close(): void {
    this.#isClosed = true;
    this.#limit.close();
    this.#tracker?.close();
  }

  #guarded(pending: Pending): Pending {
    return pending === undefined ? undefined : this.#limit.guard(pending);
  }

  async #inTime<T>(asked: Promise<T>): Promise<T> {
    await this.#limit.guard(asked.then(() => undefined));
    return asked;
  }

  get #whom(): string {
    return `copy ${this.#name} of disk ${this.#options.disk}`;
  }

  #lacking(): ColobusError {
    return new ColobusError("child-syncing", `${this.#whom} has not got everything yet`);
  }

  get #mayBreak(): boolean {
    return this.#state !== "sound" || (this.#options.mayBreak?.() ?? true);
  }

  // As getters, so that the compiler does not take the state for what it was before an await.
  get #isBroken(): boolean {
    return this.#state === "broken";
  }

  get #isSyncing(): boolean {
    return this.#state === "syncing";
  }

  #miss(offset: number, length: number): ColobusError {
    this.#dirty.addBytes(offset, length);
    return this.#state === "broken" ? (this.#fault ?? this.#lacks) : this.#lacks;
  }

  #outcome(guarded: Promise<void>, offset: number, length: number): Promise<Outcome> {
    return guarded.then(
      () => this.#taken(offset, length),
      (error: unknown) => this.failed("write", error, offset, length),
    );
  }

  /** While it was under way the copy may have broken for another reason, and lost what is not flushed. */
  #taken(offset: number, length: number): Outcome {
    return this.has(offset, length) ? undefined : this.#miss(offset, length);
  }

  #flushFailed(error: unknown): ColobusError {
    this.#losses += 1;
    const isNews = !this.#hasLostWrites;
    this.#hasLostWrites = true;
    this.#owesLosses = true;
    const fault = this.failed("flush", error, 0, 0);
    if (isNews) this.#options.lostWrites?.();
    return fault;
  }

  /** What no flush has surely covered is dirty. */
  #addLosses(): void {
    this.#owesLosses = false;
    if (this.#tracker === undefined) this.#dirty.addAll();
    else this.#dirty.addBitmap(this.#tracker.unsettled());
  }

  /** What the copy lacks is in memory alone from now on. */
  #loseTrack(thrown: unknown): Promise<void> {
    this.#losingTrack ??= this.#giveUpTrack(asColobusError(thrown)).finally(() => {
      this.#losingTrack = undefined;
    });
    return this.#losingTrack;
  }

  async #giveUpTrack(reason: ColobusError): Promise<void> {
    const tracker = this.#tracker;
    await this.#options.untracked?.(reason);
    const map = new DirtyMap(this.#options.geometry);
    map.addBitmap(this.#dirty.dirtyClusters());
    this.#dirty = map;
    this.#tracker = undefined;
    tracker?.close();
  }

  #set(state: ChildState): void {
    if (this.#state === state) return;
    this.#state = state;
    this.#options.changed?.();
  }
}
