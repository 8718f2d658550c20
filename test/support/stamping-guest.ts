import { expect } from "vitest";
import type { SeededRandom } from "../sim/seeded-random.ts";
import { expectSame, type NbdClient } from "./nbd-tools.ts";

const BLOCK_BYTES = 4096;

/** A guest that stamps random blocks with a counter, and remembers what each block may hold. */
export class StampingGuest {
  readonly #random: SeededRandom;
  readonly #blockCount: number;
  /** The values that a block may have: one once its last write was acknowledged. */
  readonly blocks = new Map<number, Set<number>>();
  #stamp = 0;
  acknowledged = 0;

  constructor(random: SeededRandom, diskBytes: number) {
    this.#random = random;
    this.#blockCount = diskBytes / BLOCK_BYTES;
  }

  /** Writes until a write fails, or `isOver`. */
  async write(client: NbdClient, isOver: () => boolean): Promise<void> {
    while (!isOver()) {
      const block = this.#random.below(this.#blockCount);
      this.#stamp += 1;
      const stamp = this.#stamp;
      const before = this.blocks.get(block) ?? new Set([0]);
      this.blocks.set(block, new Set([...before, stamp]));
      const pattern = Buffer.alloc(8);
      pattern.writeBigUInt64BE(BigInt(stamp));
      try {
        await client.write({ offset: block * BLOCK_BYTES, length: BLOCK_BYTES }, pattern);
      } catch {
        return; // the server is gone: the write is in doubt
      }
      this.blocks.set(block, new Set([stamp]));
      this.acknowledged += 1;
    }
  }

  /** Fails unless the disk holds every acknowledged write; what was in doubt is known from here on. */
  check(disk: Buffer): void {
    for (const [block, possible] of this.blocks) {
      const content = disk.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
      const stamp = Number(content.readBigUInt64BE(0));
      expect(possible.has(stamp), `block ${block} holds ${stamp}, not ${[...possible].join(" or ")}`).toBe(true);
      const pattern = Buffer.alloc(8);
      pattern.writeBigUInt64BE(BigInt(stamp));
      expectSame(content, Buffer.alloc(BLOCK_BYTES, pattern));
      this.blocks.set(block, new Set([stamp]));
    }
  }
}
