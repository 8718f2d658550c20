import assert from "node:assert/strict";
import { ScriptedPair } from "./scripted-pair.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";

/** Of its leases. */
export const ARBITER_PAIR_TTL_MS = 3_000;

/** A pair with an arbiter, started. */
export async function startedArbiterPair(): Promise<{ scripted: ScriptedPair; arbiter: SimArbiter }> {
  let arbiter: SimArbiter | undefined;
  const scripted = new ScriptedPair(1, "process", (world) => {
    arbiter = new SimArbiter(world, new SeededRandom(1), ARBITER_PAIR_TTL_MS);
    return { access: "read-only", peerTimeoutMs: 1_000, arbiter: { service: arbiter, ttlMs: ARBITER_PAIR_TTL_MS } };
  });
  assert(arbiter !== undefined);
  await scripted.start();
  return { scripted, arbiter };
}
