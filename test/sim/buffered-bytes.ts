import type { PairMember } from "./pair.ts";

/** What a side holds in block buffers, in bytes; Infinity while its agent does not run. */
export function bufferedBytes({ agent }: Pick<PairMember, "agent">): number {
  if (agent === undefined) return Number.POSITIVE_INFINITY;
  return agent.status().disks.reduce((sum, { bufferBytes }) => sum + bufferBytes, 0);
}

/** Checkpoints to be taken before the base has all of the one before: an earlier one that is kept needs it as it was. */
export function checkpointsUntilApplied({ mode, retain }: { readonly mode?: string; readonly retain: number }): number {
  return mode === "mc" ? retain : 0;
}
