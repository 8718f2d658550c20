import { MIB } from "./agent-pair.ts";

/** The disk of QEMU's replication cases: written, and compared, by halves. */
export const SIZE = 16 * MIB;
export const HALF = SIZE / 2;
/** What each image holds before a case begins. */
export const INITIAL = Buffer.alloc(SIZE, 0x11);

/** A disk whose halves are filled with a byte each. */
export function halves(first: number, second: number): Buffer {
  return Buffer.alloc(SIZE, first).fill(second, HALF);
}
