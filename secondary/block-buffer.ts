/**
 * Owns the block buffer of one disk (mode `mc`): what the primary has changed since the last committed checkpoint, and
 * what is committed and not in the base yet, in one `EpochBuffer` or more for each epoch.
 *
 * The view is the committed buffers over the base. A commit moves buffers into it; then they are applied to the base
 * behind the path, all that may be at once, and go when everything of them is there (under `power`: fsynced there). While
 * an earlier checkpoint is kept, what came after it stays beside the base: so that checkpoint's view is the base and the
 * buffers up to its epoch.
 *
 * Invariants: a change is in a log before it counts, and before the base has it. The base never has anything of an epoch
 * that is not committed, or that came after a kept checkpoint; so applying can begin anew after any crash. Logs go in the
 * order of what is in them, and none while an earlier one cannot be removed. Under `power` the base is not written directly
 * before no crash can bring one back that is gone: it would be applied over that. A buffer that is recovered takes no more
 * changes: a torn tail has only what its sender was never told to be stable.
 */
import assert from "node:assert/strict";
import { BUFFER_RECORD_HEAD_BYTES } from "../proto/buffer-log-format.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { BUFFER_FRAGMENTS_MAX, DISK_RETRY_MS } from "../proto/limits.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import { letOthersRun } from "../shared/host/sleep.ts";
import { intoBase, mergeBuffers, type MergeTarget } from "./buffer-merge.ts";
import type { BufferMemory } from "./buffer-memory.ts";
import type { BufferedChange } from "./buffer-log.ts";
import { BufferView } from "./buffer-view.ts";
import { EpochBuffer, listBufferLogs } from "./epoch-buffer.ts";
import type { EpochOverlay, EpochView, Freeing, OverlaySource, ReadBelow } from "./epoch-overlay.ts";
import { hasRoomForCopy, type OverlayContext } from "./overlay-files.ts";
import type { OverlayQuota } from "./overlay-quota.ts";
import { SpareLogs } from "./spare-logs.ts";
import type { Pending } from "../shared/block/block-device.ts";

/** What a block buffer needs to take changes, and to apply them. */
export interface BufferHost {
  readonly memory: BufferMemory;
  readonly clock: Clock;
  /** Something could not be applied, and is tried again later. */
  readonly failed: (reason: ColobusError) => void;
  /** Something is applied, and its storage is free. */
  readonly applied: () => void;
}

export interface BufferEpochs {
  readonly committed: number;
  readonly open: number;
  /** An fsync may have failed in the process that left the logs. */
  readonly mayHaveLostWrites?: boolean;
}

export class BlockBuffer implements EpochOverlay {
  readonly #context: OverlayContext;
  readonly #base: DiskImage;
  /** undefined: this side is promoted, and only what is committed counts. */
  readonly #host: BufferHost | undefined;
  readonly #view: BufferView;
  readonly #latest: BufferView;
  readonly #spares: SpareLogs;
  /** Oldest first. */
  #committed: EpochBuffer[] = [];
  #open: EpochBuffer[] = [];
  #openEpoch: number;
  #version = 0;
  /** Committed buffers up to this epoch are applied. */
  #floor = 0;
  #applying: Promise<void> | undefined;
  #failure: ColobusError | undefined;
  #retry: Timer | undefined;
  #ended = false;
  #mustRewrite: boolean;
  /** A log was lost whole, and a loss of power may bring it back, with what was not called stable. */
  #mayComeBack = false;
  #makingDurable: Promise<void> | undefined;
  #dropping: Promise<void> | undefined;
  #joining: Promise<boolean> | undefined;
  /** What a join that is under way writes, until that stands for anything. */
  #joined: EpochBuffer | undefined;
  /** The stream needs the room that a join takes. */
  #mustEndJoin = false;
  /** Nobody needs them any more, and their logs are still there: in the order in which they are to go. */
  readonly #unneeded: EpochBuffer[] = [];
  #removing: Promise<void> = Promise.resolve();
  /**
   * How often it was asked, before the base is written directly, that no crash brings removed logs back, and the last time of
   * these that was seen to. An earlier process may have removed some.
   */
  #settlingAsked: number;
  #settlingDone = 0;
  /** Logs of this disk are numbered, so that those of one epoch have an order. */
  #nextOrdinal = 0;
  /** What the memory was told of. */
  #counted = { total: 0, uncommitted: 0 };

  private constructor(context: OverlayContext, base: DiskImage, epochs: BufferEpochs, host: BufferHost | undefined) {
    this.#context = context;
    this.#base = base;
    this.#host = host;
    this.#openEpoch = epochs.open;
    this.#mustRewrite = epochs.mayHaveLostWrites ?? false;
    this.#settlingAsked = context.durability === "power" ? 1 : 0;
    this.#spares = new SpareLogs(context);
    const version = (): number => this.#version;
    this.#view = new BufferView(() => this.#committed, version);
    this.#latest = new BufferView(() => [...this.#committed, ...this.#open], version);
  }

  /** Reads back the logs on disk. */
  static recover(context: OverlayContext, base: DiskImage, epochs: BufferEpochs, host?: BufferHost): BlockBuffer {
    const disk = new BlockBuffer(context, base, epochs, host);
    SpareLogs.removeLeft(context);
    for (const { epoch, ordinal } of listBufferLogs(context)) {
      const buffer = EpochBuffer.tryRecover(context, epoch, ordinal);
      if (buffer === undefined) continue;
      if (epoch <= epochs.committed) disk.#committed.push(buffer);
      else disk.#open.push(buffer);
      disk.#nextOrdinal = Math.max(disk.#nextOrdinal, ordinal + 1);
    }
    disk.#recount();
    return disk;
  }

  /** A log has no size of its own. */
  lengthen(): void {}

  get version(): number {
    return this.#version;
  }

  get isEmpty(): boolean {
    return this.#open.every(({ index }) => index.isEmpty);
  }

  /** Whether the base has everything, and may take more beside what is here. */
  get isApplied(): boolean {
    return this.isEmpty && this.#committed.length === 0 && this.#unneeded.length === 0 && this.#isSettled;
  }

  get #isSettled(): boolean {
    return this.#settlingDone === this.#settlingAsked;
  }

  get newestEpoch(): number {
    return this.#open.findLast(({ index }) => !index.isEmpty)?.epoch ?? 0;
  }

  get allocatedBytes(): number {
    return bytesOf(this.#open) + this.keptBytes;
  }

  get keptBytes(): number {
    const beside = this.#joined === undefined ? this.#unneeded : [...this.#unneeded, this.#joined];
    return bytesOf(this.#committed) + bytesOf(beside);
  }

  get storage(): { readonly hiddenBytes: number; readonly bufferBytes: number } {
    return { hiddenBytes: 0, bufferBytes: this.allocatedBytes };
  }

  find(cluster: number): OverlaySource | undefined {
    return this.#view.find(cluster);
  }

  intersects(first: number, end: number): boolean {
    return this.#view.intersects(first, end);
  }

  union(): ClusterBitmap {
    return this.#view.union();
  }

  asOf(epoch: number): EpochView {
    return new BufferView(
      () => this.#committed.filter((buffer) => buffer.epoch <= epoch),
      () => this.#version,
    );
  }

  changedSince(epoch: number): ClusterBitmap {
    const newer = [...this.#committed.filter((buffer) => buffer.epoch > epoch), ...this.#open];
    return ClusterBitmap.orMany(newer.map(({ index }) => index.held()));
  }

  /** Reads what the disk holds with everything that has come. */
  readLatest(target: Uint8Array, offset: number): Pending {
    return this.#latest.read(target, offset, this.#readBase);
  }

  /** Whether anything that is not in the base yet lies in clusters [first, end). */
  holds(first: number, end: number): boolean {
    return this.#latest.intersects(first, end);
  }

  /**
   * Takes changes of the open epoch, in order. When the promise resolves they survive the death of this process; when a
   * later `sync` does, they are durable. Where there is no room, it waits for what is being applied, and a join gives way.
   * Errors: `overlay-full`, `out-of-space`, `io-error`; nothing is taken then.
   */
  async append(changes: readonly BufferedChange[]): Promise<void> {
    for (;;) {
      const fault = this.#tryAppend(changes);
      if (fault === undefined) return;
      const freeing = this.#applying ?? this.#endJoin();
      if (freeing === undefined) throw fault;
      await freeing;
    }
  }

  beginWithoutBarrier(): Promise<void> | undefined {
    if (this.isApplied) return undefined;
    return this.#mendOpen()
      .then(() => this.giveUp()())
      .then(() => {
        if (this.#failure !== undefined) throw this.#failure;
      });
  }

  makeDurable(): Promise<void> {
    // A session that was replaced meanwhile may have begun it: one at a time.
    this.#makingDurable ??= this.#makeDurable().finally(() => {
      this.#makingDurable = undefined;
    });
    return this.#makingDurable;
  }

  /** Everything taken before the call is durable when the promise resolves. Errors: `io-error`. */
  async sync(): Promise<void> {
    for (const buffer of this.#open) if (!buffer.isSynced) await buffer.sync();
  }

  openEpoch(epoch: number): void {
    assert(epoch >= this.newestEpoch, "epochs only grow");
    this.#openEpoch = epoch;
  }

  setNewestBarrier(): void {
    // Which buffers a commit takes follows from their epochs.
  }

  keepThrough(epoch: number): void {
    const open = this.#open.findIndex((buffer) => buffer.epoch > epoch);
    this.#committed.push(...this.#open.splice(0, open < 0 ? this.#open.length : open));
    this.#version += 1;
    this.#recount();
  }

  release(floor: number): Freeing {
    this.#floor = Math.max(this.#floor, floor);
    this.#apply();
    return async () => {
      await this.#applying;
    };
  }

  rollBack(epoch: number): Freeing {
    const dropped = [...this.#committed.filter((buffer) => buffer.epoch > epoch), ...this.#open.splice(0)];
    this.#committed = this.#committed.filter((buffer) => buffer.epoch <= epoch);
    this.#version += 1;
    this.#recount();
    return () => this.#retire(dropped);
  }

  giveUp(): Freeing {
    this.keepThrough(Infinity);
    if (this.#context.durability === "power") this.#settlingAsked += 1;
    // Who asks waits for it, so what has failed is tried again at once.
    this.#retry?.cancel();
    this.#retry = undefined;
    // Only now: the floor of later checkpoints is theirs.
    const through = this.#committed.at(-1)?.epoch ?? 0;
    this.release(through);
    return async () => {
      while (this.#applying !== undefined) await this.#applying;
    };
  }

  async join(
    needed: () => readonly number[],
    atMost: number,
    exclusively: (change: () => boolean) => Promise<boolean>,
  ): Promise<void> {
    for (;;) {
      const pair = this.#findJoinable(needed(), atMost);
      if (pair === undefined || this.#host === undefined) return;
      if (!hasRoomForCopy(this.#context, bytesOf(pair))) return;
      this.#mustEndJoin = false;
      this.#joining = this.#joinPair(pair, this.#host, exclusively);
      try {
        if (!(await this.#joining)) return;
      } finally {
        this.#joining = undefined;
      }
    }
  }

  /** A join that is under way, and takes storage, goes no further. Resolves when what it has written is gone; undefined: there is none. */
  #endJoin(): Promise<void> | undefined {
    if (this.#host?.memory.isIndexFull === true) return undefined; // which it would make room in
    this.#mustEndJoin = true;
    return this.#joining?.then(
      () => undefined,
      () => undefined, // its caller has the error
    );
  }

  async end(): Promise<void> {
    this.#ended = true;
    this.#retry?.cancel();
    this.#retry = undefined;
    await this.#applying;
  }

  resume(): void {
    this.#ended = false;
    this.#apply();
  }

  dropUncommitted(isBaseAll: boolean): void {
    const dropped = this.#open.splice(0);
    if (isBaseAll) dropped.push(...this.#committed.splice(0));
    this.#version += 1;
    // What cannot be removed now is removed with the other overlays, when the merge is done.
    this.#dropping = this.#retire(dropped).catch(() => undefined);
  }

  async removeBehind(): Promise<void> {
    await this.#dropping;
    await this.#retire([...this.#committed.splice(0), ...this.#open.splice(0)]);
    this.#spares.remove();
  }

  describeGenerations(): { epoch: number; bytes: number }[] {
    const byEpoch = new Map<number, number>();
    for (const { epoch, sizeBytes } of [...this.#committed, ...this.#open]) {
      byEpoch.set(epoch, (byEpoch.get(epoch) ?? 0) + sizeBytes);
    }
    return Array.from(byEpoch, ([epoch, bytes]) => ({ epoch, bytes }));
  }

  async flush(): Promise<void> {
    for (const buffer of [...this.#committed, ...this.#open]) await buffer.sync();
    // The names of what is gone as well: a log that comes back would be applied again.
    this.#spares.remove();
    await this.#settleNames();
  }

  close(): void {
    this.#retry?.cancel();
    for (const buffer of [...this.#committed, ...this.#open]) buffer.close();
  }

  /** Returns why the changes cannot be taken for want of room. Other errors are thrown. */
  #tryAppend(changes: readonly BufferedChange[]): ColobusError | undefined {
    assert(this.#host !== undefined, "a promoted side takes no stream");
    const { memory } = this.#host;
    if (memory.isIndexFull) return indexFull();
    const { quota } = this.#context;
    try {
      quota?.take(changes.reduce((sum, change) => sum + recordBytes(change), 0));
      const buffer = this.#openBuffer(memory);
      buffer.append(changes);
      this.#recount();
      quota?.settle();
      return undefined;
    } catch (error) {
      if (!(error instanceof ColobusError)) throw error;
      if (error.code === "out-of-space" && this.#spares.remove()) return this.#tryAppend(changes);
      if (error.code === "overlay-full" || error.code === "out-of-space") return error;
      throw error;
    }
  }

  #openBuffer(memory: BufferMemory): EpochBuffer {
    const last = this.#open.at(-1);
    if (last !== undefined && last.epoch === this.#openEpoch && last.isOpen) return last;
    const buffer = this.#createBuffer(memory, this.#openEpoch);
    this.#open.push(buffer);
    return buffer;
  }

  #createBuffer(memory: BufferMemory, epoch: number): EpochBuffer {
    const buffer = EpochBuffer.create(this.#context, { memory, spares: this.#spares }, epoch, this.#nextOrdinal);
    this.#nextOrdinal += 1;
    return buffer;
  }

  async #makeDurable(): Promise<void> {
    await this.#mendOpen();
    if (this.#context.durability === "power") await this.sync();
  }

  /** What a failed sync may have lost was never called stable: it goes, and comes again. */
  async #mendOpen(): Promise<void> {
    const lost: EpochBuffer[] = [];
    for (const buffer of this.#open) {
      if (buffer.isDamaged) buffer.mend();
      else if (this.#mustRewrite && this.#context.durability === "power") buffer.writeAgain();
      if (buffer.index.isEmpty) lost.push(buffer);
    }
    this.#open = this.#open.filter((buffer) => !lost.includes(buffer));
    this.#recount();
    this.#mustRewrite = false;
    if (lost.length > 0) this.#mayComeBack = true;
    await this.#retire(lost);
    if (this.#mayComeBack && this.#context.durability === "power") {
      await this.#context.storage.syncDirectory(this.#context.directory);
    }
    this.#mayComeBack = false;
  }

  /**
   * Two neighbours that no checkpoint tells apart, while there are more than `atMost`: those that have the least to copy, or
   * each new one would have all earlier ones copied. What is being applied stays; so does what a session has to make durable
   * first: what an fsync has cost is looked for where it was written.
   */
  #findJoinable(needed: readonly number[], atMost: number): readonly [EpochBuffer, EpochBuffer] | undefined {
    const all = [...this.#committed, ...this.#open];
    if (all.length <= atMost) return undefined;
    let found: readonly [EpochBuffer, EpochBuffer] | undefined;
    for (const [index, newer] of all.entries()) {
      const older = all[index - 1];
      const next = all[index + 1];
      // What is joined comes last in its epoch, and so must the newer one.
      if (older === undefined || next === undefined || next.epoch === newer.epoch || older.epoch <= this.#floor)
        continue;
      if (needed.some((epoch) => older.epoch <= epoch && epoch < newer.epoch)) continue;
      if (!this.#isCertain(older) || !this.#isCertain(newer)) continue;
      if (found === undefined || bytesOf([older, newer]) < bytesOf(found)) found = [older, newer];
    }
    return found;
  }

  /** Whether no fsync that is to come can show that anything of it is lost. */
  #isCertain(buffer: EpochBuffer): boolean {
    if (buffer.isDamaged) return false;
    return this.#context.durability !== "power" || buffer.isSynced || this.#committed.includes(buffer);
  }

  /** As `#mergePair`, and what nobody needs then is removed, also after an error. */
  async #joinPair(
    pair: readonly [EpochBuffer, EpochBuffer],
    host: BufferHost,
    exclusively: (change: () => boolean) => Promise<boolean>,
  ): Promise<boolean> {
    try {
      return await this.#mergePair(pair, host, exclusively);
    } finally {
      await this.#retire([]);
    }
  }

  /**
   * Copies what two neighbours have into a new buffer of the newer one's epoch, which takes their place. False: it does not.
   * What nobody needs then is due to be removed, also after an error. Nothing that is newer goes before it, or a start
   * would apply it over that: so the two do not go before it is known.
   */
  async #mergePair(
    pair: readonly [EpochBuffer, EpochBuffer],
    { memory }: BufferHost,
    exclusively: (change: () => boolean) => Promise<boolean>,
  ): Promise<boolean> {
    const [older, newer] = pair;
    const { geometry, quota } = this.#context;
    const joined = this.#createBuffer(memory, newer.epoch);
    this.#joined = joined;
    for (const buffer of pair) buffer.enter();
    let isTaken = false;
    const rest = async (): Promise<boolean> => (await this.#rest()) && !this.#mustEndJoin && older.epoch > this.#floor;
    try {
      if (!(await mergeBuffers(pair, geometry, intoBuffer(joined, quota), rest))) return false;
      if (this.#context.durability === "power") await joined.sync();
      await exclusively(() => (isTaken = this.#tryReplace(pair, joined)));
      return isTaken;
    } finally {
      const at = this.#unneeded.indexOf(older);
      if (!isTaken) this.#unneeded.splice(at < 0 ? this.#unneeded.length : at + 1, 0, joined);
      this.#joined = undefined;
      for (const buffer of pair) buffer.leave();
    }
  }

  /** False when a commit, or the base, has taken either meanwhile. */
  #tryReplace(pair: readonly [EpochBuffer, EpochBuffer], joined: EpochBuffer): boolean {
    const [older, newer] = pair;
    if (older.epoch <= this.#floor || this.#ended || this.#mustEndJoin) return false;
    for (const list of [this.#committed, this.#open]) {
      const at = list.indexOf(older);
      if (at < 0 || list[at + 1] !== newer) continue;
      list.splice(at, 2, joined);
      this.#joined = undefined;
      this.#unneeded.push(...pair);
      this.#version += 1;
      this.#recount();
      return true;
    }
    return false;
  }

  /** Begins to apply what may be, unless that is under way, or has to wait after a failure. */
  #apply(): void {
    const host = this.#host;
    if (host === undefined || this.#ended || this.#applying !== undefined || this.#retry !== undefined) return;
    const isDone = this.#applicable().length === 0 && this.#unneeded.length === 0 && this.#isSettled;
    if (isDone && this.#failure === undefined) return; // another one may have removed what could not be
    this.#applying = this.#applyAll(host).finally(() => {
      this.#applying = undefined;
      this.#apply(); // what has become applicable just then
    });
  }

  #applicable(): readonly EpochBuffer[] {
    return this.#committed.filter(({ epoch }) => epoch <= this.#floor);
  }

  async #applyAll(host: BufferHost): Promise<void> {
    for (;;) {
      try {
        await this.#retire([]);
        const buffers = this.#applicable();
        if (this.#ended) return;
        if (buffers.length === 0) {
          if (!this.#isSettled) await this.#settleNames();
          if (this.#failure !== undefined) host.applied();
          this.#failure = undefined;
          return;
        }
        const target = intoBase(this.#base);
        if (!(await mergeBuffers(buffers, this.#context.geometry, target, this.#rest))) return;
        if (this.#context.durability === "power") await this.#base.syncOwn();
        this.#committed = this.#committed.filter((buffer) => !buffers.includes(buffer));
        this.#version += 1; // what was asked of the base before is not what it shows now
        this.#recount();
        this.#failure = undefined;
        await this.#retire(buffers);
        host.applied();
      } catch (error) {
        this.#failure = asColobusError(error);
        host.failed(this.#failure);
        this.#retry = host.clock.after(DISK_RETRY_MS, () => {
          this.#retry = undefined;
          this.#apply();
        });
        return;
      }
    }
  }

  /** When the promise resolves no crash brings back logs that were gone before the call. Errors: `io-error`. */
  async #settleNames(): Promise<void> {
    const asked = this.#settlingAsked;
    const settled = this.#spares.beginSync();
    await this.#context.storage.syncDirectory(this.#context.directory);
    settled();
    this.#settlingDone = asked;
  }

  /**
   * Removes the logs of buffers that nobody needs any more, and before them those that could not be removed till now: one
   * that stayed while a later one went would be applied again after a start, over newer data. Errors: `io-error`; what is
   * left is tried again before the next ones.
   */
  #retire(buffers: readonly EpochBuffer[]): Promise<void> {
    this.#unneeded.push(...buffers);
    const removed = this.#removing.then(async () => {
      for (let next = this.#unneeded[0]; next !== undefined; next = this.#unneeded[0]) {
        await next.retire();
        this.#unneeded.shift();
      }
    });
    this.#removing = removed.catch(() => undefined); // the caller has the error
    return removed;
  }

  /** Lets others run. False: nothing is to be moved any more. */
  readonly #rest = async (): Promise<boolean> => {
    const { clock } = this.#host ?? {};
    if (clock !== undefined) await letOthersRun(clock);
    return !this.#ended;
  };

  readonly #readBase: ReadBelow = (target, offset) => this.#base.read(target, offset);

  #recount(): void {
    const uncommitted = countOf(this.#open);
    const total = uncommitted + countOf(this.#committed);
    this.#host?.memory.countFragments(total - this.#counted.total, uncommitted - this.#counted.uncommitted);
    this.#counted = { total, uncommitted };
  }
}

function intoBuffer(buffer: EpochBuffer, quota: OverlayQuota | undefined): MergeTarget {
  const append = (change: BufferedChange): undefined => {
    quota?.takeForCopy(recordBytes(change));
    buffer.append([change]);
  };
  return {
    write: (payload, offset) => append({ kind: "write", offset, length: payload.length, payload }),
    zero: (offset, length, isDiscard) =>
      append({ kind: isDiscard ? "discard" : "zero", offset, length, payload: NO_PAYLOAD }),
  };
}

const NO_PAYLOAD = new Uint8Array(0);

/** What a change takes in a log. */
function recordBytes({ kind, length }: BufferedChange): number {
  return BUFFER_RECORD_HEAD_BYTES + (kind === "write" ? length : 0);
}

function bytesOf(buffers: readonly EpochBuffer[]): number {
  return buffers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}

function countOf(buffers: readonly EpochBuffer[]): number {
  return buffers.reduce((sum, { index }) => sum + index.count, 0);
}

function indexFull(): ColobusError {
  return new ColobusError(
    "overlay-full",
    `the block buffers index ${BUFFER_FRAGMENTS_MAX} parts of clusters, which is their limit`,
    "Commit a checkpoint, or take them more often.",
  );
}
