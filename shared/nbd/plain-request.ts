import assert from "node:assert/strict";
import { COMMAND, COMMAND_FLAG } from "../../proto/nbd-protocol.ts";
import type { RequestHeader } from "../../proto/nbd-protocol.ts";
import type { BlockDevice, Pending } from "../block/block-device.ts";

/** Starts a request without data in either direction, a WRITE of 0 bytes included. */
export function startPlain(device: BlockDevice, { type, flags, offset, length }: Readonly<RequestHeader>): Pending {
  if (type === COMMAND.FLUSH) return device.flush();
  if (length === 0) return undefined;
  if (type === COMMAND.CACHE) {
    device.prefetch(offset, length);
    return undefined;
  }
  assert(type === COMMAND.TRIM || type === COMMAND.WRITE_ZEROES, "every known command has a handler");
  const mayUnmap = type === COMMAND.TRIM || (flags & COMMAND_FLAG.NO_HOLE) === 0;
  return device.zero(offset, length, { fua: (flags & COMMAND_FLAG.FUA) !== 0, mayUnmap });
}
