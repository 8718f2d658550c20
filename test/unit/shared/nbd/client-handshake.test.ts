import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { NBD_CLIENT_HANDSHAKE_TIMEOUT_MS } from "../../../../proto/limits.ts";
import {
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeMetaContext,
  encodeOptionReply,
  OPTION,
  OPTION_REPLY,
} from "../../../../proto/nbd-protocol.ts";
import type { ByteStream, ByteStreamHandlers } from "../../../../shared/host/byte-stream.ts";
import { negotiate, type NegotiatedStream } from "../../../../shared/nbd/client-handshake.ts";
import { ALL_FLAGS } from "../../../support/fake-nbd-server.ts";
import { ManualClock } from "../../../support/manual-clock.ts";

const { STRUCTURED_REPLY, SET_META_CONTEXT, GO } = OPTION;

/** A server that says these bytes, whatever it is told; undefined: it hangs up. */
class SpeakingStream implements ByteStream {
  readonly #says: readonly (Buffer | undefined)[];
  handlers: ByteStreamHandlers | undefined;
  isClosed = false;

  constructor(says: readonly (Buffer | undefined)[]) {
    this.#says = says;
  }

  send(): void {
    // It does not listen.
  }

  start(handlers: ByteStreamHandlers): void {
    this.handlers = handlers;
    setImmediate(() => {
      for (const bytes of this.#says) {
        if (bytes === undefined) handlers.closed(new ColobusError("connection-lost", "it hung up"));
        else handlers.data(bytes);
      }
    });
  }

  close(): void {
    this.isClosed = true;
  }

  abort(): void {
    this.close();
  }
}

function talk(...says: (Buffer | undefined)[]): { stream: SpeakingStream; negotiated: Promise<NegotiatedStream> } {
  const stream = new SpeakingStream(says);
  return { stream, negotiated: negotiate(stream, "vda", new ManualClock()) };
}

const greeting = encodeGreeting();
const structured = encodeOptionReply(STRUCTURED_REPLY, OPTION_REPLY.ACK);
const plain = encodeOptionReply(STRUCTURED_REPLY, OPTION_REPLY.ERR_UNSUP);
const context = Buffer.concat([
  encodeOptionReply(SET_META_CONTEXT, OPTION_REPLY.META_CONTEXT, encodeMetaContext(3, "base:allocation")),
  encodeOptionReply(SET_META_CONTEXT, OPTION_REPLY.ACK),
]);
const info = (data: Buffer): Buffer => encodeOptionReply(GO, OPTION_REPLY.INFO, data);
const described = info(encodeInfoExport(2 ** 40, ALL_FLAGS));
const go = encodeOptionReply(GO, OPTION_REPLY.ACK);

function wrong(bytes: Buffer, at: number): Buffer {
  const changed = Buffer.from(bytes);
  changed[at] = (changed[at] ?? 0) ^ 0xff;
  return changed;
}

describe("a handshake with an NBD server", () => {
  it("takes structured replies, allocation and block sizes where they are offered, however the bytes are cut", async () => {
    const all = Buffer.concat([
      greeting,
      structured,
      context,
      described,
      info(encodeInfoBlockSize(1, 4096, 65_536)),
      go,
    ]);
    for (const bytes of [1, 7, 1000]) {
      const pieces: Buffer[] = [];
      for (let at = 0; at < all.length; at += bytes) pieces.push(all.subarray(at, at + bytes));
      expect((await talk(...pieces).negotiated).exported).toEqual({
        sizeBytes: 2 ** 40,
        flags: ALL_FLAGS,
        structuredReplies: true,
        allocationContextId: 3,
        blockBytes: 1,
        maxPayloadBytes: 65_536,
      });
    }
  });

  it("goes on without them, and hands over what was received behind it", async () => {
    const { exported, takeOver } = await talk(greeting, plain, described, go, Buffer.from("more")).negotiated;
    expect(exported).toMatchObject({ structuredReplies: false, allocationContextId: undefined });
    expect(exported.maxPayloadBytes).toBe(32 * 1024 * 1024);
    const received: string[] = [];
    takeOver({ data: (chunk) => received.push(chunk.toString()), closed: () => undefined });
    expect(received).toEqual(["more"]);
  });

  it("goes on without allocation where the server refuses to select it", async () => {
    const refused = encodeOptionReply(SET_META_CONTEXT, OPTION_REPLY.ERR_UNSUP);
    const { exported } = await talk(greeting, structured, refused, described, go).negotiated;
    expect(exported).toMatchObject({ structuredReplies: true, allocationContextId: undefined });
  });

  it.each([
    ["an export that does not exist", "image-missing", OPTION_REPLY.ERR_UNKNOWN],
    ["TLS that is required", "not-supported", OPTION_REPLY.ERR_TLS_REQD],
    ["a server that is stopped", "connection-lost", OPTION_REPLY.ERR_SHUTDOWN],
    ["no option GO", "not-supported", OPTION_REPLY.ERR_UNSUP],
    ["a policy", "permission-denied", OPTION_REPLY.ERR_POLICY],
  ] as const)("is refused for %s (%s), in the server's words", async (_, code, type) => {
    const reply = encodeOptionReply(GO, type, Buffer.from("for a reason"));
    const { stream, negotiated } = talk(greeting, plain, reply);
    await expect(negotiated).rejects.toMatchObject({ code });
    expect(stream.isClosed).toBe(true);
    if (type === OPTION_REPLY.ERR_UNKNOWN) await expect(negotiated).rejects.toThrow(/vda.*for a reason/);
  });

  it.each<[string, (Buffer | undefined)[], string]>([
    ["no greeting", [wrong(greeting, 0)], "protocol-error"],
    ["the oldstyle greeting", [wrong(greeting, 8)], "not-supported"],
    ["no fixed newstyle", [wrong(greeting, 17).fill(0, 16)], "not-supported"],
    ["a reply to another option", [greeting, go], "protocol-error"],
    ["a reply without magic", [greeting, wrong(structured, 0)], "protocol-error"],
    [
      "too long a reply",
      [greeting, Buffer.concat([structured.subarray(0, 16), Buffer.alloc(4, 0x7f)])],
      "protocol-error",
    ],
    ["an export without a size", [greeting, plain, go], "protocol-error"],
    ["a size beyond all disks", [greeting, plain, info(encodeInfoExport(2 ** 53, ALL_FLAGS)), go], "protocol-error"],
    [
      "a short description",
      [greeting, plain, info(encodeInfoExport(512, ALL_FLAGS).subarray(0, 8)), go],
      "protocol-error",
    ],
    ["an information without a type", [greeting, plain, info(Buffer.alloc(1)), go], "protocol-error"],
    ["an export without flags", [greeting, plain, info(encodeInfoExport(512, 0)), go], "protocol-error"],
    [
      "a block size of 3",
      [greeting, plain, described, info(encodeInfoBlockSize(3, 4096, 65_536)), go],
      "protocol-error",
    ],
    [
      "a block size of 0",
      [greeting, plain, described, info(encodeInfoBlockSize(0, 4096, 65_536)), go],
      "protocol-error",
    ],
    ["no payloads", [greeting, plain, described, info(encodeInfoBlockSize(1, 4096, 0)), go], "protocol-error"],
    ["descriptions without end", [greeting, plain, ...Array.from({ length: 2000 }, () => described)], "protocol-error"],
    ["its end in the middle", [greeting, structured.subarray(0, 10), undefined], "connection-lost"],
    ["its end before the greeting", [undefined], "connection-lost"],
  ])("with %s ends the connection", async (_, says, code) => {
    const { stream, negotiated } = talk(...says);
    await expect(negotiated).rejects.toMatchObject({ code });
    expect(stream.isClosed).toBe(true);
  });

  it("that does not come to its end is given up", async () => {
    const clock = new ManualClock();
    const stream = new SpeakingStream([greeting]);
    const negotiated = negotiate(stream, "vda", clock);
    negotiated.catch(() => undefined); // awaited below
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    clock.advance(NBD_CLIENT_HANDSHAKE_TIMEOUT_MS);
    await expect(negotiated).rejects.toMatchObject({ code: "timed-out" });
    expect(stream.isClosed).toBe(true);
  });
});
