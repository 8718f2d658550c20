/**
 * The cluster journal: an append-only file that names clusters which an overlay holds, or no longer holds. A hidden
 * disk's generation, an active disk and a merge each have one; so has the dirty bitmap of a disk, which names the
 * clusters that a peer may lack, or no longer lacks.
 *
 * Header (big-endian, 64 bytes):
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 8 | magic "COLOJRNL" |
 * | 8 | 4 | version |
 * | 12 | 4 | kind: 1 generation, 2 active disk, 3 merge, 4 dirty bitmap |
 * | 16 | 8 | disk size in bytes |
 * | 24 | 4 | cluster size in bytes |
 * | 28 | 4 | reserved, zero |
 * | 32 | 8 | epoch: of the generation; of a dirty bitmap the number of its file; for the other kinds the committed one that they lie on |
 * | 40 | 16 | random id of this journal |
 * | 56 | 4 | reserved, zero |
 * | 60 | 4 | CRC-32 of bytes 0–59 |
 *
 * Then frames, each a 16-byte head and `count` entries of 16 bytes:
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 4 | CRC-32 of the rest of the frame, started from the CRC-32 of the journal's id |
 * | 4 | 4 | sequence: 1, 2, 3 … without a gap |
 * | 8 | 4 | type: 1 entries, 2 sync mark, 3 void |
 * | 12 | 4 | count of entries; in a sync mark, the sequence of the last frame that it covers; in a void, 0 |
 *
 * | offset | size | entry field |
 * |---|---|---|
 * | 0 | 4 | first cluster index |
 * | 4 | 4 | number of clusters |
 * | 8 | 4 | mask of 32nds of the cluster, bit 0 the first; all ones for whole clusters |
 * | 12 | 4 | operation: 1 held (dirty), 2 no longer held (clean) |
 *
 * A sync mark says that the data of all entries up to the covered frame was fsynced. A void says that entries which no
 * sync mark before it covers do not count: recovery after a loss of power writes it. The first sync mark of a dirty
 * bitmap says that the file is whole: before it, the file with the next lower number counts.
 *
 * The first frame that fails its checksum, or breaks the sequence, ends the journal: a torn tail is cut, not fatal.
 */
import assert from "node:assert/strict";
import { crc32 } from "node:zlib";
import { CLUSTER_JOURNAL_VERSION } from "./versions.ts";

const MAGIC = Buffer.from("COLOJRNL", "latin1");
export const JOURNAL_HEADER_BYTES = 64;
export const JOURNAL_FRAME_HEAD_BYTES = 16;
export const JOURNAL_ENTRY_BYTES = 16;
/** Entries in one frame at most, so that a reader needs no large buffer. */
export const JOURNAL_FRAME_MAX_ENTRIES = 4096;

export const JOURNAL_KINDS = { generation: 1, active: 2, merge: 3, dirty: 4 } as const;
export type JournalKind = keyof typeof JOURNAL_KINDS;

export const JOURNAL_OPERATIONS = { held: 1, released: 2 } as const;
export type JournalOperation = keyof typeof JOURNAL_OPERATIONS;

export const WHOLE_CLUSTER_MASK = 0xffff_ffff;

export interface JournalHeader {
  readonly kind: JournalKind;
  readonly diskSizeBytes: number;
  readonly clusterBytes: number;
  readonly epoch: number;
  /** 16 random bytes: frames of another journal can never be taken for this one's. */
  readonly id: Buffer;
}

export interface JournalEntry {
  readonly firstCluster: number;
  readonly clusterCount: number;
  readonly mask: number;
  readonly operation: JournalOperation;
}

export type JournalFrame =
  | { readonly type: "entries"; readonly entries: readonly JournalEntry[] }
  | { readonly type: "sync-mark"; readonly coveredSequence: number }
  | { readonly type: "void" };

const FRAME_TYPES = { "entries": 1, "sync-mark": 2, "void": 3 } as const;

export function encodeJournalHeader(header: JournalHeader): Buffer {
  assert.equal(header.id.length, 16);
  const bytes = Buffer.alloc(JOURNAL_HEADER_BYTES);
  MAGIC.copy(bytes, 0);
  bytes.writeUInt32BE(CLUSTER_JOURNAL_VERSION, 8);
  bytes.writeUInt32BE(JOURNAL_KINDS[header.kind], 12);
  bytes.writeBigUInt64BE(BigInt(header.diskSizeBytes), 16);
  bytes.writeUInt32BE(header.clusterBytes, 24);
  bytes.writeBigUInt64BE(BigInt(header.epoch), 32);
  header.id.copy(bytes, 40);
  bytes.writeUInt32BE(crc32(bytes.subarray(0, 60)), 60);
  return bytes;
}

/** undefined when the bytes are no whole header; a number: the version of the format, of which, or of whose kind, this release knows nothing. */
export function decodeJournalHeader(bytes: Buffer): JournalHeader | number | undefined {
  if (bytes.length < JOURNAL_HEADER_BYTES || !bytes.subarray(0, 8).equals(MAGIC)) return undefined;
  if (bytes.readUInt32BE(60) !== crc32(bytes.subarray(0, 60))) return undefined;
  const version = bytes.readUInt32BE(8);
  if (version !== CLUSTER_JOURNAL_VERSION) return version;
  const kindNumber = bytes.readUInt32BE(12);
  const kind = (Object.keys(JOURNAL_KINDS) as JournalKind[]).find((name) => JOURNAL_KINDS[name] === kindNumber);
  if (kind === undefined) return version;
  return {
    kind,
    diskSizeBytes: Number(bytes.readBigUInt64BE(16)),
    clusterBytes: bytes.readUInt32BE(24),
    epoch: Number(bytes.readBigUInt64BE(32)),
    id: Buffer.from(bytes.subarray(40, 56)),
  };
}

/** Where the checksum of every frame of the journal `id` starts from. */
export function journalFrameSeed(id: Buffer): number {
  return crc32(id);
}

/** Writes one frame to the start of `target` and returns its length in bytes. */
export function encodeJournalFrame(target: Buffer, seed: number, sequence: number, frame: JournalFrame): number {
  const entries = frame.type === "entries" ? frame.entries : [];
  assert(entries.length <= JOURNAL_FRAME_MAX_ENTRIES);
  const length = JOURNAL_FRAME_HEAD_BYTES + entries.length * JOURNAL_ENTRY_BYTES;
  target.writeUInt32BE(sequence, 4);
  target.writeUInt32BE(FRAME_TYPES[frame.type], 8);
  target.writeUInt32BE(frame.type === "sync-mark" ? frame.coveredSequence : entries.length, 12);
  let at = JOURNAL_FRAME_HEAD_BYTES;
  for (const entry of entries) {
    target.writeUInt32BE(entry.firstCluster, at);
    target.writeUInt32BE(entry.clusterCount, at + 4);
    target.writeUInt32BE(entry.mask, at + 8);
    target.writeUInt32BE(JOURNAL_OPERATIONS[entry.operation], at + 12);
    at += JOURNAL_ENTRY_BYTES;
  }
  target.writeUInt32BE(crc32(target.subarray(4, length), seed), 0);
  return length;
}

/**
 * The frame at the start of `bytes` and its length, or undefined where no whole, sound frame with that sequence begins.
 */
export function decodeJournalFrame(
  bytes: Buffer,
  seed: number,
  sequence: number,
): { readonly frame: JournalFrame; readonly length: number } | undefined {
  if (bytes.length < JOURNAL_FRAME_HEAD_BYTES || bytes.readUInt32BE(4) !== sequence) return undefined;
  const type = bytes.readUInt32BE(8);
  const coveredSequence = bytes.readUInt32BE(12);
  const count = type === FRAME_TYPES.entries ? coveredSequence : 0;
  const length = JOURNAL_FRAME_HEAD_BYTES + count * JOURNAL_ENTRY_BYTES;
  if (count > JOURNAL_FRAME_MAX_ENTRIES || length > bytes.length) return undefined;
  if (bytes.readUInt32BE(0) !== crc32(bytes.subarray(4, length), seed)) return undefined;
  if (type === FRAME_TYPES["sync-mark"]) return { frame: { type: "sync-mark", coveredSequence }, length };
  if (type === FRAME_TYPES.void) return { frame: { type: "void" }, length };
  if (type !== FRAME_TYPES.entries) return undefined;
  const entries: JournalEntry[] = [];
  for (let at = JOURNAL_FRAME_HEAD_BYTES; at < length; at += JOURNAL_ENTRY_BYTES) {
    const operation = bytes.readUInt32BE(at + 12) === JOURNAL_OPERATIONS.held ? "held" : "released";
    entries.push({
      firstCluster: bytes.readUInt32BE(at),
      clusterCount: bytes.readUInt32BE(at + 4),
      mask: bytes.readUInt32BE(at + 8),
      operation,
    });
  }
  return { frame: { type: "entries", entries }, length };
}
