import assert from "node:assert/strict";
import type { PairMember } from "./pair.ts";
import type { SimWorld } from "./world.ts";

const LOOK_MS = 10;

/** What a side holds in block buffers, in bytes; Infinity while its agent does not run. */
export function bufferedBytes({ agent }: Pick<PairMember, "agent">): number {
  if (agent === undefined) return Number.POSITIVE_INFINITY;
  return agent.status().disks.reduce((sum, { bufferBytes }) => sum + bufferBytes, 0);
}

/** Resolves when all that is committed has reached the bases; fails when that takes longer than `withinMs`. */
export async function untilApplied(world: SimWorld, members: readonly PairMember[], withinMs: number): Promise<void> {
  const deadlineMs = world.nowMs + withinMs;
  while (members.some((member) => bufferedBytes(member) > 0)) {
    assert(world.nowMs < deadlineMs, "what is committed is not put into the base");
    await world.sleep(LOOK_MS);
  }
}

/** Checkpoints to be taken before the base has all of the one before: an earlier one that is kept needs it as it was. */
export function checkpointsUntilApplied({ mode, retain }: { readonly mode?: string; readonly retain: number }): number {
  return mode === "mc" ? retain : 0;
}
