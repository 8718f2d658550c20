import type { StateRecord } from "../../proto/state-record.ts";
import { lostSync, type LostSyncs } from "../journal/lost-syncs.ts";
import type { DiskImage } from "./disk-image.ts";

/**
 * For an image that guests rely on: each flush of it that fails is noted before anybody is told, and after one that an
 * earlier process has seen, every flush fails.
 */
export function keepLosses(image: DiskImage, disk: StateRecord["disks"][number], lostSyncs: LostSyncs): void {
  noteLosses(image, disk, lostSyncs);
  if (lostSyncs.has({ disk: disk.name, active: null })) image.distrust?.(lostSync(disk.image));
}

/** What failed flushes of a secondary's images have covered was written again, and is durable. */
export function forgetLosses({ lostSyncs: noted }: Pick<StateRecord, "lostSyncs">, lostSyncs: LostSyncs): void {
  for (const file of noted) if (file.active === null) void lostSyncs.mended(file);
}

/** Has each flush of the image that fails noted, before anybody is told, and what the death of its server leaves to do. */
export function noteLosses(image: DiskImage, { name }: StateRecord["disks"][number], lostSyncs: LostSyncs): void {
  const file = { disk: name, active: null };
  image.noteWith?.({
    lost: () => lostSyncs.note(file),
    mended: () => lostSyncs.mended(file),
    replayOwed: () => lostSyncs.replayOwed(name),
    replayed: () => lostSyncs.replayed(name),
  });
}
