import { randomBytes } from "node:crypto";
import type { Random } from "./random.ts";

/** The kernel's randomness. */
export class NodeRandom implements Random {
  bytes(length: number): Buffer {
    return randomBytes(length);
  }

  fraction(): number {
    return Math.random();
  }
}
