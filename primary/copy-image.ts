import type { RecordedChild } from "../proto/state-record.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import { lostSync } from "../shared/journal/lost-syncs.ts";
import type { ChildrenContext } from "./children-context.ts";
import { LateImage } from "./late-image.ts";

/**
 * The image of a recorded copy, which is opened when it is asked for something. `isChanged`: another program has changed it
 * since the agent was cleanly stopped, or may have: nobody can tell of one that cannot be opened now.
 */
export function openCopyImage(
  { disk, geometry, open }: Pick<ChildrenContext, "open"> & { disk: string; geometry: ClusterGeometry },
  { name, cleanMark, lostSync: hasLostSync }: RecordedChild,
  image: string,
): { readonly late: LateImage; readonly isChanged: boolean } {
  let isChanged = false;
  let first: DiskImage | undefined;
  if (cleanMark !== null) {
    try {
      first = open(disk, { name, image, cleanMark });
    } catch {
      isChanged = true; // why it cannot be opened, the first request is told
    }
  }
  const late = new LateImage(geometry, () => {
    const opened = first ?? open(disk, { name, image, cleanMark: null });
    first = undefined;
    if (hasLostSync) opened.distrust?.(lostSync(image));
    return opened;
  });
  return { late, isChanged };
}
