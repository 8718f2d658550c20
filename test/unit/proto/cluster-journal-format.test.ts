import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  decodeJournalFrame,
  decodeJournalHeader,
  encodeJournalFrame,
  encodeJournalHeader,
  JOURNAL_ENTRY_BYTES,
  JOURNAL_FRAME_HEAD_BYTES,
  JOURNAL_HEADER_BYTES,
  journalFrameSeed,
  type JournalEntry,
  type JournalFrame,
  type JournalHeader,
  type JournalKind,
} from "../../../proto/cluster-journal-format.ts";
import { goldenBytes } from "../../support/golden.ts";
import { present } from "../../support/present.ts";

const ID = Buffer.from("000102030405060708090a0b0c0d0e0f", "hex");
const SEED = journalFrameSeed(ID);
const HEADER: JournalHeader = {
  kind: "active",
  diskSizeBytes: 2 ** 44,
  clusterBytes: 65_536,
  epoch: 2 ** 40 + 1,
  id: ID,
};

const FRAMES: readonly JournalFrame[] = [
  {
    type: "entries",
    entries: [
      { firstCluster: 0, clusterCount: 1, mask: 0x8000_0001, operation: "held" },
      { firstCluster: 0xffff_fffe, clusterCount: 1, mask: 0xffff_ffff, operation: "held" },
    ],
  },
  { type: "sync-mark", coveredSequence: 1 },
  { type: "entries", entries: [{ firstCluster: 7, clusterCount: 90_000, mask: 0xffff_ffff, operation: "released" }] },
  { type: "void" },
];

function encodeAll(frames: readonly JournalFrame[]): Buffer {
  const parts = frames.map((frame, index) => {
    const target = Buffer.alloc(1 << 17);
    return target.subarray(0, encodeJournalFrame(target, SEED, index + 1, frame));
  });
  return Buffer.concat(parts);
}

function decodeAll(bytes: Buffer): JournalFrame[] {
  const frames: JournalFrame[] = [];
  for (let at = 0; ;) {
    const decoded = decodeJournalFrame(bytes.subarray(at), SEED, frames.length + 1);
    if (decoded === undefined) return frames;
    frames.push(decoded.frame);
    at += decoded.length;
  }
}

const word = fc.integer({ min: 0, max: 0xffff_ffff });
const entry: fc.Arbitrary<JournalEntry> = fc.record({
  firstCluster: word,
  clusterCount: word,
  mask: word,
  operation: fc.constantFrom("held", "released"),
});
const frame: fc.Arbitrary<JournalFrame> = fc.oneof(
  fc.record({ type: fc.constant("entries" as const), entries: fc.array(entry, { maxLength: 20 }) }),
  fc.record({ type: fc.constant("sync-mark" as const), coveredSequence: word }),
  fc.constant({ type: "void" as const }),
);

describe("a cluster journal's bytes", () => {
  it("bring any header back as it was", () => {
    fc.assert(
      fc.property(
        fc.record({
          kind: fc.constantFrom<JournalKind>("generation", "active", "merge"),
          diskSizeBytes: fc.nat({ max: Number.MAX_SAFE_INTEGER }),
          clusterBytes: word,
          epoch: fc.nat({ max: Number.MAX_SAFE_INTEGER }),
          id: fc.uint8Array({ minLength: 16, maxLength: 16 }).map((bytes) => Buffer.from(bytes)),
        }),
        (header) => {
          expect(decodeJournalHeader(encodeJournalHeader(header))).toEqual(header);
        },
      ),
    );
  });

  it("bring any frames back as they were", () => {
    fc.assert(
      fc.property(fc.array(frame, { maxLength: 8 }), (frames) => {
        expect(decodeAll(encodeAll(frames))).toEqual(frames);
      }),
    );
  });

  it("of version 1 still open", () => {
    const golden = present(
      goldenBytes(
        "cluster-journal-1.txt",
        new Map([["active", Buffer.concat([encodeJournalHeader(HEADER), encodeAll(FRAMES)])]]),
      ).get("active"),
    );
    expect(decodeJournalHeader(golden)).toEqual(HEADER);
    expect(decodeAll(golden.subarray(JOURNAL_HEADER_BYTES))).toEqual(FRAMES);
  });

  it("have the sizes that the format's tables say", () => {
    expect(encodeJournalHeader(HEADER)).toHaveLength(JOURNAL_HEADER_BYTES);
    expect(encodeAll(FRAMES)).toHaveLength(4 * JOURNAL_FRAME_HEAD_BYTES + 3 * JOURNAL_ENTRY_BYTES);
  });

  it("show a prefix of what was written, whichever bit is flipped or wherever they end", () => {
    const bytes = encodeAll(FRAMES);
    const isPrefix = (frames: readonly JournalFrame[]): void => expect(frames).toEqual(FRAMES.slice(0, frames.length));
    for (let offset = 0; offset < bytes.length; offset += 1) {
      for (let bit = 0; bit < 8; bit += 1) {
        const damaged = Buffer.from(bytes);
        damaged[offset] = (damaged[offset] ?? 0) ^ (1 << bit);
        const frames = decodeAll(damaged);
        isPrefix(frames);
        expect(frames.length).toBeLessThan(FRAMES.length);
      }
      isPrefix(decodeAll(bytes.subarray(0, offset)));
    }
  });

  it("of another journal, or out of turn, are no frames of this one", () => {
    const bytes = encodeAll(FRAMES);
    expect(decodeJournalFrame(bytes, journalFrameSeed(Buffer.alloc(16, 9)), 1)).toBeUndefined();
    expect(decodeJournalFrame(bytes, SEED, 2)).toBeUndefined();
    expect(decodeJournalFrame(Buffer.alloc(64), SEED, 0)).toBeUndefined();
  });

  it("are no header when any bit of it is flipped", () => {
    const bytes = encodeJournalHeader(HEADER);
    for (let bit = 0; bit < 8 * bytes.length; bit += 1) {
      const damaged = Buffer.from(bytes);
      damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      expect(decodeJournalHeader(damaged)).toBeUndefined();
    }
  });
});
