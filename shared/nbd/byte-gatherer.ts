/** Collects a known number of bytes that may arrive in any number of pieces. Uncopied when they arrive in one. */
export class ByteGatherer {
  #length = 0;
  #filled = 0;
  #buffer: Buffer | undefined;
  #complete: Buffer | undefined;

  /** Forgets everything, and expects `length` bytes. */
  begin(length: number): void {
    this.#length = length;
    this.#filled = 0;
    this.#buffer = undefined;
    this.#complete = length === 0 ? Buffer.alloc(0) : undefined;
  }

  /** All the bytes, or undefined while some are missing. Valid as long as the pieces that were fed. */
  get complete(): Buffer | undefined {
    return this.#complete;
  }

  get isEmpty(): boolean {
    return this.#filled === 0;
  }

  /** Takes what it needs of `chunk` from `position`, and returns the position behind that. */
  feed(chunk: Buffer, position: number): number {
    const end = Math.min(chunk.length, position + this.#length - this.#filled);
    if (end - position === this.#length) {
      this.#complete = chunk.subarray(position, end);
    } else {
      this.#buffer ??= Buffer.alloc(this.#length);
      chunk.copy(this.#buffer, this.#filled, position, end);
    }
    this.#filled += end - position;
    if (this.#filled === this.#length) this.#complete ??= this.#buffer;
    return end;
  }
}
