import { asColobusError } from "../proto/errors.ts";
import type { Pending } from "../shared/block/block-device.ts";

/** Reads originals from where they are now. */
export type ReadOriginal = (target: Uint8Array, offset: number) => Pending;

/** What is in the page cache is copied in pieces of this size: they stay in the processor's cache between read and write. */
const CACHED_PIECE_BYTES = 64 * 1024;

interface Piece {
  readonly bytes: Buffer;
  readonly offset: number;
}

/**
 * Copies originals by way of one scratch buffer. What is read at once is written at once; reads that have to wait run side
 * by side, as many as there is scratch for, and are written when all of them are done.
 */
export class OriginalCopy {
  readonly #scratch: Buffer;
  readonly #read: ReadOriginal;
  readonly #write: (bytes: Buffer, offset: number) => void;
  readonly #pieces: Piece[] = [];
  #reads: Promise<void>[] = [];
  #used = 0;
  #pieceBytes: number;

  constructor(scratch: Buffer, read: ReadOriginal, write: (bytes: Buffer, offset: number) => void) {
    this.#scratch = scratch;
    this.#read = read;
    this.#write = write;
    this.#pieceBytes = Math.min(CACHED_PIECE_BYTES, scratch.length);
  }

  /** Nothing can be begun before what is under way is finished. */
  get isFull(): boolean {
    return this.#used >= this.#scratch.length;
  }

  /** Begins with as much of [offset, offset+length) as there is room for, and returns how much. Errors: as `finish`. */
  begin(offset: number, length: number): number {
    const most = Math.min(length, this.#pieceBytes, this.#scratch.length - this.#used);
    const bytes = this.#scratch.subarray(this.#used, this.#used + most);
    const reading = this.#tryRead(bytes, offset);
    if (reading === undefined && this.#reads.length === 0) {
      this.#write(bytes, offset);
      return bytes.length;
    }
    if (reading !== undefined) {
      this.#reads.push(reading);
      this.#pieceBytes = this.#scratch.length;
    }
    this.#pieces.push({ bytes, offset });
    this.#used += bytes.length;
    return bytes.length;
  }

  /** Done when everything begun is written; failed only when nothing touches the scratch buffer any more. */
  finish(): Pending {
    if (this.#reads.length === 0) return undefined;
    return Promise.allSettled(this.#reads).then((outcomes) => {
      for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
      for (const { bytes, offset } of this.#pieces) this.#write(bytes, offset);
      this.#pieces.length = 0;
      this.#reads = [];
      this.#used = 0;
    });
  }

  /** A read that fails at once fails like one that fails later while others are under way. */
  #tryRead(bytes: Buffer, offset: number): Pending {
    try {
      return this.#read(bytes, offset);
    } catch (error) {
      if (this.#reads.length === 0) throw error;
      return Promise.reject(asColobusError(error));
    }
  }
}
