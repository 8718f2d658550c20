/**
 * What an arbiter keeps for one VM: the record, in JSON under `colobus/VM/record`, and the lease of the agent that may
 * serve, whose id stands under `colobus/VM/lease` for as long as it renews it.
 */
import { z } from "zod";
import { ColobusError } from "./errors.ts";
import { ANCESTORS_MAX, KNOWN_PEERS_MAX, SECONDARIES_MAX } from "./limits.ts";
import { ARBITER_RECORD_VERSION } from "./versions.ts";

/** More than the peers that may know the lineage, and those that were left behind or given up. */
const OUTDATED_MAX = 2 * KNOWN_PEERS_MAX;

export const arbiterRecordSchema = z.object({
  version: z.literal(ARBITER_RECORD_VERSION),
  vm: z.string(),
  /** The history that the holder serves. */
  lineage: z.string(),
  /**
   * Histories that the holder is about to begin, or has begun since, the newest first, and that not everybody who may take over has
   * heard of: who has `lineage`, and may take over, lacks nothing of them.
   */
  next: z.array(z.string()).max(ANCESTORS_MAX).default([]),
  /** The agent that serves, or has served last. */
  holder: z.string(),
  /** The checkpoint that the holder has told to be committed; 0: none. */
  committed: z.int().nonnegative(),
  /** Agents that lack what the holder has acknowledged without them: none of them takes over. */
  outdated: z.array(z.string()).max(OUTDATED_MAX),
  /** Where the holder dials its secondaries: who takes over dials the others there. */
  peers: z
    .array(z.object({ agentId: z.string(), url: z.string() }))
    .max(SECONDARIES_MAX)
    .default([]),
  /** The holder's lease, in milliseconds: nobody takes over before it has not heard the holder for that long. */
  ttlMs: z.number().positive(),
});
export type ArbiterRecord = z.infer<typeof arbiterRecordSchema>;
/** What a holder decides about its record; the rest is always the same. */
export type ArbiterEntry = Omit<z.input<typeof arbiterRecordSchema>, "version">;

export function encodeArbiterRecord(entry: ArbiterEntry): string {
  return JSON.stringify({ version: ARBITER_RECORD_VERSION, ...entry });
}

/** Errors: `state-mismatch` where the text is no record of this release. */
export function parseArbiterRecord(text: string): ArbiterRecord {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    value = undefined; // it is no record, which is told below
  }
  const parsed = arbiterRecordSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new ColobusError(
    "state-mismatch",
    "the arbiter's record of this VM is not one that this release knows",
    "Run the same release on both hosts; check what else writes under colobus/ in the arbiter.",
  );
}
