/** Damage to recorded NBD sessions, for fuzz tests: the same seed always does the same damage. */

/** A number in [0, 1) at each call (mulberry32). */
export type SeededRandom = () => number;

export function seededRandom(seed: number): SeededRandom {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A whole number in [0, limit). */
export function below(random: SeededRandom, limit: number): number {
  return Math.floor(random() * limit);
}

/** Lengths, counts and codes at which parsers like to fail. */
const INTERESTING = [
  0, 1, 2, 3, 7, 8, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff,
];

type Damage = (bytes: Buffer, random: SeededRandom) => Buffer;

const flipBit: Damage = (bytes, random) => {
  const at = below(random, bytes.length);
  bytes.writeUInt8(bytes.readUInt8(at) ^ (1 << below(random, 8)), at);
  return bytes;
};

const setByte: Damage = (bytes, random) => {
  bytes.writeUInt8(below(random, 256), below(random, bytes.length));
  return bytes;
};

const setNumber: Damage = (bytes, random) => {
  const value = INTERESTING[below(random, INTERESTING.length)] ?? 0;
  if (bytes.length >= 4 && below(random, 10) < 7) bytes.writeUInt32BE(value, below(random, bytes.length - 3));
  else bytes.writeUInt8(value & 0xff, below(random, bytes.length));
  return bytes;
};

const truncate: Damage = (bytes, random) => bytes.subarray(0, below(random, bytes.length));

const remove: Damage = (bytes, random) => {
  const start = below(random, bytes.length);
  return Buffer.concat([bytes.subarray(0, start), bytes.subarray(start + 1 + below(random, 40))]);
};

const repeat: Damage = (bytes, random) => {
  const start = below(random, bytes.length);
  const end = Math.min(bytes.length, start + 1 + below(random, 64));
  return Buffer.concat([bytes.subarray(0, end), bytes.subarray(start)]);
};

const insert: Damage = (bytes, random) => {
  const at = below(random, bytes.length);
  const noise = Buffer.from(Array.from({ length: 1 + below(random, 32) }, () => below(random, 256)));
  return Buffer.concat([bytes.subarray(0, at), noise, bytes.subarray(at)]);
};

// Flips weigh most: they reach the code behind the framing, which the others mostly break.
const DAMAGES = [
  flipBit,
  flipBit,
  flipBit,
  flipBit,
  setByte,
  setByte,
  setNumber,
  setNumber,
  truncate,
  remove,
  repeat,
  insert,
];

/** A copy of `bytes` with one to four pieces of damage. */
export function damageSession(bytes: Buffer, random: SeededRandom): Buffer {
  let damaged: Buffer = Buffer.from(bytes);
  const count = below(random, 10) < 6 ? 1 : 2 + below(random, 3);
  for (let index = 0; index < count && damaged.length > 0; index += 1) {
    const damage = DAMAGES[below(random, DAMAGES.length)] ?? flipBit;
    damaged = damage(damaged, random);
  }
  return damaged;
}

/** Cuts `bytes` into chunks as a network might: mostly few, sometimes single bytes. The chunks share its memory. */
export function splitAtRandom(bytes: Buffer, random: SeededRandom): Buffer[] {
  const style = random();
  let longest = bytes.length;
  if (style > 0.95) longest = 1;
  else if (style > 0.5) longest = Math.max(1, Math.ceil(bytes.length / 4));
  const chunks: Buffer[] = [];
  for (let at = 0; at < bytes.length;) {
    const length = 1 + below(random, longest);
    chunks.push(bytes.subarray(at, at + length));
    at += length;
  }
  return chunks;
}
