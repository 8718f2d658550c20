import { crc32 } from "node:zlib";
import { describe, expect, it } from "vitest";
import {
  BUFFER_LOG_HEADER_BYTES,
  BUFFER_RECORD_HEAD_BYTES,
  bufferRecordSeed,
  decodeBufferLogHeader,
  decodeBufferRecordHead,
  encodeBufferLogHeader,
  encodeBufferRecordHead,
  sealBufferRecord,
  type BufferLogHeader,
  type BufferRecord,
} from "../../../proto/buffer-log-format.ts";
import { BUFFER_LOG_VERSION } from "../../../proto/versions.ts";
import { scanBufferLog } from "../../../secondary/buffer-log.ts";
import { goldenBytes } from "../../support/golden.ts";
import { MemoryStorage } from "../../support/memory-storage.ts";
import { pattern } from "../../support/overlay-bench.ts";
import { present } from "../../support/present.ts";

const ID = Buffer.from("000102030405060708090a0b0c0d0e0f", "hex");
const HEADER: BufferLogHeader = { diskSizeBytes: 2 ** 44, epoch: 2 ** 40 + 1, ordinal: 7, id: ID };
const RECORDS: readonly BufferRecord[] = [
  { kind: "write", offset: 2 ** 43 + 5, length: 6 },
  { kind: "zero", offset: 0, length: 2 ** 41 + 512 },
  { kind: "discard", offset: 4096, length: 8192 },
  { kind: "write", offset: 1, length: 1 },
];

function encode(): Buffer {
  const records = RECORDS.map((record, index) => {
    const payload = record.kind === "write" ? pattern(record.length, index) : Buffer.alloc(0);
    const head = Buffer.alloc(BUFFER_RECORD_HEAD_BYTES);
    encodeBufferRecordHead(head, index + 1, record);
    sealBufferRecord([head, payload], bufferRecordSeed(ID));
    return Buffer.concat([head, payload]);
  });
  return Buffer.concat([encodeBufferLogHeader(HEADER), ...records]);
}

function scan(bytes: Buffer): { readonly records: BufferRecord[]; readonly tailBytes: number } | undefined {
  const storage = new MemoryStorage();
  storage.disk.addDirectory("/logs");
  storage.disk.addFile("/logs/log", bytes.length, bytes);
  const records: BufferRecord[] = [];
  const scanned = scanBufferLog(
    storage.open("/logs/log", { kind: "buffer-log", create: "never" }),
    ({ kind, offset, length }) => records.push({ kind, offset, length }),
  );
  return scanned === undefined ? undefined : { records, tailBytes: scanned.tailBytes };
}

describe("the log of a block buffer", () => {
  it("reads back what was written, and sums a record up in one piece as in two", () => {
    const bytes = encode();
    expect(decodeBufferLogHeader(bytes)).toEqual(HEADER);
    expect(scan(bytes)).toEqual({ records: RECORDS, tailBytes: bytes.length });
    const whole = Buffer.from(bytes.subarray(BUFFER_LOG_HEADER_BYTES, BUFFER_LOG_HEADER_BYTES + 38));
    const checksum = whole.readUInt32BE(0);
    sealBufferRecord([whole], bufferRecordSeed(ID));
    expect(whole.readUInt32BE(0)).toBe(checksum);
  });

  it("ends with the last sound record, wherever it is cut or whichever byte is flipped", () => {
    const bytes = encode();
    for (let at = 0; at < bytes.length; at += 1) {
      const cut = scan(Buffer.from(bytes.subarray(0, at)));
      expect(cut === undefined).toBe(at < BUFFER_LOG_HEADER_BYTES);
      expect(RECORDS.slice(0, cut?.records.length ?? 0)).toEqual(cut?.records ?? []);
      const flipped = Buffer.from(bytes);
      flipped[at] = (flipped[at] ?? 0) ^ 0x40;
      const found = scan(flipped);
      expect(found?.tailBytes ?? 0).toBeLessThanOrEqual(at);
      expect(found?.records ?? []).toEqual(RECORDS.slice(0, found?.records.length ?? 0));
    }
  });

  it("of a later version is refused", () => {
    const bytes = encode();
    bytes.writeUInt32BE(BUFFER_LOG_VERSION + 1, 8);
    bytes.writeUInt32BE(crc32(bytes.subarray(0, 60)), 60);
    expect(decodeBufferLogHeader(bytes)).toBe(BUFFER_LOG_VERSION + 1);
    expect(() => scan(bytes)).toThrow(
      expect.objectContaining({ code: "state-corrupt", message: expect.stringContaining("later version") }) as Error,
    );
  });

  it("takes no records of another log", () => {
    const head = encode().subarray(BUFFER_LOG_HEADER_BYTES);
    const own = present(decodeBufferRecordHead(head, bufferRecordSeed(ID)));
    const other = present(decodeBufferRecordHead(head, bufferRecordSeed(Buffer.alloc(16))));
    expect(own.headChecksum).not.toBe(other.headChecksum);
  });

  it("opens what version 1 has written", () => {
    const golden = goldenBytes("buffer-log-1.txt", new Map([["log", encode()]]));
    expect(scan(present(golden.get("log")))?.records).toEqual(RECORDS);
    expect(golden.get("log")).toEqual(encode());
  });
});
