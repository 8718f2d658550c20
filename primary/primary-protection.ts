import { notProtected, protectedAtAge, type Status } from "../proto/status.ts";
import { isForWantOfSpace, type ColobusError } from "../proto/errors.ts";
import type { StateRecord } from "../proto/state-record.ts";
import { refusalOf } from "../shared/replication/refusal.ts";
import type { Verdict } from "../shared/replication/verdict.ts";
import { outdated, type GuestPolicy } from "./guest-policy.ts";
import type { Replicator } from "./replicator.ts";

export interface PrimaryFacts {
  readonly record: StateRecord;
  /** Why a local image cannot be relied on; undefined: none has failed. */
  readonly failed: ColobusError | undefined;
  readonly verdict: Verdict | undefined;
  readonly guests: GuestPolicy;
  /** Whether there is, or was, anybody to replicate to. */
  readonly hasPeer: boolean;
  readonly replicator: Replicator;
  /** The secondary lacks nothing, and a failover there returns it. */
  readonly isSynced: boolean;
  /** The epoch that the secondary has committed, as it said last; 0: none. */
  readonly committed: number;
  /** One that was told to be committed and that the secondary lacks; undefined: none. */
  readonly lacked: number | undefined;
  /** The arbiter has the secondary as outdated, or is about to: it is promoted by force only, until it commits. */
  readonly isOutdated: boolean;
  readonly checkpointAgeMs: number;
  readonly maxCheckpointAgeMs: number | undefined;
}

/** Whether the VM of a primary could be taken over, and if not, what to do: the gravest reason comes first. */
export function describePrimaryProtection(facts: PrimaryFacts): Status["protection"] {
  const { record, failed, verdict, guests, replicator, committed, lacked } = facts;
  // That guests wait for an operator says more than that a read of theirs has failed by it.
  if (failed !== undefined && !guests.areWaitingForOperator)
    return notProtected("disk-failed", `${failed.message}: ${failed.action}`);
  if (record.outdated) return notProtected("outdated", outdated().action);
  if (guests.areWaiting) {
    return notProtected(guests.splitBrain === undefined ? "held" : "split-brain", guests.describeHold());
  }
  if (verdict?.kind === "split-brain") {
    return notProtected("split-brain", refusalOf(verdict, record.agentId)?.action ?? "");
  }
  if (!facts.hasPeer) return notProtected("no-peer", "This side runs alone; set up a new secondary for it.");
  if (!replicator.isConnected) {
    return notProtected("connecting", replicator.describe().lastError?.action ?? "Start the secondary agent.");
  }
  const { pausedBy } = replicator;
  if (pausedBy !== undefined) {
    if (isForWantOfSpace(pausedBy)) return notProtected("overlay-full", pausedBy.action);
    return notProtected("disk-failed", `on the secondary, ${pausedBy.message}: ${pausedBy.action}`);
  }
  if (!facts.isSynced) {
    const reason = committed === 0 ? "initial-sync" : "resync";
    return notProtected(reason, "Wait: `colobus wait synced`; `colobus jobs` shows how far it is.");
  }
  if (committed === 0) return notProtected("no-checkpoint", "Take one: `colobus checkpoint`.");
  if (lacked !== undefined) {
    const what = `The secondary has checkpoint ${committed}, and ${lacked} was told to be committed`;
    return notProtected("no-checkpoint", `${what}. Take one: \`colobus checkpoint\`.`);
  }
  if (facts.isOutdated) {
    const what = "The arbiter has the secondary as outdated until it commits a checkpoint";
    return notProtected("no-checkpoint", `${what}. Take one: \`colobus checkpoint\`.`);
  }
  return protectedAtAge(
    facts.checkpointAgeMs,
    facts.maxCheckpointAgeMs,
    "Take one: `colobus checkpoint`, or set --checkpoint-every.",
  );
}
