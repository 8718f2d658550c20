/**
 * The log of a block buffer (mode `mc`): an append-only file with what a primary has changed on one disk in one epoch.
 *
 * Header (big-endian, 64 bytes):
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 8 | magic "COLOBUFL" |
 * | 8 | 4 | version |
 * | 12 | 4 | number of the log among those of its epoch: 0, 1, 2 … |
 * | 16 | 8 | disk size in bytes |
 * | 24 | 8 | epoch |
 * | 32 | 16 | random id of this log |
 * | 48 | 12 | reserved, zero |
 * | 60 | 4 | CRC-32 of bytes 0–59 |
 *
 * Then records, each a 32-byte head and the bytes of a write:
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 4 | CRC-32 of the rest of the record, started from the CRC-32 of the log's id |
 * | 4 | 4 | sequence: 1, 2, 3 … without a gap |
 * | 8 | 8 | offset on the disk |
 * | 16 | 8 | length |
 * | 24 | 4 | what the range becomes: 1 the bytes that follow, 2 zeroes, 3 zeroes whose space is freed |
 * | 28 | 4 | reserved, zero |
 *
 * Of two records about the same byte the later one counts. The first record that fails its checksum, breaks the
 * sequence, or leaves the disk ends the log: a torn tail is cut, not fatal. A log may begin in the file of an earlier one:
 * what that has left behind the tail is not sound under this log's id.
 */
import assert from "node:assert/strict";
import { crc32 } from "node:zlib";
import { BUFFER_LOG_VERSION } from "./versions.ts";

const MAGIC = Buffer.from("COLOBUFL", "latin1");
export const BUFFER_LOG_HEADER_BYTES = 64;
export const BUFFER_RECORD_HEAD_BYTES = 32;
const CHECKSUM_BYTES = 4;
const TWO_TO_THE_32 = 2 ** 32;

export const BUFFER_RECORD_KINDS = { write: 1, zero: 2, discard: 3 } as const;
export type BufferRecordKind = keyof typeof BUFFER_RECORD_KINDS;

export interface BufferLogHeader {
  readonly diskSizeBytes: number;
  readonly epoch: number;
  /** Logs of one epoch follow each other: a later process, or session, begins the next one. */
  readonly ordinal: number;
  /** 16 random bytes: records of another log can never be taken for this one's. */
  readonly id: Buffer;
}

export interface BufferRecord {
  readonly kind: BufferRecordKind;
  readonly offset: number;
  readonly length: number;
}

export function encodeBufferLogHeader(header: BufferLogHeader): Buffer {
  assert.equal(header.id.length, 16);
  const bytes = Buffer.alloc(BUFFER_LOG_HEADER_BYTES);
  MAGIC.copy(bytes, 0);
  bytes.writeUInt32BE(BUFFER_LOG_VERSION, 8);
  bytes.writeUInt32BE(header.ordinal, 12);
  bytes.writeBigUInt64BE(BigInt(header.diskSizeBytes), 16);
  bytes.writeBigUInt64BE(BigInt(header.epoch), 24);
  header.id.copy(bytes, 32);
  bytes.writeUInt32BE(crc32(bytes.subarray(0, 60)), 60);
  return bytes;
}

/** undefined when the bytes are no whole header; a number: the version of the format, which this release does not know. */
export function decodeBufferLogHeader(bytes: Buffer): BufferLogHeader | number | undefined {
  if (bytes.length < BUFFER_LOG_HEADER_BYTES || !bytes.subarray(0, 8).equals(MAGIC)) return undefined;
  if (bytes.readUInt32BE(60) !== crc32(bytes.subarray(0, 60))) return undefined;
  const version = bytes.readUInt32BE(8);
  if (version !== BUFFER_LOG_VERSION) return version;
  return {
    ordinal: bytes.readUInt32BE(12),
    diskSizeBytes: Number(bytes.readBigUInt64BE(16)),
    epoch: Number(bytes.readBigUInt64BE(24)),
    id: Buffer.from(bytes.subarray(32, 48)),
  };
}

/** Where the checksum of every record of the log `id` starts from. */
export function bufferRecordSeed(id: Buffer): number {
  return crc32(id);
}

/** Writes the head of a record to the start of `target`, but for its checksum. */
export function encodeBufferRecordHead(target: Buffer, sequence: number, record: BufferRecord): void {
  target.writeUInt32BE(sequence, 4);
  target.writeUInt32BE(Math.floor(record.offset / TWO_TO_THE_32), 8);
  target.writeUInt32BE(record.offset % TWO_TO_THE_32, 12);
  target.writeUInt32BE(Math.floor(record.length / TWO_TO_THE_32), 16);
  target.writeUInt32BE(record.length % TWO_TO_THE_32, 20);
  target.writeUInt32BE(BUFFER_RECORD_KINDS[record.kind], 24);
  target.writeUInt32BE(0, 28);
}

/** Writes the checksum of the record that `pieces` are, one behind the other; the first one begins with its head. */
export function sealBufferRecord(pieces: readonly Buffer[], seed: number): void {
  const [first] = pieces;
  assert(first !== undefined);
  let checksum = crc32(first.subarray(CHECKSUM_BYTES), seed);
  for (let index = 1; index < pieces.length; index += 1) checksum = crc32(pieces[index] ?? first, checksum);
  first.writeUInt32BE(checksum, 0);
}

/** A head as it was read, whose checksum still has to be compared. */
export interface BufferRecordHead extends BufferRecord {
  readonly sequence: number;
  readonly payloadBytes: number;
  readonly checksum: number;
  /** The checksum of the head: that of the record goes on from there with the payload. */
  readonly headChecksum: number;
}

/** The head at the start of `bytes`; undefined where no whole head of a known kind begins. */
export function decodeBufferRecordHead(bytes: Buffer, seed: number): BufferRecordHead | undefined {
  if (bytes.length < BUFFER_RECORD_HEAD_BYTES) return undefined;
  const kindNumber = bytes.readUInt32BE(24);
  const kind = (Object.keys(BUFFER_RECORD_KINDS) as BufferRecordKind[]).find(
    (name) => BUFFER_RECORD_KINDS[name] === kindNumber,
  );
  if (kind === undefined) return undefined;
  const length = Number(bytes.readBigUInt64BE(16));
  return {
    kind,
    offset: Number(bytes.readBigUInt64BE(8)),
    length,
    sequence: bytes.readUInt32BE(4),
    payloadBytes: kind === "write" ? length : 0,
    checksum: bytes.readUInt32BE(0),
    headChecksum: crc32(bytes.subarray(4, BUFFER_RECORD_HEAD_BYTES), seed),
  };
}
