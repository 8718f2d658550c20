import { BUFFER_CHUNK_MAX_BYTES, BUFFER_CHUNK_MIN_BYTES, BUFFER_FRAGMENTS_HIGH_WATER } from "../proto/limits.ts";

/** With room for so many chunks they are large ones. */
const CHUNKS_AMPLE = 64;

/**
 * Owns what the block buffers of all disks of one agent take of memory: chunks that hold what is in their logs as well,
 * and a count of indexed fragments. Chunks are used again, since fresh memory costs more than the copy into it.
 */
export class BufferMemory {
  /** Small enough that each of many disks can have one. */
  readonly chunkBytes: number;
  readonly #chunksMax: number;
  readonly #fragmentsMax: number;
  readonly #reachedMark: () => void;
  readonly #spare: Buffer[] = [];
  #chunks = 0;
  #fragments = 0;
  #uncommittedFragments = 0;
  #aboveMark = false;

  /** `reachedMark` is called when a commit has become worth its while, and again only after it was not. */
  constructor(limits: { readonly bytes: number; readonly fragments: number }, reachedMark: () => void) {
    const isAmple = limits.bytes >= CHUNKS_AMPLE * BUFFER_CHUNK_MAX_BYTES;
    this.chunkBytes = isAmple ? BUFFER_CHUNK_MAX_BYTES : BUFFER_CHUNK_MIN_BYTES;
    this.#chunksMax = Math.floor(limits.bytes / this.chunkBytes);
    this.#fragmentsMax = limits.fragments;
    this.#reachedMark = reachedMark;
  }

  /** Whether more is held in memory than is to stay there: what the log has can go. */
  get isOver(): boolean {
    return this.#chunks > this.#chunksMax;
  }

  /** Whether no more fragments may be added. */
  get isIndexFull(): boolean {
    return this.#fragments >= this.#fragmentsMax;
  }

  /** Whether a commit would free much of the index. */
  get isAboveMark(): boolean {
    return this.#aboveMark;
  }

  takeChunk(): Buffer {
    this.#chunks += 1;
    return this.#spare.pop() ?? Buffer.allocUnsafeSlow(this.chunkBytes);
  }

  giveChunk(chunk: Buffer): void {
    this.#chunks -= 1;
    if (this.#chunks + this.#spare.length < this.#chunksMax) this.#spare.push(chunk);
  }

  /** There are so many more fragments, and so many more of epochs that are not committed. */
  countFragments(more: number, moreUncommitted: number): void {
    this.#fragments += more;
    this.#uncommittedFragments += moreUncommitted;
    const isAbove = this.#uncommittedFragments >= this.#fragmentsMax * BUFFER_FRAGMENTS_HIGH_WATER;
    const isNews = isAbove && !this.#aboveMark;
    this.#aboveMark = isAbove;
    if (isNews) this.#reachedMark();
  }
}
