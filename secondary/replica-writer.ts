import assert from "node:assert/strict";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import {
  ACK_DELAY_MS,
  ACK_WINDOW_SHARE,
  APPLY_BATCH_BYTES,
  APPLY_BATCH_OPERATIONS,
  APPLY_BATCH_ZERO_BYTES,
  APPLY_UNSYNCED_BATCH_OPERATIONS,
  NBD_MAX_IN_FLIGHT_BYTES,
  OPERATION_COST_BYTES,
  QUEUE_WINDOW_SHARE,
  SYNC_BEHIND_BYTES,
  SYNC_BEHIND_MS,
} from "../proto/limits.ts";
import type { DataMessage, Operation } from "../proto/replication-messages.ts";
import type { AckPolicy, Durability } from "../proto/words.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { ChangesUnderWay } from "../shared/block/changes-under-way.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import { endClusterOf, firstClusterOf } from "../shared/block/cluster-geometry.ts";
import { dataStretches, type Stretch } from "../shared/block/data-stretches.ts";
import { isZero } from "../shared/block/zeroes.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import { letOthersRun } from "../shared/host/sleep.ts";
import { collectBuffered } from "./buffered-changes.ts";
import { collectReceived, coversWholeClusters, type Saves } from "./received-originals.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

export interface ReplicaWriterOptions {
  /** In the order of the primary's `hello`. */
  readonly disks: readonly ReplicaDisk[];
  readonly clock: Clock;
  readonly durability: Durability;
  /** The bases are the primary's own disks: what is sent are originals, and only the hidden disks are written. */
  readonly sharesDisks: boolean;
  /** The session's window: a primary that sends far beyond it is cut off. */
  readonly windowBytes: number;
  /** How far the primary's guests wait for a write: `applied` has each batch fsynced at once, `async` acknowledged at leisure. */
  readonly ack: AckPolicy;
  /** Whether originals must be saved: not before there is a checkpoint to return to. */
  readonly savesOriginals: () => boolean;
  /** Mode `mirror`: a failover returns the bases as they are, so what has arrived is applied whatever ends the stream. */
  readonly follows: () => boolean;
  /** Frees what can be spared of the overlays, which are full. False: there was nothing. */
  readonly makeRoom: () => Promise<boolean>;
  /** Tells the primary how far the stream has come; positions only grow. */
  readonly acknowledge: (receivedSequence: number, stableSequence: number) => void;
  /** Counts what was written, for what a failover would lose. */
  readonly applied: (operations: number, bytes: number) => void;
  /**
   * The stream cannot go on, because of `disk` if it is known. Nothing of the failed batch has reached a base whose
   * original is not saved.
   */
  readonly failed: (reason: ColobusError, disk: string | undefined) => void;
}

type Item =
  | {
      readonly kind: "data";
      readonly operations: readonly Operation[];
      /** What they cost, as the window counts it. */
      readonly bytes: number;
      /** What they zero together. */
      readonly zeroBytes: number;
    }
  | { readonly kind: "call"; readonly run: () => Promise<void> };

/**
 * Applies one session's stream to the secondary's disks, in order. Data is taken in batches: first the originals of
 * every cluster that the batch overwrites for the first time in its epoch go to the hidden disks, then the batch goes
 * to the bases. Barriers go through the same queue, so everything before them is done, and nothing after them begun,
 * when they run.
 *
 * A write is *stable* when it is in the base (durability `process`), or when the base was fsynced after it (`power`):
 * that happens behind the stream, and at each barrier. In mode `mc` changes go to the block buffers instead of hidden
 * disks and bases, and are stable, or fsynced, there. In mode `shared` the stream brings the originals themselves, and
 * one is stable when it is saved.
 */
export class ReplicaWriter {
  readonly #options: ReplicaWriterOptions;
  readonly #queue: Item[] = [];
  /** What the queue costs, as the window counts it. */
  #queuedBytes = 0;
  #draining: Promise<void> | undefined;
  #stopped = false;
  /** The session is over, and what has arrived of it is still applied. */
  #ending = false;
  #receivedSequence = 0;
  #appliedSequence = 0;
  #stableSequence = 0;
  #acknowledged = { received: 0, stable: 0 };
  #ackDeferred = false;
  #ackTimer: Timer | undefined;
  /** What has come since the last acknowledgement, as the window counts it. */
  #unacknowledgedBytes = 0;
  #comparing = false;
  #rewriting = false;
  #unsyncedBytes = 0;
  #syncing: Promise<void> | undefined;
  #syncTimer: Timer | undefined;
  /** The disk that is, or was last, read or written: after an error, the one that failed. */
  #touched: ReplicaDisk | undefined;

  constructor(options: ReplicaWriterOptions) {
    this.#options = options;
  }

  /**
   * While the primary sends clusters that may be equal already, each is compared first: what is equal needs no original,
   * and is not written, unless the base may show what its medium lacks (`rewriting`).
   */
  compare({ comparing, rewriting }: { readonly comparing: boolean; readonly rewriting: boolean }): void {
    this.#comparing = comparing;
    this.#rewriting = rewriting;
  }

  /** Queues a data message. Errors: `protocol-error` when it does not continue the stream, leaves a disk, or is too much. */
  push(message: DataMessage): void {
    if (message.firstSequence !== this.#receivedSequence + 1) {
      throw new ColobusError(
        "protocol-error",
        `the peer sent operation ${message.firstSequence} after ${this.#receivedSequence}`,
      );
    }
    for (const operation of message.operations) {
      const disk = this.#options.disks[operation.disk];
      if (disk === undefined || operation.offset + operation.length > disk.base.sizeBytes) {
        throw new ColobusError("protocol-error", "the peer sent an operation outside of its disks");
      }
      this.#assertOfMode(operation, disk);
    }
    const item = dataItem(message.operations);
    const { bytes } = item;
    // A primary looks at its window between requests, so each of its guests' may go beyond it.
    if (this.#queuedBytes + bytes > this.#queueMaxBytes + this.#options.windowBytes + NBD_MAX_IN_FLIGHT_BYTES) {
      throw new ColobusError("protocol-error", "the peer sent much more than its window allows");
    }
    this.#queuedBytes += bytes;
    this.#unacknowledgedBytes += bytes;
    this.#receivedSequence += message.operations.length;
    if (item.zeroBytes <= APPLY_BATCH_ZERO_BYTES) this.#queue.push(item);
    else for (const part of inZeroShares(message.operations)) this.#queue.push(dataItem(part));
    this.#acknowledgeSoon();
    this.#drain();
  }

  /** Queues a call that runs when everything queued before it is applied. A rejection fails the stream. */
  enqueue(run: () => Promise<void>): void {
    this.#queue.push({ kind: "call", run });
    this.#drain();
  }

  /**
   * Drops what is queued, and resolves when nothing is under way any more. Writes that bases which follow the primary have
   * before them are applied first: guests may have been told that they are here.
   */
  async stop(): Promise<void> {
    if (!this.#stopped && this.#options.follows()) await this.#applyReceived();
    this.#stopped = true;
    this.#queue.length = 0;
    this.#syncTimer?.cancel();
    this.#ackTimer?.cancel();
    await this.#draining;
    await this.#syncing?.catch(() => undefined); // nothing more is called stable, so its outcome means nothing any more
  }

  async #applyReceived(): Promise<void> {
    this.#ending = true;
    const firstCall = this.#queue.findIndex(({ kind }) => kind === "call");
    if (firstCall >= 0) this.#queue.length = firstCall;
    while (this.#draining !== undefined) await this.#draining;
  }

  /** Makes everything applied so far stable. */
  async makeStable(): Promise<void> {
    while (this.#stableSequence < this.#appliedSequence) {
      if (this.#syncing === undefined) this.#startSync();
      await this.#syncing;
    }
  }

  #drain(): void {
    this.#draining ??= this.#run().finally(() => {
      this.#draining = undefined;
      if (this.#queue.length > 0 && !this.#stopped) this.#drain();
    });
  }

  async #run(): Promise<void> {
    try {
      while (!this.#stopped) {
        const item = this.#queue[0];
        if (item === undefined) return;
        if (item.kind === "call") {
          this.#queue.shift();
          this.#touched = undefined;
          await item.run();
        } else {
          const applying = this.#applyBatch(this.#takeBatch());
          if (applying !== undefined) await applying;
          // Without ever waiting for the device: heartbeats and readers get their turn in between.
          if (this.#queue.length > 0) await letOthersRun(this.#options.clock);
        }
      }
    } catch (error) {
      this.#stopped = true;
      this.#queue.length = 0;
      this.#options.failed(asColobusError(error), this.#touched?.name);
    }
  }

  #takeBatch(): Operation[] {
    const most = this.#options.durability === "power" ? APPLY_BATCH_OPERATIONS : APPLY_UNSYNCED_BATCH_OPERATIONS;
    const operations: Operation[] = [];
    let bytes = 0;
    let zeroBytes = 0;
    let taken = 0;
    for (const item of this.#queue) {
      if (item.kind !== "data" || operations.length >= most) break;
      if (taken > 0 && bytes + item.bytes > APPLY_BATCH_BYTES) break;
      if (taken > 0 && zeroBytes + item.zeroBytes > APPLY_BATCH_ZERO_BYTES) break;
      operations.push(...item.operations);
      bytes += item.bytes;
      zeroBytes += item.zeroBytes;
      taken += 1;
    }
    this.#queue.splice(0, taken);
    this.#queuedBytes -= bytes;
    if (this.#acknowledged.received < this.#receivedSequence) this.#acknowledgeSoon();
    return operations;
  }

  /** Beyond, what arrives is not acknowledged: the primary's window fills, and neither memory nor a barrier's wait grows. */
  get #queueMaxBytes(): number {
    return this.#options.windowBytes * QUEUE_WINDOW_SHARE;
  }

  #assertOfMode(operation: Operation, disk: ReplicaDisk): void {
    const isOriginal = operation.kind === "original" || operation.kind === "zero-original";
    if (isOriginal === this.#options.sharesDisks) {
      if (!isOriginal || coversWholeClusters(disk.context.geometry, operation)) return;
      throw new ColobusError("protocol-error", "the peer sent an original that is not of whole clusters");
    }
    throw new ColobusError("protocol-error", `the peer sent an operation "${operation.kind}", which its mode has not`);
  }

  async #applyBatch(batch: readonly Operation[]): Promise<void> {
    if (this.#options.sharesDisks) return this.#applyOriginals(batch);
    const differing = this.#comparing ? await this.#differing(batch) : batch;
    const changes = this.#rewriting ? batch : differing;
    if (this.#buffers()) {
      await this.#bufferChanges(changes);
      this.#settleBatch(batch.length, changes);
      return;
    }
    if (this.#options.savesOriginals()) await this.#saveOriginals(differing);
    const underWay = new ChangesUnderWay<ReplicaDisk>();
    try {
      for (const operation of changes) {
        const disk = this.#disk(operation);
        disk.noteBaseWritten();
        const before = this.#isOrdered ? underWay.all() : underWay.before(disk, operation.offset, operation.length);
        if (before !== undefined) await before;
        underWay.add(disk, operation.offset, operation.length, applyToBase(disk, operation));
      }
      const last = underWay.all();
      if (last !== undefined) await last;
    } catch (error) {
      await underWay.all()?.catch(() => undefined); // the first error is told
      this.#touched = underWay.failed ?? this.#touched;
      throw error;
    }
    this.#settleBatch(batch.length, changes);
  }

  /**
   * Whether each write has to be done before the next: where bases follow a primary whose guests go on before a write is
   * stable here, this process may end between any two, and must leave no later one without an earlier one.
   */
  get #isOrdered(): boolean {
    return this.#options.ack !== "applied" && this.#options.follows();
  }

  /** A batch of so many operations is applied, of which `changes` had to be. */
  #settleBatch(operations: number, changes: readonly Operation[]): void {
    let bytes = 0;
    for (const { length } of changes) bytes += length;
    this.#appliedSequence += operations;
    this.#options.applied(changes.length, bytes);
    if (this.#options.durability === "process") {
      this.#stableSequence = this.#appliedSequence;
      this.#acknowledgeSoon();
    } else this.#syncBehind(bytes);
  }

  /** Whether changes are held beside the bases (mode `mc`): where there is a barrier to return to, or some are held already. */
  #buffers(): boolean {
    const { disks, savesOriginals } = this.#options;
    return disks.some(({ buffer }) => buffer !== undefined && (savesOriginals() || !buffer.isApplied));
  }

  async #bufferChanges(changes: readonly Operation[]): Promise<void> {
    for (const [disk, buffered] of collectBuffered(changes, (operation) => this.#disk(operation))) {
      this.#touched = disk;
      await this.#makingRoom(() => disk.buffer?.append(buffered));
    }
  }

  /** Keeps the originals that the primary has sent, of clusters whose own are not held yet: those are older. */
  async #applyOriginals(batch: readonly Operation[]): Promise<void> {
    let bytes = 0;
    for (const { length } of batch) bytes += length;
    if (this.#options.savesOriginals())
      await this.#save(() => collectReceived(batch, (operation) => this.#disk(operation)));
    this.#appliedSequence += batch.length;
    this.#options.applied(batch.length, bytes);
    this.#stableSequence = this.#appliedSequence;
    this.#acknowledgeSoon();
  }

  /** Saves the originals of all clusters that `changes` overwrites for the first time in this epoch. */
  #saveOriginals(changes: readonly Operation[]): Promise<void> {
    return this.#save(() => this.#collectOriginals(changes));
  }

  #save(collect: () => Saves | Promise<Saves>): Promise<void> {
    return this.#makingRoom(async () => {
      const fault = await this.#trySave(await collect());
      if (fault !== undefined) throw fault;
    });
  }

  /** Does `work`, again when it finds the overlays full and something could be spared of them. */
  async #makingRoom(work: () => Promise<void> | undefined): Promise<void> {
    for (;;) {
      try {
        await work();
        return;
      } catch (error) {
        const fault = overlayFault(error);
        if (fault.code !== "overlay-full" || this.#stopped || !(await this.#options.makeRoom())) throw fault;
      }
    }
  }

  /** The originals that are not saved yet. */
  async #collectOriginals(changes: readonly Operation[]): Promise<Saves> {
    // What reads as zeroes already does not change, however long the range is.
    const zeroed = new Map<Operation, readonly Stretch[]>();
    for (const operation of changes) {
      if (operation.kind === "write") continue;
      const stretches = dataStretches(this.#disk(operation).base, operation.offset, operation.length);
      zeroed.set(operation, stretches instanceof Promise ? await stretches : stretches);
    }
    const unsaved = new Map<ReplicaDisk, ClusterBitmap>();
    for (const operation of changes) {
      const disk = this.#disk(operation);
      let clusters = unsaved.get(disk);
      if (clusters === undefined) unsaved.set(disk, (clusters = new ClusterBitmap()));
      if (operation.kind === "write") {
        collectUnsaved(disk, operation.offset, operation.length, clusters);
      } else {
        for (const { offset, length } of zeroed.get(operation) ?? []) collectUnsaved(disk, offset, length, clusters);
      }
    }
    const saves: Saves = new Map();
    for (const [disk, clusters] of unsaved) {
      if (!clusters.isEmpty) saves.set(disk, () => disk.hidden.save(disk.base, clusters));
    }
    return saves;
  }

  /** Saves originals; returns why that was not possible. */
  async #trySave(saves: Saves): Promise<ColobusError | undefined> {
    if (saves.size === 0) return undefined;
    const savers = [...saves.keys()];
    const saving = [...saves.values()].map((save) => save());
    // Every disk's save settles before a failure is reported: nothing may go on behind the back of a stopped stream.
    const outcomes = await Promise.allSettled(saving);
    for (const [index, outcome] of outcomes.entries()) {
      if (outcome.status === "fulfilled") continue;
      this.#touched = savers[index];
      return overlayFault(outcome.reason);
    }
    return undefined;
  }

  /** The operations of the batch that change what their range holds. */
  async #differing(batch: readonly Operation[]): Promise<Operation[]> {
    const differing: Operation[] = [];
    for (const operation of batch) {
      // An earlier operation of this batch may touch the same range, and is not in the base yet.
      const overlapsEarlier = differing.some(
        (earlier) =>
          earlier.disk === operation.disk &&
          earlier.offset < operation.offset + operation.length &&
          operation.offset < earlier.offset + earlier.length,
      );
      if (overlapsEarlier || !(await this.#isEqual(operation))) differing.push(operation);
    }
    return differing;
  }

  async #isEqual(operation: Operation): Promise<boolean> {
    const disk = this.#disk(operation);
    const { buffer } = disk;
    const { geometry } = disk.context;
    const end = endClusterOf(geometry, operation.offset, operation.length);
    const isBuffered = buffer?.holds(firstClusterOf(geometry, operation.offset), end) === true;
    if (operation.kind === "write") {
      // What is a hole here needs no read: the disk would have to make up its zeroes first.
      if (disk.base.asksForExtents !== true && !isBuffered) {
        const extents = disk.base.extents(operation.offset, operation.length, 1);
        const [extent] = extents instanceof Promise ? await extents : extents;
        if (extent?.zero === true && extent.length >= operation.length) return isZero(operation.payload);
      }
      const present = Buffer.allocUnsafe(operation.length);
      const reading = isBuffered
        ? buffer?.readLatest(present, operation.offset)
        : disk.base.read(present, operation.offset);
      if (reading !== undefined) await reading;
      return present.equals(operation.payload);
    }
    if (isBuffered) return false;
    const stretches = dataStretches(disk.base, operation.offset, operation.length);
    return (stretches instanceof Promise ? await stretches : stretches).length === 0;
  }

  #disk(operation: Operation): ReplicaDisk {
    const disk = this.#options.disks[operation.disk];
    assert(disk !== undefined, "push has checked the disk index");
    this.#touched = disk;
    return disk;
  }

  /** Starts an fsync of the bases when enough is unsynced, or some time after the first unsynced write. */
  #syncBehind(bytes: number): void {
    this.#unsyncedBytes += bytes;
    if (this.#syncing !== undefined) return;
    if (this.#options.ack === "applied" || this.#unsyncedBytes >= SYNC_BEHIND_BYTES) this.#startSync();
    else {
      this.#syncTimer ??= this.#options.clock.after(SYNC_BEHIND_MS, () => {
        this.#syncTimer = undefined;
        if (!this.#stopped && this.#syncing === undefined) this.#startSync();
      });
    }
  }

  #startSync(): void {
    this.#syncTimer?.cancel();
    this.#syncTimer = undefined;
    this.#unsyncedBytes = 0;
    const mark = this.#appliedSequence;
    let failed: ReplicaDisk | undefined;
    const flushes = this.#options.disks.map((disk) =>
      disk.syncStream().catch((error: unknown) => {
        failed ??= disk;
        throw error;
      }),
    );
    const syncing = Promise.all(flushes).then(() => {
      this.#stableSequence = mark;
      this.#acknowledgeSoon();
    });
    this.#syncing = syncing.finally(() => {
      this.#syncing = undefined;
      // What was found equal meanwhile has no bytes to be synced, but the primary waits for it to be stable as well.
      if (!this.#stopped && this.#stableSequence < this.#appliedSequence) this.#syncBehind(0);
    });
    this.#syncing.catch((error: unknown) => {
      this.#stopped = true;
      this.#options.failed(asColobusError(error), failed?.name);
    });
  }

  /** Tells the primary how far the stream has come: at once where guests wait for it there, else once for many batches. */
  #acknowledgeSoon(): void {
    if (this.#ackDeferred) return;
    const { clock, ack, windowBytes } = this.#options;
    if (ack !== "async" || this.#unacknowledgedBytes >= windowBytes * ACK_WINDOW_SHARE) {
      this.#ackDeferred = true;
      clock.defer(() => {
        this.#ackDeferred = false;
        this.acknowledge();
      });
    } else {
      this.#ackTimer ??= clock.after(ACK_DELAY_MS, () => this.acknowledge());
    }
  }

  /** Tells the primary how far the stream has come, if it does not know yet. */
  acknowledge(): void {
    this.#ackTimer?.cancel();
    this.#ackTimer = undefined;
    this.#unacknowledgedBytes = 0;
    const { received: before } = this.#acknowledged;
    const isQueueLong = this.#queuedBytes > this.#queueMaxBytes;
    const received = isQueueLong ? Math.max(before, this.#appliedSequence) : this.#receivedSequence;
    const stable = this.#stableSequence;
    if (this.#stopped || this.#ending) return;
    if (received === this.#acknowledged.received && stable === this.#acknowledged.stable) return;
    this.#acknowledged = { received, stable };
    this.#options.acknowledge(received, stable);
  }
}

function dataItem(operations: readonly Operation[]): Extract<Item, { kind: "data" }> {
  let bytes = operations.length * OPERATION_COST_BYTES;
  let zeroBytes = 0;
  for (const operation of operations) {
    bytes += operation.payload.length;
    zeroBytes += zeroBytesOf(operation);
  }
  return { kind: "data", operations, bytes, zeroBytes };
}

function zeroBytesOf({ length, payload }: Operation): number {
  return payload.length === 0 ? length : 0;
}

/** The operations in shares that zero no more than a batch may, or are one operation. */
function* inZeroShares(operations: readonly Operation[]): Generator<readonly Operation[]> {
  let share: Operation[] = [];
  let zeroBytes = 0;
  for (const operation of operations) {
    const more = zeroBytesOf(operation);
    if (share.length > 0 && zeroBytes + more > APPLY_BATCH_ZERO_BYTES) {
      yield share;
      share = [];
      zeroBytes = 0;
    }
    share.push(operation);
    zeroBytes += more;
  }
  yield share;
}

function collectUnsaved(disk: ReplicaDisk, offset: number, length: number, clusters: ClusterBitmap): void {
  const { geometry } = disk.context;
  disk.hidden.collectUnsaved(firstClusterOf(geometry, offset), endClusterOf(geometry, offset, length), clusters);
}

function applyToBase({ base }: ReplicaDisk, operation: Operation): Pending {
  return operation.kind === "write"
    ? base.write(operation.payload, operation.offset, { fua: false })
    : base.zero(operation.offset, operation.length, { fua: false, mayUnmap: operation.kind === "discard" });
}

/** An overlay that cannot grow is full, whatever the file system calls it. */
function overlayFault(reason: unknown): ColobusError {
  const error = asColobusError(reason);
  if (error.code !== "out-of-space") return error;
  return new ColobusError(
    "overlay-full",
    `the overlays cannot take more: ${error.message}`,
    "Commit or discard a checkpoint, or free space on the file system of the secondary's --state directory.",
    { cause: error },
  );
}
