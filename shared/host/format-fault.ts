import { ColobusError } from "../../proto/errors.ts";

/** An image of a format, as qemu's tools are told of it. */
export interface FormatImage {
  /** As they call it. */
  readonly format: string;
  /** Absolute. */
  readonly path: string;
}

/** What keeps an image from being opened, from what a tool of qemu has said; undefined: nothing that is known. */
export function formatFault({ format, path }: FormatImage, said: string): ColobusError | undefined {
  if (/Failed to get .* lock/i.test(said)) {
    return new ColobusError(
      "image-busy",
      `${path} is in use by another process: ${said}`,
      "Stop the other process, such as a VM or another agent that uses the image.",
    );
  }
  if (/No such file or directory/i.test(said)) {
    return new ColobusError(
      "image-missing",
      `the image ${path} does not exist`,
      `Check the path, or make an image of the disk's size: \`qemu-img create -f ${format} ${path} SIZE\`.`,
    );
  }
  if (/Permission denied/i.test(said)) {
    return new ColobusError(
      "permission-denied",
      `qemu-nbd may not open ${path}: ${said}`,
      `Give the user that runs the agent access to ${path}.`,
    );
  }
  if (/O_DIRECT/.test(said)) {
    return new ColobusError(
      "not-supported",
      `${path} cannot be used past the page cache (O_DIRECT), which two hosts that use it rely on: ${said}`,
      "Put the shared disk on a block device, or on a file system that has O_DIRECT.",
    );
  }
  if (/not in \S+ format|invalid|corrupt|unsupported|Unknown/i.test(said)) {
    return new ColobusError(
      "image-format",
      `qemu-nbd does not open ${path} as ${format}: ${said}`,
      `Look at it with \`qemu-img info ${path}\` and \`qemu-img check ${path}\`.`,
    );
  }
  return undefined;
}

/** An image that another host writes, for a tool of qemu: read past the page cache, and not locked. */
export function foreignImageOptions({ format, path }: FormatImage): string {
  return `json:${JSON.stringify({
    "driver": format,
    "read-only": true,
    "force-share": true,
    "cache": { direct: true },
    "file": { filename: path },
  })}`;
}
