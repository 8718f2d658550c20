import type { VerdictAnswer } from "../proto/control-api.ts";
import type { Hello } from "../proto/replication-messages.ts";
import { refusalOf } from "../shared/replication/refusal.ts";
import type { Verdict } from "../shared/replication/verdict.ts";

/** What a handshake came to, and with whom. */
export type Judged = {
  readonly verdict: Verdict;
  readonly peer: Hello;
  /** Where a primary has dialled one that has no place with it. */
  readonly url?: string | null;
};

export interface VerdictContext {
  readonly judged: Judged;
  /** This agent's id. */
  readonly self: string;
  /** Bytes that have changed here and that the peer may lack. */
  readonly changedHere: number;
  /** Bytes of this side's disks whose size is known. */
  readonly diskBytes: number;
  /** Whether a session with that peer stands in which nothing is to be sent any more. */
  readonly isInSync: boolean;
}

/** What the two are to do, for an operator: rule, direction, bytes, and what would be given up. */
export function describeVerdict(context: VerdictContext): VerdictAnswer {
  const { judged, changedHere: here } = context;
  const { verdict, peer } = judged;
  return {
    kind: verdict.kind,
    rule: verdict.rule,
    meaning: describeMeaning(context),
    peer: peer.agentId,
    source: verdict.kind === "sync" ? verdict.source : null,
    extent: verdict.kind === "sync" ? verdict.extent : null,
    changedBytes: { here, there: peer.changedBytes },
  };
}

function describeMeaning(context: VerdictContext): string {
  const { judged, self, changedHere: here } = context;
  const { verdict, peer } = judged;
  if (verdict.kind === "sync") return describeSync(verdict, context);
  const refusal = refusalOf(verdict, self);
  const means = refusal === undefined ? "" : `${refusal.message}. ${refusal.action}`;
  const isChoice = verdict.kind === "split-brain" || (verdict.kind === "refused" && verdict.rule === "unrelated");
  return isChoice ? `${means} That gives up ${here} bytes here, or ${peer.changedBytes} bytes on the peer.` : means;
}

function describeSync(verdict: Extract<Verdict, { kind: "sync" }>, context: VerdictContext): string {
  const { judged, self, changedHere: here, diskBytes, isInSync } = context;
  if (isInSync) return "the two are connected and in sync: nothing is to be sent but what guests write";
  const { disks, changedBytes: there } = judged.peer;
  const isSource = verdict.source === self;
  const direction = isSource ? "this side sends to the peer" : "the peer sends to this side";
  const ownOfTarget = isSource ? there : here;
  const givenUp =
    ownOfTarget > 0
      ? `; of what ${isSource ? "the peer" : "this side"} has changed alone, ${ownOfTarget} bytes go`
      : "";
  switch (verdict.extent) {
    case "full": {
      const bytes = Math.max(
        diskBytes,
        disks.reduce((sum, { sizeBytes }) => sum + (sizeBytes ?? 0), 0),
      );
      return `${direction}, everything: ${bytes} bytes, for no bitmap says what differs${givenUp}`;
    }
    case "delta":
      return `${direction}, the clusters that either side's bitmap names: ${here + there} bytes at most${givenUp}`;
    case "assumed":
      return `${direction}, nothing at first: the operator says that the copies are equal`;
    case "keep":
      return "the disk is shared, and the secondary's checkpoint stands";
    case "rearm":
      return "the disk is shared, and the secondary gets a new checkpoint: what it holds does not lead back to its last one";
  }
}
