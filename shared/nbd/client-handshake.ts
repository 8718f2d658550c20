/**
 * The client's side of the fixed newstyle handshake: structured replies and base:allocation where the server has them, and
 * then GO. Everything that the server sends is checked and bounded before it is used.
 */
import { ColobusError } from "../../proto/errors.ts";
import {
  NBD_CLIENT_HANDSHAKE_TIMEOUT_MS,
  NBD_CLIENT_OPTION_REPLIES_MAX,
  NBD_CLIENT_OPTION_REPLY_BYTES_MAX,
} from "../../proto/limits.ts";
import {
  BASE_ALLOCATION,
  CLIENT_FLAG,
  encodeMetaContextRequest,
  encodeInfoRequest,
  encodeOption,
  GREETING_BYTES,
  HANDSHAKE_FLAG,
  INFO,
  isOptionError,
  NBD_MAGIC,
  NBD_OPTION_MAGIC,
  NBD_OPTION_REPLY_MAGIC,
  OPTION,
  OPTION_REPLY,
  OPTION_REPLY_HEADER_BYTES,
  readUint64,
  TRANSMISSION_FLAG,
} from "../../proto/nbd-protocol.ts";
import type { ByteStream } from "../host/byte-stream.ts";
import type { Clock } from "../host/clock.ts";
import { breach } from "./client-reply-parser.ts";

/** A server's export as the handshake described it. */
export interface ServerExport {
  readonly sizeBytes: number;
  /** TRANSMISSION_FLAG bits. */
  readonly flags: number;
  readonly structuredReplies: boolean;
  /** The id of base:allocation; undefined: the server does not have it. */
  readonly allocationContextId: number | undefined;
  /** Requests must be aligned to this, a power of two. */
  readonly blockBytes: number;
  /** No read or write may be longer. */
  readonly maxPayloadBytes: number;
}

/** A stream behind its handshake: what it receives goes to whoever takes it over. */
export interface NegotiatedStream {
  readonly exported: ServerExport;
  readonly stream: ByteStream;
  /** Gives everything received since the handshake, and what comes, to `handlers`. */
  readonly takeOver: (handlers: { data(chunk: Buffer): void; closed(reason: ColobusError): void }) => void;
}

/** A server that announces no limits takes at least this (NBD protocol, "Size constraints"). */
const DEFAULT_MAX_PAYLOAD_BYTES = 32 * 1024 * 1024;
const BLOCK_MAX_BYTES = 64 * 1024;
const DISK_MAX_BYTES = Number.MAX_SAFE_INTEGER;
/** u16 type, u64 size, u16 flags. */
const INFO_EXPORT_BYTES = 12;
/** u16 type, u32 minimum, u32 preferred, u32 maximum. */
const INFO_BLOCK_SIZE_BYTES = 14;

interface OptionReplyData {
  readonly type: number;
  readonly data: Buffer;
}

/**
 * Opens the export `name` over a new stream. Rejects with what the server said (`not-found`, `permission-denied`,
 * `not-supported` …), `protocol-error`, `timed-out` or `connection-lost`; the stream is closed then.
 */
export async function negotiate(stream: ByteStream, name: string, clock: Clock): Promise<NegotiatedStream> {
  const reader = new StreamReader(stream);
  const timer = clock.after(NBD_CLIENT_HANDSHAKE_TIMEOUT_MS, () =>
    reader.fail(new ColobusError("timed-out", "the NBD server did not finish the handshake in time")),
  );
  try {
    const exported = await new Negotiation(stream, reader, name).run();
    return { exported, stream, takeOver: (handlers) => reader.handOver(handlers) };
  } catch (error) {
    stream.close();
    throw error;
  } finally {
    timer.cancel();
  }
}

class Negotiation {
  readonly #stream: ByteStream;
  readonly #reader: StreamReader;
  readonly #name: string;

  constructor(stream: ByteStream, reader: StreamReader, name: string) {
    this.#stream = stream;
    this.#reader = reader;
    this.#name = name;
  }

  async run(): Promise<ServerExport> {
    await this.#greet();
    const structuredReplies = await this.#askStructuredReplies();
    const allocationContextId = structuredReplies ? await this.#selectAllocation() : undefined;
    return { ...(await this.#go()), structuredReplies, allocationContextId };
  }

  async #greet(): Promise<void> {
    const greeting = await this.#reader.read(GREETING_BYTES);
    if (greeting.readBigUInt64BE(0) !== NBD_MAGIC) throw breach("it does not greet as NBD servers do");
    if (greeting.readBigUInt64BE(8) !== NBD_OPTION_MAGIC) throw tooOld();
    const flags = greeting.readUInt16BE(16);
    if ((flags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) === 0) throw tooOld();
    const answer = Buffer.alloc(4);
    answer.writeUInt32BE(CLIENT_FLAG.FIXED_NEWSTYLE | (flags & HANDSHAKE_FLAG.NO_ZEROES ? CLIENT_FLAG.NO_ZEROES : 0));
    this.#stream.send([answer]);
  }

  async #askStructuredReplies(): Promise<boolean> {
    this.#stream.send([encodeOption(OPTION.STRUCTURED_REPLY, Buffer.alloc(0))]);
    const { type, data } = await this.#optionReply(OPTION.STRUCTURED_REPLY);
    if (type === OPTION_REPLY.ACK) return true;
    // Where TLS is due, or the server is being stopped, nothing else will do either.
    if (isOptionError(type) && type !== OPTION_REPLY.ERR_UNSUP && type !== OPTION_REPLY.ERR_POLICY) {
      throw this.#refused(type, data);
    }
    return false;
  }

  async #selectAllocation(): Promise<number | undefined> {
    this.#stream.send([encodeOption(OPTION.SET_META_CONTEXT, encodeMetaContextRequest(this.#name, [BASE_ALLOCATION]))]);
    let id: number | undefined;
    for (let replies = 0; replies < NBD_CLIENT_OPTION_REPLIES_MAX; replies += 1) {
      const { type, data } = await this.#optionReply(OPTION.SET_META_CONTEXT);
      if (type === OPTION_REPLY.ACK) return id;
      if (isOptionError(type)) return undefined; // an unknown export is refused by GO, with the reason
      if (type !== OPTION_REPLY.META_CONTEXT || data.length < 4)
        throw breach("a meta context is not described as such");
      if (data.toString("utf8", 4) === BASE_ALLOCATION) id = data.readUInt32BE(0);
    }
    throw breach("it selects meta contexts without end");
  }

  async #go(): Promise<Pick<ServerExport, "sizeBytes" | "flags" | "blockBytes" | "maxPayloadBytes">> {
    this.#stream.send([encodeOption(OPTION.GO, encodeInfoRequest(this.#name, [INFO.BLOCK_SIZE]))]);
    let size: { sizeBytes: number; flags: number } | undefined;
    let blockBytes = 1;
    let maxPayloadBytes = DEFAULT_MAX_PAYLOAD_BYTES;
    for (let replies = 0; replies < NBD_CLIENT_OPTION_REPLIES_MAX; replies += 1) {
      const { type, data } = await this.#optionReply(OPTION.GO);
      if (type === OPTION_REPLY.ACK) {
        if (size === undefined) throw breach("it opens an export without its size");
        return { ...size, blockBytes, maxPayloadBytes };
      }
      if (type !== OPTION_REPLY.INFO) throw this.#refused(type, data);
      if (data.length < 2) throw breach("an information has no type");
      const info = data.readUInt16BE(0);
      if (info === INFO.EXPORT) {
        if (data.length !== INFO_EXPORT_BYTES) throw breach("an export is not described as exports are");
        size = { sizeBytes: readUint64(data, 2), flags: data.readUInt16BE(10) };
        if (size.sizeBytes > DISK_MAX_BYTES) throw breach("the export is larger than any disk");
        if ((size.flags & TRANSMISSION_FLAG.HAS_FLAGS) === 0) throw breach("the export has no flags");
      } else if (info === INFO.BLOCK_SIZE) {
        if (data.length !== INFO_BLOCK_SIZE_BYTES) throw breach("block sizes are not described as such");
        blockBytes = data.readUInt32BE(2);
        maxPayloadBytes = data.readUInt32BE(10);
        if (!Number.isInteger(Math.log2(blockBytes)) || blockBytes > BLOCK_MAX_BYTES || maxPayloadBytes < blockBytes) {
          throw breach("its block sizes are impossible");
        }
      }
    }
    throw breach("it describes an export without end");
  }

  async #optionReply(option: number): Promise<OptionReplyData> {
    const header = await this.#reader.read(OPTION_REPLY_HEADER_BYTES);
    if (header.readBigUInt64BE(0) !== NBD_OPTION_REPLY_MAGIC || header.readUInt32BE(8) !== option) {
      throw breach("a reply to an option is none");
    }
    const length = header.readUInt32BE(16);
    if (length > NBD_CLIENT_OPTION_REPLY_BYTES_MAX) throw breach("a reply to an option is too long");
    return { type: header.readUInt32BE(12), data: await this.#reader.read(length) };
  }

  #refused(type: number, data: Buffer): ColobusError {
    if (!isOptionError(type)) return breach("it answers an option with what does not belong to it");
    const said = data.length === 0 ? "" : `: ${data.toString("utf8").slice(0, 500)}`;
    switch (type) {
      case OPTION_REPLY.ERR_UNKNOWN:
        return new ColobusError(
          "image-missing",
          `the NBD server has no export "${this.#name}"${said}`,
          "List its exports with `nbdinfo --list URI`, and correct the name.",
        );
      case OPTION_REPLY.ERR_TLS_REQD:
        return new ColobusError(
          "not-supported",
          `the NBD server requires TLS${said}`,
          "Serve the image on a unix socket, or over loopback without TLS.",
        );
      case OPTION_REPLY.ERR_SHUTDOWN:
        return new ColobusError("connection-lost", `the NBD server is being stopped${said}`, "Start it again.");
      case OPTION_REPLY.ERR_UNSUP:
        return tooOld();
      default:
        return new ColobusError(
          "permission-denied",
          `the NBD server does not open "${this.#name}"${said}`,
          "Check the server's configuration and log.",
        );
    }
  }
}

function tooOld(): ColobusError {
  return new ColobusError(
    "not-supported",
    "the NBD server speaks only an old form of the protocol",
    "Use qemu-nbd, nbdkit, nbd-server 3.16 or later, or another server with the option GO.",
  );
}

/** Takes a stream's bytes by number. What nobody waits for is bounded by what a server may send unasked: nothing. */
class StreamReader {
  readonly #chunks: Buffer[] = [];
  #bytes = 0;
  #failure: ColobusError | undefined;
  #waiting: { readonly length: number; resolve(bytes: Buffer): void; reject(reason: ColobusError): void } | undefined;
  #successor: { data(chunk: Buffer): void; closed(reason: ColobusError): void } | undefined;

  constructor(stream: ByteStream) {
    stream.start({
      data: (chunk) => {
        if (this.#successor !== undefined) this.#successor.data(chunk);
        else this.#take(chunk);
      },
      closed: (reason) => {
        if (this.#successor !== undefined) this.#successor.closed(reason);
        else this.fail(reason);
      },
    });
  }

  read(length: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#waiting = { length, resolve, reject };
      this.#serve();
    });
  }

  fail(reason: ColobusError): void {
    this.#failure ??= reason;
    this.#serve();
  }

  handOver(successor: { data(chunk: Buffer): void; closed(reason: ColobusError): void }): void {
    this.#successor = successor;
    for (const chunk of this.#chunks.splice(0)) successor.data(chunk);
    if (this.#failure !== undefined) successor.closed(this.#failure);
  }

  #take(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    if (this.#waiting === undefined && this.#bytes > NBD_CLIENT_OPTION_REPLY_BYTES_MAX) {
      this.fail(breach("it sends what nobody has asked for"));
    }
    this.#serve();
  }

  #serve(): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    if (this.#bytes >= waiting.length) {
      this.#waiting = undefined;
      const all = this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
      this.#chunks.length = 0;
      const bytes = all?.subarray(0, waiting.length) ?? Buffer.alloc(0);
      const rest = all?.subarray(waiting.length);
      if (rest !== undefined && rest.length > 0) this.#chunks.push(rest);
      this.#bytes = rest?.length ?? 0;
      waiting.resolve(bytes);
    } else if (this.#failure !== undefined) {
      this.#waiting = undefined;
      waiting.reject(this.#failure);
    }
  }
}
