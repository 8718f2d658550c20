import assert from "node:assert/strict";
import { NBD_MAX_EXTENTS_PER_REPLY } from "../../proto/limits.ts";
import {
  ALLOCATION_STATE,
  CHUNK,
  CHUNK_FLAG_DONE,
  CHUNK_HEADER_BYTES,
  COMMAND_FLAG,
  putChunkHeader,
} from "../../proto/nbd-protocol.ts";
import type { RequestHeader } from "../../proto/nbd-protocol.ts";
import type { Extent } from "../block/block-device.ts";
import type { MetaExtent } from "./meta-context.ts";

const CONTEXT_ID_BYTES = 4;
/** u32 length, u32 state. */
const EXTENT_BYTES = 8;

/** An extent while it is found, beside its place in the reply. */
const EXTENT_MEMORY_BYTES = 64;

/** How many extents a BLOCK_STATUS takes. */
export function extentsWanted({ flags }: Readonly<RequestHeader>): number {
  return (flags & COMMAND_FLAG.REQ_ONE) === 0 ? NBD_MAX_EXTENTS_PER_REPLY : 1;
}

/** Memory that a BLOCK_STATUS may come to take before it is answered, of so many contexts: more than its reply. */
export function statusBytes(request: Readonly<RequestHeader>, contexts: number): number {
  return contexts * (CHUNK_HEADER_BYTES + CONTEXT_ID_BYTES + extentsWanted(request) * EXTENT_MEMORY_BYTES);
}

/** base:allocation's extents as those of any context. */
export function allocationExtents(extents: readonly Extent[]): MetaExtent[] {
  return extents.map(({ length, hole, zero }) => ({
    length,
    flags: (hole ? ALLOCATION_STATE.HOLE : 0) | (zero ? ALLOCATION_STATE.ZERO : 0),
  }));
}

/**
 * One chunk of the reply to a BLOCK_STATUS, of one context: its extents lie within the requested range (and hence within
 * the export), and with REQ_ONE it is a single one. The chunk of the last context ends the reply.
 */
export function blockStatusChunk(
  contextId: number,
  extents: readonly MetaExtent[],
  request: Readonly<RequestHeader>,
  isLast: boolean,
): Buffer {
  const { length, cookieHigh, cookieLow } = request;
  assert(
    extents.length > 0 && extents.length <= extentsWanted(request),
    "a device reports between one extent and what was asked for",
  );
  const payloadLength = CONTEXT_ID_BYTES + extents.length * EXTENT_BYTES;
  const reply = Buffer.allocUnsafe(CHUNK_HEADER_BYTES + payloadLength);
  putChunkHeader(reply, 0, isLast ? CHUNK_FLAG_DONE : 0, CHUNK.BLOCK_STATUS, cookieHigh, cookieLow, payloadLength);
  reply.writeUInt32BE(contextId, CHUNK_HEADER_BYTES);
  let position = CHUNK_HEADER_BYTES + CONTEXT_ID_BYTES;
  let covered = 0;
  for (const extent of extents) {
    assert(extent.length > 0 && covered + extent.length <= length, "a device's extents lie within the range asked for");
    reply.writeUInt32BE(extent.length, position);
    reply.writeUInt32BE(extent.flags, position + 4);
    position += EXTENT_BYTES;
    covered += extent.length;
  }
  return reply;
}
