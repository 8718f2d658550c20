/**
 * The file of one VM state: what a hypervisor has handed over as the memory and the devices of a VM, for one checkpoint.
 * A head, then chunks; each chunk has a head of its own.
 *
 * Head (big-endian, VMSTATE_HEAD_BYTES):
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 8 | magic "COLOVMST" |
 * | 8 | 4 | version |
 * | 12 | 4 | reserved, zero |
 * | 16 | 8 | epoch |
 * | 24 | 4 | CRC-32 of bytes 0–23 |
 * | 28 | 4 | reserved, zero |
 *
 * Head of a chunk (VMSTATE_CHUNK_HEAD_BYTES), followed by its bytes:
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 4 | length, 1 to VMSTATE_CHUNK_BYTES |
 * | 4 | 4 | CRC-32 of the bytes |
 *
 * The state record names the number of chunks, that of their bytes, and the CRC-32 of all their heads one after the other:
 * a file that is cut, put together from others, or another checkpoint's is told by that.
 */
import { crc32 } from "node:zlib";
import { VMSTATE_CHUNK_BYTES } from "./limits.ts";
import type { VmStateMark } from "./state-record.ts";
import { VMSTATE_VERSION } from "./versions.ts";

const MAGIC = Buffer.from("COLOVMST", "latin1");
const CRC_OFFSET = 24;
export const VMSTATE_HEAD_BYTES = 32;
export const VMSTATE_CHUNK_HEAD_BYTES = 8;

export function encodeVmStateHead(epoch: number): Buffer {
  const head = Buffer.alloc(VMSTATE_HEAD_BYTES);
  MAGIC.copy(head, 0);
  head.writeUInt32BE(VMSTATE_VERSION, 8);
  head.writeBigUInt64BE(BigInt(epoch), 16);
  head.writeUInt32BE(crc32(head.subarray(0, CRC_OFFSET)), CRC_OFFSET);
  return head;
}

/** The epoch that a head names; undefined when it is none that this release knows. */
export function tryDecodeVmStateHead(head: Buffer): number | undefined {
  if (head.length < VMSTATE_HEAD_BYTES || !head.subarray(0, 8).equals(MAGIC)) return undefined;
  if (head.readUInt32BE(CRC_OFFSET) !== crc32(head.subarray(0, CRC_OFFSET))) return undefined;
  if (head.readUInt32BE(8) !== VMSTATE_VERSION) return undefined;
  return Number(head.readBigUInt64BE(16));
}

export function encodeVmStateChunkHead(length: number, crc: number): Buffer {
  const head = Buffer.allocUnsafe(VMSTATE_CHUNK_HEAD_BYTES);
  head.writeUInt32BE(length, 0);
  head.writeUInt32BE(crc, 4);
  return head;
}

/** Length and CRC-32 of the chunk behind the head; undefined when no chunk can be so long. */
export function tryDecodeVmStateChunkHead(head: Buffer): { readonly length: number; readonly crc: number } | undefined {
  const length = head.readUInt32BE(0);
  if (length === 0 || length > VMSTATE_CHUNK_BYTES) return undefined;
  return { length, crc: head.readUInt32BE(4) };
}

/** What is to be known of a state in the end, counted chunk by chunk: both ends of a session come to the same. */
export class VmStateCount {
  #chunks = 0;
  #bytes = 0;
  #checksum = 0;

  get chunks(): number {
    return this.#chunks;
  }

  get mark(): VmStateMark {
    return { chunks: this.#chunks, bytes: this.#bytes, checksum: this.#checksum };
  }

  /** `head` is that of the next chunk. */
  add(head: Buffer, length: number): void {
    this.#chunks += 1;
    this.#bytes += length;
    this.#checksum = crc32(head, this.#checksum);
  }
}

export function areSameStates(left: VmStateMark, right: VmStateMark): boolean {
  return left.chunks === right.chunks && left.bytes === right.bytes && left.checksum === right.checksum;
}
