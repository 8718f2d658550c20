import { endClusterOf, firstClusterOf } from "../shared/block/cluster-geometry.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

/**
 * Fills `target` with what the stream has brought last: from the base, or in mode `mc` from the block buffer over it. To be
 * called between two batches of the stream. Errors: those of reading the image or the buffer.
 */
export async function readNewest(disk: ReplicaDisk, target: Buffer, offset: number): Promise<void> {
  const { buffer, base } = disk;
  await (buffer !== undefined && isBuffered(disk, offset, target.length)
    ? buffer.readLatest(target, offset)
    : base.read(target, offset));
}

/** Whether the block buffer has any of the range. */
export function isBuffered({ buffer, context: { geometry } }: ReplicaDisk, offset: number, length: number): boolean {
  return buffer?.holds(firstClusterOf(geometry, offset), endClusterOf(geometry, offset, length)) === true;
}
