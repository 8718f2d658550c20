/**
 * The mark beside a shared disk (mode `shared`): whether the originals that a secondary holds still lead back to its
 * checkpoint, for both hosts to read. A file of two slots; a new mark goes to the slot that does not hold the newest one.
 *
 * Slot layout (big-endian; SLOT_BYTES each, slot = sequence mod 2):
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 8 | magic "COLOMARK" |
 * | 8 | 4 | version |
 * | 12 | 4 | state: 1 protected, 2 unprotected, 3 merging |
 * | 16 | 8 | sequence, from 1 |
 * | 24 | 32 | id of the agent that has written it, as text |
 * | 56 | 4 | CRC-32 of bytes 0–55 |
 * | 60 | … | reserved, zero |
 */
import assert from "node:assert/strict";
import { crc32 } from "node:zlib";
import { SHARED_MARK_VERSION } from "./versions.ts";
import { SHARED_MARK_STATES, type SharedMarkState } from "./words.ts";

const MAGIC = Buffer.from("COLOMARK", "latin1");
const AGENT_ID_BYTES = 32;
const AGENT_ID_OFFSET = 24;
const CRC_OFFSET = 56;
/** What every device writes as a whole, or in one piece that is torn, and is read past the page cache. */
const SLOT_BYTES = 4096;
export const SHARED_MARK_BYTES = 2 * SLOT_BYTES;

export interface SharedMarkRecord {
  readonly state: SharedMarkState;
  /** The agent that has written it. */
  readonly agentId: string;
  readonly sequence: number;
}

/** A mark as its slot, and where in the file that lies. */
export function encodeSharedMark(mark: SharedMarkRecord): { readonly slot: Buffer; readonly offset: number } {
  assert.equal(Buffer.byteLength(mark.agentId), AGENT_ID_BYTES);
  const slot = Buffer.alloc(SLOT_BYTES);
  MAGIC.copy(slot, 0);
  slot.writeUInt32BE(SHARED_MARK_VERSION, 8);
  slot.writeUInt32BE(SHARED_MARK_STATES.indexOf(mark.state) + 1, 12);
  slot.writeBigUInt64BE(BigInt(mark.sequence), 16);
  slot.write(mark.agentId, AGENT_ID_OFFSET, "latin1");
  slot.writeUInt32BE(crc32(slot.subarray(0, CRC_OFFSET)), CRC_OFFSET);
  return { slot, offset: (mark.sequence % 2) * SLOT_BYTES };
}

export type DecodedSharedMark =
  | { readonly kind: "mark"; readonly mark: SharedMarkRecord }
  /** It was never written. */
  | { readonly kind: "none" }
  /** No slot is sound, or one is of a later version: nothing may be concluded. */
  | { readonly kind: "unreadable" };

/** The newest sound mark of a file. One torn slot beside a sound one is what a crash in the middle of a write leaves. */
export function decodeSharedMark(file: Buffer): DecodedSharedMark {
  assert.equal(file.length, SHARED_MARK_BYTES);
  let newest: SharedMarkRecord | undefined;
  let isEmpty = true;
  for (const offset of [0, SLOT_BYTES]) {
    const slot = file.subarray(offset, offset + SLOT_BYTES);
    if (slot.every((byte) => byte === 0)) continue;
    isEmpty = false;
    const found = decodeSlot(slot);
    if (found === "newer") return { kind: "unreadable" };
    if (found !== undefined && found.sequence > (newest?.sequence ?? 0)) newest = found;
  }
  if (newest !== undefined) return { kind: "mark", mark: newest };
  return { kind: isEmpty ? "none" : "unreadable" };
}

function decodeSlot(slot: Buffer): SharedMarkRecord | "newer" | undefined {
  if (!slot.subarray(0, 8).equals(MAGIC)) return undefined;
  if (slot.readUInt32BE(CRC_OFFSET) !== crc32(slot.subarray(0, CRC_OFFSET))) return undefined;
  if (slot.readUInt32BE(8) > SHARED_MARK_VERSION) return "newer";
  const state = SHARED_MARK_STATES[slot.readUInt32BE(12) - 1];
  if (state === undefined) return "newer";
  const agentId = slot.toString("latin1", AGENT_ID_OFFSET, AGENT_ID_OFFSET + AGENT_ID_BYTES);
  return { state, agentId, sequence: Number(slot.readBigUInt64BE(16)) };
}
