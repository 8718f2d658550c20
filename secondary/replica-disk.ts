import assert from "node:assert/strict";
import type { DiskStatus } from "../proto/status.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { DiskState, SecondaryExport } from "../proto/words.ts";
import { growGeometry } from "../shared/block/cluster-geometry.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import { cannotGrow } from "../shared/block/growth.ts";
import { ActiveDisk } from "./active-disk.ts";
import { CheckpointView } from "./checkpoint-view.ts";
import { CommittedView } from "./committed-view.ts";
import { BlockBuffer, type BufferHost } from "./block-buffer.ts";
import type { EpochOverlay, Freeing } from "./epoch-overlay.ts";
import { HiddenDisk } from "./hidden-disk.ts";
import type { CheckpointHold } from "./kept-checkpoints.ts";
import { reserveMergeSpace } from "./merge-journal.ts";
import type { OverlayContext } from "./overlay-files.ts";
import { OverlayStack } from "./overlay-stack.ts";
import type { ViewGate } from "./view-gate.ts";

export interface RecoverEpochs {
  /** The oldest checkpoint that is kept: the committed one, or an earlier one that is retained. */
  readonly floor?: number;
  readonly committed: number;
  /** The newest prepared epoch, or the committed one. */
  readonly newestBarrier: number;
  readonly open: number;
  /** The host has booted since the overlays were last written. */
  readonly afterPowerLoss: boolean;
}

/**
 * One disk of the secondary: base, active disk, and between them what keeps the epochs apart, a hidden disk or a block
 * buffer; and the view that is exported of them.
 */
export class ReplicaDisk {
  readonly name: string;
  readonly stack: OverlayStack;
  readonly view: CommittedView;
  readonly context: OverlayContext;
  readonly #gate: ViewGate;
  #isBaseUnsynced = false;

  constructor(
    name: string,
    base: DiskImage,
    context: OverlayContext,
    epochs: RecoverEpochs,
    options: {
      readonly gate: ViewGate;
      readonly hasCheckpoint: () => boolean;
      readonly access: SecondaryExport;
      /** In mode `mc`. */
      readonly buffers?: BufferHost | undefined;
    },
  ) {
    this.name = name;
    this.context = context;
    this.#gate = options.gate;
    const { buffers } = options;
    const overlay =
      buffers === undefined ? HiddenDisk.recover(context, epochs) : BlockBuffer.recover(context, base, epochs, buffers);
    reserveMergeSpace(context);
    const active = ActiveDisk.recover(context, epochs.committed, epochs.afterPowerLoss);
    this.stack = new OverlayStack(context.geometry, base, overlay, active);
    this.view = new CommittedView(this.stack, options.gate, options.hasCheckpoint, options.access);
  }

  get base(): DiskImage {
    return this.stack.base;
  }

  /** Goes on with `base`, which holds the same, and closes the present one. No request may be under way. */
  replaceBase(base: DiskImage): void {
    this.stack.base.close();
    this.stack.base = base;
  }

  /**
   * Makes the base and the overlays longer; durable when the promise resolves. `grown` is to follow once the record has the
   * size. What is added reads in every view as the base has it, which is zeroes in a file. Errors: `not-supported`; the storage's.
   */
  async lengthen(sizeBytes: number): Promise<void> {
    const { base } = this;
    if (base.grow === undefined) throw cannotGrow(this.name);
    await base.grow(sizeBytes);
    this.epochs.lengthen(sizeBytes);
    this.active.lengthen(sizeBytes);
  }

  /** The disk has `sizeBytes` from now on. Errors: the storage's. */
  grown(sizeBytes: number): void {
    if (sizeBytes > this.context.geometry.sizeBytes) growGeometry(this.context.geometry, sizeBytes);
    // What was begun meanwhile.
    this.epochs.lengthen(sizeBytes);
    this.active.lengthen(sizeBytes);
  }

  /** What keeps the epochs apart. */
  get epochs(): EpochOverlay {
    return this.stack.hidden;
  }

  /** The hidden disk, of a mode that has one. */
  get hidden(): HiddenDisk {
    assert(this.epochs instanceof HiddenDisk, "originals are kept in the modes colo and shared only");
    return this.epochs;
  }

  /** The block buffer, in mode `mc`. */
  get buffer(): BlockBuffer | undefined {
    return this.epochs instanceof BlockBuffer ? this.epochs : undefined;
  }

  /** The base was written without being buffered, and has to be flushed before that is durable. */
  noteBaseWritten(): void {
    this.#isBaseUnsynced = true;
  }

  /** Makes what the stream has brought so far durable. Errors: `io-error`. */
  async syncStream(): Promise<void> {
    const { buffer } = this;
    if (buffer === undefined) {
      await this.base.flush();
      return;
    }
    if (this.#isBaseUnsynced) {
      this.#isBaseUnsynced = false;
      try {
        await this.base.flush();
      } catch (error) {
        this.#isBaseUnsynced = true;
        throw error;
      }
    }
    await buffer.sync();
  }

  get active(): ActiveDisk {
    return this.stack.active;
  }

  /**
   * Makes the checkpoint `epoch` the state that the view shows: keeps the generations from `floor` on, drops the older
   * ones, and starts an empty active disk. Returns what frees the storage; call it when no reader of the old view is
   * left.
   */
  switchView(epoch: number, floor: number): Freeing {
    this.epochs.keepThrough(epoch);
    const freeing = this.epochs.release(floor);
    // A block buffer sees to itself: nothing waits for what is applied to the base.
    return this.#replaceActive(epoch, this.buffer === undefined ? freeing : undefined);
  }

  /**
   * Removes what an active disk of `epoch` may have left: it is about to have one again. When the promise resolves no crash
   * brings it back, also of one that was removed before. Errors: `io-error`.
   */
  async removeStaleActive(epoch: number): Promise<void> {
    new ActiveDisk(this.context, epoch).removeFiles();
    const { durability, storage, directory } = this.context;
    if (durability === "power") await storage.syncDirectory(directory);
  }

  /** Makes the kept checkpoint `epoch` the state that the view shows, as `switchView` does. */
  rollBack(epoch: number): Freeing {
    return this.#replaceActive(epoch, this.epochs.rollBack(epoch));
  }

  /** There is no checkpoint any more: drops every overlay. Returns what frees the storage, as `switchView` does. */
  dropOverlays(): Freeing {
    return this.#replaceActive(0, this.epochs.giveUp());
  }

  /** The disk as it was at a checkpoint that is kept while `hold` lasts. */
  viewOf(hold: CheckpointHold): CheckpointView {
    return new CheckpointView(this.context, this.base, this.epochs.asOf(hold.epoch), this.#gate, hold);
  }

  /** Starts an empty active disk of `epoch` and removes the present one. No reader may be under way. */
  discardActive(epoch: number): void {
    const old = this.active;
    this.stack.active = new ActiveDisk(this.context, epoch);
    old.removeFiles();
  }

  #replaceActive(epoch: number, freeing: Freeing | undefined): Freeing {
    const oldActive = this.active;
    this.stack.active = new ActiveDisk(this.context, epoch);
    return async () => {
      await freeing?.();
      await oldActive.removeBehind();
    };
  }

  close(): void {
    this.epochs.close();
    this.active.close();
    this.base.close();
  }
}

/** What status says of a disk; `disk` is undefined while its image is still to be made. */
export function describeReplicaDisk(
  { name, image, sizeBytes }: StateRecord["disks"][number],
  disk: ReplicaDisk | undefined,
  state: DiskState,
): DiskStatus {
  return {
    name,
    sizeBytes,
    state,
    dirtyBytes: 0,
    ...(disk?.epochs.storage ?? { hiddenBytes: 0, bufferBytes: 0 }),
    activeBytes: disk?.active.allocatedBytes ?? 0,
    image,
    generations: disk?.epochs.describeGenerations() ?? [],
    children: [{ name: "base", kind: "image", path: image, state: state === "Failed" ? "broken" : "sound" }],
  };
}
