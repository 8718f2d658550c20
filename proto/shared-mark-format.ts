/**
 * The mark beside shared disks (mode `shared`): which agents hold originals that lead from the disks back to their
 * checkpoints, for all hosts to read. A file of two slots for the mark; a new one goes to the slot that does not hold the
 * newest one. Behind them lies a slot for the claim of each agent that may be promoted.
 *
 * Slot of a mark (big-endian; SLOT_BYTES each, slot = sequence mod 2):
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 8 | magic "COLOMARK" |
 * | 8 | 4 | version |
 * | 12 | 4 | state: 1 protected, 2 unprotected, 3 merging |
 * | 16 | 8 | sequence, from 1 |
 * | 24 | 32 | id of the agent that has written it, as text |
 * | 56 | 4 | how many agents the mark names: those whose checkpoints stand; 0 unless it says protected |
 * | 60 | 128 | their ids, 32 bytes each, and behind them those of others that may claim the disk; the rest zero |
 * | 188 | 4 | CRC-32 of bytes 0–187 |
 * | 192 | … | reserved, zero |
 *
 * Slot of a claim: that of the agent whose id comes first in the mark is slot 2, and so on; whose id is not there takes the last.
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 8 | magic "COLOCLAI" |
 * | 8 | 4 | version |
 * | 12 | 4 | 1 claimed, 2 withdrawn |
 * | 16 | 8 | sequence of the mark that it is about; 0: there was none |
 * | 24 | 32 | id of the agent, as text |
 * | 56 | 4 | CRC-32 of bytes 0–55 |
 * | 60 | … | reserved, zero |
 */
import assert from "node:assert/strict";
import { crc32 } from "node:zlib";
import { SECONDARIES_MAX } from "./limits.ts";
import { SHARED_MARK_VERSION } from "./versions.ts";
import { SHARED_MARK_STATES, type SharedMarkState } from "./words.ts";

const MARK_MAGIC = Buffer.from("COLOMARK", "latin1");
const CLAIM_MAGIC = Buffer.from("COLOCLAI", "latin1");
const AGENT_ID_BYTES = 32;
const AGENT_ID_OFFSET = 24;
const HOLDER_COUNT_OFFSET = 56;
const HOLDERS_OFFSET = 60;
const MARK_CRC_OFFSET = HOLDERS_OFFSET + SECONDARIES_MAX * AGENT_ID_BYTES;
const CLAIM_CRC_OFFSET = 56;
/** What every device writes as a whole, or in one piece that is torn, and is read past the page cache. */
const SLOT_BYTES = 4096;
const MARK_SLOTS = 2;
const CLAIM_SLOTS = SECONDARIES_MAX + 1;
/** The slots of the mark, and behind them those of the claims. */
export const SHARED_MARK_BYTES = MARK_SLOTS * SLOT_BYTES;
export const MARK_CLAIMS_BYTES = CLAIM_SLOTS * SLOT_BYTES;
export const SHARED_MARK_FILE_BYTES = SHARED_MARK_BYTES + MARK_CLAIMS_BYTES;

export interface SharedMarkRecord {
  readonly state: SharedMarkState;
  /** The agent that has written it. */
  readonly agentId: string;
  readonly sequence: number;
  /** The agents whose checkpoints stand. */
  readonly holders: readonly string[];
  /** Others that have a slot for a claim; at most SECONDARIES_MAX together with the holders. */
  readonly others: readonly string[];
}

/** That an agent is about to be promoted. */
export interface MarkClaim {
  readonly agentId: string;
  /** Of the mark that it has read; 0: there was none. A claim about an older one means nothing. */
  readonly sequence: number;
  readonly isWithdrawn: boolean;
}

/** Bytes, and where in the file they lie. */
interface Placed {
  readonly slot: Buffer;
  readonly offset: number;
}

/** A mark as its slot. */
export function encodeSharedMark(mark: SharedMarkRecord): Placed {
  const listed = [...mark.holders, ...mark.others];
  assert(listed.length <= SECONDARIES_MAX, "a primary has so many secondaries at most");
  const slot = beginSlot(MARK_MAGIC, SHARED_MARK_STATES.indexOf(mark.state) + 1, mark);
  slot.writeUInt32BE(mark.holders.length, HOLDER_COUNT_OFFSET);
  for (const [index, agentId] of listed.entries()) {
    assert.equal(Buffer.byteLength(agentId), AGENT_ID_BYTES);
    slot.write(agentId, HOLDERS_OFFSET + index * AGENT_ID_BYTES, "latin1");
  }
  slot.writeUInt32BE(crc32(slot.subarray(0, MARK_CRC_OFFSET)), MARK_CRC_OFFSET);
  return { slot, offset: (mark.sequence % MARK_SLOTS) * SLOT_BYTES };
}

/** A claim as its slot, which the mark that it is about gives its agent. */
export function encodeMarkClaim(claim: MarkClaim, mark: SharedMarkRecord | undefined): Placed {
  const slot = beginSlot(CLAIM_MAGIC, claim.isWithdrawn ? 2 : 1, claim);
  slot.writeUInt32BE(crc32(slot.subarray(0, CLAIM_CRC_OFFSET)), CLAIM_CRC_OFFSET);
  const index = mark === undefined ? -1 : [...mark.holders, ...mark.others].indexOf(claim.agentId);
  return { slot, offset: (MARK_SLOTS + (index === -1 ? SECONDARIES_MAX : index)) * SLOT_BYTES };
}

function beginSlot(
  magic: Buffer,
  word: number,
  { agentId, sequence }: Pick<MarkClaim, "agentId" | "sequence">,
): Buffer {
  assert.equal(Buffer.byteLength(agentId), AGENT_ID_BYTES);
  const slot = Buffer.alloc(SLOT_BYTES);
  magic.copy(slot, 0);
  slot.writeUInt32BE(SHARED_MARK_VERSION, 8);
  slot.writeUInt32BE(word, 12);
  slot.writeBigUInt64BE(BigInt(sequence), 16);
  slot.write(agentId, AGENT_ID_OFFSET, "latin1");
  return slot;
}

export type DecodedSharedMark =
  | { readonly kind: "mark"; readonly mark: SharedMarkRecord }
  /** It was never written. */
  | { readonly kind: "none" }
  /** No slot is sound, or one is of a later version: nothing may be concluded. */
  | { readonly kind: "unreadable" };

/** The newest sound mark of its two slots. One torn slot beside a sound one is what a crash in the middle of a write leaves. */
export function decodeSharedMark(slots: Buffer): DecodedSharedMark {
  assert.equal(slots.length, SHARED_MARK_BYTES);
  let newest: SharedMarkRecord | undefined;
  let isEmpty = true;
  for (const slot of inSlots(slots)) {
    if (slot.every((byte) => byte === 0)) continue;
    isEmpty = false;
    const found = decodeSlot(slot);
    if (found === "newer") return { kind: "unreadable" };
    if (found !== undefined && found.sequence > (newest?.sequence ?? 0)) newest = found;
  }
  if (newest !== undefined) return { kind: "mark", mark: newest };
  return { kind: isEmpty ? "none" : "unreadable" };
}

/** The claims that are made, and not withdrawn. One that is torn has promised nothing. */
export function decodeMarkClaims(slots: Buffer): readonly MarkClaim[] {
  assert.equal(slots.length, MARK_CLAIMS_BYTES);
  return inSlots(slots).flatMap((slot) => {
    if (!isSound(slot, CLAIM_MAGIC, CLAIM_CRC_OFFSET) || slot.readUInt32BE(12) !== 1) return [];
    return { agentId: readAgentId(slot, AGENT_ID_OFFSET), sequence: readSequence(slot), isWithdrawn: false };
  });
}

function inSlots(bytes: Buffer): Buffer[] {
  return Array.from({ length: bytes.length / SLOT_BYTES }, (_, index) =>
    bytes.subarray(index * SLOT_BYTES, (index + 1) * SLOT_BYTES),
  );
}

function decodeSlot(slot: Buffer): SharedMarkRecord | "newer" | undefined {
  if (!isSound(slot, MARK_MAGIC, MARK_CRC_OFFSET)) return undefined;
  if (slot.readUInt32BE(8) > SHARED_MARK_VERSION) return "newer";
  const state = SHARED_MARK_STATES[slot.readUInt32BE(12) - 1];
  const count = slot.readUInt32BE(HOLDER_COUNT_OFFSET);
  if (state === undefined || count > SECONDARIES_MAX) return "newer";
  const listed = Array.from({ length: SECONDARIES_MAX }, (_, index) =>
    readAgentId(slot, HOLDERS_OFFSET + index * AGENT_ID_BYTES),
  );
  const others = listed.slice(count).filter((agentId) => !agentId.startsWith("\0"));
  const agentId = readAgentId(slot, AGENT_ID_OFFSET);
  return { state, agentId, sequence: readSequence(slot), holders: listed.slice(0, count), others };
}

function isSound(slot: Buffer, magic: Buffer, crcOffset: number): boolean {
  return slot.subarray(0, 8).equals(magic) && slot.readUInt32BE(crcOffset) === crc32(slot.subarray(0, crcOffset));
}

function readAgentId(slot: Buffer, offset: number): string {
  return slot.toString("latin1", offset, offset + AGENT_ID_BYTES);
}

function readSequence(slot: Buffer): number {
  return Number(slot.readBigUInt64BE(16));
}
