import type { Pending } from "../shared/block/block-device.ts";

/** What is in the page cache is copied in pieces of this size: they stay in the processor's cache between read and write. */
const PIECE_BYTES = 64 * 1024;

/** Reads originals from where they are now. */
export type ReadOriginal = (target: Uint8Array, offset: number) => Pending;

/**
 * Copies originals through one scratch buffer: what can be read at once is used at once, and what must be waited for is
 * read side by side, as much as there is scratch for.
 */
export class OriginalPieces {
  readonly #scratch: Buffer;
  readonly #read: ReadOriginal;
  readonly #use: (bytes: Buffer, offset: number) => void;
  readonly #waiting: { readonly bytes: Buffer; readonly offset: number; readonly reading: Promise<void> }[] = [];
  #used = 0;

  /** `use` has done with its bytes when it returns. */
  constructor(scratch: Buffer, read: ReadOriginal, use: (bytes: Buffer, offset: number) => void) {
    this.#scratch = scratch;
    this.#read = read;
    this.#use = use;
  }

  /**
   * Copies [offset, end), or begins to. `finish` is to be called after the last, or `abandon` after a failure, and nothing
   * else awaited before that than what this returns.
   */
  copy(offset: number, end: number): Pending {
    for (let at = offset; at < end;) {
      const room = this.#scratch.length - this.#used;
      if (room === 0) return this.#useRead().then(() => this.copy(at, end));
      const bytes = this.#scratch.subarray(this.#used, this.#used + Math.min(PIECE_BYTES, room, end - at));
      const reading = this.#read(bytes, at);
      if (reading === undefined) this.#use(bytes, at);
      else {
        this.#waiting.push({ bytes, offset: at, reading });
        this.#used += bytes.length;
      }
      at += bytes.length;
    }
    return undefined;
  }

  /** Everything is copied. Done, or failed, only when nothing touches the scratch buffer any more. */
  finish(): Pending {
    return this.#waiting.length === 0 ? undefined : this.#useRead();
  }

  /** Nothing touches the scratch buffer any more. */
  async abandon(): Promise<void> {
    await Promise.allSettled(this.#waiting.map(({ reading }) => reading));
  }

  async #useRead(): Promise<void> {
    const read = this.#waiting.splice(0);
    const outcomes = await Promise.allSettled(read.map(({ reading }) => reading));
    this.#used = 0;
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
    for (const { bytes, offset } of read) this.#use(bytes, offset);
  }
}
