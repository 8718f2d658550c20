import { ColobusError } from "../../proto/errors.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Storage } from "../host/storage.ts";
import { openForeignImage, openImage, type Image } from "./image.ts";

/**
 * Opens the image of a recorded disk, whose size is known. Errors: those of `openImage`; `image-changed` when it has
 * another size than recorded, or was changed by another program while the agent was cleanly stopped.
 */
export function openRecordedImage(
  storage: Storage,
  disk: StateRecord["disks"][number],
  { mode }: Pick<StateRecord, "mode">,
): Image {
  if (mode !== "shared") return checked(openImage(storage, disk.image), disk);
  // That the other host has changed it meanwhile is no fault.
  return checked(openImage(storage, disk.image, { fresh: true }), { ...disk, cleanMark: null });
}

/**
 * Opens a disk that another host writes, for reading, and without a lock. Errors as `openRecordedImage`; `not-supported`
 * where that host's writes would not be seen.
 */
export function openRecordedForeignImage(storage: Storage, disk: StateRecord["disks"][number]): Image {
  return checked(openForeignImage(storage, disk.image), { ...disk, cleanMark: null });
}

function checked(image: Image, disk: StateRecord["disks"][number]): Image {
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

const ADOPT =
  "Start with the image as the agent left it. On a primary, --adopt-image takes it as it is and sends everything again; " +
  "on a secondary, start with an empty state directory for a full sync.";
