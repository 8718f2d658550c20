import type { Pending } from "../shared/block/block-device.ts";

/** Reads originals from where they are now. */
export type ReadOriginal = (target: Uint8Array, offset: number) => Pending;

interface Piece {
  readonly bytes: Buffer;
  readonly offset: number;
}

/** Stretches of originals that are read side by side into one scratch buffer. */
export class OriginalPieces {
  readonly #scratch: Buffer;
  readonly #read: ReadOriginal;
  readonly #pieces: Piece[] = [];
  #used = 0;

  constructor(scratch: Buffer, read: ReadOriginal) {
    this.#scratch = scratch;
    this.#read = read;
  }

  get hasRoom(): boolean {
    return this.#used < this.#scratch.length;
  }

  /** Takes as much of [offset, offset+length) as there is room for, and returns how much. */
  add(offset: number, length: number): number {
    const bytes = this.#scratch.subarray(this.#used, Math.min(this.#used + length, this.#scratch.length));
    this.#pieces.push({ bytes, offset });
    this.#used += bytes.length;
    return bytes.length;
  }

  /** Reads all of them. Done, or failed, only when nothing touches the scratch buffer any more. */
  read(): Pending {
    let reads: Promise<void>[] | undefined;
    try {
      for (const { bytes, offset } of this.#pieces) {
        const reading = this.#read(bytes, offset);
        if (reading !== undefined) (reads ??= []).push(reading);
      }
    } catch (error) {
      if (reads === undefined) throw error;
      reads.push(Promise.reject(error as Error));
    }
    return reads === undefined ? undefined : settled(reads);
  }

  /** Gives each to `use`, and forgets them: there is room again. */
  take(use: (bytes: Buffer, offset: number) => void): void {
    for (const { bytes, offset } of this.#pieces) use(bytes, offset);
    this.#pieces.length = 0;
    this.#used = 0;
  }
}

async function settled(reads: readonly Promise<void>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(reads)) if (outcome.status === "rejected") throw outcome.reason;
}
