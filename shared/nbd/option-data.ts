/** Parsers of the options' variable-length data. Pure; undefined means that a length does not add up, or a string is none. */
import { NBD_MAX_NAME_BYTES } from "../../proto/limits.ts";

export interface InfoRequest {
  readonly exportName: string;
  /** The INFO types asked for, known or not. */
  readonly infoTypes: readonly number[];
}

export interface MetaContextRequest {
  readonly exportName: string;
  readonly queries: readonly string[];
}

/** Data of INFO and GO: u32 name length, name, u16 count, count times u16. */
export function parseInfoRequest(data: Buffer): InfoRequest | undefined {
  if (data.length < 6) return undefined;
  const nameLength = data.readUInt32BE(0);
  if (nameLength > data.length - 6) return undefined;
  const exportName = parseName(data.subarray(4, 4 + nameLength));
  const count = data.readUInt16BE(4 + nameLength);
  const typesStart = 6 + nameLength;
  if (exportName === undefined || data.length !== typesStart + 2 * count) return undefined;
  const infoTypes: number[] = [];
  for (let position = typesStart; position < data.length; position += 2) infoTypes.push(data.readUInt16BE(position));
  return { exportName, infoTypes };
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT: u32 name length, name, u32 count, count times u32 length and query. */
export function parseMetaContextRequest(data: Buffer): MetaContextRequest | undefined {
  if (data.length < 8) return undefined;
  const nameLength = data.readUInt32BE(0);
  if (nameLength > data.length - 8) return undefined;
  const exportName = parseName(data.subarray(4, 4 + nameLength));
  if (exportName === undefined) return undefined;
  const count = data.readUInt32BE(4 + nameLength);
  const queries: string[] = [];
  let position = 8 + nameLength;
  for (let index = 0; index < count; index += 1) {
    if (data.length - position < 4) return undefined;
    const queryLength = data.readUInt32BE(position);
    position += 4;
    if (queryLength > data.length - position) return undefined;
    queries.push(data.toString("utf8", position, position + queryLength));
    position += queryLength;
  }
  return position === data.length ? { exportName, queries } : undefined;
}

/** An export name: UTF-8 without NUL, at most NBD_MAX_NAME_BYTES long. */
export function parseName(bytes: Buffer): string | undefined {
  if (bytes.length > NBD_MAX_NAME_BYTES || bytes.includes(0)) return undefined;
  const name = bytes.toString("utf8");
  // A decoder replaces what is not UTF-8, and then the name does not encode to the same bytes again.
  return Buffer.from(name, "utf8").equals(bytes) ? name : undefined;
}
