import assert from "node:assert/strict";
import { Packr } from "msgpackr";
import { describe, expect, it } from "vitest";
import { ColobusError, ERRORS } from "../../../proto/errors.ts";
import {
  BATCH_MAX_OPERATIONS,
  CONTENT_MAX_BYTES,
  EPOCH_MAX,
  HANDSHAKE_MESSAGE_MAX_BYTES,
} from "../../../proto/limits.ts";
import {
  decodeMessage,
  encodeContent,
  encodeData,
  encodeMessage,
  encodeVmState,
  fromErrorBody,
  numberMessage,
  numberOf,
  OPERATION_KINDS,
  toErrorBody,
  type ContentMessage,
  type DataMessage,
  type Message,
  type MessageType,
  type VmStateMessage,
} from "../../../proto/replication-messages.ts";
import { goldenBytes } from "../../support/golden.ts";
import { primaryHello, someGreeting } from "../../support/hellos.ts";

const error = { code: "overlay-full", message: "no room", action: "make some" };

/** One message of each type; a new type does not compile until it has one. */
const EXAMPLES: {
  readonly [Type in Exclude<MessageType, "data" | "vmstate" | "content">]: Extract<Message, { type: Type }>;
} = {
  "greeting": { type: "greeting", ...someGreeting({ hasToken: true }) },
  "proof": { type: "proof", mac: Buffer.alloc(32, 7) },
  "hello": { type: "hello", ...primaryHello({ prepared: [3, 4], tracks: "b".repeat(32) }) },
  "seal": { type: "seal", mac: Buffer.alloc(32, 8) },
  "begin": {
    type: "begin",
    session: "5".repeat(32),
    extent: "delta",
    lineage: "1".repeat(32),
    openEpoch: 5,
    diskSizes: [1_048_576, 2 ** 44],
  },
  "differs": { type: "differs", disk: 1, runs: [0, 1, 70_000, 4096] },
  "ready": { type: "ready", differs: 0 },
  "united": { type: "united" },
  "sync": { type: "sync", phase: "begin", totalBytes: 2 ** 40, lineage: "1".repeat(32), ancestors: ["0".repeat(32)] },
  "lineage": { type: "lineage", id: 7, lineage: "1".repeat(32), ancestors: ["0".repeat(32)] },
  "told": { type: "told", id: 8, epoch: 5 },
  "barrier": { type: "barrier", id: 1, epoch: 5, commit: false },
  "vmstate-end": { type: "vmstate-end", id: 5, epoch: 5, chunks: 2, bytes: 300_000, checksum: 12 },
  "vmstate-ack": { type: "vmstate-ack", epoch: 5, chunks: 1, error },
  "commit": { type: "commit", id: 2, epoch: 5 },
  "discard": { type: "discard", id: 3, epochs: [6, 7] },
  "takeover": { type: "takeover", id: 4, lineage: "2".repeat(32) },
  "resize": { type: "resize", id: 5, disk: 1, sizeBytes: 2 ** 44 },
  "verify": { type: "verify", active: true },
  "checksum": { type: "checksum", id: 6, disk: 1, offset: 2 ** 43, length: 1_048_576 },
  "read": { type: "read", id: 9, disk: 1, offset: 2 ** 43, length: 262_144 },
  "answer": { type: "answer", id: 3, error, tookMs: 0.5 },
  "ack": { type: "ack", received: 900, stable: 800 },
  "stall": { type: "stall", error },
  "unstall": { type: "unstall" },
  "wanted": { type: "wanted", freeableBytes: 49_152, limitBytes: 65_536 },
  "given-up": { type: "given-up", throughEpoch: 7 },
  "ping": { type: "ping" },
  "refuse": { type: "refuse", error },
};

const DATA: DataMessage = {
  type: "data",
  firstSequence: 12,
  operations: [
    { kind: "write", disk: 0, offset: 4096, length: 3, payload: Buffer.from("abc") },
    { kind: "discard", disk: 1, offset: 2 ** 43, length: 2 ** 33, payload: Buffer.alloc(0) },
    { kind: "zero", disk: 0, offset: 0, length: 512, payload: Buffer.alloc(0) },
    { kind: "write", disk: 1, offset: 1, length: 2, payload: Buffer.from("de") },
  ],
};

function encoded(message: Message): Buffer {
  if (message.type === "vmstate") return Buffer.concat(encodeVmState(message));
  if (message.type === "content") return Buffer.concat(encodeContent(message));
  if (message.type !== "data") return Buffer.concat(encodeMessage(message));
  const ranges = message.operations.flatMap((operation) => [
    OPERATION_KINDS[operation.kind],
    operation.disk,
    operation.offset,
    operation.length,
  ]);
  return Buffer.concat(
    encodeData(
      message.firstSequence,
      ranges,
      message.operations.map(({ payload }) => payload),
    ),
  );
}

/** Any header, and payload, as a message. */
function raw(header: unknown, payload: Buffer = Buffer.alloc(0)): Buffer {
  const body = new Packr({ useRecords: false }).pack(header);
  const head = Buffer.alloc(8);
  head.writeUInt32BE(body.length, 0);
  return Buffer.concat([head, body, payload]);
}

const VMSTATE: VmStateMessage = { type: "vmstate", epoch: 5, index: 0, crc: 891_568_578, payload: Buffer.from("abc") };

const CONTENT: ContentMessage = { type: "content", id: 9, payload: Buffer.from("abc") };

const ALL: readonly Message[] = [...Object.values(EXAMPLES), DATA, VMSTATE, CONTENT];

describe("the replication messages", () => {
  it.each(ALL)("bring $type back as it was", (message) => {
    expect(decodeMessage(encoded(message))).toEqual(message);
  });

  it("of version 1 still open", () => {
    const golden = goldenBytes(
      "replication-protocol-1.txt",
      new Map(ALL.map((message) => [message.type, encoded(message)])),
    );
    expect([...golden.keys()].sort()).toEqual(ALL.map(({ type }) => type).sort());
    for (const message of ALL) expect(decodeMessage(golden.get(message.type) ?? Buffer.alloc(0))).toEqual(message);
  });

  it.each(ALL)("take their number without another change: $type", (message) => {
    const parts = [encoded(message)];
    expect(numberOf(parts[0] ?? Buffer.alloc(0))).toBe(0);
    numberMessage(parts, 0xffff_fffe);
    const [bytes = Buffer.alloc(0)] = parts;
    expect(numberOf(bytes)).toBe(0xffff_fffe);
    expect(bytes.toString("hex", 4, 8)).toBe("fffffffe");
    expect(decodeMessage(bytes)).toEqual(message);
  });

  it("are cut payload by payload, without a copy", () => {
    const bytes = encoded(DATA);
    const message = decodeMessage(bytes);
    assert(message.type === "data");
    expect(message.operations.map(({ payload }) => payload.toString())).toEqual(["abc", "", "", "de"]);
    expect(message.operations[0]?.payload.buffer).toBe(bytes.buffer);
  });

  it.each([
    ["as long as a record could not keep", "1".repeat(65)],
    ["with what ends a variable of the environment", "1\0"],
    ["with a line break", "1\n"],
    ["with what is no plain letter", "ü"],
  ])("with an id %s are refused", (_, id) => {
    const { sync, hello } = EXAMPLES;
    for (const message of [
      { ...sync, ancestors: [id] },
      { ...sync, lineage: id },
      { ...hello, agentId: id },
      { ...hello, pairing: { peer: id, sessions: [] } },
    ]) {
      expect(() => decodeMessage(raw(message))).toThrow(expect.objectContaining({ code: "protocol-error" }));
    }
  });

  it.each(ALL)("that are cut short anywhere are refused: $type", (message) => {
    const bytes = encoded(message);
    for (let length = 0; length < bytes.length; length += 1) {
      expect(() => decodeMessage(bytes.subarray(0, length))).toThrow(ColobusError);
    }
    expect(() => decodeMessage(Buffer.concat([bytes, Buffer.alloc(1)]))).toThrow(ColobusError);
  });
});

describe("a message that is not of the protocol", () => {
  const write = (ranges: unknown, firstSequence: unknown = 1): Buffer =>
    raw({ type: "data", firstSequence, ranges }, Buffer.from("abc"));
  const noString = { toString: 1, valueOf: 1 };

  it.each([
    ["an unknown type", raw({ type: "haxx" })],
    ["no type", raw({})],
    ["a type of Object's own", raw({ type: "hasOwnProperty" })],
    ["a type that is no text", raw({ type: ["ping"] })],
    ["no map", raw([1, 2])],
    ["nothing", raw(null)],
    ["a header longer than itself", Buffer.from([0, 0, 1, 0, 0, 0, 0, 0, 0x80])],
    ["a payload where none belongs", raw({ type: "ping" }, Buffer.from("x"))],
    ["a field that is missing", raw({ type: "ack", received: 1 })],
    ["a negative number", raw({ type: "ack", received: -1, stable: 0 })],
    ["a fraction", raw({ type: "ack", received: 1.5, stable: 0 })],
    ["a number that is not exact", raw({ type: "ack", received: 2 ** 60, stable: 0 })],
    ["an epoch that leaves none for later", raw({ ...EXAMPLES.hello, epochSeen: EPOCH_MAX + 1 })],
    ["a barrier of such an epoch", raw({ ...EXAMPLES.barrier, epoch: Number.MAX_SAFE_INTEGER })],
    [
      "a header that is mostly something else",
      raw({ type: "data", firstSequence: 1, ranges: [0, 0, 0, 3], x: "x".repeat(100) }, Buffer.from("abc")),
    ],
    [
      "such a header of a chunk",
      raw({ ...VMSTATE, payload: undefined, length: 3, x: "x".repeat(100) }, VMSTATE.payload),
    ],
    ["content of another length", raw({ type: "content", id: 9, length: 4 }, CONTENT.payload)],
    ["no content", raw({ type: "content", id: 9, length: 0 })],
    ["content of nothing that was asked for", raw({ type: "content", id: 0, length: 3 }, CONTENT.payload)],
    [
      "content with a header that is too long",
      raw({ type: "content", id: 9, length: 3, x: "x".repeat(100) }, CONTENT.payload),
    ],
    [
      "more content than may be asked for",
      raw({ type: "content", id: 9, length: CONTENT_MAX_BYTES + 1 }, Buffer.alloc(CONTENT_MAX_BYTES + 1)),
    ],
    ["a question for as much", raw({ ...EXAMPLES.read, length: CONTENT_MAX_BYTES + 1 })],
    ["a question for nothing", raw({ ...EXAMPLES.read, length: 0 })],
    ["no ranges", write([])],
    ["ranges that are no list", write("0000")],
    ["ranges that are cut", write([0, 0, 0])],
    ["a payload that is too short", write([0, 0, 0, 4])],
    ["a payload that is too long", write([0, 0, 0, 2])],
    ["an operation of no bytes", write([0, 0, 0, 0, 0, 0, 0, 3])],
    ["a sequence of zero", write([0, 0, 0, 3], 0)],
    ["an unknown operation", write([9, 0, 0, 3])],
    ["an operation named by text", write(["0", 0, 0, 3])],
    ["an operation named by a property of lists", write(["length", 0, 0, 3, 0, 0, 0, 3])],
    ["an operation that cannot be made a text", write([noString, 0, 0, 3])],
    ["a protocol that cannot be made a text", raw({ ...EXAMPLES.greeting, protocol: noString })],
    ["a release that cannot be made a text", raw({ ...EXAMPLES.greeting, protocol: 99, agentVersion: noString })],
    ["a nonce of another length", raw({ ...EXAMPLES.greeting, nonce: Buffer.alloc(15) })],
    [
      "more disks than are allowed",
      raw({ ...EXAMPLES.hello, disks: Array.from({ length: 65 }, () => ({ name: "x", sizeBytes: 1 })) }),
    ],
    ["a MAC that is too long", raw({ type: "proof", mac: Buffer.alloc(33) })],
    ["a MAC that is too short", raw({ type: "seal", mac: Buffer.alloc(31) })],
    ["nesting without end", Buffer.concat([Buffer.from([0, 0, 0xea, 0x60, 0, 0, 0, 0]), Buffer.alloc(60_000, 0x91)])],
  ])("is refused with an error of the table: %s", (_, bytes) => {
    expect(() => decodeMessage(bytes)).toThrow(ColobusError);
  });

  it("of another protocol version is told apart, with both versions", () => {
    expect(() => decodeMessage(raw({ ...EXAMPLES.greeting, protocol: 2 }))).toThrow(
      expect.objectContaining({
        code: "protocol-mismatch",
        message: expect.stringMatching(/protocol 2, this agent speaks 1/) as string,
      }) as Error,
    );
  });

  it.each([
    [{ protocol: 2, protocolOldest: 1 }, undefined],
    [{ protocol: 7, protocolOldest: 1, ofLater: { field: 1 } }, undefined],
    [{ protocol: 3, protocolOldest: 2 }, /protocol 2 to 3, .* speaks 1$/],
    [{ protocol: 2, protocolOldest: "1" }, /protocol 1 to 2, .* speaks 1$/],
  ])("is a greeting of a release that speaks no version which this one does: %o", (versions, refusal) => {
    const decode = (): unknown => decodeMessage(raw({ ...EXAMPLES.greeting, ...versions }));
    if (refusal === undefined) expect(decode()).toMatchObject({ type: "greeting", protocol: versions.protocol });
    else expect(decode).toThrow(expect.objectContaining({ message: expect.stringMatching(refusal) }) as Error);
  });

  it("is explained in few words, however much is wrong with it", () => {
    let caught: unknown;
    try {
      decodeMessage(raw({ ...EXAMPLES.hello, prepared: Array(20_000).fill("x") }));
    } catch (thrown) {
      caught = thrown;
    }
    expect(caught).toBeInstanceOf(ColobusError);
    expect(String(caught).length).toBeLessThan(1000);
  });

  it("is none for the numbers of as many operations as there may be, however large those are", () => {
    const largest = Number.MAX_SAFE_INTEGER;
    for (const count of [1, BATCH_MAX_OPERATIONS]) {
      const operations = Array.from({ length: count }, () => [OPERATION_KINDS.discard, 63, largest, largest]);
      const message = decodeMessage(raw({ type: "data", firstSequence: largest, ranges: operations.flat() }));
      expect(message).toMatchObject({ type: "data", firstSequence: largest });
    }
    const { type, epoch, index, crc } = { ...VMSTATE, epoch: largest, index: largest, crc: 0xffff_ffff };
    expect(decodeMessage(raw({ type, epoch, index, crc, length: 3 }, VMSTATE.payload))).toMatchObject({ type });
  });

  it("cannot hold more operations than any release sends", () => {
    const ranges = Array.from({ length: 4 * 100_000 }, (_, index) => (index % 4 === 3 ? 1 : 1));
    expect(() => decodeMessage(raw({ type: "data", firstSequence: 1, ranges }))).toThrow(ColobusError);
  });
});

describe("a fault in a message", () => {
  it("keeps its code, message and action", () => {
    const fault = new ColobusError("overlay-full", "no room", "make some");
    expect(fromErrorBody(toErrorBody(fault)).toJSON()).toEqual(fault.toJSON());
  });

  it("of a later release becomes a protocol error with the same words", () => {
    expect(fromErrorBody({ code: "from-the-future", message: "m", action: "a" }).toJSON()).toEqual({
      code: "protocol-error",
      message: "m",
      action: "a",
    });
    expect(fromErrorBody({ code: "toString", message: "m", action: "a" }).code).toBe("protocol-error");
  });

  it("always fits its message, however long its sentence is", () => {
    const fault = new ColobusError("disk-mismatch", "x".repeat(100_000), "é".repeat(100_000));
    const bytes = Buffer.concat(encodeMessage({ type: "refuse", error: toErrorBody(fault) }));
    expect(bytes.length).toBeLessThan(HANDSHAKE_MESSAGE_MAX_BYTES);
    const message = decodeMessage(bytes);
    assert(message.type === "refuse");
    expect(fromErrorBody(message.error)).toMatchObject({
      code: "disk-mismatch",
      message: expect.stringMatching(/^x{100}/) as string,
    });
  });

  it("cannot move the cursor of the terminal that shows it", () => {
    const { message, action } = fromErrorBody({ code: "io-error", message: "a\u001B[2Jb\nc", action: "\u009B1m" });
    expect(message + action).not.toMatch(/\p{Cc}/u);
  });

  it("has a WebSocket close code of its own", () => {
    const codes = Object.values(ERRORS).map(({ close }) => close);
    expect(new Set(codes).size).toBe(codes.length);
  });
});
