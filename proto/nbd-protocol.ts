/**
 * The bytes of the NBD protocol (NetworkBlockDevice/nbd, doc/proto.md): constants, and encoders and decoders of the
 * parts that have a fixed size. All integers are big-endian. Pure: no state, no policy, no I/O.
 *
 * Cookies are opaque to a server and are kept as two 32-bit halves. Offsets are unsigned 64-bit numbers and are decoded
 * to a double: exact below 2^53, and above it still larger than any disk, which is all that a range check needs.
 */

// Handshake
export const NBD_MAGIC = 0x4e42444d41474943n;
export const NBD_OPTION_MAGIC = 0x49484156454f5054n;
export const NBD_OPTION_REPLY_MAGIC = 0x0003e889045565a9n;

/** u64 NBDMAGIC, u64 IHAVEOPT, u16 handshake flags. */
export const GREETING_BYTES = 18;
export const CLIENT_FLAGS_BYTES = 4;
/** u64 IHAVEOPT, u32 option, u32 data length. */
export const OPTION_HEADER_BYTES = 16;
/** u64 magic, u32 option, u32 reply type, u32 data length. */
export const OPTION_REPLY_HEADER_BYTES = 20;
/** Reply to EXPORT_NAME: u64 size, u16 transmission flags, and the zeroes that NO_ZEROES leaves out. */
export const EXPORT_NAME_REPLY_BYTES = 10;
export const EXPORT_NAME_ZEROES_BYTES = 124;

export const HANDSHAKE_FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;
export const CLIENT_FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;

export const OPTION = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  PEEK_EXPORT: 4,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

const OPTION_ERROR_BIT = 2 ** 31;

export const OPTION_REPLY = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: OPTION_ERROR_BIT + 1,
  ERR_POLICY: OPTION_ERROR_BIT + 2,
  ERR_INVALID: OPTION_ERROR_BIT + 3,
  ERR_PLATFORM: OPTION_ERROR_BIT + 4,
  ERR_TLS_REQD: OPTION_ERROR_BIT + 5,
  ERR_UNKNOWN: OPTION_ERROR_BIT + 6,
  ERR_SHUTDOWN: OPTION_ERROR_BIT + 7,
  ERR_BLOCK_SIZE_REQD: OPTION_ERROR_BIT + 8,
  ERR_TOO_BIG: OPTION_ERROR_BIT + 9,
  ERR_EXT_HEADER_REQD: OPTION_ERROR_BIT + 10,
} as const;

export type OptionReply = (typeof OPTION_REPLY)[keyof typeof OPTION_REPLY];

export const INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

// Transmission
export const TRANSMISSION_FLAG = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
} as const;

export const COMMAND = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

export const COMMAND_FLAG = {
  FUA: 1 << 0,
  NO_HOLE: 1 << 1,
  DF: 1 << 2,
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
  PAYLOAD_LEN: 1 << 5,
} as const;

export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;

/** u32 magic, u16 flags, u16 type, u64 cookie, u64 offset, u32 length. */
export const REQUEST_BYTES = 28;
/** u32 magic, u32 error, u64 cookie. */
export const SIMPLE_REPLY_BYTES = 16;
/** u32 magic, u16 flags, u16 type, u64 cookie, u32 payload length. */
export const CHUNK_HEADER_BYTES = 20;
/** u64 offset, before the data of an OFFSET_DATA chunk. */
export const CHUNK_OFFSET_BYTES = 8;
/** u64 offset, u32 length: the payload of an OFFSET_HOLE chunk. */
export const CHUNK_HOLE_BYTES = 12;

export const CHUNK_FLAG_DONE = 1;
export const CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;

export const BASE_ALLOCATION = "base:allocation";
/** QEMU's namespace, and in it the contexts of named dirty bitmaps (docs/interop/nbd.rst there). */
export const QEMU_NAMESPACE = "qemu:";
export const DIRTY_BITMAP_NAMESPACE = "qemu:dirty-bitmap:";
/** Extents of such a context. */
export const DIRTY_BITMAP_FLAG = { DIRTY: 1 } as const;
export const ALLOCATION_STATE = { HOLE: 1, ZERO: 2 } as const;

/** One request as it came over the wire. The decoder fills the same object again and again. */
export interface RequestHeader {
  flags: number;
  type: number;
  cookieHigh: number;
  cookieLow: number;
  offset: number;
  length: number;
}

export function emptyRequestHeader(): RequestHeader {
  return { flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 };
}

/** Decodes the REQUEST_BYTES at `position` into `into`. False: the magic is wrong, and `into` is unchanged. */
export function decodeRequest(source: Buffer, position: number, into: RequestHeader): boolean {
  if (source.readUInt32BE(position) !== REQUEST_MAGIC) return false;
  into.flags = source.readUInt16BE(position + 4);
  into.type = source.readUInt16BE(position + 6);
  into.cookieHigh = source.readUInt32BE(position + 8);
  into.cookieLow = source.readUInt32BE(position + 12);
  into.offset = readUint64(source, position + 16);
  into.length = source.readUInt32BE(position + 24);
  return true;
}

/** Encodes a request. `offset` is below 2^53. */
export function encodeRequest(request: Readonly<RequestHeader>): Buffer {
  const buffer = Buffer.alloc(REQUEST_BYTES);
  putRequest(buffer, 0, request);
  return buffer;
}

/** Writes SIMPLE_REPLY_BYTES at `position`. */
export function putSimpleReply(
  target: Buffer,
  position: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): void {
  target.writeUInt32BE(SIMPLE_REPLY_MAGIC, position);
  target.writeUInt32BE(error, position + 4);
  target.writeUInt32BE(cookieHigh, position + 8);
  target.writeUInt32BE(cookieLow, position + 12);
}

/** Writes CHUNK_HEADER_BYTES at `position`. `payloadLength` counts what follows the header. */
export function putChunkHeader(
  target: Buffer,
  position: number,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  payloadLength: number,
): void {
  target.writeUInt32BE(STRUCTURED_REPLY_MAGIC, position);
  target.writeUInt16BE(flags, position + 4);
  target.writeUInt16BE(type, position + 6);
  target.writeUInt32BE(cookieHigh, position + 8);
  target.writeUInt32BE(cookieLow, position + 12);
  target.writeUInt32BE(payloadLength, position + 16);
}

/** An unsigned 64-bit number as a double: exact below 2^53, and never below 2^53 when the number is not. */
export function readUint64(source: Buffer, position: number): number {
  return source.readUInt32BE(position) * 2 ** 32 + source.readUInt32BE(position + 4);
}

/** Writes a whole number below 2^53 as an unsigned 64-bit number. */
export function writeUint64(target: Buffer, position: number, value: number): void {
  target.writeUInt32BE(Math.floor(value / 2 ** 32), position);
  target.writeUInt32BE(value % 2 ** 32, position + 4);
}

/** The first bytes that a server sends: it offers fixed newstyle negotiation, and to leave out EXPORT_NAME's zeroes. */
export function encodeGreeting(): Buffer {
  const buffer = Buffer.alloc(GREETING_BYTES);
  buffer.writeBigUInt64BE(NBD_MAGIC, 0);
  buffer.writeBigUInt64BE(NBD_OPTION_MAGIC, 8);
  buffer.writeUInt16BE(HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES, 16);
  return buffer;
}

export function encodeOption(option: number, data: Uint8Array): Buffer {
  const buffer = Buffer.alloc(OPTION_HEADER_BYTES + data.length);
  buffer.writeBigUInt64BE(NBD_OPTION_MAGIC, 0);
  buffer.writeUInt32BE(option, 8);
  buffer.writeUInt32BE(data.length, 12);
  buffer.set(data, OPTION_HEADER_BYTES);
  return buffer;
}

export function encodeOptionReply(option: number, type: OptionReply, data?: Uint8Array): Buffer {
  const length = data?.length ?? 0;
  const buffer = Buffer.alloc(OPTION_REPLY_HEADER_BYTES + length);
  buffer.writeBigUInt64BE(NBD_OPTION_REPLY_MAGIC, 0);
  buffer.writeUInt32BE(option, 8);
  buffer.writeUInt32BE(type, 12);
  buffer.writeUInt32BE(length, 16);
  if (data !== undefined) buffer.set(data, OPTION_REPLY_HEADER_BYTES);
  return buffer;
}

/** Reply to EXPORT_NAME, with its 124 zeroes unless the client declined them. */
export function encodeExportNameReply(sizeBytes: number, transmissionFlags: number, noZeroes: boolean): Buffer {
  const buffer = Buffer.alloc(EXPORT_NAME_REPLY_BYTES + (noZeroes ? 0 : EXPORT_NAME_ZEROES_BYTES));
  writeUint64(buffer, 0, sizeBytes);
  buffer.writeUInt16BE(transmissionFlags, 8);
  return buffer;
}

/** Payload of REP_INFO with INFO_EXPORT. */
export function encodeInfoExport(sizeBytes: number, transmissionFlags: number): Buffer {
  const buffer = Buffer.alloc(12);
  buffer.writeUInt16BE(INFO.EXPORT, 0);
  writeUint64(buffer, 2, sizeBytes);
  buffer.writeUInt16BE(transmissionFlags, 10);
  return buffer;
}

/** Payload of REP_INFO with INFO_NAME or INFO_DESCRIPTION. */
export function encodeInfoText(type: number, text: string): Buffer {
  const encoded = Buffer.from(text, "utf8");
  const buffer = Buffer.alloc(2 + encoded.length);
  buffer.writeUInt16BE(type, 0);
  buffer.set(encoded, 2);
  return buffer;
}

/** Payload of REP_INFO with INFO_BLOCK_SIZE. */
export function encodeInfoBlockSize(minimum: number, preferred: number, maximum: number): Buffer {
  const buffer = Buffer.alloc(14);
  buffer.writeUInt16BE(INFO.BLOCK_SIZE, 0);
  buffer.writeUInt32BE(minimum, 2);
  buffer.writeUInt32BE(preferred, 6);
  buffer.writeUInt32BE(maximum, 10);
  return buffer;
}

/** Payload of REP_SERVER: u32 name length, name, and the rest is a description for people. */
export function encodeServerEntry(name: string, description: string): Buffer {
  const nameBytes = Buffer.from(name, "utf8");
  const descriptionBytes = Buffer.from(description, "utf8");
  const buffer = Buffer.alloc(4 + nameBytes.length + descriptionBytes.length);
  buffer.writeUInt32BE(nameBytes.length, 0);
  buffer.set(nameBytes, 4);
  buffer.set(descriptionBytes, 4 + nameBytes.length);
  return buffer;
}

/** Payload of REP_META_CONTEXT. */
export function encodeMetaContext(contextId: number, name: string): Buffer {
  const nameBytes = Buffer.from(name, "utf8");
  const buffer = Buffer.alloc(4 + nameBytes.length);
  buffer.writeUInt32BE(contextId, 0);
  buffer.set(nameBytes, 4);
  return buffer;
}

/** Data of INFO and GO: u32 name length, name, u16 count, count times u16. */
export function encodeInfoRequest(name: string, infoTypes: readonly number[]): Buffer {
  const nameBytes = Buffer.from(name, "utf8");
  const buffer = Buffer.alloc(4 + nameBytes.length + 2 + 2 * infoTypes.length);
  buffer.writeUInt32BE(nameBytes.length, 0);
  buffer.set(nameBytes, 4);
  let position = 4 + nameBytes.length;
  position = buffer.writeUInt16BE(infoTypes.length, position);
  for (const type of infoTypes) position = buffer.writeUInt16BE(type, position);
  return buffer;
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT: u32 name length, name, u32 count, count times u32 length and query. */
export function encodeMetaContextRequest(name: string, queries: readonly string[]): Buffer {
  const texts = [name, ...queries].map((text) => Buffer.from(text, "utf8"));
  const buffer = Buffer.alloc(4 + texts.reduce((sum, text) => sum + 4 + text.length, 0));
  let position = 0;
  for (const [index, text] of texts.entries()) {
    position = buffer.writeUInt32BE(text.length, position);
    buffer.set(text, position);
    position += text.length;
    if (index === 0) position = buffer.writeUInt32BE(queries.length, position);
  }
  return buffer;
}

/** Whether the type of an option reply says that the option was refused. */
export function isOptionError(type: number): boolean {
  return type >= OPTION_ERROR_BIT;
}

/** Writes REQUEST_BYTES at `position`. `offset` is below 2^53. */
export function putRequest(target: Buffer, position: number, request: Readonly<RequestHeader>): void {
  target.writeUInt32BE(REQUEST_MAGIC, position);
  target.writeUInt16BE(request.flags, position + 4);
  target.writeUInt16BE(request.type, position + 6);
  target.writeUInt32BE(request.cookieHigh, position + 8);
  target.writeUInt32BE(request.cookieLow, position + 12);
  writeUint64(target, position + 16, request.offset);
  target.writeUInt32BE(request.length, position + 24);
}
