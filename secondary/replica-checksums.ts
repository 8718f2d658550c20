import { JOB_CHUNK_BYTES } from "../proto/limits.ts";
import { CHECKSUM_OF_ZEROES, checksumOf } from "../shared/block/content-checksum.ts";
import { isBuffered, readNewest } from "./newest-content.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

/**
 * Tells what the primary compares its copy with: the newest content that the stream has brought, in the base, or in mode
 * `mc` in the block buffer over it. To be called between two batches of the stream, one call at a time.
 */
export class ReplicaChecksums {
  /** Used again and again: new ones would keep the garbage collector busy. */
  #chunk = Buffer.alloc(0);

  /**
   * The checksum of a range. Of one that is longer than JOB_CHUNK_BYTES it only tells whether there is anything but
   * zeroes. Errors: those of reading the image or the buffer.
   */
  async read(disk: ReplicaDisk, offset: number, length: number): Promise<Buffer> {
    for (let at = offset; at < offset + length;) {
      const left = offset + length - at;
      const hole = await holeAt(disk, at, left);
      if (hole === 0 || (hole < left && length <= JOB_CHUNK_BYTES)) {
        const content = this.#take(Math.min(left, JOB_CHUNK_BYTES));
        await readNewest(disk, content, at);
        const checksum = checksumOf(content);
        if (checksum.length > 0) return checksum;
        at += content.length;
      } else at += hole;
    }
    return CHECKSUM_OF_ZEROES;
  }

  #take(length: number): Buffer {
    if (this.#chunk.length < length) this.#chunk = Buffer.allocUnsafeSlow(length);
    return this.#chunk.subarray(0, length);
  }
}

/** How much from `offset` on reads as zeroes without being read. */
async function holeAt(disk: ReplicaDisk, offset: number, length: number): Promise<number> {
  if (isBuffered(disk, offset, length)) return 0;
  const extents = disk.base.extents(offset, length, 1);
  const [extent] = extents instanceof Promise ? await extents : extents;
  return extent?.zero === true ? Math.min(extent.length, length) : 0;
}
