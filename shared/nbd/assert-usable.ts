import { ColobusError } from "../../proto/errors.ts";
import { TRANSMISSION_FLAG } from "../../proto/nbd-protocol.ts";
import type { ServerExport } from "./client-handshake.ts";

const SECTOR_BYTES = 512;
/** What an export has to keep to, once requests rely on it. */
const RELIED_ON =
  TRANSMISSION_FLAG.SEND_FLUSH |
  TRANSMISSION_FLAG.SEND_FUA |
  TRANSMISSION_FLAG.SEND_WRITE_ZEROES |
  TRANSMISSION_FLAG.SEND_CACHE;

/** What the image that lies behind an export is to be used for. */
export interface ExportUse {
  /** What to call the image in messages. */
  readonly name: string;
  /** The size that it must have at least: it may be made longer before its disk is. undefined: whatever it has. */
  readonly sizeBytes: number | undefined;
  /** The export of the connection before; undefined: there was none. */
  readonly before: ServerExport | undefined;
  readonly isReadOnly: boolean;
  /** Two hosts use the export. */
  readonly isShared: boolean;
}

/**
 * Makes sure that a server's export can be what a disk needs. Errors: `image-changed`, `image-format`, `read-only`,
 * `not-supported`.
 */
export function assertUsable(exported: ServerExport, use: ExportUse): void {
  const { name, before, isReadOnly } = use;
  const { sizeBytes, flags, blockBytes } = exported;
  if (use.sizeBytes !== undefined && sizeBytes < use.sizeBytes) {
    throw new ColobusError(
      "image-changed",
      `${name} has ${sizeBytes} bytes, and the disk has ${use.sizeBytes}`,
      "Serve the image that this agent has used before.",
    );
  }
  if (sizeBytes === 0 || sizeBytes % SECTOR_BYTES !== 0) {
    throw new ColobusError(
      "image-format",
      `${name} has ${sizeBytes} bytes, and a disk has at least one sector and whole ones of ${SECTOR_BYTES} bytes`,
      "Serve an image of the disk's size.",
    );
  }
  if (!isReadOnly && (flags & TRANSMISSION_FLAG.READ_ONLY) !== 0) {
    throw new ColobusError("read-only", `${name} is served read-only`, "Serve it writable.");
  }
  if (!isReadOnly && (flags & TRANSMISSION_FLAG.SEND_FLUSH) === 0) {
    throw new ColobusError(
      "not-supported",
      `the server of ${name} cannot flush, so nothing would ever be known to be durable`,
      "Use a server that can (nbd-server: `flush = true`).",
    );
  }
  if (use.isShared && (flags & TRANSMISSION_FLAG.CAN_MULTI_CONN) === 0) {
    throw new ColobusError(
      "not-supported",
      `the server of ${name} does not say that its connections share one cache (multi-conn), and two hosts use the disk`,
      "Use a server that does (qemu-nbd: --shared=0; nbdkit: a plugin such as file), the same one for both hosts.",
    );
  }
  if (blockBytes > 1) {
    throw new ColobusError(
      "not-supported",
      `the server of ${name} takes only requests that are aligned to ${blockBytes} bytes`,
      "Let it take any (nbdkit: --filter=blocksize), or put qemu-nbd in between.",
    );
  }
  const lacking = (before?.flags ?? 0) & RELIED_ON & ~flags;
  if (lacking !== 0) {
    throw new ColobusError(
      "image-changed",
      `the server of ${name} can do less than the one before it`,
      "Serve the image as before, or start this agent again.",
    );
  }
}
