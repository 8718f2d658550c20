import assert from "node:assert/strict";
import { ColobusError } from "../../proto/errors.ts";
import {
  BASE_ALLOCATION,
  CHUNK,
  CHUNK_FLAG_DONE,
  CHUNK_HEADER_BYTES,
  CLIENT_FLAGS_BYTES,
  COMMAND,
  decodeRequest,
  emptyRequestHeader,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeMetaContext,
  encodeOptionReply,
  OPTION,
  OPTION_HEADER_BYTES,
  OPTION_REPLY,
  putChunkHeader,
  putSimpleReply,
  REQUEST_BYTES,
  SIMPLE_REPLY_BYTES,
  TRANSMISSION_FLAG,
  writeUint64,
  type RequestHeader,
} from "../../proto/nbd-protocol.ts";
import type { ByteStream, ByteStreamHandlers, StreamSource } from "../../shared/host/byte-stream.ts";

export const ALL_FLAGS =
  TRANSMISSION_FLAG.HAS_FLAGS |
  TRANSMISSION_FLAG.SEND_FLUSH |
  TRANSMISSION_FLAG.SEND_FUA |
  TRANSMISSION_FLAG.SEND_TRIM |
  TRANSMISSION_FLAG.SEND_WRITE_ZEROES |
  TRANSMISSION_FLAG.SEND_DF |
  TRANSMISSION_FLAG.SEND_CACHE;

export interface ServedRequest extends Readonly<RequestHeader> {
  readonly payload: Buffer;
}

/** What happens to a request instead of its being served: an error number, no answer, these bytes, or the connection's end. */
export type Mishap = number | "silence" | "hang up" | Buffer;

const CONTEXT_ID = 77;
const EXTENT_BYTES = 4096;

/**
 * An NBD server in memory with a volatile cache: what no flush has covered is lost when it crashes. Every request is
 * served when `schedule` calls back, so a test decides about the order of answers.
 */
export class FakeNbdServer implements StreamSource {
  readonly name = "fake";
  sizeBytes: number;
  flags = ALL_FLAGS;
  structuredReplies = true;
  blockBytes = 1;
  maxPayloadBytes = 32 * 1024 * 1024;
  /** What readers see, and what a crash leaves. */
  content: Buffer;
  durable: Buffer;
  readonly requests: ServedRequest[] = [];
  /** Dials that were made; they are refused while `isDown`. */
  dials = 0;
  stops = 0;
  isDown = false;
  /** What comes with the end of the handshake. */
  behindHandshake: Buffer = Buffer.alloc(0);
  mishap: ((request: ServedRequest) => Mishap | undefined) | undefined;
  dialled: () => void = () => undefined;
  schedule: (callback: () => void) => void = setImmediate;
  readonly #connections = new Set<ServerConnection>();

  constructor(sizeBytes: number) {
    this.sizeBytes = sizeBytes;
    this.content = Buffer.alloc(sizeBytes);
    this.durable = Buffer.alloc(sizeBytes);
  }

  dial(): Promise<ByteStream> {
    this.dials += 1;
    this.dialled();
    if (this.isDown) return Promise.reject(new ColobusError("connection-lost", "nobody listens"));
    const connection = new ServerConnection(this);
    this.#connections.add(connection);
    return Promise.resolve(connection);
  }

  wasKilled(): Promise<boolean> {
    return Promise.resolve(false);
  }

  stop(): Promise<void> {
    this.stops += 1;
    return Promise.resolve();
  }

  changeMark(): string {
    return "";
  }

  /** Ends every connection; the cache stays. */
  hangUp(): void {
    for (const connection of this.#connections) connection.hangUp();
    this.#connections.clear();
  }

  /** The way of the connections that there are is cut: what is sent stays under way until `heal`. Others can be dialled. */
  cutOff(): void {
    for (const connection of this.#connections) connection.cutOff();
  }

  /** What is under way still, also of connections that were closed meanwhile, arrives. */
  heal(): void {
    for (const connection of this.#connections) connection.arrive();
  }

  /** kill -9: ends every connection, and loses what no flush has covered. */
  crash(): void {
    this.hangUp();
    this.content = Buffer.from(this.durable);
  }

  /** Does what a request asks for; returns an error number. */
  serve(request: ServedRequest): number {
    const { type, offset, length, payload, flags } = request;
    if (type === COMMAND.WRITE) payload.copy(this.content, offset);
    if (type === COMMAND.WRITE_ZEROES) this.content.fill(0, offset, offset + length);
    if (type === COMMAND.FLUSH || (flags & 1) !== 0) this.content.copy(this.durable);
    return 0;
  }
}

/** One connection, as the client holds it. */
class ServerConnection implements ByteStream {
  readonly #server: FakeNbdServer;
  #handlers: ByteStreamHandlers | undefined;
  #received = Buffer.alloc(0);
  #phase: "flags" | "options" | "requests" = "flags";
  #isOver = false;
  #isCut = false;
  #underWay: Uint8Array[] = [];

  constructor(server: FakeNbdServer) {
    this.#server = server;
  }

  start(handlers: ByteStreamHandlers): void {
    this.#handlers = handlers;
    this.#reply(encodeGreeting());
  }

  send(parts: readonly Uint8Array[]): void {
    if (this.#isOver) return;
    if (this.#isCut) this.#underWay.push(...parts);
    else this.#receive(parts);
  }

  close(): void {
    this.hangUp();
  }

  abort(): void {
    this.#underWay = [];
    this.hangUp();
  }

  cutOff(): void {
    this.#isCut = true;
  }

  /** Whoever has closed it hears no answers. */
  arrive(): void {
    this.#isCut = false;
    if (this.#isOver) this.#handlers = undefined;
    this.#isOver = false;
    this.#receive(this.#underWay.splice(0));
  }

  hangUp(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    setImmediate(() => this.#handlers?.closed(new ColobusError("connection-lost", "the other end has gone")));
  }

  #receive(parts: readonly Uint8Array[]): void {
    this.#received = Buffer.concat([this.#received, ...parts]);
    while (this.#takeNext());
  }

  #reply(...parts: Buffer[]): void {
    this.#server.schedule(() => {
      if (!this.#isOver) this.#handlers?.data(Buffer.concat(parts));
    });
  }

  #takeNext(): boolean {
    if (this.#phase === "flags") return this.#take(CLIENT_FLAGS_BYTES, () => (this.#phase = "options"));
    if (this.#phase === "options") {
      const header = this.#received;
      if (header.length < OPTION_HEADER_BYTES) return false;
      const length = header.readUInt32BE(12);
      return this.#take(OPTION_HEADER_BYTES + length, (bytes) => this.#option(bytes.readUInt32BE(8)));
    }
    if (this.#received.length < REQUEST_BYTES) return false;
    const request = emptyRequestHeader();
    assert(decodeRequest(this.#received, 0, request), "a request begins with its magic");
    const payloadBytes = request.type === COMMAND.WRITE ? request.length : 0;
    return this.#take(REQUEST_BYTES + payloadBytes, (bytes) =>
      this.#request({ ...request, payload: bytes.subarray(REQUEST_BYTES) }),
    );
  }

  #take(length: number, use: (bytes: Buffer) => void): boolean {
    if (this.#received.length < length) return false;
    const bytes = this.#received.subarray(0, length);
    this.#received = this.#received.subarray(length);
    use(bytes);
    return true;
  }

  #option(option: number): void {
    const { structuredReplies, sizeBytes, flags, blockBytes, maxPayloadBytes } = this.#server;
    if (option === OPTION.STRUCTURED_REPLY && structuredReplies)
      this.#reply(encodeOptionReply(option, OPTION_REPLY.ACK));
    else if (option === OPTION.SET_META_CONTEXT) {
      const context = encodeMetaContext(CONTEXT_ID, BASE_ALLOCATION);
      this.#reply(
        encodeOptionReply(option, OPTION_REPLY.META_CONTEXT, context),
        encodeOptionReply(option, OPTION_REPLY.ACK),
      );
    } else if (option === OPTION.GO) {
      this.#reply(
        encodeOptionReply(option, OPTION_REPLY.INFO, encodeInfoExport(sizeBytes, flags)),
        encodeOptionReply(option, OPTION_REPLY.INFO, encodeInfoBlockSize(blockBytes, 4096, maxPayloadBytes)),
        encodeOptionReply(option, OPTION_REPLY.ACK),
        this.#server.behindHandshake,
      );
      this.#phase = "requests";
    } else this.#reply(encodeOptionReply(option, OPTION_REPLY.ERR_UNSUP));
  }

  #request(request: ServedRequest): void {
    if (request.type === COMMAND.DISC) {
      this.#server.schedule(() => this.hangUp()); // behind what was asked before
      return;
    }
    this.#server.requests.push(request);
    this.#server.schedule(() => {
      if (this.#isOver) return;
      const mishap = this.#server.mishap?.(request);
      if (mishap === "silence") return;
      if (mishap === "hang up") {
        this.hangUp();
        return;
      }
      const answer = Buffer.isBuffer(mishap) ? mishap : this.#answer(request, mishap ?? this.#server.serve(request));
      this.#handlers?.data(answer);
    });
  }

  #answer(request: ServedRequest, errno: number): Buffer {
    const { type, offset, length } = request;
    const { structuredReplies, content } = this.#server;
    if (errno === 0 && type === COMMAND.READ) {
      const data = content.subarray(offset, offset + length);
      return structuredReplies
        ? dataChunk(request, offset, data, true)
        : Buffer.concat([simpleReply(request, 0), data]);
    }
    if (errno === 0 && type === COMMAND.BLOCK_STATUS) return statusChunk(request, this.#extents(request));
    return simpleReply(request, errno, type === COMMAND.READ && structuredReplies);
  }

  #extents({ offset, length }: ServedRequest): [number, number][] {
    const extents: [number, number][] = [];
    for (let at = offset; at < offset + length; at += EXTENT_BYTES) {
      const bytes = Math.min(EXTENT_BYTES, offset + length - at);
      const isZero = this.#server.content.subarray(at, at + bytes).every((byte) => byte === 0);
      extents.push([bytes, isZero ? 3 : 0]);
    }
    return extents;
  }
}

/** A simple reply; `asChunk`: an error chunk instead. */
export function simpleReply(request: RequestHeader, errno: number, asChunk = false): Buffer {
  if (asChunk) {
    const payload = Buffer.alloc(6);
    payload.writeUInt32BE(errno, 0);
    return chunk(request, CHUNK.ERROR, payload, true);
  }
  const reply = Buffer.alloc(SIMPLE_REPLY_BYTES);
  putSimpleReply(reply, 0, errno, request.cookieHigh, request.cookieLow);
  return reply;
}

export function chunk(request: RequestHeader, type: number, payload: Buffer, isDone: boolean): Buffer {
  const header = Buffer.alloc(CHUNK_HEADER_BYTES);
  const flags = isDone ? CHUNK_FLAG_DONE : 0;
  putChunkHeader(header, 0, flags, type, request.cookieHigh, request.cookieLow, payload.length);
  return Buffer.concat([header, payload]);
}

export function dataChunk(request: RequestHeader, offset: number, data: Buffer, isDone: boolean): Buffer {
  const prefix = Buffer.alloc(8);
  writeUint64(prefix, 0, offset);
  return chunk(request, CHUNK.OFFSET_DATA, Buffer.concat([prefix, data]), isDone);
}

export function holeChunk(request: RequestHeader, offset: number, length: number, isDone: boolean): Buffer {
  const payload = Buffer.alloc(12);
  writeUint64(payload, 0, offset);
  payload.writeUInt32BE(length, 8);
  return chunk(request, CHUNK.OFFSET_HOLE, payload, isDone);
}

export function statusChunk(
  request: RequestHeader,
  extents: readonly (readonly [number, number])[],
  contextId = CONTEXT_ID,
): Buffer {
  const payload = Buffer.alloc(4 + 8 * extents.length);
  payload.writeUInt32BE(contextId, 0);
  for (const [index, [length, state]] of extents.entries()) {
    payload.writeUInt32BE(length, 4 + 8 * index);
    payload.writeUInt32BE(state, 8 + 8 * index);
  }
  return chunk(request, CHUNK.BLOCK_STATUS, payload, true);
}
