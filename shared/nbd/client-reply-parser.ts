/**
 * Owns: the bytes that a server sends in the transmission phase, until each of them has gone where it belongs: data into
 * the buffer of the read that asked for it, the rest into the state of its reply.
 *
 * How: a header is gathered, then its payload is taken piece by piece as it arrives, so that nothing is joined and
 * nothing is allocated by a length that the server announces.
 *
 * Invariants: only bytes within the range of an open request are ever written, each of them once; a read succeeds only
 * when every byte of it has come. Whatever the protocol does not allow throws `protocol-error`, after which the parser is
 * of no more use: the connection has to end.
 */
import { ColobusError } from "../../proto/errors.ts";
import { NBD_CLIENT_CHUNKS_PER_REPLY_MAX, NBD_CLIENT_ERROR_BYTES_MAX } from "../../proto/limits.ts";
import {
  ALLOCATION_STATE,
  CHUNK,
  CHUNK_FLAG_DONE,
  CHUNK_HEADER_BYTES,
  CHUNK_HOLE_BYTES,
  CHUNK_OFFSET_BYTES,
  COMMAND,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
  readUint64,
} from "../../proto/nbd-protocol.ts";
import type { OpenRequest } from "./open-request.ts";

const EXTENT_BYTES = 8;
const CONTEXT_ID_BYTES = 4;
/** u32 error, u16 message length; ERROR_OFFSET has a u64 offset behind the message. */
const ERROR_PREFIX_BYTES = 6;

export interface ReplyParserOptions {
  readonly structuredReplies: boolean;
  /** The id of base:allocation; undefined: it was not selected. */
  readonly allocationContextId: number | undefined;
  /** The open request of that cookie; undefined: there is none. */
  readonly find: (cookieHigh: number, cookieLow: number) => OpenRequest | undefined;
  /** Everything of the reply has come. The cookie is free. */
  readonly finished: (request: OpenRequest) => void;
}

/** What the next bytes are. */
type Expected = "header" | "prefix" | "data" | "extents";

export class ReplyParser {
  readonly #options: ReplyParserOptions;
  readonly #gathered = Buffer.alloc(NBD_CLIENT_ERROR_BYTES_MAX);
  #gatheredBytes = 0;
  #needed = SIMPLE_REPLY_BYTES;
  #expected: Expected = "header";
  #request: OpenRequest | undefined;
  #chunkType = 0;
  #isDone = false;
  /** Of the payload, behind what was gathered of it. */
  #left = 0;
  #dataOffset = 0;

  constructor(options: ReplyParserOptions) {
    this.#options = options;
  }

  /** Takes the next bytes, of which it keeps no view. Errors: `protocol-error`. */
  feed(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#expected === "data") at = this.#takeData(chunk, at);
      else {
        const end = Math.min(chunk.length, at + this.#needed - this.#gatheredBytes);
        chunk.copy(this.#gathered, this.#gatheredBytes, at, end);
        this.#gatheredBytes += end - at;
        at = end;
        if (this.#gatheredBytes === this.#needed) this.#takeGathered();
      }
    }
  }

  #takeGathered(): void {
    if (this.#expected === "header") this.#takeHeader();
    else if (this.#expected === "prefix") this.#takePrefix();
    else this.#takeExtent();
  }

  #expect(expected: Expected, needed: number): void {
    this.#expected = expected;
    this.#gatheredBytes = 0;
    this.#needed = needed;
  }

  #takeHeader(): void {
    const header = this.#gathered;
    const magic = header.readUInt32BE(0);
    if (magic === SIMPLE_REPLY_MAGIC) this.#takeSimpleReply(header);
    else if (magic !== STRUCTURED_REPLY_MAGIC) throw breach("a reply does not begin with a known magic");
    else if (this.#gatheredBytes < CHUNK_HEADER_BYTES) this.#needed = CHUNK_HEADER_BYTES;
    else this.#takeChunkHeader(header);
  }

  #takeSimpleReply(header: Buffer): void {
    const request = this.#find(header.readUInt32BE(8), header.readUInt32BE(12));
    const isRead = request.type === COMMAND.READ;
    if (this.#options.structuredReplies && isRead) throw breach("a read was answered by a simple reply");
    if (request.type === COMMAND.BLOCK_STATUS && header.readUInt32BE(4) === 0) {
      throw breach("a block status came without its extents");
    }
    if (request.chunks > 0) throw breach("a simple reply came after a chunk of the same reply");
    request.errno = header.readUInt32BE(4);
    this.#isDone = true;
    if (isRead && request.errno === 0) this.#beginData(request.offset, request.length);
    else this.#endChunk();
  }

  #takeChunkHeader(header: Buffer): void {
    if (!this.#options.structuredReplies) throw breach("a structured reply came that was not negotiated");
    const flags = header.readUInt16BE(4);
    const type = header.readUInt16BE(6);
    const request = this.#find(header.readUInt32BE(8), header.readUInt32BE(12));
    const length = header.readUInt32BE(16);
    this.#isDone = (flags & CHUNK_FLAG_DONE) !== 0;
    this.#chunkType = type;
    request.chunks += 1;
    if (request.chunks > NBD_CLIENT_CHUNKS_PER_REPLY_MAX) throw breach("a reply has too many chunks");
    switch (type) {
      case CHUNK.NONE:
        if (length !== 0 || !this.#isDone) throw breach("an empty chunk is not empty, or not the last");
        this.#endChunk();
        return;
      case CHUNK.OFFSET_DATA:
        if (request.type !== COMMAND.READ) throw breach("data came for a request that is no read");
        if (length <= CHUNK_OFFSET_BYTES) throw breach("a chunk of data has no data");
        this.#beginPrefix(CHUNK_OFFSET_BYTES, length);
        return;
      case CHUNK.OFFSET_HOLE:
        if (request.type !== COMMAND.READ) throw breach("a hole came for a request that is no read");
        if (length !== CHUNK_HOLE_BYTES) throw breach("a hole is not described as holes are");
        this.#beginPrefix(CHUNK_HOLE_BYTES, length);
        return;
      case CHUNK.BLOCK_STATUS:
        if (request.type !== COMMAND.BLOCK_STATUS || request.hasExtents) throw breach("extents came unasked");
        if (length < CONTEXT_ID_BYTES + EXTENT_BYTES || (length - CONTEXT_ID_BYTES) % EXTENT_BYTES !== 0) {
          throw breach("a block status is not made of extents");
        }
        this.#beginPrefix(CONTEXT_ID_BYTES, length);
        return;
      default:
        // All types with the highest bit set are errors, those of later versions as well.
        if (type < CHUNK.ERROR) throw breach(`a chunk has the unknown type ${type}`);
        if (length < ERROR_PREFIX_BYTES || length > NBD_CLIENT_ERROR_BYTES_MAX) {
          throw breach("an error has an impossible length");
        }
        this.#beginPrefix(length, length);
    }
  }

  #beginPrefix(prefixBytes: number, length: number): void {
    this.#left = length - prefixBytes;
    this.#expect("prefix", prefixBytes);
  }

  #takePrefix(): void {
    const request = this.#openRequest();
    const prefix = this.#gathered;
    switch (this.#chunkType) {
      case CHUNK.OFFSET_DATA:
        this.#beginData(readUint64(prefix, 0), this.#left);
        return;
      case CHUNK.OFFSET_HOLE:
        request.zeroRange(readUint64(prefix, 0), prefix.readUInt32BE(CHUNK_OFFSET_BYTES));
        break;
      case CHUNK.BLOCK_STATUS:
        if (prefix.readUInt32BE(0) !== this.#options.allocationContextId) {
          throw breach("a block status is of a context that was not selected");
        }
        request.hasExtents = true;
        this.#expect("extents", EXTENT_BYTES);
        return;
      default:
        this.#takeError(request, prefix);
    }
    this.#endChunk();
  }

  #takeError(request: OpenRequest, prefix: Buffer): void {
    const errno = prefix.readUInt32BE(0);
    const messageEnd = ERROR_PREFIX_BYTES + prefix.readUInt16BE(4);
    if (errno === 0 || messageEnd > this.#gatheredBytes) throw breach("an error is not described as errors are");
    if (request.errno !== 0) return; // the first one counts
    request.errno = errno;
    request.message = prefix.toString("utf8", ERROR_PREFIX_BYTES, messageEnd);
  }

  #takeExtent(): void {
    const request = this.#openRequest();
    const length = this.#gathered.readUInt32BE(0);
    const state = this.#gathered.readUInt32BE(4);
    if (length === 0) throw breach("an extent has no length");
    request.addExtent(length, (state & ALLOCATION_STATE.HOLE) !== 0, (state & ALLOCATION_STATE.ZERO) !== 0);
    this.#left -= EXTENT_BYTES;
    if (this.#left > 0) this.#expect("extents", EXTENT_BYTES);
    else this.#endChunk();
  }

  #beginData(offset: number, length: number): void {
    this.#openRequest().claim(offset, length);
    this.#dataOffset = offset;
    this.#left = length;
    this.#expected = "data";
  }

  #takeData(chunk: Buffer, from: number): number {
    const request = this.#openRequest();
    const end = Math.min(chunk.length, from + this.#left);
    request.target?.set(chunk.subarray(from, end), this.#dataOffset - request.offset);
    this.#dataOffset += end - from;
    this.#left -= end - from;
    if (this.#left === 0) this.#endChunk();
    return end;
  }

  #endChunk(): void {
    const request = this.#openRequest();
    this.#request = undefined;
    this.#expect("header", SIMPLE_REPLY_BYTES);
    if (!this.#isDone) return;
    request.assertComplete();
    this.#options.finished(request);
  }

  #find(cookieHigh: number, cookieLow: number): OpenRequest {
    const request = this.#options.find(cookieHigh, cookieLow);
    if (request === undefined) throw breach("a reply is to no request");
    this.#request = request;
    return request;
  }

  #openRequest(): OpenRequest {
    if (this.#request === undefined) throw breach("a payload belongs to no reply");
    return this.#request;
  }
}

export function breach(what: string): ColobusError {
  return new ColobusError(
    "protocol-error",
    `the NBD server broke the protocol: ${what}`,
    "Report this to the maker of the server.",
  );
}
