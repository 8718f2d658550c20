import assert from "node:assert/strict";
import type { StateRecord } from "../proto/state-record.ts";
import { imageUseOf, type ImageSource } from "../shared/block/disk-image.ts";
import { keepLosses } from "../shared/block/lost-writes.ts";
import type { LostSyncs } from "../shared/journal/lost-syncs.ts";
import type { Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import { ActiveDisk } from "./active-disk.ts";
import { BlockBuffer } from "./block-buffer.ts";
import type { EpochOverlay } from "./epoch-overlay.ts";
import { HiddenDisk } from "./hidden-disk.ts";
import { overlayContext } from "./overlay-files.ts";
import { OverlayStack } from "./overlay-stack.ts";
import { PromotedDisk } from "./promoted-disk.ts";
import type { PromotedDisks } from "./secondary-role.ts";
import { ViewGate } from "./view-gate.ts";

/**
 * The disks of a promoted agent whose merge an earlier process did not finish. `record.merge` is set.
 * Errors: those of opening the images. On an error every file is closed again.
 */
export function recoverPromotion(options: {
  readonly storage: Storage;
  readonly images: ImageSource;
  readonly random: Random;
  readonly stateDirectory: string;
  readonly record: StateRecord;
  readonly bootId: string;
  readonly lostSyncs: LostSyncs;
}): PromotedDisks {
  const { record, images } = options;
  assert(record.merge !== null, "a merge is unfinished");
  const { epoch, activeEpoch } = record.merge;
  const gate = new ViewGate();
  const disks: { name: string; disk: PromotedDisk }[] = [];
  try {
    for (const recorded of record.disks) {
      const { name } = recorded;
      const base = images.open(recorded, imageUseOf(record));
      keepLosses(base, recorded, options.lostSyncs);
      const context = overlayContext(options, record, name, base.sizeBytes);
      const epochs = { committed: epoch, newestBarrier: epoch, open: record.epochReserved + 1 };
      const overlay: EpochOverlay =
        record.mode === "mc" ? BlockBuffer.recover(context, base, epochs) : HiddenDisk.recover(context, epochs);
      // As the promotion, perhaps forced without a checkpoint, has done, or was about to.
      overlay.dropUncommitted(epoch === 0);
      const active = ActiveDisk.recover(context, activeEpoch, record.bootId !== options.bootId);
      const stack = new OverlayStack(context.geometry, base, overlay, active);
      disks.push({ name, disk: new PromotedDisk(context, stack, gate, epoch) });
    }
  } catch (error) {
    for (const { disk } of disks) disk.close();
    throw error;
  }
  return { epoch, disks };
}
