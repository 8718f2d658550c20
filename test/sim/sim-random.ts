import type { Random } from "../../shared/host/random.ts";
import type { SeededRandom } from "./seeded-random.ts";

/** The randomness of one simulated process. */
export class SimRandom implements Random {
  readonly #stream: SeededRandom;

  constructor(stream: SeededRandom) {
    this.#stream = stream;
  }

  bytes(length: number): Buffer {
    return this.#stream.bytes(length);
  }

  fraction(): number {
    return this.#stream.fraction();
  }
}
