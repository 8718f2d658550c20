import { asColobusError } from "../proto/errors.ts";
import { JOB_CHUNK_BYTES } from "../proto/limits.ts";
import type { Child } from "../shared/block/block-device.ts";
import { cannotGrow } from "../shared/block/growth.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import { letOthersRun } from "../shared/host/sleep.ts";

export interface Growth {
  readonly disk: string;
  readonly fromBytes: number;
  readonly toBytes: number;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * Makes all images of a disk longer, or none. What is added is the same in all of them: zeroes, where there are several.
 * Durable when the promise resolves. Errors: why one cannot be made longer; the others are as they were then.
 */
export async function growTogether(images: readonly Child[], growth: Growth): Promise<void> {
  const { disk, fromBytes, toBytes, log } = growth;
  const grown: Child[] = [];
  try {
    for (const image of images) {
      if (image.grow === undefined) throw cannotGrow(disk);
      await image.grow(toBytes);
      grown.push(image);
      if (images.length > 1) await zeroTail(image, growth);
    }
  } catch (error) {
    for (const image of grown) {
      try {
        await image.ungrow?.(fromBytes);
      } catch (fault) {
        log.warn({ disk, reason: asColobusError(fault) }, "an image of a disk that was not resized is left longer");
      }
    }
    throw error;
  }
}

/** A device that was made longer has whatever lay there. */
async function zeroTail(image: Child, { fromBytes, toBytes, clock }: Growth): Promise<void> {
  let offset = fromBytes;
  while (offset < toBytes) {
    const [extent] = await image.extents(offset, toBytes - offset, 1);
    const isZero = extent?.zero === true;
    const length = isZero ? extent.length : Math.min(JOB_CHUNK_BYTES, toBytes - offset);
    if (!isZero) await image.zero(offset, length, { fua: false, mayUnmap: true });
    offset += length;
    await letOthersRun(clock);
  }
  await image.flush();
}
