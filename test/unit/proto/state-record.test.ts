import { crc32 } from "node:zlib";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DISKS_MAX, PREPARED_EPOCHS_MAX, STATE_SLOT_BYTES } from "../../../proto/limits.ts";
import { decodeStateSlot, encodeStateSlot, stateRecordSchema, type StateRecord } from "../../../proto/state-record.ts";
import { STATE_RECORD_VERSION } from "../../../proto/versions.ts";
import { MODES } from "../../../proto/words.ts";
import { goldenBytes } from "../../support/golden.ts";
import { stateRecord } from "../../support/state-records.ts";

const FULL = stateRecord({
  role: "Primary",
  durability: "power",
  lineage: "f".repeat(32),
  peers: ["ws://127.0.0.1:1", "ws://[::1]:2"],
  disks: [
    { name: "vda", image: "/a b/ü.img", sizeBytes: 2 ** 44, cleanMark: "1.2.3" },
    { name: "vdb", image: "/new.img", sizeBytes: null, cleanMark: null },
  ],
  epochReserved: 2 ** 40,
  committed: { epoch: 41, atMs: 1_700_000_000_000.5 },
  prepared: [{ epoch: 42, atMs: 1_700_000_000_001 }],
  merge: { epoch: 41, activeEpoch: 41 },
  history: { origin: "promotion", shared: true, ancestors: ["c".repeat(32)], heard: ["d".repeat(32)] },
  pairing: { peer: "e".repeat(32), sessions: ["5".repeat(32)] },
  tracks: "e".repeat(32),
});

const epoch = fc.nat({ max: Number.MAX_SAFE_INTEGER });
const at = fc.record({ epoch, atMs: fc.double({ min: 0, max: 2e12, noNaN: true }) });
const isPaused = fc.boolean();
const speed = fc.oneof(fc.nat(), fc.constant("dynamic" as const));
const settings = fc.oneof(fc.record({ isPaused }), fc.record({ isPaused, speed }));
const records: fc.Arbitrary<StateRecord> = fc
  .record({
    vm: fc.string({ maxLength: 40 }),
    mode: fc.constantFrom(...MODES),
    lineage: fc.option(fc.string({ maxLength: 32 })),
    peers: fc.array(fc.string(), { maxLength: 3 }),
    disks: fc.array(
      fc.record({
        name: fc.string(),
        image: fc.string(),
        sizeBytes: fc.option(fc.integer({ min: 1 })),
        cleanMark: fc.option(fc.string()),
      }),
      { maxLength: 4 },
    ),
    epochReserved: epoch,
    committed: at,
    prepared: fc.array(at, { maxLength: 5 }),
    merge: fc.oneof(
      fc.constant(null),
      fc.record({ epoch, activeEpoch: epoch }),
      fc.record({ epoch, activeEpoch: epoch, settings }),
    ),
    syncs: fc.array(fc.record({ slot: fc.nat(), isPaused, speed }), { maxLength: 2 }),
    pairing: fc.option(fc.record({ peer: fc.string(), sessions: fc.array(fc.string(), { maxLength: 2 }) })),
    tracks: fc.option(fc.string()),
    outdated: fc.boolean(),
    handOver: fc.option(fc.string()),
  })
  .map(stateRecord);

describe("a slot of the state record", () => {
  it("brings any record, and its sequence, back as it was", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }), records, (sequence, record) => {
        const slot = encodeStateSlot(sequence, record);
        const encodedBytes = slot.length;
        expect(decodeStateSlot(slot)).toEqual({ kind: "valid", sequence, record, encodedBytes });
      }),
    );
  });

  it("of version 1 still opens", () => {
    const trimmed = (slot: Buffer): Buffer => slot.subarray(0, 64 + slot.readUInt32BE(12));
    const golden = goldenBytes(
      "state-record-1.txt",
      new Map([
        ["full", trimmed(encodeStateSlot(7, FULL))],
        ["new", trimmed(encodeStateSlot(1, stateRecord()))],
      ]),
    );
    for (const [name, sequence, record] of [
      ["full", 7, FULL],
      ["new", 1, stateRecord()],
    ] as const) {
      const slot = Buffer.alloc(STATE_SLOT_BYTES);
      expect(golden.get(name)?.copy(slot)).toBeGreaterThan(64);
      // A field that came later has a default: what version 1 wrote is all there.
      expect(decodeStateSlot(slot)).toMatchObject({ kind: "valid", sequence, record });
    }
  });

  it.each([
    ["that is still recorded", 5, 5, 5],
    ["that is still recorded, and whose active disks were discarded", 5, 9, 5],
    ["of a peer that has none", 0, 5, 5],
    ["that the peer has committed since", 8, 5, 5],
    ["that there was none of", 0, 0, 0],
  ])("of before a merge was said to lie on a checkpoint names the one %s", (_, committed, activeEpoch, expected) => {
    const before = { activeEpoch } as StateRecord["merge"];
    const slot = encodeStateSlot(1, stateRecord({ committed: { epoch: committed, atMs: 0 }, merge: before }));
    expect(decodeStateSlot(slot)).toMatchObject({ record: { merge: { epoch: expected, activeEpoch } } });
  });

  it("never shows another record than the one that was written, whichever byte is flipped", () => {
    const slot = encodeStateSlot(3, FULL);
    const used = 64 + slot.readUInt32BE(12);
    for (let offset = 0; offset < used + 4; offset += 1) {
      for (const mask of [0x01, 0x80, 0xff]) {
        const damaged = Buffer.from(slot);
        damaged[offset] = (damaged[offset] ?? 0) ^ mask;
        const decoded = decodeStateSlot(damaged);
        const whole = { kind: "valid", sequence: 3, record: FULL, encodedBytes: slot.length };
        expect(decoded).toEqual(decoded.kind === "valid" ? whole : { kind: "torn" });
      }
    }
  });

  it("that ends anywhere before its end is torn", () => {
    const slot = encodeStateSlot(3, FULL);
    const used = 64 + slot.readUInt32BE(12);
    for (let length = 1; length < used; length += 1) {
      const torn = Buffer.alloc(STATE_SLOT_BYTES);
      slot.copy(torn, 0, 0, length);
      expect(decodeStateSlot(torn).kind).toBe("torn");
    }
  });

  it("that was never written is empty, and one of a later version is told apart", () => {
    expect(decodeStateSlot(Buffer.alloc(STATE_SLOT_BYTES))).toEqual({ kind: "empty" });
    const later = encodeStateSlot(3, FULL);
    later.writeUInt32BE(STATE_RECORD_VERSION + 1, 8);
    later.writeUInt32BE(crc32(later.subarray(0, 28)), 28);
    expect(decodeStateSlot(later)).toEqual({ kind: "newer", version: STATE_RECORD_VERSION + 1 });
  });

  it("has room for the largest record that the limits allow", () => {
    const record = stateRecord({
      disks: Array.from({ length: DISKS_MAX }, (_, index) => ({
        name: `${index}`.padEnd(128, "n"),
        image: `/${"i".repeat(255)}`,
        sizeBytes: 2 ** 52,
        cleanMark: "m".repeat(64),
      })),
      prepared: Array.from({ length: PREPARED_EPOCHS_MAX }, (_, index) => ({
        epoch: 2 ** 52 + index,
        atMs: 1.5e12 + 0.1,
      })),
    });
    expect(decodeStateSlot(encodeStateSlot(1, record)).kind).toBe("valid");
  });

  it("takes no record that the schema refuses", () => {
    expect(stateRecordSchema.safeParse({ ...FULL, role: "Tertiary" }).success).toBe(false);
    expect(stateRecordSchema.safeParse({ ...FULL, epochReserved: -1 }).success).toBe(false);
  });
});
