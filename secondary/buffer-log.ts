/**
 * Owns one log of a block buffer (`proto/buffer-log-format.ts`), and the part of it that is held in memory.
 *
 * How: records are put together in chunks, each the image of its stretch of the file, and what a call has added is
 * written from there in as few pieces as possible. A chunk that is full and written stays in memory, to be read from
 * there, as long as the limit of all buffers allows.
 *
 * Invariants: an append that failed leaves no trace: records of it that are whole would count at a later start, so they are
 * cut off, at once or before anything else is appended or called stable. After a failed sync nothing counts that no sync
 * has covered: `cut` removes it, and its sender, who was never told that it is stable, sends it again. What was cut off
 * comes back with a loss of power, so the log is not synced before a sync has covered that as well.
 */
import assert from "node:assert/strict";
import { crc32 } from "node:zlib";
import {
  BUFFER_LOG_HEADER_BYTES,
  BUFFER_RECORD_HEAD_BYTES,
  bufferRecordSeed,
  decodeBufferLogHeader,
  decodeBufferRecordHead,
  encodeBufferLogHeader,
  encodeBufferRecordHead,
  sealBufferRecord,
  type BufferLogHeader,
  type BufferRecord,
} from "../proto/buffer-log-format.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { BUFFER_CHUNK_MIN_BYTES } from "../proto/limits.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { SharedSync } from "../shared/host/shared-sync.ts";
import type { Storage, StorageFile } from "../shared/host/storage.ts";
import { laterVersion } from "../shared/journal/later-version.ts";
import type { BufferMemory } from "./buffer-memory.ts";

const READ_BYTES = 1024 * 1024;

/** Called for each record of a log, with the position of its payload. */
export type VisitRecord = (record: BufferRecord, position: number) => void;

/** What a record says, and for a write the bytes. */
export interface BufferedChange extends BufferRecord {
  readonly payload: Uint8Array;
}

export class BufferLog {
  readonly #file: StorageFile;
  readonly #seed: number;
  /** undefined: nothing is held in memory, and nothing will be appended. */
  readonly #memory: BufferMemory | undefined;
  readonly #chunkBytes: number;
  readonly #chunks: (Buffer | undefined)[] = [];
  #tailBytes: number;
  /** What has been put together, and not written yet, ends here. */
  #stagedBytes: number;
  #sequence: number;
  #syncedBytes = 0;
  /** An append has failed, and records of it may lie behind the tail. */
  #hasRemains = false;
  /** How often something was cut off, and how many of these a sync has covered. */
  #cuts = 0;
  #syncedCuts = 0;
  /** Why a sync has failed, while that is not made up for. */
  #damage: ColobusError | undefined;
  readonly #syncs = new SharedSync(() => this.#sync());
  static readonly #head = Buffer.alloc(BUFFER_RECORD_HEAD_BYTES);

  private constructor(
    file: StorageFile,
    header: BufferLogHeader,
    memory: BufferMemory | undefined,
    end: { readonly tailBytes: number; readonly sequence: number },
  ) {
    this.#file = file;
    this.#seed = bufferRecordSeed(header.id);
    this.#memory = memory;
    this.#chunkBytes = memory?.chunkBytes ?? BUFFER_CHUNK_MIN_BYTES;
    this.#tailBytes = end.tailBytes;
    this.#stagedBytes = end.tailBytes;
    this.#sequence = end.sequence;
  }

  /**
   * Starts an empty log at `path`, over what is there already of a log with another id. A caller who cannot say that of
   * what a crash may have left has it cut off (`isCut`).
   */
  static create(
    storage: Storage,
    path: string,
    header: BufferLogHeader,
    { memory, isCut }: { readonly memory: BufferMemory; readonly isCut: boolean },
  ): BufferLog {
    const file = storage.open(path, { kind: "buffer-log", create: "if-missing" });
    const log = new BufferLog(file, header, memory, { tailBytes: 0, sequence: 0 });
    try {
      if (isCut && file.sizeBytes() > 0) file.truncate(0);
      log.#stage(encodeBufferLogHeader(header));
      log.#writeStaged();
      return log;
    } catch (error) {
      log.close();
      throw error;
    }
  }

  /**
   * Opens the log at `path`, calls `visit` for each record in order, and cuts a torn tail. It takes no more records.
   * Returns undefined when the header is torn or belongs to another disk or epoch: such a log was never relied on.
   * Errors: `state-corrupt` when it is of another version of the format; those of the storage.
   */
  static open(
    storage: Storage,
    path: string,
    expected: Omit<BufferLogHeader, "id">,
    visit: VisitRecord,
  ): BufferLog | undefined {
    const file = storage.open(path, { kind: "buffer-log", create: "never" });
    try {
      const scanned = scanBufferLog(file, visit, expected);
      const isExpected =
        scanned !== undefined &&
        scanned.header.diskSizeBytes <= expected.diskSizeBytes && // the disk may have grown since
        scanned.header.epoch === expected.epoch &&
        scanned.header.ordinal === expected.ordinal;
      if (!isExpected) {
        file.close();
        return undefined;
      }
      if (scanned.tailBytes < file.sizeBytes()) file.truncate(scanned.tailBytes);
      return new BufferLog(file, scanned.header, undefined, scanned);
    } catch (error) {
      file.close();
      throw error;
    }
  }

  get sizeBytes(): number {
    return this.#tailBytes;
  }

  /** What its file takes, with what an earlier log may have left behind the tail. */
  get fileBytes(): number {
    return this.#file.sizeBytes();
  }

  /** Whether it takes more records. */
  get isOpen(): boolean {
    return this.#memory !== undefined && this.#damage === undefined;
  }

  /** Whether a sync has failed, or what a failed append has left could not be cut off: `cut` is due, or `writeAgain`. */
  get isDamaged(): boolean {
    return this.#damage !== undefined || this.#hasRemains;
  }

  get isSynced(): boolean {
    return !this.#hasRemains && this.#syncedCuts === this.#cuts && this.#syncedBytes === this.#tailBytes;
  }

  /**
   * Appends the changes, and calls `visit` for each when all are in the file. The payloads are the caller's again then.
   * Errors: those of the file (`out-of-space`, `io-error`); none is appended then.
   */
  append(changes: readonly BufferedChange[], visit: VisitRecord): void {
    const sequence = this.#sequence;
    if (this.#hasRemains) this.#cutAt(this.#tailBytes);
    const tailBytes = this.#tailBytes;
    try {
      for (const change of changes) {
        this.#sequence += 1;
        this.#stageRecord(change);
      }
      this.#writeStaged();
    } catch (error) {
      this.#sequence = sequence;
      this.#stagedBytes = tailBytes;
      this.#tailBytes = tailBytes;
      this.#hasRemains = true;
      this.#tryCutRemains();
      throw error;
    }
    let position = tailBytes;
    for (const change of changes) {
      position += BUFFER_RECORD_HEAD_BYTES;
      visit(change, position);
      if (change.kind === "write") position += change.length;
    }
  }

  /** Fills `target` from `position`. */
  read(target: Uint8Array, position: number): Pending {
    const end = position + target.length;
    for (let at = position; at < end;) {
      const index = Math.floor(at / this.#chunkBytes);
      const chunk = this.#chunks[index];
      if (chunk === undefined) return this.#readFile(target.subarray(at - position), at);
      const from = at - index * this.#chunkBytes;
      const length = Math.min(this.#chunkBytes - from, end - at);
      chunk.copy(target, at - position, from, from + length);
      at += length;
    }
    return undefined;
  }

  /** What lies at `position`, if that is in memory in one piece. It is the log's, and stays until the next append, or `close`. */
  tryView(position: number, length: number): Buffer | undefined {
    const index = Math.floor(position / this.#chunkBytes);
    const at = position - index * this.#chunkBytes;
    return at + length > this.#chunkBytes ? undefined : this.#chunks[index]?.subarray(at, at + length);
  }

  /**
   * Everything appended before the call is durable when the promise resolves; the name is the caller's to make so.
   * Errors: `io-error`; then of every later call as well, until what may be lost is cut off or written again.
   */
  sync(): Promise<void> {
    return this.#syncs.run();
  }

  async #sync(): Promise<void> {
    if (this.#damage !== undefined) throw this.#damage;
    if (this.#hasRemains) this.#cutAt(this.#tailBytes);
    if (this.isSynced) return;
    const [tailBytes, cuts] = [this.#tailBytes, this.#cuts];
    try {
      await this.#file.sync();
    } catch (error) {
      this.#damage = asColobusError(error);
      throw error;
    }
    this.#syncedBytes = Math.max(this.#syncedBytes, tailBytes);
    this.#syncedCuts = cuts;
  }

  /**
   * Drops what a failed append has left, and, where a sync has failed, what none has covered. Calls `visit` for what is
   * to stay. Errors: `io-error`; nothing counts less then than before.
   */
  cut(visit: VisitRecord): void {
    const end = this.#damage === undefined ? this.#tailBytes : this.#syncedBytes;
    const scanned = end === 0 ? undefined : scanBufferLog(this.#file, visit, { endBytes: end });
    assert((scanned?.tailBytes ?? 0) === end, "what counts reads back");
    this.#cutAt(end);
    this.#giveChunks();
    this.#sequence = scanned?.sequence ?? 0;
    this.#tailBytes = end;
    this.#stagedBytes = end;
    this.#damage = undefined;
  }

  /**
   * An earlier process may have lost any of it, and seen it nevertheless: writes everything again, for the next sync.
   * Errors: `io-error`, also where it is not as it was.
   */
  writeAgain(): void {
    if (scanBufferLog(this.#file, () => undefined)?.tailBytes !== this.#tailBytes) {
      throw new ColobusError(
        "io-error",
        `${this.#file.path} has lost what was written to it`,
        "Look for errors of its device in the kernel's log, and restart the agent.",
      );
    }
    for (let at = 0; at < this.#tailBytes; at += READ_BYTES) {
      const piece = Buffer.allocUnsafe(Math.min(READ_BYTES, this.#tailBytes - at));
      this.#file.readNow(piece, at);
      this.#file.write(piece, at);
    }
    this.#syncedBytes = 0;
    this.#damage = undefined;
  }

  close(): void {
    this.#giveChunks();
    this.#file.close();
  }

  #cutAt(sizeBytes: number): void {
    this.#file.truncate(sizeBytes);
    this.#hasRemains = false;
    this.#cuts += 1;
  }

  /** Where it fails, that is tried again before anything else. */
  #tryCutRemains(): void {
    try {
      this.#cutAt(this.#tailBytes);
    } catch (error) {
      if (!(error instanceof ColobusError)) throw error;
    }
  }

  #readFile(target: Uint8Array, position: number): Pending {
    return this.#file.tryRead(target, position) ? undefined : this.#file.read(target, position);
  }

  /** Puts a record behind what is staged: in one chunk, where it fits, so that it is summed up in one go. */
  #stageRecord(change: BufferedChange): void {
    const payload = change.kind === "write" ? change.payload : NO_PAYLOAD;
    const index = Math.floor(this.#stagedBytes / this.#chunkBytes);
    const at = this.#stagedBytes - index * this.#chunkBytes;
    const length = BUFFER_RECORD_HEAD_BYTES + payload.length;
    if (at + length > this.#chunkBytes) {
      const head = BufferLog.#head;
      encodeBufferRecordHead(head, this.#sequence, change);
      sealBufferRecord([head, asBuffer(payload)], this.#seed);
      this.#stage(head);
      this.#stage(payload);
      return;
    }
    const record = this.#chunkAt(index).subarray(at, at + length);
    encodeBufferRecordHead(record, this.#sequence, change);
    record.set(payload, BUFFER_RECORD_HEAD_BYTES);
    sealBufferRecord([record], this.#seed);
    this.#stagedBytes += length;
  }

  /** Puts bytes behind what is staged. */
  #stage(bytes: Uint8Array): void {
    for (let from = 0; from < bytes.length;) {
      const index = Math.floor(this.#stagedBytes / this.#chunkBytes);
      const chunk = this.#chunkAt(index);
      const at = this.#stagedBytes - index * this.#chunkBytes;
      const length = Math.min(this.#chunkBytes - at, bytes.length - from);
      chunk.set(from === 0 && length === bytes.length ? bytes : bytes.subarray(from, from + length), at);
      this.#stagedBytes += length;
      from += length;
    }
  }

  #chunkAt(index: number): Buffer {
    const present = this.#chunks[index];
    if (present !== undefined) return present;
    assert(this.#memory !== undefined, "the log is open");
    const chunk = this.#memory.takeChunk();
    try {
      // After a cut the file has the chunk's beginning.
      const has = this.#tailBytes - index * this.#chunkBytes;
      if (has > 0) this.#file.readNow(chunk.subarray(0, has), index * this.#chunkBytes);
    } catch (error) {
      this.#memory.giveChunk(chunk);
      throw error;
    }
    this.#chunks[index] = chunk;
    return chunk;
  }

  #writeStaged(): void {
    while (this.#tailBytes < this.#stagedBytes) {
      const index = Math.floor(this.#tailBytes / this.#chunkBytes);
      const start = index * this.#chunkBytes;
      const end = Math.min(this.#stagedBytes, start + this.#chunkBytes);
      const chunk = this.#chunks[index];
      assert(chunk !== undefined, "what is staged is in memory");
      this.#file.write(chunk.subarray(this.#tailBytes - start, end - start), this.#tailBytes);
      this.#tailBytes = end;
      if (end < start + this.#chunkBytes || this.#memory?.isOver !== true) continue;
      this.#chunks[index] = undefined;
      this.#memory.giveChunk(chunk);
    }
  }

  #giveChunks(): void {
    for (const chunk of this.#chunks) if (chunk !== undefined) this.#memory?.giveChunk(chunk);
    this.#chunks.length = 0;
  }
}

const NO_PAYLOAD = Buffer.alloc(0);

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * Calls `visit` for each sound record of a log that lies before `endBytes`, and in a disk of that size: it may have grown
 * since the log was begun. Returns its header and where it ends; undefined: it is no such log. Errors: `state-corrupt`, as of `BufferLog.open`.
 */
export function scanBufferLog(
  file: StorageFile,
  visit: VisitRecord,
  { diskSizeBytes = Infinity, endBytes = Infinity }: { diskSizeBytes?: number; endBytes?: number } = {},
): { readonly header: BufferLogHeader; readonly tailBytes: number; readonly sequence: number } | undefined {
  const size = Math.min(file.sizeBytes(), endBytes);
  const headerBytes = Buffer.alloc(Math.min(size, BUFFER_LOG_HEADER_BYTES));
  file.readNow(headerBytes, 0);
  const header = decodeBufferLogHeader(headerBytes);
  if (header === undefined) return undefined;
  if (typeof header === "number") throw laterVersion(file.path, `log of a block buffer, version ${header}`);
  const seed = bufferRecordSeed(header.id);
  const reader = new WindowReader(file, size);
  let tailBytes = BUFFER_LOG_HEADER_BYTES;
  let sequence = 0;
  for (;;) {
    if (size - tailBytes < BUFFER_RECORD_HEAD_BYTES) break;
    const head = decodeBufferRecordHead(reader.read(tailBytes, BUFFER_RECORD_HEAD_BYTES), seed);
    if (head === undefined || head.sequence !== sequence + 1) break;
    const position = tailBytes + BUFFER_RECORD_HEAD_BYTES;
    if (head.offset + head.length > diskSizeBytes || position + head.payloadBytes > size) break;
    let checksum = head.headChecksum;
    for (let at = 0; at < head.payloadBytes; at += READ_BYTES) {
      checksum = crc32(reader.read(position + at, Math.min(READ_BYTES, head.payloadBytes - at)), checksum);
    }
    if (checksum !== head.checksum) break;
    tailBytes = position + head.payloadBytes;
    sequence += 1;
    visit(head, position);
  }
  return { header, tailBytes, sequence };
}

/** Reads a file from front to back, in pieces that are larger than what is asked for. */
class WindowReader {
  readonly #file: StorageFile;
  readonly #size: number;
  #window = Buffer.alloc(0);
  #start = 0;

  constructor(file: StorageFile, size: number) {
    this.#file = file;
    this.#size = size;
  }

  /** At most READ_BYTES, which lie in the file. Valid until the next call. */
  read(at: number, length: number): Buffer {
    if (at < this.#start || at + length > this.#start + this.#window.length) {
      this.#start = at;
      this.#window = Buffer.allocUnsafe(Math.min(READ_BYTES, this.#size - at));
      this.#file.readNow(this.#window, at);
    }
    return this.#window.subarray(at - this.#start, at - this.#start + length);
  }
}
