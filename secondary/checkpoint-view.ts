import { ColobusError } from "../proto/errors.ts";
import type { BlockDevice, Extent, OpenWrite, Pending } from "../shared/block/block-device.ts";
import { ActiveDisk } from "./active-disk.ts";
import type { CheckpointHold } from "./kept-checkpoints.ts";
import type { EpochView } from "./epoch-overlay.ts";
import { OverlayStack } from "./overlay-stack.ts";
import type { OverlayContext } from "./overlay-files.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import type { ViewGate } from "./view-gate.ts";

/**
 * One disk as it was at one committed checkpoint, read-only, for as long as the checkpoint is held. Without what the
 * secondary's own VM has written: that belongs to no checkpoint.
 */
export class CheckpointView implements BlockDevice {
  readonly sizeBytes: number;
  readonly #hold: CheckpointHold;
  readonly #gate: ViewGate;
  readonly #stack: OverlayStack<EpochView>;

  constructor(context: OverlayContext, base: DiskImage, originals: EpochView, gate: ViewGate, hold: CheckpointHold) {
    this.sizeBytes = base.sizeBytes;
    this.#hold = hold;
    this.#gate = gate;
    // The active disk is empty for ever, and so never comes to have a file.
    this.#stack = new OverlayStack(context.geometry, base, originals, new ActiveDisk(context, hold.epoch));
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#gate.run(() => {
      this.#assertKept();
      return this.#stack.read(target, offset);
    });
  }

  write(): Pending {
    throw readOnly();
  }

  openWrite(): OpenWrite {
    throw readOnly();
  }

  zero(): Pending {
    throw readOnly();
  }

  flush(): Pending {
    return undefined;
  }

  prefetch(offset: number, length: number): void {
    this.#stack.base.prefetch(offset, length);
  }

  get asksForExtents(): boolean {
    return this.#stack.base.asksForExtents === true;
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    this.#assertKept();
    return this.#stack.extents(offset, length, maxExtents);
  }

  #assertKept(): void {
    if (!this.#hold.isDropped) return;
    throw new ColobusError(
      "checkpoint-dropped",
      `checkpoint ${this.#hold.epoch} is not kept any more`,
      "See `colobus status` for the checkpoints that are, and the event `retained-dropped` for the reason.",
    );
  }
}

function readOnly(): ColobusError {
  return new ColobusError("read-only", "a checkpoint is exported read-only", "Roll back to it to go on from it.");
}
