import type { SimWorld } from "./world.ts";

const LIFE_MAX_MS = 24 * 3_600_000;

/** Lives a life in its world to the end. Rejects with SimFailure, which names the seed, when a promise is broken. */
export function liveIn(world: SimWorld, live: () => Promise<void>): Promise<void> {
  const lived = (): Promise<void> => live().catch((error: unknown) => world.fail("the life", error));
  return world.do("the end of the life", lived, LIFE_MAX_MS);
}
