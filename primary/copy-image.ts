import type { RecordedChild } from "../proto/state-record.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import { lostSync } from "../shared/journal/lost-syncs.ts";
import type { ChildrenContext } from "./children-context.ts";
import { LateImage } from "./late-image.ts";

export interface CopyImage {
  /** undefined: the disk's own image. */
  readonly late: LateImage | undefined;
  /**
   * Another program has changed it since the agent was cleanly stopped, or may have: nobody can tell of one that cannot be
   * opened now.
   */
  readonly isChanged: boolean;
}

type CopyImageOptions = Pick<ChildrenContext, "open"> & { readonly disk: string; readonly geometry: ClusterGeometry };

/** Those of all recorded copies of a disk; `isReference`: the one to believe. */
export function openCopyImages(
  options: CopyImageOptions,
  children: readonly RecordedChild[],
): { readonly child: RecordedChild; readonly image: CopyImage; readonly isReference: boolean }[] {
  const found = children.map((child) => ({ child, image: openCopyImage(options, child) }));
  const sound = found.filter(({ child }) => child.sound);
  const reference = sound.find(({ image }) => !image.isChanged) ?? sound[0] ?? found[0];
  return found.map((one) => ({ ...one, isReference: one === reference }));
}

/** The image of a recorded copy, where it is not the disk's own, which is opened when it is asked for something. */
export function openCopyImage(
  { disk, geometry, open }: CopyImageOptions,
  { name, image, cleanMark, lostSync: hasLostSync }: RecordedChild,
): CopyImage {
  if (image === null) return { late: undefined, isChanged: false };
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
