/** Seeded damage to bytes, for parsers that must survive it: the same seed damages, and cuts, in the same way. */

/** A number in [0, 1), the next of a sequence that its seed determines. */
export type SeededRandom = () => number;

/** mulberry32. */
export function seededRandom(seed: number): SeededRandom {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A whole number in [0, `bound`). */
export function below(random: SeededRandom, bound: number): number {
  return Math.floor(random() * bound);
}

/** A damaged copy of `bytes`, which must not be empty: mostly flipped bytes, at times a piece lost, doubled or cut off. */
export function mutate(bytes: Uint8Array, random: SeededRandom): Buffer {
  const damaged = Buffer.from(bytes);
  for (let flips = 1 + below(random, 4); flips > 0; flips--) {
    const at = below(random, damaged.length);
    const old = damaged[at] ?? 0;
    damaged[at] = random() < 0.5 ? old ^ (1 << below(random, 8)) : below(random, 256);
  }
  const start = below(random, damaged.length);
  const end = start + below(random, damaged.length - start + 1);
  switch (below(random, 16)) {
    case 0:
      return Buffer.concat([damaged.subarray(0, start), damaged.subarray(end)]);
    case 1:
      return Buffer.concat([damaged.subarray(0, end), damaged.subarray(start)]);
    case 2:
      return damaged.subarray(0, start);
    default:
      return damaged;
  }
}

/** `bytes` cut into pieces: often one, at times many. The pieces share the memory of `bytes`. */
export function splitAtRandom(bytes: Buffer, random: SeededRandom): Buffer[] {
  const cuts = Array.from({ length: below(random, 5) }, () => below(random, bytes.length + 1)).sort((a, b) => a - b);
  const bounds = [0, ...cuts, bytes.length];
  const pieces = bounds.slice(1).map((end, index) => bytes.subarray(bounds[index], end));
  return pieces.filter((piece) => piece.length > 0);
}
