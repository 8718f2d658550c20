import type { Hello } from "../../proto/replication-messages.ts";
import {
  areRelated,
  decide,
  decidePrimaries,
  findBehind,
  haveMetLast,
  isGivenUpFor,
  isReplaced,
  isRolledBack,
  type HistoryFacts,
  type Verdict,
} from "./verdict.ts";

/**
 * The handshake's decision where both sides use one disk (mode `shared`). Nothing is ever sent: what is asked is whether
 * the originals that the secondary holds still lead from the disk back to its checkpoint. They do when every overwrite
 * since has waited for them: when the primary has gone on alone in no history of its own since, and its last session
 * was with this very state of this very secondary. Else the checkpoint is void, and the pair begins with a new one.
 *
 * Symmetric like `decide`: both sides call it with their own facts and the peer's, and reach the same answer.
 */
export function decideShared(one: HistoryFacts, other: HistoryFacts): Verdict {
  if (one.agentId === other.agentId) return { kind: "refused", rule: "same-agent" };
  if (one.role === "Primary" && other.role === "Primary") return decidePrimaries(one, other);
  if (one.role === "Primary") return decidePair(one, other);
  if (other.role === "Primary") return decidePair(other, one);
  return { kind: "refused", rule: "no-primary" };
}

/** The decision that the two sides' mode asks for. They run the same one. */
export function decideBetween(first: Hello, second: Hello): Verdict {
  const one = asToldTo(second.agentId, first);
  const other = asToldTo(first.agentId, second);
  return one.mode === "shared" ? decideShared(one, other) : decide(one, other);
}

/** What a hello says to one peer: a primary of several secondaries tells each of all. */
export function asToldTo(peer: string, hello: Hello): Hello {
  const told = hello.otherPeers?.find(({ pairing, tracks }) => (pairing?.peer ?? tracks) === peer);
  return told === undefined ? hello : { ...hello, ...told };
}

function decidePair(primary: HistoryFacts, secondary: HistoryFacts): Verdict {
  if (primary.outdated) {
    return { kind: "outdated", rule: "source-outdated", agent: primary.agentId, newer: secondary.agentId };
  }
  if (isReplaced(primary, secondary)) return { kind: "refused", rule: "replaced-peer" };
  const arm = (isKept: boolean): Verdict => ({
    kind: "sync",
    rule: isKept ? "checkpoint-stands" : "checkpoint-void",
    source: primary.agentId,
    target: secondary.agentId,
    extent: isKept ? "keep" : "rearm",
  });
  if (isGivenUpFor(primary, secondary)) return arm(false);
  // Even where it holds no checkpoint: it was Primary since, and the disk has what it has written.
  const behind = findBehind(primary, secondary);
  if (behind !== secondary && isRolledBack(primary, secondary)) return { kind: "refused", rule: "rolled-back" };
  if (behind === primary) {
    return { kind: "outdated", rule: "primary-behind", agent: primary.agentId, newer: secondary.agentId };
  }
  if (behind === secondary) return arm(false);
  if (primary.lineage === secondary.lineage) return arm(holdsEverything(primary, secondary));
  // A lineage is adopted with the first checkpoint: without one the secondary holds nothing that could be lost.
  if (secondary.lineage === null) return arm(false);
  if (areRelated(primary, secondary)) return { kind: "split-brain", rule: "diverged" };
  return { kind: "refused", rule: "unrelated" };
}

/** Whether the secondary is the one of the primary's last session, and not a copy of it from before. */
function holdsEverything(primary: HistoryFacts, secondary: HistoryFacts): boolean {
  return haveMetLast(primary, secondary) && secondary.committed >= primary.committed;
}
