/**
 * The simulator's only source of chance: xoshiro128** (Blackman and Vigna, "Scrambled linear pseudorandom number
 * generators", 2018), its state filled from the seed by splitmix32.
 *
 * Streams fork by name: what one component draws never shifts what another one gets, so that a change in one agent
 * leaves the rest of a life as it was.
 */
export class SeededRandom {
  readonly #seed: number;
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  /** Any safe integer is a seed of its own. */
  constructor(seed: number) {
    this.#seed = seed;
    let state = (seed ^ Math.imul(Math.floor(seed / 2 ** 32), 0x9e3779b1)) | 0;
    const next = (): number => {
      state = (state + 0x9e3779b9) | 0;
      let word = state ^ (state >>> 16);
      word = Math.imul(word, 0x21f0aaad);
      word ^= word >>> 15;
      word = Math.imul(word, 0x735a2d97);
      return word ^ (word >>> 15);
    };
    this.#a = next();
    this.#b = next();
    this.#c = next();
    this.#d = next() | 1; // the state must not be all zero
  }

  /** An independent stream. It depends on the seed and on `name` alone, not on what was drawn: a name is used once. */
  fork(name: string): SeededRandom {
    let low = 0x811c9dc5 ^ (this.#seed | 0);
    let high = Math.imul(Math.floor(this.#seed / 2 ** 32) ^ 0x5bd1e995, 0x85ebca6b);
    for (let index = 0; index < name.length; index++) {
      low = Math.imul(low ^ name.charCodeAt(index), 0x01000193);
      high = Math.imul(high ^ low, 0xc2b2ae35);
    }
    return new SeededRandom((high & 0x1fffff) * 2 ** 32 + (low >>> 0));
  }

  /** 32 random bits as an unsigned number. */
  next(): number {
    const scrambled = Math.imul(this.#b, 5);
    const result = Math.imul((scrambled << 7) | (scrambled >>> 25), 9);
    const shifted = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= shifted;
    this.#d = (this.#d << 11) | (this.#d >>> 21);
    return result >>> 0;
  }

  /** A number in [0, 1). */
  fraction(): number {
    return this.next() / 2 ** 32;
  }

  /** A whole number in [0, limit). */
  below(limit: number): number {
    return Math.floor(this.fraction() * limit);
  }

  /** A number in [range[0], range[1]). */
  within(range: readonly [number, number]): number {
    return range[0] + this.fraction() * (range[1] - range[0]);
  }

  chance(probability: number): boolean {
    return probability > 0 && this.fraction() < probability;
  }

  pick<T>(choices: readonly T[]): T {
    const choice = choices[this.below(choices.length)];
    if (choice === undefined) throw new RangeError("pick needs at least one choice");
    return choice;
  }

  fill(target: Uint8Array): void {
    for (let index = 0; index < target.length; index += 4) {
      let word = this.next();
      for (let byte = index; byte < Math.min(index + 4, target.length); byte++) {
        target[byte] = word;
        word >>>= 8;
      }
    }
  }

  bytes(length: number): Buffer {
    const bytes = Buffer.alloc(length);
    this.fill(bytes);
    return bytes;
  }
}
