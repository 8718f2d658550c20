import type { StateRecord } from "../../proto/state-record.ts";
import type { ArbiterState } from "./arbiter.ts";

/** What an agent may do by what the arbiter says: claim the lease now, wait for it, or leave it to another. */
export type ClaimDecision = { readonly kind: "claim" } | { readonly kind: "wait" | "refused"; readonly why: string };

export interface ServingClaim {
  readonly state: ArbiterState;
  readonly agentId: string;
  readonly lineage: string;
  /** The record's holder is connected, as this side's secondary, and has promised not to take over for now: nobody else serves. */
  readonly isFollowed: boolean;
}

/** Whether a primary may serve: nobody may have taken over from it. */
export function decideServing({ state, agentId, lineage, isFollowed }: ServingClaim): ClaimDecision {
  const { record, leaseHolder } = state;
  const isMine =
    record === undefined ||
    record.holder === agentId ||
    (record.lineage === lineage && !record.outdated.includes(agentId)) ||
    isFollowed;
  if (!isMine) {
    return { kind: "refused", why: `by the arbiter's record agent ${record.holder} serves, under a later history` };
  }
  return leaseHolder === null || leaseHolder === agentId ? { kind: "claim" } : heldByOther(leaseHolder);
}

/**
 * Whether the arbiter's record, which a primary has claimed the lease over, says that no peer of its was promoted since its
 * own state record was written: it names this side, under a history that it knows, and no epoch that it has not reserved.
 */
export function vouchesFor(
  record: ArbiterState["record"],
  { agentId, lineage, history, epochReserved }: Pick<StateRecord, "agentId" | "lineage" | "history" | "epochReserved">,
): boolean {
  if (record?.holder !== agentId || record.committed > epochReserved) return false;
  return record.lineage === lineage || history.ancestors.includes(record.lineage);
}

export interface TakeoverClaim {
  readonly state: ArbiterState;
  readonly agentId: string;
  /** The lineages whose state this side has as a whole. */
  readonly lineages: readonly string[];
  /** The checkpoint that a promotion would return to. */
  readonly committed: number;
}

/**
 * Whether a secondary may take over: it has the history that the record names and everything that counts of it, or its
 * own takeover was cut off. Of several secondaries each that is not outdated has every checkpoint that was told to be
 * committed, so it does not matter which of them claims first; a claim begins another history, which the others do not have.
 */
export function decideTakeover({ state, agentId, lineages, committed }: TakeoverClaim): ClaimDecision {
  const { record, leaseHolder } = state;
  if (record === undefined) return { kind: "refused", why: "no primary has ever served under the arbiter" };
  if (record.holder !== agentId) {
    if (record.outdated.includes(agentId)) {
      return { kind: "refused", why: "the primary has acknowledged writes without this side" };
    }
    if (!lineages.includes(record.lineage)) {
      return { kind: "refused", why: `by the arbiter's record agent ${record.holder} serves another history` };
    }
    if (record.committed > committed) {
      return { kind: "refused", why: `checkpoint ${record.committed} was committed, and this side has ${committed}` };
    }
  }
  return leaseHolder === null || leaseHolder === agentId ? { kind: "claim" } : heldByOther(leaseHolder);
}

function heldByOther(holder: string): ClaimDecision {
  return { kind: "wait", why: `agent ${holder} has the lease` };
}
