import type { BufferLogHeader, BufferRecord } from "../proto/buffer-log-format.ts";
import { allSettled, failingLater } from "../shared/block/all-settled.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { clusterEndOffset, endClusterOf, firstClusterOf } from "../shared/block/cluster-geometry.ts";
import { BufferLog, type BufferedChange, type VisitRecord } from "./buffer-log.ts";
import type { BufferMemory } from "./buffer-memory.ts";
import { DISCARD_POSITION, FragmentIndex, ZERO_POSITION } from "./fragment-index.ts";
import type { OverlayContext } from "./overlay-files.ts";
import type { SpareLogs } from "./spare-logs.ts";

/** What the logs of one disk are made with. */
export interface LogSupplies {
  readonly memory: BufferMemory;
  readonly spares: SpareLogs;
}

/** What a primary has changed on one disk in one epoch: a log, and the index of it. */
export class EpochBuffer {
  readonly epoch: number;
  readonly ordinal: number;
  readonly #context: OverlayContext;
  #index: FragmentIndex;
  #log: BufferLog | undefined;
  /** undefined: it is recovered, and what becomes of its file is of no use. */
  #spares: SpareLogs | undefined;
  #nameSynced = false;
  #readers = 0;
  #retired = false;
  #gone: (() => void) | undefined;

  private constructor(context: OverlayContext, epoch: number, ordinal: number) {
    this.#context = context;
    this.epoch = epoch;
    this.ordinal = ordinal;
    this.#index = new FragmentIndex(context.geometry);
  }

  /** An empty one. Errors: those of making its log; nothing is left then that anybody would rely on. */
  static create(context: OverlayContext, { memory, spares }: LogSupplies, epoch: number, ordinal: number): EpochBuffer {
    const buffer = new EpochBuffer(context, epoch, ordinal);
    buffer.#spares = spares;
    const id = context.random.bytes(16);
    const isCut = !spares.tryTake(buffer.#path);
    buffer.#log = BufferLog.create(context.storage, buffer.#path, { ...buffer.#header(), id }, { memory, isCut });
    return buffer;
  }

  /** Reads back what an earlier agent left; undefined when that is nothing: its file is removed then. */
  static tryRecover(context: OverlayContext, epoch: number, ordinal: number): EpochBuffer | undefined {
    const buffer = new EpochBuffer(context, epoch, ordinal);
    buffer.#log = BufferLog.open(context.storage, buffer.#path, buffer.#header(), buffer.#enter);
    if (buffer.#log !== undefined && !buffer.index.isEmpty) return buffer;
    buffer.#log?.close();
    context.storage.remove(buffer.#path);
    return undefined;
  }

  get index(): FragmentIndex {
    return this.#index;
  }

  get sizeBytes(): number {
    return this.#log?.sizeBytes ?? 0;
  }

  /** Whether it takes more changes. */
  get isOpen(): boolean {
    return this.#log?.isOpen ?? false;
  }

  /** Whether a sync has failed, so that `mend` is due. */
  get isDamaged(): boolean {
    return this.#log?.isDamaged ?? false;
  }

  get isSynced(): boolean {
    return this.#nameSynced && (this.#log?.isSynced ?? true);
  }

  /** Takes changes, in order. Errors: those of the log (`out-of-space`, `io-error`); none is taken then. */
  append(changes: readonly BufferedChange[]): void {
    this.#log?.append(changes, this.#enter);
  }

  /** Makes everything taken before the call durable. Errors: `io-error`; then the buffer is damaged. */
  async sync(): Promise<void> {
    await this.#log?.sync();
    const settle = this.#spares?.beginSync();
    if (this.#nameSynced) return;
    await this.#context.storage.syncDirectory(this.#context.directory);
    this.#nameSynced = true;
    settle?.();
  }

  /**
   * Drops what no sync has covered, or, of a buffer that an earlier process has filled, writes everything again: that one
   * may have had any of it synced. Errors: `io-error`; the buffer stays damaged then.
   */
  mend(): void {
    if (this.#spares === undefined) {
      this.writeAgain();
      return;
    }
    const index = new FragmentIndex(this.#context.geometry);
    this.#log?.cut((record, position) => enterRecord(index, record, position));
    this.#index = index; // not before all of it is there: what a sync has covered is the sender's no more
  }

  /** Writes everything again: an earlier process may have been told that an fsync failed. Errors: `io-error`. */
  writeAgain(): void {
    this.#log?.writeAgain();
  }

  /** Puts what is here of [offset, offset+target.length) over what `target` holds. */
  paint(target: Uint8Array, offset: number): Pending {
    const { geometry } = this.#context;
    const end = offset + target.length;
    let waiting: Promise<void>[] | undefined;
    const endCluster = endClusterOf(geometry, offset, target.length);
    for (let cluster = firstClusterOf(geometry, offset); cluster < endCluster; cluster += 1) {
      const base = cluster * geometry.clusterBytes;
      if (this.index.zeroesOf(cluster) !== undefined) {
        const clusterEnd = Math.min(end, clusterEndOffset(geometry, cluster + 1));
        target.fill(0, Math.max(base, offset) - offset, clusterEnd - offset);
      }
      for (let fragment = this.index.first(cluster); fragment >= 0; fragment = this.index.next(fragment)) {
        const start = base + this.index.startOf(fragment);
        const from = Math.max(start, offset);
        const to = Math.min(start + this.index.lengthOf(fragment), end);
        if (from >= to) continue;
        const part = target.subarray(from - offset, to - offset);
        const position = this.index.positionOf(fragment);
        const pending = failingLater(() => this.readAt(part, position, from - start));
        if (pending !== undefined) (waiting ??= []).push(pending);
      }
    }
    return waiting === undefined ? undefined : allSettled(waiting);
  }

  /** Fills `target` with what lies `skip` bytes behind `position`, which may be one of zeroes. */
  readAt(target: Uint8Array, position: number, skip: number): Pending {
    if (position >= 0) return this.#log?.read(target, position + skip);
    target.fill(0);
    return undefined;
  }

  /** What lies at `position`, where the log has it in memory in one piece: until the next change, and until it is retired. */
  tryView(position: number, length: number): Buffer | undefined {
    return position < 0 ? undefined : this.#log?.tryView(position, length);
  }

  /** A reader begins that must wait in between; it ends with `leave`. */
  enter(): void {
    this.#readers += 1;
  }

  leave(): void {
    this.#readers -= 1;
    if (this.#retired && this.#readers === 0) this.#gone?.();
  }

  /**
   * Closes the log when the last reader has left, and removes it, off the event loop, or leaves its file to a later one.
   * Nobody may enter any more.
   */
  async retire(): Promise<void> {
    this.#retired = true;
    if (this.#readers > 0) {
      await new Promise<void>((resolve) => {
        this.#gone = resolve;
      });
    }
    // What a failed sync has left of a file is not known: it is not relied on again.
    const reusableBytes = this.#log === undefined || this.#log.isDamaged ? undefined : this.#log.fileBytes;
    this.close();
    if (reusableBytes !== undefined && this.#spares?.tryPut(this.#path, reusableBytes) === true) return;
    await this.#context.storage.removeBehind(this.#path);
  }

  close(): void {
    this.#log?.close();
    this.#log = undefined;
  }

  readonly #enter: VisitRecord = (record, position) => enterRecord(this.#index, record, position);

  get #path(): string {
    return `${this.#context.directory}/buffer.${this.epoch}.${this.ordinal}.log`;
  }

  #header(): Omit<BufferLogHeader, "id"> {
    return { diskSizeBytes: this.#context.geometry.sizeBytes, epoch: this.epoch, ordinal: this.ordinal };
  }
}

function enterRecord(index: FragmentIndex, { kind, offset, length }: BufferRecord, position: number): void {
  index.add(offset, length, kind === "write" ? position : kind === "zero" ? ZERO_POSITION : DISCARD_POSITION);
}

/** The logs in the overlays' directory, in the order of their changes. */
export function listBufferLogs({ storage, directory }: OverlayContext): { epoch: number; ordinal: number }[] {
  const logs: { epoch: number; ordinal: number }[] = [];
  for (const name of storage.list(directory)) {
    const match = /^buffer\.(\d+)\.(\d+)\.log$/.exec(name);
    if (match !== null) logs.push({ epoch: Number(match[1]), ordinal: Number(match[2]) });
  }
  return logs.sort((one, other) => one.epoch - other.epoch || one.ordinal - other.ordinal);
}
