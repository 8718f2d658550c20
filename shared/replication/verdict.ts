import type { Role, SyncExtent, VerdictRule } from "../../proto/words.ts";

/**
 * The handshake's decision: from what both sides know of their disks' history, who is the source, what has to be sent,
 * and who must not serve any more. One pure function, which both sides call with their own facts and the peer's; the
 * answer names sides by their agent ids, so both reach the same one.
 *
 * A *lineage* is the id of a history. A new one begins at a promotion, and when a primary goes on without the peer that
 * has adopted its lineage. A side whose lineage is among the ancestors of the other's is *behind*: everything that it
 * holds, the other has known. Two sides with a common ancestor of which neither is behind have *diverged*.
 * So has a primary that is behind, and whose lineage no peer can know by its own record: it was put back to a backup, and
 * may have acknowledged writes under that lineage since.
 */
export interface HistoryFacts {
  readonly agentId: string;
  readonly role: Role;
  /** The history that the disks belong to; null: blank, they hold nothing that was ever committed. */
  readonly lineage: string | null;
  /** The histories that this one goes back to, newest first. */
  readonly ancestors: readonly string[];
  /** A peer may know the lineage: recorded before one can. */
  readonly shared: boolean;
  /** Histories that a source has begun to send, and that are not adopted yet. */
  readonly heard: readonly string[];
  /** The newest checkpoint that this secondary has had, where an operator has rolled it back to an earlier one. */
  readonly rolledBackFrom?: number | undefined;
  /** What both sides recorded of their last sessions: the same ids on both, or one side was replaced or restored. */
  readonly pairing: Pairing | null;
  /** Agents that another one has taken the place of, by an operator's word. */
  readonly replaced?: readonly string[] | undefined;
  /** Whose copy this side's dirty bitmap counts from; null: this side has changed nothing by itself since it was a target. */
  readonly tracks: string | null;
  /** The last committed checkpoint: the secondary's own; on a primary the last that this very secondary acknowledged. */
  readonly committed: number;
  /** This primary has met a newer history, and serves nothing. */
  readonly outdated: boolean;
  /** The operator gave this side's data up for the peer's. */
  readonly discardsOwn: boolean;
  /** The peer whose data it was; with any other one nothing is given up. undefined: nobody is named. */
  readonly discardsOwnFor?: string | undefined;
  /** This primary has handed its role to that agent, and does not know yet whether it arrived. */
  readonly handOver: string | null;
  /** The operator vouches that a blank secondary's disks are equal, and they can be: this primary has sent nothing yet. */
  readonly assumeInSync: boolean;
  /** What has no size is an image that the session makes; undefined: all are there. */
  readonly disks?: readonly { readonly sizeBytes: number | null }[] | undefined;
}

export interface Pairing {
  readonly peer: string;
  /** Ids of the last sessions, newest first: two, since a side may die before the other has heard of the newest. */
  readonly sessions: readonly string[];
}

export type Verdict =
  /** `source` sends: everything, the clusters that either side's bitmap names, or nothing (`assumed`, `keep`, `rearm`). */
  | {
      readonly kind: "sync";
      readonly rule: VerdictRule;
      readonly source: string;
      readonly target: string;
      readonly extent: SyncExtent;
    }
  /** `agent` is behind `newer`, and is Primary: it must not serve. */
  | { readonly kind: "outdated"; readonly rule: VerdictRule; readonly agent: string; readonly newer: string }
  /** `from` gave its role to `to`, which has taken it: `from` is Secondary from here on. */
  | { readonly kind: "hand-over"; readonly rule: VerdictRule; readonly from: string; readonly to: string }
  | { readonly kind: "split-brain"; readonly rule: VerdictRule }
  | {
      readonly kind: "refused";
      readonly rule: "same-agent" | "no-primary" | "two-primaries" | "replaced-peer" | "rolled-back" | "unrelated";
    };

/** The decision; the same for (one, other) and (other, one). */
export function decide(one: HistoryFacts, other: HistoryFacts): Verdict {
  if (one.agentId === other.agentId) return { kind: "refused", rule: "same-agent" };
  if (one.role === "Primary" && other.role === "Primary") return decidePrimaries(one, other);
  if (one.role === "Primary") return decidePair(one, other);
  if (other.role === "Primary") return decidePair(other, one);
  return { kind: "refused", rule: "no-primary" };
}

export function decidePrimaries(one: HistoryFacts, other: HistoryFacts): Verdict {
  const behind = findBehind(one, other);
  if (behind !== undefined) {
    const newer = behind === one ? other : one;
    if (!behind.shared) return { kind: "split-brain", rule: "put-back" };
    if (behind.handOver === newer.agentId) {
      return { kind: "hand-over", rule: "hand-over-arrived", from: behind.agentId, to: newer.agentId };
    }
    return { kind: "outdated", rule: "primary-behind", agent: behind.agentId, newer: newer.agentId };
  }
  // Two primaries of one history: a state directory, or a whole host, was copied.
  if (one.lineage === other.lineage) return { kind: "refused", rule: "two-primaries" };
  if (areRelated(one, other)) return { kind: "split-brain", rule: "diverged" };
  return { kind: "refused", rule: "unrelated" };
}

function decidePair(primary: HistoryFacts, secondary: HistoryFacts): Verdict {
  if (primary.outdated) {
    return { kind: "outdated", rule: "source-outdated", agent: primary.agentId, newer: secondary.agentId };
  }
  if (isReplaced(primary, secondary)) return { kind: "refused", rule: "replaced-peer" };
  if (isBlankFor(primary, secondary)) return sync(primary, secondary, "blank-target");
  if (isGivenUpFor(primary, secondary)) return sync(primary, secondary, "own-data-discarded");
  if (primary.lineage === secondary.lineage) return sync(primary, secondary, "same-lineage");
  const behind = findBehind(primary, secondary);
  if (behind === secondary) return sync(primary, secondary, "target-behind");
  if (isRolledBack(primary, secondary)) return { kind: "refused", rule: "rolled-back" };
  if (behind === primary) {
    if (!primary.shared) return { kind: "split-brain", rule: "put-back" };
    return { kind: "outdated", rule: "primary-behind", agent: primary.agentId, newer: secondary.agentId };
  }
  if (areRelated(primary, secondary)) return { kind: "split-brain", rule: "diverged" };
  return { kind: "refused", rule: "unrelated" };
}

/**
 * An operator had another agent take the secondary's place: to have it back would be to lose that one. But a primary that is
 * behind has to hear of it, from whomever.
 */
export function isReplaced(primary: HistoryFacts, secondary: HistoryFacts): boolean {
  if (primary.replaced?.includes(secondary.agentId) !== true) return false;
  return isGivenUpFor(primary, secondary) || findBehind(primary, secondary) !== primary;
}

/** Whether an operator gave the secondary's data up for that primary's. */
export function isGivenUpFor(primary: HistoryFacts, secondary: HistoryFacts): boolean {
  return secondary.discardsOwn && (secondary.discardsOwnFor ?? primary.agentId) === primary.agentId;
}

/**
 * An operator has rolled the secondary back, and has not said since what is to become of it: to sync it would undo that. It was
 * promoted by nobody, so that the primary has not to give way either.
 */
export function isRolledBack(primary: HistoryFacts, secondary: HistoryFacts): boolean {
  return secondary.rolledBackFrom !== undefined && areRelated(primary, secondary);
}

/**
 * Nothing was ever committed there. Or it was, in a sync that did not come to its end: then the secondary has not adopted
 * the history that its checkpoint belongs to, and may be the only copy, for everybody but the primary that it comes from.
 */
function isBlankFor(primary: HistoryFacts, secondary: HistoryFacts): boolean {
  if (secondary.lineage !== null) return false;
  const isItsPrimary = secondary.pairing?.peer === primary.agentId || areRelated(primary, secondary);
  return secondary.committed === 0 || isItsPrimary;
}

function sync(source: HistoryFacts, target: HistoryFacts, rule: VerdictRule): Verdict {
  const ids = { source: source.agentId, target: target.agentId };
  if (isDifferenceKnown(source, target)) return { kind: "sync", rule, ...ids, extent: "delta" };
  return { kind: "sync", rule, ...ids, extent: isVouchedFor(source, target) ? "assumed" : "full" };
}

/** An operator's word is about images that are there, and that no session has changed. */
function isVouchedFor(source: HistoryFacts, target: HistoryFacts): boolean {
  const isToBeMade = target.disks?.some(({ sizeBytes }) => sizeBytes === null) === true;
  return source.assumeInSync && target.lineage === null && target.pairing === null && !isToBeMade;
}

/** Whether the two bitmaps together name every cluster in which the copies can differ. */
function isDifferenceKnown(source: HistoryFacts, target: HistoryFacts): boolean {
  return (
    source.tracks === target.agentId &&
    (target.tracks === null || target.tracks === source.agentId) &&
    haveMetLast(source, target) &&
    // A target that shows less than it once acknowledged was restored from a backup, unless it was rolled back from there.
    Math.max(target.committed, target.rolledBackFrom ?? 0) >= source.committed
  );
}

/** Whether the last session of each was with the other, and both remember the same one. */
export function haveMetLast(one: HistoryFacts, other: HistoryFacts): boolean {
  if (one.pairing?.peer !== other.agentId || other.pairing?.peer !== one.agentId) return false;
  const { sessions } = other.pairing;
  return one.pairing.sessions.some((session) => sessions.includes(session));
}

/** The side whose history the other's goes back to; undefined when neither, or both, are. */
export function findBehind(one: HistoryFacts, other: HistoryFacts): HistoryFacts | undefined {
  const oneIsBehind = one.lineage !== null && other.ancestors.includes(one.lineage);
  const otherIsBehind = other.lineage !== null && one.ancestors.includes(other.lineage);
  if (oneIsBehind === otherIsBehind) return undefined;
  return oneIsBehind ? one : other;
}

export function areRelated(one: HistoryFacts, other: HistoryFacts): boolean {
  const known = historiesOf(other);
  return historiesOf(one).some((lineage) => known.includes(lineage));
}

function historiesOf(facts: HistoryFacts): string[] {
  return [...(facts.lineage === null ? [] : [facts.lineage]), ...facts.ancestors, ...facts.heard];
}
