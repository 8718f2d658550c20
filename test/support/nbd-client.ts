/**
 * A raw NBD client for tests: encoders for everything that a client sends, well-formed or not, a decoder for everything
 * that the server answers, and a socket to try it on. It shares the constants with the server but none of its logic.
 */
import { once } from "node:events";
import { connect } from "node:net";
import type { Socket, TcpNetConnectOpts, IpcNetConnectOpts } from "node:net";
import {
  BASE_ALLOCATION,
  CHUNK,
  CHUNK_HEADER_BYTES,
  COMMAND,
  GREETING_BYTES,
  NBD_OPTION_REPLY_MAGIC,
  OPTION,
  OPTION_REPLY_HEADER_BYTES,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
  encodeOption,
  encodeRequest,
} from "../../proto/nbd-protocol.ts";

// What a client sends

/** Fixed newstyle, without the 124 zeroes. */
export const CLIENT_FLAGS_DEFAULT = 3;

export function clientFlags(flags: number = CLIENT_FLAGS_DEFAULT): Buffer {
  return u32(flags);
}

export function u16(value: number): Buffer {
  const buffer = Buffer.alloc(2);
  buffer.writeUInt16BE(value);
  return buffer;
}

export function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32BE(value);
  return buffer;
}

export function option(code: number, data: Uint8Array | string = ""): Buffer {
  return encodeOption(code, Buffer.from(data as string));
}

/** Data of INFO and GO. */
export function infoData(name: string, infoTypes: readonly number[] = []): Buffer {
  return Buffer.concat([u32(Buffer.byteLength(name)), Buffer.from(name), u16(infoTypes.length), ...infoTypes.map(u16)]);
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function metaData(name: string, queries: readonly string[]): Buffer {
  const parts = queries.flatMap((query) => [u32(Buffer.byteLength(query)), Buffer.from(query)]);
  return Buffer.concat([u32(Buffer.byteLength(name)), Buffer.from(name), u32(queries.length), ...parts]);
}

export interface SentRequest {
  readonly type: number;
  readonly cookie: number;
  readonly offset?: number;
  readonly length?: number;
  readonly flags?: number;
  readonly payload?: Uint8Array;
}

/** A request with its payload. The cookie fits 32 bits. */
export function request({ type, cookie, offset = 0, length, flags = 0, payload }: SentRequest): Buffer {
  const header = encodeRequest({
    type,
    flags,
    cookieHigh: 0,
    cookieLow: cookie,
    offset,
    length: length ?? payload?.length ?? 0,
  });
  return payload === undefined ? header : Buffer.concat([header, payload]);
}

/** Everything up to the transmission phase of the export `name`. */
export function negotiation(name: string, { structured = false, allocation = false } = {}): Buffer {
  return Buffer.concat([
    clientFlags(),
    ...(structured ? [option(OPTION.STRUCTURED_REPLY)] : []),
    ...(allocation ? [option(OPTION.SET_META_CONTEXT, metaData(name, [BASE_ALLOCATION]))] : []),
    option(OPTION.GO, infoData(name)),
  ]);
}

export const DISCONNECT = request({ type: COMMAND.DISC, cookie: 0 });

// What the server answers

export interface OptionAnswer {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

/** Decodes complete option replies; throws at anything else. */
export function decodeOptionAnswers(bytes: Buffer): OptionAnswer[] {
  const answers: OptionAnswer[] = [];
  for (let at = 0; at < bytes.length;) {
    const { answer, length } = decodeOptionAnswer(bytes.subarray(at));
    answers.push(answer);
    at += length;
  }
  return answers;
}

function decodeOptionAnswer(bytes: Buffer): { answer: OptionAnswer; length: number } {
  if (bytes.readBigUInt64BE(0) !== NBD_OPTION_REPLY_MAGIC) throw new Error("wrong magic in an option reply");
  const length = OPTION_REPLY_HEADER_BYTES + bytes.readUInt32BE(16);
  if (bytes.length < length) throw new Error("an option reply is cut off");
  const data = Buffer.from(bytes.subarray(OPTION_REPLY_HEADER_BYTES, length));
  return { answer: { option: bytes.readUInt32BE(8), type: bytes.readUInt32BE(12), data }, length };
}

/** Splits the server's whole output into the negotiation (without greeting) of `options` final replies and the rest. */
export function splitAfterNegotiation(output: Buffer): { answers: OptionAnswer[]; rest: Buffer } {
  const answers: OptionAnswer[] = [];
  let at = GREETING_BYTES;
  while (at + 8 <= output.length && output.readBigUInt64BE(at) === NBD_OPTION_REPLY_MAGIC) {
    const { answer, length } = decodeOptionAnswer(output.subarray(at));
    answers.push(answer);
    at += length;
  }
  return { answers, rest: output.subarray(at) };
}

export interface StatusExtent {
  readonly length: number;
  readonly state: number;
}

/** All that came back for one request. */
export interface Answer {
  readonly cookie: number;
  readonly isStructured: boolean;
  /** 0: done. */
  readonly error: number;
  readonly message: string;
  /** Data of a read, with holes filled in. Structured: from the lowest offset. */
  readonly data: Buffer;
  readonly holes: number;
  readonly chunks: number;
  readonly contextId: number | undefined;
  readonly extents: readonly StatusExtent[];
}

/**
 * Decodes the transmission phase's output into answers in order of their completion. `readLength` tells how much data
 * follows a successful simple reply to a cookie. Throws when the bytes are no sequence of complete replies.
 */
export function decodeAnswers(bytes: Buffer, readLength: (cookie: number) => number): Answer[] {
  const answers: Answer[] = [];
  const open = new Map<number, ChunkCollector>();
  let at = 0;
  while (at < bytes.length) {
    const magic = bytes.readUInt32BE(at);
    if (magic === SIMPLE_REPLY_MAGIC) {
      const error = bytes.readUInt32BE(at + 4);
      const cookie = bytes.readUInt32BE(at + 12);
      at += SIMPLE_REPLY_BYTES;
      const length = error === 0 ? readLength(cookie) : 0;
      const data = Buffer.from(take(bytes, at, length));
      at += length;
      answers.push({ ...new ChunkCollector(cookie).finish(), isStructured: false, error, data, chunks: 0 });
    } else if (magic === STRUCTURED_REPLY_MAGIC) {
      const isDone = (bytes.readUInt16BE(at + 4) & 1) !== 0;
      const type = bytes.readUInt16BE(at + 6);
      const cookie = bytes.readUInt32BE(at + 12);
      const length = bytes.readUInt32BE(at + 16);
      const collector = open.get(cookie) ?? new ChunkCollector(cookie);
      open.set(cookie, collector);
      collector.add(type, take(bytes, at + CHUNK_HEADER_BYTES, length));
      at += CHUNK_HEADER_BYTES + length;
      if (isDone) {
        open.delete(cookie);
        answers.push(collector.finish());
      }
    } else {
      throw new Error(`no reply magic at ${at} of ${bytes.length}`);
    }
  }
  if (open.size > 0) throw new Error("a structured reply has no last chunk");
  return answers;
}

function take(bytes: Buffer, at: number, length: number): Buffer {
  if (at + length > bytes.length) throw new Error("a reply is cut off");
  return bytes.subarray(at, at + length);
}

class ChunkCollector {
  readonly #cookie: number;
  readonly #pieces: { offset: number; data: Buffer }[] = [];
  #error = 0;
  #message = "";
  #holes = 0;
  #chunks = 0;
  #contextId: number | undefined;
  readonly #extents: StatusExtent[] = [];

  constructor(cookie: number) {
    this.#cookie = cookie;
  }

  add(type: number, payload: Buffer): void {
    this.#chunks += 1;
    if (type === CHUNK.OFFSET_DATA) {
      if (payload.length < 9) throw new Error("an OFFSET_DATA chunk without data");
      this.#pieces.push({ offset: Number(payload.readBigUInt64BE(0)), data: Buffer.from(payload.subarray(8)) });
    } else if (type === CHUNK.OFFSET_HOLE) {
      if (payload.length !== 12) throw new Error("an OFFSET_HOLE chunk of another length than 12");
      this.#holes += 1;
      this.#pieces.push({ offset: Number(payload.readBigUInt64BE(0)), data: Buffer.alloc(payload.readUInt32BE(8)) });
    } else if (type === CHUNK.BLOCK_STATUS) {
      this.#contextId = payload.readUInt32BE(0);
      for (let at = 4; at < payload.length; at += 8) {
        this.#extents.push({ length: payload.readUInt32BE(at), state: payload.readUInt32BE(at + 4) });
      }
    } else if (type === CHUNK.ERROR) {
      this.#error = payload.readUInt32BE(0);
      if (payload.readUInt16BE(4) !== payload.length - 6)
        throw new Error("the message length of an error does not add up");
      this.#message = payload.toString("utf8", 6);
    } else if (type !== CHUNK.NONE || payload.length !== 0) {
      throw new Error(`chunk of unknown type ${type}`);
    }
  }

  finish(): Answer {
    this.#pieces.sort((a, b) => a.offset - b.offset);
    for (const [index, piece] of this.#pieces.entries()) {
      const next = this.#pieces[index + 1];
      if (next !== undefined && piece.offset + piece.data.length !== next.offset)
        throw new Error("chunks overlap or leave gaps");
    }
    return {
      cookie: this.#cookie,
      isStructured: true,
      error: this.#error,
      message: this.#message,
      data: Buffer.concat(this.#pieces.map(({ data }) => data)),
      holes: this.#holes,
      chunks: this.#chunks,
      contextId: this.#contextId,
      extents: this.#extents,
    };
  }
}

// A socket

/** A socket whose input is read by the byte. It half-closes only when told to. */
export class NbdTestSocket {
  readonly socket: Socket;
  #received: Buffer[] = [];
  #receivedBytes = 0;
  #wake: (() => void) | undefined;
  #ended = false;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.#received.push(chunk);
      this.#receivedBytes += chunk.length;
      this.#wake?.();
    });
    const end = (): void => {
      this.#ended = true;
      this.#wake?.();
    };
    socket.on("end", end);
    socket.on("error", end);
    socket.on("close", end);
  }

  static async connect(options: { path: string } | { host: string; port: number }): Promise<NbdTestSocket> {
    const socket = connect({ ...options, allowHalfOpen: true } as TcpNetConnectOpts | IpcNetConnectOpts);
    await once(socket, "connect");
    return new NbdTestSocket(socket);
  }

  write(...parts: Buffer[]): void {
    for (const part of parts) this.socket.write(part);
  }

  /** The next `length` bytes; throws when the connection ends before. */
  async read(length: number): Promise<Buffer> {
    await this.#until(() => this.#receivedBytes >= length);
    if (this.#receivedBytes < length)
      throw new Error(`connection ended after ${this.#receivedBytes} of ${length} bytes`);
    const all = Buffer.concat(this.#received);
    this.#received = [all.subarray(length)];
    this.#receivedBytes = all.length - length;
    return all.subarray(0, length);
  }

  /** Everything until the server closes its side. */
  async readToEnd(): Promise<Buffer> {
    await this.#until(() => false);
    return Buffer.concat(this.#received);
  }

  async readOptionAnswer(): Promise<OptionAnswer> {
    const header = await this.read(OPTION_REPLY_HEADER_BYTES);
    const data = await this.read(header.readUInt32BE(16));
    return decodeOptionAnswer(Buffer.concat([header, data])).answer;
  }

  /** Negotiates `name` with simple replies. */
  async open(name: string): Promise<void> {
    this.write(negotiation(name));
    await this.read(GREETING_BYTES);
    let answer = await this.readOptionAnswer();
    while (answer.type === 3) answer = await this.readOptionAnswer();
    if (answer.type !== 1) throw new Error(`GO was refused: ${answer.data.toString()}`);
  }

  async readSimpleReply(): Promise<{ error: number; cookie: number }> {
    const reply = await this.read(SIMPLE_REPLY_BYTES);
    if (reply.readUInt32BE(0) !== SIMPLE_REPLY_MAGIC) throw new Error("no simple reply");
    return { error: reply.readUInt32BE(4), cookie: reply.readUInt32BE(12) };
  }

  destroy(): void {
    this.socket.destroy();
  }

  async #until(isEnough: () => boolean): Promise<void> {
    while (!isEnough() && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}
