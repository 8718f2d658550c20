import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import {
  NBD_HANDSHAKE_TIMEOUT_MS,
  NBD_MAX_NAME_BYTES,
  NBD_MAX_OPTIONS_PER_CONNECTION,
  NBD_MAX_OPTION_BYTES,
  NBD_MAX_SKIPPED_OPTION_BYTES,
} from "../../../../proto/limits.ts";
import { COMMAND, GREETING_BYTES, INFO, OPTION, OPTION_REPLY } from "../../../../proto/nbd-protocol.ts";
import { MemoryDevice } from "../../../support/memory-device.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../../support/nbd-harness.ts";
import {
  clientFlags,
  decodeAnswers,
  decodeOptionAnswers,
  infoData,
  metaData,
  negotiation,
  option,
  request,
  splitAfterNegotiation,
  u16,
  u32,
} from "../../../support/nbd-client.ts";

const SIZE = 1024 * 1024;
/** What qemu-nbd offers for a writable image. */
const FLAGS_WRITABLE = 0xd6d;
const FLAG_READ_ONLY = 0x2;
const FLAG_DF = 0x80;

function start(): { harness: NbdHarness; directory: TestDirectory } {
  const directory = new TestDirectory(
    new TestExport("vda", new MemoryDevice(SIZE), "system disk"),
    new TestExport("vdb", new MemoryDevice(2 * SIZE)),
  );
  return { harness: new NbdHarness(directory), directory };
}

/** The server's answers to options that are sent after `flags`, each of its chunks apart. */
function answersTo(...options: Buffer[]): { type: number; text: string; option: number; data: Buffer }[] {
  const { harness } = start();
  harness.send(clientFlags(), ...options);
  return answersOf(harness);
}

function answersOf(harness: NbdHarness): { type: number; text: string; option: number; data: Buffer }[] {
  const { answers } = splitAfterNegotiation(harness.takeOutput());
  return answers.map(({ option, type, data }) => ({ option, type, data, text: data.toString("latin1") }));
}

const STRUCTURED = option(OPTION.STRUCTURED_REPLY);
const exportInfo = (size: number, flags: number): Buffer => {
  const buffer = Buffer.alloc(12);
  buffer.writeBigUInt64BE(BigInt(size), 2);
  buffer.writeUInt16BE(flags, 10);
  return buffer;
};

describe("greeting", () => {
  it("is sent before the client says anything, and offers exactly fixed newstyle and no zeroes", () => {
    const { harness } = start();
    harness.endTurn();
    expect(harness.takeOutput().toString("hex")).toBe("4e42444d4147494349484156454f50540003");
  });

  it.each([0, 1, 2, 3])("accepts client flags %d", (flags) => {
    const { harness } = start();
    harness.send(clientFlags(flags), option(OPTION.LIST));
    expect(answersOf(harness).at(-1)?.type).toBe(OPTION_REPLY.ACK);
  });

  it.each([4, 5, 0x80000000, 0xffffffff])("ends the connection at unknown client flags %d", (flags) => {
    const { harness } = start();
    harness.send(clientFlags(flags));
    expect(harness.hasEnded).toBe(true);
    expect(harness.takeOutput().length).toBe(GREETING_BYTES);
  });
});

describe("option framing", () => {
  it("ends the connection at a wrong option magic", () => {
    const { harness } = start();
    const bad = option(OPTION.LIST);
    bad[0] = 0;
    harness.send(clientFlags(), bad);
    expect(harness.hasEnded).toBe(true);
  });

  it.each([
    ["unknown", 4711],
    ["PEEK_EXPORT", OPTION.PEEK_EXPORT],
    ["STARTTLS", OPTION.STARTTLS],
    ["EXTENDED_HEADERS", OPTION.EXTENDED_HEADERS],
  ])("answers %s ERR_UNSUP with a message, skips its data and stays in step", (_, code) => {
    const answers = answersTo(option(code, "some data"), option(OPTION.LIST));
    expect(answers[0]).toMatchObject({ option: code, type: OPTION_REPLY.ERR_UNSUP });
    expect(answers[0]?.text).not.toBe("");
    expect(answers.at(-1)).toMatchObject({ option: OPTION.LIST, type: OPTION_REPLY.ACK });
  });

  it.each([
    ["LIST", OPTION.LIST, OPTION_REPLY.ERR_TOO_BIG],
    ["INFO", OPTION.INFO, OPTION_REPLY.ERR_TOO_BIG],
    ["GO", OPTION.GO, OPTION_REPLY.ERR_TOO_BIG],
    ["STRUCTURED_REPLY", OPTION.STRUCTURED_REPLY, OPTION_REPLY.ERR_TOO_BIG],
    ["LIST_META_CONTEXT", OPTION.LIST_META_CONTEXT, OPTION_REPLY.ERR_TOO_BIG],
    ["SET_META_CONTEXT", OPTION.SET_META_CONTEXT, OPTION_REPLY.ERR_TOO_BIG],
    ["an unknown option", 4711, OPTION_REPLY.ERR_UNSUP],
  ])("skips data over the limit of %s and stays in step", (_, code, type) => {
    const answers = answersTo(option(code, Buffer.alloc(NBD_MAX_OPTION_BYTES + 1)), option(OPTION.LIST));
    expect(answers[0]).toMatchObject({ option: code, type });
    expect(answers.at(-1)?.type).toBe(OPTION_REPLY.ACK);
  });

  it("ends the connection at data of absurd length, without waiting for it", () => {
    const { harness } = start();
    harness.send(clientFlags(), option(4711).subarray(0, 12), u32(NBD_MAX_SKIPPED_OPTION_BYTES + 1));
    expect(harness.hasEnded).toBe(true);
  });

  it("answers a thousand options, and ends the connection at an absurd number", () => {
    const { harness } = start();
    harness.send(
      clientFlags(),
      Buffer.concat(Array.from({ length: NBD_MAX_OPTIONS_PER_CONNECTION }, () => STRUCTURED)),
    );
    expect(answersOf(harness)).toHaveLength(NBD_MAX_OPTIONS_PER_CONNECTION);
    expect(harness.hasEnded).toBe(false);
    harness.send(STRUCTURED);
    expect(harness.hasEnded).toBe(true);
  });

  it("takes a whole session a byte at a time", () => {
    const session = Buffer.concat([negotiation("vdb", { structured: true, allocation: true })]);
    const { harness } = start();
    for (const byte of session) harness.send(Buffer.from([byte]));
    const { harness: whole } = start();
    whole.send(session);
    expect(harness.takeOutput()).toEqual(whole.takeOutput());
    expect(harness.connection.isTransmitting).toBe(true);
  });
});

describe("EXPORT_NAME", () => {
  it("answers size, flags and 124 zeroes, and enters the transmission phase", () => {
    const { harness, directory } = start();
    harness.send(clientFlags(1), option(OPTION.EXPORT_NAME, "vdb"));
    const reply = harness.takeOutput().subarray(GREETING_BYTES);
    expect(reply).toEqual(Buffer.concat([exportInfo(2 * SIZE, FLAGS_WRITABLE).subarray(2), Buffer.alloc(124)]));
    expect(directory.openNames).toEqual(["vdb"]);
  });

  it("leaves the zeroes out when the client declined them", () => {
    const { harness } = start();
    harness.send(clientFlags(3), option(OPTION.EXPORT_NAME, "vdb"));
    expect(harness.takeOutput().length).toBe(GREETING_BYTES + 10);
  });

  it("opens the first export for the empty name", () => {
    const { harness, directory } = start();
    harness.send(clientFlags(), option(OPTION.EXPORT_NAME, ""));
    expect(directory.openNames).toEqual(["vda"]);
  });

  it("makes reads structured when structured replies were negotiated before", () => {
    const { harness } = start();
    harness.send(clientFlags(), STRUCTURED, option(OPTION.EXPORT_NAME, "vda"));
    const { rest } = splitAfterNegotiation(harness.takeOutput());
    expect(rest.readUInt16BE(8)).toBe(FLAGS_WRITABLE | FLAG_DF);
    harness.send(request({ type: COMMAND.READ, cookie: 1, offset: 0, length: 512 }));
    expect(decodeAnswers(harness.takeOutput(), () => 0)[0]).toMatchObject({ isStructured: true, error: 0, chunks: 1 });
  });

  it.each([
    ["an unknown name", Buffer.from("nonesuch")],
    ["a name that is too long", Buffer.alloc(NBD_MAX_NAME_BYTES + 1, "a")],
    ["a name beyond the option limit", Buffer.alloc(NBD_MAX_OPTION_BYTES + 1, "a")],
    ["a name that is not UTF-8", Buffer.from([0xff, 0xfe])],
    ["a name with NUL", Buffer.from("vda\0")],
  ])("closes with nothing sent at %s", (_, name) => {
    const { harness, directory } = start();
    harness.send(clientFlags(), option(OPTION.EXPORT_NAME, name));
    expect(harness.hasEnded).toBe(true);
    expect(harness.takeOutput().length).toBe(GREETING_BYTES);
    expect(directory.openNames).toEqual([]);
  });
});

describe("ABORT", () => {
  it.each([
    ["without data", option(OPTION.ABORT)],
    ["with data", option(OPTION.ABORT, "why")],
    ["with more data than the limit", option(OPTION.ABORT, Buffer.alloc(NBD_MAX_OPTION_BYTES + 1))],
  ])("%s is acknowledged and ends the connection", (_, abort) => {
    const { harness } = start();
    harness.send(clientFlags(), abort, option(OPTION.LIST));
    expect(answersOf(harness)).toMatchObject([{ option: OPTION.ABORT, type: OPTION_REPLY.ACK }]);
    expect(harness.hasEnded).toBe(true);
  });

  it("survives a client that leaves without reading", () => {
    const { harness } = start();
    harness.clientDrains = false;
    harness.send(clientFlags(), option(OPTION.ABORT));
    harness.disconnect();
    expect(harness.isGone).toBe(true);
    expect(harness.log.errors).toEqual([]);
  });
});

describe("LIST", () => {
  it("names every export with its description", () => {
    const entry = (name: string, description: string): string =>
      u32(name.length).toString("latin1") + name + description;
    expect(answersTo(option(OPTION.LIST)).map(({ type, text }) => ({ type, text }))).toEqual([
      { type: OPTION_REPLY.SERVER, text: entry("vda", "system disk") },
      { type: OPTION_REPLY.SERVER, text: entry("vdb", "") },
      { type: OPTION_REPLY.ACK, text: "" },
    ]);
  });

  it("refuses data", () => {
    expect(answersTo(option(OPTION.LIST, "x"))).toMatchObject([{ type: OPTION_REPLY.ERR_INVALID }]);
  });
});

describe.each([
  ["INFO", OPTION.INFO],
  ["GO", OPTION.GO],
])("%s", (_, code) => {
  it("tells size and flags, and acknowledges", () => {
    expect(answersTo(option(code, infoData("vdb")))).toMatchObject([
      { option: code, type: OPTION_REPLY.INFO, data: exportInfo(2 * SIZE, FLAGS_WRITABLE) },
      { option: code, type: OPTION_REPLY.ACK, data: Buffer.alloc(0) },
    ]);
  });

  it("adds the information asked for once each, and ignores unknown types", () => {
    const wanted = [INFO.BLOCK_SIZE, 99, INFO.NAME, INFO.DESCRIPTION, INFO.NAME, INFO.EXPORT];
    expect(answersTo(option(code, infoData("", wanted))).map(({ data }) => data)).toEqual([
      exportInfo(SIZE, FLAGS_WRITABLE),
      Buffer.concat([u16(INFO.NAME), Buffer.from("vda")]),
      Buffer.concat([u16(INFO.DESCRIPTION), Buffer.from("system disk")]),
      Buffer.concat([u16(INFO.BLOCK_SIZE), u32(1), u32(4096), u32(32 * 1024 * 1024)]),
      Buffer.alloc(0),
    ]);
  });

  it("answers ERR_UNKNOWN for an unknown export, and the negotiation goes on", () => {
    const answers = answersTo(option(code, infoData("nonesuch")), option(code, infoData("vda")));
    expect(answers[0]).toMatchObject({ type: OPTION_REPLY.ERR_UNKNOWN });
    expect(answers[0]?.text).toContain("nonesuch");
    expect(answers.at(-1)?.type).toBe(OPTION_REPLY.ACK);
  });

  it.each([
    ["no data", Buffer.alloc(0)],
    ["less than the fixed part", Buffer.alloc(5)],
    ["a name longer than the data", Buffer.concat([u32(4), Buffer.from("vda"), u16(0)])],
    ["a name length that would wrap", Buffer.concat([u32(0xffffffff), Buffer.from("vda"), u16(0)])],
    ["fewer types than announced", Buffer.concat([u32(3), Buffer.from("vda"), u16(2), u16(0)])],
    ["more bytes than announced", Buffer.concat([infoData("vda", [0]), Buffer.from([0])])],
    ["a name that is too long", infoData("a".repeat(NBD_MAX_NAME_BYTES + 1))],
    ["a name that is not UTF-8", Buffer.concat([u32(1), Buffer.from([0xff]), u16(0)])],
    ["a name with NUL", infoData("v\0a")],
  ])("answers ERR_INVALID to %s and stays in step", (_case, data) => {
    const answers = answersTo(option(code, data), option(OPTION.LIST));
    expect(answers[0]).toMatchObject({ option: code, type: OPTION_REPLY.ERR_INVALID });
    expect(answers.at(-1)).toMatchObject({ option: OPTION.LIST, type: OPTION_REPLY.ACK });
  });

  it("offers no writing for a read-only export, and DF with structured replies", () => {
    const { harness, directory } = start();
    const readOnly = new TestExport("vdc", new MemoryDevice(SIZE));
    readOnly.readOnly = true;
    directory.exports.push(readOnly);
    harness.send(clientFlags(), STRUCTURED, option(code, infoData("vdc")));
    const flags = answersOf(harness)[1]?.data.readUInt16BE(10);
    expect(flags).toBe((FLAGS_WRITABLE & ~(0x20 | 0x40 | 0x800)) | FLAG_READ_ONLY | FLAG_DF);
  });
});

describe("GO and INFO together", () => {
  it("GO after INFO with the same parameters gives the same information", () => {
    const data = infoData("vda", [INFO.NAME, INFO.BLOCK_SIZE]);
    const answers = answersTo(option(OPTION.INFO, data), option(OPTION.GO, data)).map(({ data }) => data);
    expect(answers.slice(0, 4)).toEqual(answers.slice(4));
  });

  it("INFO does not open the export, GO does", () => {
    const { harness, directory } = start();
    harness.send(clientFlags(), option(OPTION.INFO, infoData("vda")));
    expect(directory.openNames).toEqual([]);
    harness.send(option(OPTION.GO, infoData("vda")));
    expect(directory.openNames).toEqual(["vda"]);
  });

  it("an export that cannot be opened is refused with the reason, and another can be tried", () => {
    const { harness, directory } = start();
    directory.refusal = new ColobusError("no-checkpoint", "nothing was committed yet");
    harness.send(clientFlags(), option(OPTION.GO, infoData("vda")));
    expect(answersOf(harness)).toMatchObject([{ type: OPTION_REPLY.ERR_PLATFORM, text: "nothing was committed yet" }]);
    directory.refusal = undefined;
    harness.send(option(OPTION.GO, infoData("vdb")));
    expect(directory.openNames).toEqual(["vdb"]);
  });
});

describe("STRUCTURED_REPLY", () => {
  it("is acknowledged, also the second time", () => {
    expect(answersTo(STRUCTURED, STRUCTURED).map(({ type }) => type)).toEqual([OPTION_REPLY.ACK, OPTION_REPLY.ACK]);
  });

  it("refuses data, and is then not negotiated", () => {
    const answers = answersTo(option(OPTION.STRUCTURED_REPLY, "x"), option(OPTION.INFO, infoData("vda")));
    expect(answers[0]).toMatchObject({ type: OPTION_REPLY.ERR_INVALID });
    expect(answers[1]?.data.readUInt16BE(10)).toBe(FLAGS_WRITABLE);
  });
});

describe("metadata contexts", () => {
  const context = (id: number): Buffer => Buffer.concat([u32(id), Buffer.from("base:allocation")]);
  const select = (name: string, ...queries: string[]): Buffer =>
    option(OPTION.SET_META_CONTEXT, metaData(name, queries));
  const list = (name: string, ...queries: string[]): Buffer =>
    option(OPTION.LIST_META_CONTEXT, metaData(name, queries));
  const dataAfterStructured = (query: Buffer): Buffer[] =>
    answersTo(STRUCTURED, query)
      .slice(1)
      .map(({ data }) => data);

  it.each([
    ["SET", select("vda", "base:allocation")],
    ["LIST", list("vda")],
  ])("%s before structured replies is ERR_INVALID", (_, query) => {
    expect(answersTo(query)).toMatchObject([{ type: OPTION_REPLY.ERR_INVALID }]);
  });

  it.each([
    ["SET selects the context by its name", select("vda", "base:allocation"), [1]],
    ["SET of it twice selects it once", select("vda", "base:allocation", "base:allocation"), [1]],
    ["SET ignores the unknown", select("vda", "qemu:dirty-bitmap:x", "base:nonesuch", "x", ""), []],
    ["SET with a wildcard selects nothing", select("vda", "base:"), []],
    ["SET without queries selects nothing", select("vda"), []],
    ["LIST without queries lists all", list("vda"), [0]],
    ["LIST with a wildcard", list("vda", "base:"), [0]],
    ["LIST by name", list("vda", "base:allocation"), [0]],
    ["LIST ignores the unknown", list("vda", "other:", "base:nonesuch"), []],
    ["LIST of the default export", list("", "base:"), [0]],
  ])("%s", (_, query, ids) => {
    expect(dataAfterStructured(query)).toEqual([...ids.map(context), Buffer.alloc(0)]);
  });

  it("answers ERR_UNKNOWN for an unknown export", () => {
    expect(answersTo(STRUCTURED, select("nonesuch", "base:allocation"))[1]?.type).toBe(OPTION_REPLY.ERR_UNKNOWN);
  });

  it.each([
    ["no data", Buffer.alloc(0)],
    ["less than the fixed part", Buffer.alloc(7)],
    ["a name longer than the data", Buffer.concat([u32(100), Buffer.from("vda"), u32(0)])],
    ["more queries than there are", Buffer.concat([u32(3), Buffer.from("vda"), u32(1)])],
    ["an absurd number of queries", Buffer.concat([u32(3), Buffer.from("vda"), u32(0xffffffff)])],
    [
      "a query longer than the data",
      Buffer.concat([u32(3), Buffer.from("vda"), u32(1), u32(0xffffffff), Buffer.from("x")]),
    ],
    ["a trailing byte", Buffer.concat([metaData("vda", ["base:allocation"]), Buffer.from([0])])],
  ])("answers ERR_INVALID to %s and stays in step", (_, data) => {
    for (const code of [OPTION.SET_META_CONTEXT, OPTION.LIST_META_CONTEXT]) {
      const answers = answersTo(STRUCTURED, option(code, data), option(OPTION.LIST));
      expect(answers[1]).toMatchObject({ option: code, type: OPTION_REPLY.ERR_INVALID });
      expect(answers.at(-1)).toMatchObject({ option: OPTION.LIST, type: OPTION_REPLY.ACK });
    }
  });

  const status = request({ type: COMMAND.BLOCK_STATUS, cookie: 5, offset: 0, length: 4096 });
  const errorOfStatusAfter = (...options: Buffer[]): number | undefined => {
    const { harness } = start();
    harness.send(clientFlags(), STRUCTURED, ...options, option(OPTION.GO, infoData("vda")), status);
    return decodeAnswers(splitAfterNegotiation(harness.takeOutput()).rest, () => 0)[0]?.error;
  };

  it.each([
    ["a selection holds for its export", [select("vda", "base:allocation")], 0],
    ["a selection under the default name holds for the same export", [select("", "base:allocation")], 0],
    ["without a selection block status is EINVAL", [], 22],
    ["a selection for another export does not count", [select("vdb", "base:allocation")], 22],
    ["a later empty selection replaces it", [select("vda", "base:allocation"), select("vda")], 22],
    ["a later failed selection replaces it", [select("vda", "base:allocation"), select("nonesuch")], 22],
    [
      "a later malformed selection replaces it",
      [select("vda", "base:allocation"), option(OPTION.SET_META_CONTEXT, "x")],
      22,
    ],
    [
      "a later oversized selection replaces it",
      [select("vda", "base:allocation"), option(OPTION.SET_META_CONTEXT, Buffer.alloc(NBD_MAX_OPTION_BYTES + 1))],
      22,
    ],
    ["a listing does not", [select("vda", "base:allocation"), list("vda")], 0],
  ])("%s", (_, options, error) => {
    expect(errorOfStatusAfter(...options)).toBe(error);
  });
});

describe("time and shutdown", () => {
  it("ends a client that does not finish the negotiation in time, and not one that did", () => {
    const { harness } = start();
    harness.send(clientFlags(), option(OPTION.LIST));
    harness.clock.advance(NBD_HANDSHAKE_TIMEOUT_MS);
    expect(harness.isDestroyed).toBe(true);
    const { harness: quick } = start();
    quick.send(negotiation("vda"));
    quick.clock.advance(10 * NBD_HANDSHAKE_TIMEOUT_MS);
    expect(quick.isDestroyed).toBe(false);
    expect(quick.clock.pendingTimers).toBe(0);
  });

  it.each([
    ["GO", option(OPTION.GO, infoData("vda")), [OPTION_REPLY.ERR_SHUTDOWN]],
    ["LIST", option(OPTION.LIST), [OPTION_REPLY.ERR_SHUTDOWN]],
    ["an oversized option", option(4711, Buffer.alloc(NBD_MAX_OPTION_BYTES + 1)), [OPTION_REPLY.ERR_SHUTDOWN]],
    ["EXPORT_NAME", option(OPTION.EXPORT_NAME, "vda"), []],
  ])("answers %s during shutdown and ends the connection", (_, bytes, types) => {
    const { harness, directory } = start();
    harness.send(clientFlags());
    harness.takeOutput();
    harness.connection.shutDown();
    expect(harness.hasEnded).toBe(false);
    harness.send(bytes);
    expect(decodeOptionAnswers(harness.takeOutput()).map(({ type }) => type)).toEqual(types);
    expect(harness.hasEnded).toBe(true);
    expect(directory.openNames).toEqual([]);
  });

  it("ends the connection when the client half-closes while negotiating, after what is due was sent", () => {
    const { harness } = start();
    harness.send(clientFlags(), option(OPTION.LIST), option(OPTION.LIST).subarray(0, 7));
    harness.halfClose();
    expect(answersOf(harness)).toHaveLength(3);
    expect(harness.hasEnded).toBe(true);
  });

  it("takes nothing more while the client does not read the answers", () => {
    const { harness, directory } = start();
    for (let index = 0; index < 60; index += 1) {
      directory.exports.push(new TestExport(`disk-${index}`, new MemoryDevice(512), "x".repeat(4096)));
    }
    harness.send(clientFlags());
    harness.clientDrains = false;
    for (let index = 0; index < 100; index += 1) harness.send(option(OPTION.LIST));
    expect(harness.isPaused).toBe(true);
    expect(harness.unreadBytes).toBeGreaterThan(0);
    harness.clientDrains = true;
    harness.endTurn();
    expect(harness.unreadBytes).toBe(0);
    expect(answersOf(harness).filter(({ type }) => type === OPTION_REPLY.ACK)).toHaveLength(100);
  });
});
