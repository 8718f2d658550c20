import { describe, expect, it } from "vitest";
import {
  decodeRequest,
  emptyRequestHeader,
  encodeExportNameReply,
  encodeInfoBlockSize,
  encodeOptionReply,
  encodeRequest,
  encodeServerEntry,
  OPTION_REPLY,
  putChunkHeader,
  putSimpleReply,
  readUint64,
  writeUint64,
} from "../../../proto/nbd-protocol.ts";

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(" ", ""), "hex");

describe("requests", () => {
  const bytes = hex("25609513 0001 0006 0123456789abcdef 0000000200001000 00010000");
  const header = {
    flags: 1,
    type: 6,
    cookieHigh: 0x01234567,
    cookieLow: 0x89abcdef,
    offset: 2 * 2 ** 32 + 4096,
    length: 65536,
  };

  it("decode from any position", () => {
    const into = emptyRequestHeader();
    expect(decodeRequest(Buffer.concat([Buffer.alloc(3, 0xff), bytes]), 3, into)).toBe(true);
    expect(into).toEqual(header);
  });

  it("encode to the same bytes", () => {
    expect(encodeRequest(header)).toEqual(bytes);
  });

  it("are recognized by their magic only", () => {
    const into = emptyRequestHeader();
    expect(decodeRequest(hex("25609514").fill(0, 4), 0, into)).toBe(false);
    expect(into).toEqual(emptyRequestHeader());
  });
});

describe("64-bit numbers", () => {
  it.each([0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1])("%d survives", (value) => {
    const buffer = Buffer.alloc(8);
    writeUint64(buffer, 0, value);
    expect(buffer.readBigUInt64BE()).toBe(BigInt(value));
    expect(readUint64(buffer, 0)).toBe(value);
  });

  it.each([2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 512n, 2n ** 64n - 1n])("%d stays beyond every disk", (value) => {
    const buffer = Buffer.alloc(8);
    buffer.writeBigUInt64BE(value);
    expect(readUint64(buffer, 0)).toBeGreaterThan(Number.MAX_SAFE_INTEGER);
  });
});

describe("replies", () => {
  it("simple", () => {
    const buffer = Buffer.alloc(18, 0xee);
    putSimpleReply(buffer, 1, 28, 0x01234567, 0x89abcdef);
    expect(buffer).toEqual(hex("ee 67446698 0000001c 0123456789abcdef ee"));
  });

  it("chunk header", () => {
    const buffer = Buffer.alloc(22, 0xee);
    putChunkHeader(buffer, 1, 1, 0x8001, 0x01234567, 0x89abcdef, 6);
    expect(buffer).toEqual(hex("ee 668e33ef 0001 8001 0123456789abcdef 00000006 ee"));
  });

  it("to options", () => {
    expect(encodeOptionReply(7, OPTION_REPLY.ERR_UNKNOWN, Buffer.from("no"))).toEqual(
      hex("0003e889045565a9 00000007 80000006 00000002 6e6f"),
    );
    expect(encodeOptionReply(3, OPTION_REPLY.SERVER, encodeServerEntry("vda", "d"))).toEqual(
      hex("0003e889045565a9 00000003 00000002 00000008 00000003 766461 64"),
    );
    expect(encodeInfoBlockSize(1, 4096, 2 ** 25)).toEqual(hex("0003 00000001 00001000 02000000"));
    expect(encodeExportNameReply(2 ** 33, 0xd6d, true)).toEqual(hex("0000000200000000 0d6d"));
    expect(encodeExportNameReply(2 ** 33, 0xd6d, false)).toEqual(
      Buffer.concat([hex("0000000200000000 0d6d"), Buffer.alloc(124)]),
    );
  });
});
