import { measureBound } from "./bound-bench.ts";
import { measureCheckpoints } from "./checkpoint-bench.ts";
import { measureFailover } from "./failover-bench.ts";
import { measureGrowth } from "./growth-bench.ts";
import type { Measured, Place, Setting } from "./measuring.ts";
import { measurePeers } from "./peers-bench.ts";
import { measureResync } from "./resync-bench.ts";
import { measureSharedDisks } from "./shared-bench.ts";
import { measureStalls } from "./stall-bench.ts";

/** One part of `npm run bench`, which can be run alone. */
export interface Bench {
  readonly measure: (setting: Setting) => Promise<Measured>;
  readonly rounds: number;
  /** Runs only when it is named. */
  readonly isLong?: boolean;
  /** Default: both. */
  readonly places?: readonly Place["name"][];
}

/** By the names that select them, in the order in which they run. Each has its section in docs/benchmarks.md. */
export const BENCHES: Readonly<Record<string, Bench>> = {
  peers: { measure: measurePeers, rounds: 3 },
  bound: { measure: measureBound, rounds: 5 },
  shared: { measure: measureSharedDisks, rounds: 5, places: ["memory"] },
  checkpoint: { measure: measureCheckpoints, rounds: 5 },
  failover: { measure: measureFailover, rounds: 3 },
  resync: { measure: measureResync, rounds: 3 },
  stall: { measure: measureStalls, rounds: 3 },
  growth: { measure: measureGrowth, rounds: 3, isLong: true, places: ["memory"] },
};
