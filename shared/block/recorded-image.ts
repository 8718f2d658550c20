import { ColobusError } from "../../proto/errors.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Storage } from "../host/storage.ts";
import { lostSync, type LostSyncs } from "../journal/lost-syncs.ts";
import { openImage, type Image } from "./image.ts";

/**
 * Opens the image of a recorded disk, whose size is known. Errors: those of `openImage`; `image-changed` when it has
 * another size than recorded, or was changed by another program while the agent was cleanly stopped.
 */
export function openRecordedImage(storage: Storage, disk: StateRecord["disks"][number]): Image {
  const image = openImage(storage, disk.image);
  try {
    if (disk.sizeBytes !== null && image.sizeBytes !== disk.sizeBytes) {
      throw new ColobusError(
        "image-changed",
        `image ${disk.image} of disk ${disk.name} has ${image.sizeBytes} bytes, and the state directory records ${disk.sizeBytes}`,
        ADOPT,
      );
    }
    if (disk.cleanMark !== null && disk.cleanMark !== image.changeMark()) {
      throw new ColobusError(
        "image-changed",
        `image ${disk.image} of disk ${disk.name} was changed by another program since this agent was stopped`,
        ADOPT,
      );
    }
    return image;
  } catch (error) {
    image.close();
    throw error;
  }
}

/**
 * As `openRecordedImage`, where guests rely on the image: each failed flush is noted, and after one that an earlier process
 * has seen, every flush fails.
 */
export function openGuestImage(storage: Storage, disk: StateRecord["disks"][number], lostSyncs: LostSyncs): Image {
  const image = openRecordedImage(storage, disk);
  const file = { disk: disk.name, active: null };
  image.noteLossWith(() => lostSyncs.note(file));
  if (lostSyncs.has(file)) image.distrust(lostSync(disk.image));
  return image;
}

const ADOPT =
  "Start with the image as the agent left it. On a primary, --adopt-image takes it as it is and sends everything again; " +
  "on a secondary, start with an empty state directory for a full sync.";
