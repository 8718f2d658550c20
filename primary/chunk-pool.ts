import { JOB_CHUNK_BYTES } from "../proto/limits.ts";

/** Memory for the pieces of a sync. Whole chunks are used again: new ones for each piece would keep the garbage collector busy. */
export class ChunkPool {
  readonly #spare: Buffer[] = [];

  /** At most JOB_CHUNK_BYTES of memory; what is in it is anything. */
  take(bytes: number): Buffer {
    const length = Math.min(bytes, JOB_CHUNK_BYTES);
    if (length < JOB_CHUNK_BYTES) return Buffer.allocUnsafe(length);
    return this.#spare.pop() ?? Buffer.allocUnsafeSlow(JOB_CHUNK_BYTES);
  }

  /** Nobody reads it any more. */
  giveBack(buffer: Buffer): void {
    if (buffer.length === JOB_CHUNK_BYTES) this.#spare.push(buffer);
  }
}
