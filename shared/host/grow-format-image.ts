import type { FormatImage } from "./format-fault.ts";
import { runQemuImg } from "./run-qemu-img.ts";

/**
 * Makes an image of a format, which nobody has open, as large as that; what is added reads as zeroes. Durable once its next
 * user has flushed it. Errors: `not-found` without qemu-img, `io-error`; it is as large as it was then.
 */
export function growFormatImage({ format, path }: FormatImage, sizeBytes: number): Promise<void> {
  return runQemuImg(["resize", "-q", "-f", format, path, String(sizeBytes)], {
    doing: `make ${path} longer`,
    action: `See what \`qemu-img info ${path}\` says: not every format, and no image with internal snapshots of another size, can grow.`,
  });
}
