/**
 * Owns the record of a life: a rolling hash over everything that happened, by which two runs of one seed are compared,
 * and the last lines in words, for the report of a failure. Lines are kept in parts and put together only when read.
 */
const LINES_KEPT = 200;
const HASHES_CACHED_MAX = 8192;

interface TraceEntry {
  timeMs: number;
  line: string;
  first: number | undefined;
  second: number | undefined;
}

export class TraceLog {
  readonly #entries: TraceEntry[] = [];
  readonly #hashes = new Map<string, number>();
  readonly #double = new Float64Array(1);
  readonly #words = new Uint32Array(this.#double.buffer);
  #next = 0;
  #low = 0x811c9dc5;
  #high = 0x9747b28c;

  /** Equal for two runs exactly when the same things happened in them in the same order (but for chance, 1 in 2⁶⁴). */
  get hash(): string {
    return (this.#high >>> 0).toString(16).padStart(8, "0") + (this.#low >>> 0).toString(16).padStart(8, "0");
  }

  add(timeMs: number, line: string, first?: number, second?: number): void {
    this.mix(this.#hashOf(line));
    if (first !== undefined) this.mix(first);
    if (second !== undefined) this.mix(second);
    const entry = this.#entries[this.#next];
    if (entry === undefined) this.#entries.push({ timeMs, line, first, second });
    else {
      entry.timeMs = timeMs;
      entry.line = line;
      entry.first = first;
      entry.second = second;
    }
    this.#next = (this.#next + 1) % LINES_KEPT;
  }

  /** Adds any number to the hash, without a line. */
  mix(value: number): void {
    this.#double[0] = value;
    const low = this.#words[0] ?? 0;
    const high = this.#words[1] ?? 0;
    this.#low = Math.imul(this.#low ^ low, 0x01000193) ^ (this.#high >>> 13);
    this.#high = Math.imul(this.#high ^ high ^ this.#low, 0x85ebca6b) ^ (this.#low >>> 17);
  }

  /** The last lines, oldest first. */
  lines(): string[] {
    const ordered = [...this.#entries.slice(this.#next), ...this.#entries.slice(0, this.#next)];
    return ordered.map(({ timeMs, line, first, second }) =>
      [`${timeMs.toFixed(3).padStart(12)} ms`, line, first, second].filter((part) => part !== undefined).join(" "),
    );
  }

  #hashOf(line: string): number {
    const known = this.#hashes.get(line);
    if (known !== undefined) return known;
    let hash = 0x811c9dc5;
    for (let index = 0; index < line.length; index++) hash = Math.imul(hash ^ line.charCodeAt(index), 0x01000193);
    if (this.#hashes.size < HASHES_CACHED_MAX) this.#hashes.set(line, hash);
    return hash;
  }
}

/** A hash over the length and some 32 bytes of a buffer, evenly spread: cheap, and seldom blind to a change of content. */
export function sampleHash(bytes: Uint8Array): number {
  const stride = Math.max(1, bytes.length >> 5);
  let hash = bytes.length;
  for (let index = 0; index < bytes.length; index += stride) hash = Math.imul(hash ^ (bytes[index] ?? 0), 0x01000193);
  return hash;
}
