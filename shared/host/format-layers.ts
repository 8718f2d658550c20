import { execFile } from "node:child_process";
import { z } from "zod";
import { ColobusError } from "../../proto/errors.ts";
import { FORMAT_MAP_MAX_BYTES } from "../../proto/limits.ts";
import { formatFault, type FormatImage } from "./format-fault.ts";

const mapSchema = z.array(
  z.object({
    start: z.int().nonnegative(),
    length: z.int().positive(),
    depth: z.int().nonnegative(),
    present: z.boolean().default(true),
  }),
);

/**
 * The ranges of an image's disk that the image itself holds, and not one that it is based on; zeroes count that it holds.
 * Asks for no lock, and sees what the image's writer has flushed. Errors: `not-found` without qemu-img, `io-error`.
 */
export function readTopLayer({
  format,
  path,
}: FormatImage): Promise<readonly { readonly offset: number; readonly length: number }[]> {
  const args = ["map", "--force-share", "--output=json", "-f", format, path];
  return new Promise((resolve, reject) => {
    execFile("qemu-img", args, { maxBuffer: FORMAT_MAP_MAX_BYTES }, (error, stdout, stderr) => {
      if (error === null) {
        const held = mapSchema.parse(JSON.parse(stdout)).filter(({ depth, present }) => depth === 0 && present);
        resolve(held.map(({ start, length }) => ({ offset: start, length })));
      } else if (error.code === "ENOENT") {
        reject(
          new ColobusError(
            "not-found",
            `to know the top layer of ${path} takes qemu-img, which is not installed`,
            "Install it (Debian: qemu-utils), or copy everything.",
          ),
        );
      } else {
        const said = stderr.trim() === "" ? error.message : stderr.trim();
        const action = "Try `qemu-img map` by hand, or copy everything.";
        reject(
          formatFault({ format, path }, said) ??
            new ColobusError("io-error", `qemu-img cannot tell the layers of ${path}: ${said}`, action),
        );
      }
    });
  });
}
