/** Seeded damage to bytes, for parsers that must survive it: the same seed damages in the same way. */

/** A number in [0, 1), the next of a sequence that its seed determines. */
type SeededRandom = () => number;

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
function below(random: SeededRandom, bound: number): number {
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
