/**
 * The layout of replies to READ: simple, one structured chunk, or chunks that leave out what is known to be zero (zero
 * extents travel as OFFSET_HOLE, the rest as OFFSET_DATA). A whole reply is laid out and read before anything of it is
 * sent, so that a failing read can still be answered by an error alone.
 */
import { NBD_SPARSE_READ_MIN_BYTES } from "../../proto/limits.ts";
import {
  CHUNK,
  CHUNK_FLAG_DONE,
  CHUNK_HEADER_BYTES,
  CHUNK_HOLE_BYTES,
  CHUNK_OFFSET_BYTES,
  SIMPLE_REPLY_BYTES,
  putChunkHeader,
  putSimpleReply,
  writeUint64,
} from "../../proto/nbd-protocol.ts";
import type { RequestHeader } from "../../proto/nbd-protocol.ts";
import { allSettled, failingLater } from "../block/all-settled.ts";
import type { BlockDevice, Extent, Pending } from "../block/block-device.ts";

/** A zero extent shorter than this travels as data: another chunk costs more than its bytes. */
const HOLE_MIN_BYTES = NBD_SPARSE_READ_MIN_BYTES / 4;
const EXTENTS_MAX = 64;

const DATA_CHUNK_PREFIX_BYTES = CHUNK_HEADER_BYTES + CHUNK_OFFSET_BYTES;

/** Bytes of the reply to a read of `length` > 0 bytes, sent in one piece. */
export function readReplyBytes(length: number, structuredReplies: boolean): number {
  return length + (structuredReplies ? DATA_CHUNK_PREFIX_BYTES : SIMPLE_REPLY_BYTES);
}

/** Lays out the reply of one piece in `target` from `position`, and reads the data into it. */
export function fillReadReply(
  device: BlockDevice,
  request: Readonly<RequestHeader>,
  structuredReplies: boolean,
  target: Buffer,
  position: number,
): Pending {
  const { cookieHigh, cookieLow, offset, length } = request;
  let dataStart = position + SIMPLE_REPLY_BYTES;
  if (structuredReplies) {
    const payloadLength = CHUNK_OFFSET_BYTES + length;
    putChunkHeader(target, position, CHUNK_FLAG_DONE, CHUNK.OFFSET_DATA, cookieHigh, cookieLow, payloadLength);
    writeUint64(target, position + CHUNK_HEADER_BYTES, offset);
    dataStart = position + DATA_CHUNK_PREFIX_BYTES;
  } else {
    putSimpleReply(target, position, 0, cookieHigh, cookieLow);
  }
  return device.read(target.subarray(dataStart, dataStart + length), offset);
}

/** A range of the reply that becomes one chunk. */
export interface ReadPiece {
  readonly offset: number;
  readonly length: number;
  readonly zero: boolean;
}

type Extents = Pick<BlockDevice, "extents" | "asksForExtents">;

/** The pieces of a read, in order and covering all of it; undefined when there is no zero extent worth a hole, or that is not known at once. */
export function planSparseRead(device: Extents, offset: number, length: number): ReadPiece[] | undefined {
  if (device.asksForExtents === true) return undefined;
  const extents = device.extents(offset, length, EXTENTS_MAX);
  if (extents instanceof Promise) {
    // What made it wait has come between: the read itself waits, or hears why not.
    extents.catch(() => undefined);
    return undefined;
  }
  return cutIntoPieces(extents, offset, length);
}

/** As `planSparseRead`, for extents that may cover less than the range; what they do not cover is data. */
export function cutIntoPieces(extents: readonly Extent[], offset: number, length: number): ReadPiece[] | undefined {
  const end = offset + length;
  const pieces: ReadPiece[] = [];
  let dataStart = offset;
  let position = offset;
  for (const extent of extents) {
    const extentEnd = Math.min(end, position + extent.length);
    if (extent.zero && extentEnd - position >= HOLE_MIN_BYTES) {
      if (position > dataStart) pieces.push({ offset: dataStart, length: position - dataStart, zero: false });
      pieces.push({ offset: position, length: extentEnd - position, zero: true });
      dataStart = extentEnd;
    }
    position = extentEnd;
  }
  if (pieces.length === 0) return undefined;
  if (end > dataStart) pieces.push({ offset: dataStart, length: end - dataStart, zero: false });
  return pieces;
}

/** Bytes of a reply in pieces. Never more than those of the same read as a single chunk. */
export function sparseReplyBytes(pieces: readonly ReadPiece[]): number {
  let bytes = 0;
  for (const { zero, length } of pieces) {
    bytes += CHUNK_HEADER_BYTES + (zero ? CHUNK_HOLE_BYTES : CHUNK_OFFSET_BYTES + length);
  }
  return bytes;
}

/**
 * Lays the chunks out in `target` from `position` and reads the data into them. Done, or failed, only when no read
 * touches `target` any more.
 */
export function fillSparseReply(
  device: BlockDevice,
  { cookieHigh, cookieLow }: Readonly<RequestHeader>,
  pieces: readonly ReadPiece[],
  target: Buffer,
  position: number,
): Pending {
  const reads: Promise<void>[] = [];
  let at = position;
  for (const [index, { offset, length, zero }] of pieces.entries()) {
    const flags = index === pieces.length - 1 ? CHUNK_FLAG_DONE : 0;
    const type = zero ? CHUNK.OFFSET_HOLE : CHUNK.OFFSET_DATA;
    const payloadLength = zero ? CHUNK_HOLE_BYTES : CHUNK_OFFSET_BYTES + length;
    putChunkHeader(target, at, flags, type, cookieHigh, cookieLow, payloadLength);
    at += CHUNK_HEADER_BYTES;
    writeUint64(target, at, offset);
    if (zero) {
      target.writeUInt32BE(length, at + CHUNK_OFFSET_BYTES);
    } else {
      const data = target.subarray(at + CHUNK_OFFSET_BYTES, at + payloadLength);
      const read = failingLater(() => device.read(data, offset));
      if (read !== undefined) reads.push(read);
    }
    at += payloadLength;
  }
  return reads.length === 0 ? undefined : allSettled(reads);
}
