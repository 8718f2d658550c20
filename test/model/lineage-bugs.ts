import { decide, type HistoryFacts, type Verdict } from "../../shared/replication/verdict.ts";
import { newWorld, RULES, type Rules, type World } from "./lineage-world.ts";
import { protectedWorld } from "./lineage-session.ts";

/** A rule, broken: the explorer has to find what comes of it. */
export interface Bug {
  readonly name: string;
  readonly broken: Partial<Rules>;
  readonly begin: (rules: Rules) => World;
  /** The promise that catches it, … */
  readonly promise: string;
  /** … and the fewest interventions after which it does. */
  readonly interventions: number;
}

const LOST_ALONE = "what was acknowledged alone is lost with the role";
const DIFFER = "the copies differ where nothing is dirty";
const ONLY_COPY = "a blank replacement overwrites the only copy";

const ROLLBACK_UNDONE = "a rollback is undone, and nobody has said so";
const OWN_STATE = "a former primary's own state is promoted, and nobody has forced it";

const replaced = (rules: Rules): World => protectedWorld(rules, { replacements: 1 });

/** The verdict on changed facts. */
function decideOn(change: (facts: HistoryFacts) => HistoryFacts): Rules["decide"] {
  return (one, other) => decide(change(one), change(other));
}

/** Another verdict on a primary and a secondary. */
function decideUnless(
  instead: (verdict: Verdict, primary: HistoryFacts, secondary: HistoryFacts) => Verdict,
): Rules["decide"] {
  return (one, other) => {
    const verdict = decide(one, other);
    if (one.role === other.role) return verdict;
    return one.role === "Primary" ? instead(verdict, one, other) : instead(verdict, other, one);
  };
}

function haveMet(one: HistoryFacts, other: HistoryFacts): boolean {
  return one.pairing?.sessions.some((session) => other.pairing?.sessions.includes(session)) ?? false;
}

function areTracked(source: HistoryFacts, target: HistoryFacts): boolean {
  return source.tracks === target.agentId && (target.tracks === null || target.tracks === source.agentId);
}

const syncAnyway = (primary: HistoryFacts, secondary: HistoryFacts): Verdict => ({
  kind: "sync",
  rule: "blank-target",
  source: primary.agentId,
  target: secondary.agentId,
  extent: "full",
});

export const BUGS: readonly Bug[] = [
  {
    name: "an agent that was replaced is taken again",
    broken: { decide: decideOn(({ replaced: _, ...facts }) => facts) },
    begin: replaced,
    promise: "an agent that was replaced is synced again",
    interventions: 2,
  },
  {
    name: "no lineage begins with a write without the peer",
    broken: { goneAlone: (record) => record },
    begin: protectedWorld,
    promise: LOST_ALONE,
    interventions: 2,
  },
  {
    name: "a lineage is recorded as known to the peer only after the peer has heard of it",
    broken: { sharesFirst: false },
    begin: protectedWorld,
    promise: "a split brain is reported where nothing was acknowledged alone",
    interventions: 3,
  },
  {
    name: "a forced promotion supersedes what it has heard",
    broken: { promoted: (record, lineage) => RULES.promoted(record, lineage, true) },
    begin: protectedWorld,
    promise: LOST_ALONE,
    interventions: 3,
  },
  {
    name: "a promotion does not supersede what it has heard",
    broken: {
      promoted: (record, lineage, supersedes) =>
        RULES.promoted({ ...record, history: { ...record.history, heard: [] } }, lineage, supersedes),
    },
    begin: protectedWorld,
    promise: "a split brain is reported where nothing was acknowledged alone",
    interventions: 3,
  },
  {
    name: "a verdict on a history that has ended meanwhile counts",
    broken: { repeatsStale: false },
    begin: protectedWorld,
    promise: "a side is called outdated that is not behind",
    interventions: 2,
  },
  {
    name: "what the target knows to differ is not taken over",
    broken: { unites: false },
    begin: protectedWorld,
    promise: DIFFER,
    interventions: 2,
  },
  {
    name: "the target forgets its own changes before the source has them",
    broken: { forgetsLast: false },
    begin: protectedWorld,
    promise: DIFFER,
    interventions: 4,
  },
  {
    name: "a promotion does not mark what it rolls back",
    broken: { marksRolledBack: false },
    begin: protectedWorld,
    promise: DIFFER,
    interventions: 2,
  },
  {
    name: "a cluster is clean as soon as it is sent",
    broken: { clearsAcknowledged: false },
    begin: protectedWorld,
    promise: DIFFER,
    interventions: 2,
  },
  {
    name: "a cluster is clean though it was changed again since it was sent",
    broken: { clearsUnchanged: false },
    begin: protectedWorld,
    promise: DIFFER,
    interventions: 3,
  },
  {
    name: "a bitmap counts before everything in it is dirty",
    broken: { marksEverything: false },
    begin: () => newWorld(),
    promise: DIFFER,
    interventions: 0,
  },
  {
    name: "a primary that becomes secondary without a bitmap keeps its pairing",
    broken: {
      demoted: (record, checkpoint, discardsOwn) => ({
        ...RULES.demoted(record, checkpoint, discardsOwn),
        pairing: record.pairing,
      }),
    },
    begin: protectedWorld,
    promise: DIFFER,
    interventions: 4,
  },
  {
    name: "whom a bitmap counts from is not compared",
    broken: {
      decide: decideUnless((verdict, primary, secondary) =>
        verdict.kind === "sync" && haveMet(primary, secondary) ? { ...verdict, extent: "delta" } : verdict,
      ),
    },
    begin: protectedWorld,
    promise: DIFFER,
    interventions: 3,
  },
  {
    name: "the ids of the last sessions are not compared",
    broken: {
      decide: decideUnless((verdict, primary, secondary) =>
        verdict.kind === "sync" && areTracked(primary, secondary) ? { ...verdict, extent: "delta" } : verdict,
      ),
    },
    begin: protectedWorld,
    promise: DIFFER,
    interventions: 4,
  },
  {
    name: "a session before the last one counts as well",
    broken: { confirmed: (record) => record },
    begin: (rules) => protectedWorld(rules, { restores: 1 }),
    promise: DIFFER,
    interventions: 3,
  },
  {
    name: "the secondary sends where the lineage is the same",
    broken: {
      decide: decideUnless((verdict, primary, secondary) =>
        verdict.kind === "sync" && verdict.rule === "same-lineage"
          ? { ...verdict, source: secondary.agentId, target: primary.agentId }
          : verdict,
      ),
    },
    begin: protectedWorld,
    promise: "the primary is not the source",
    interventions: 1,
  },
  {
    name: "guests are not held at a start",
    broken: { mustHold: () => false },
    begin: protectedWorld,
    promise: "a side serves whose peer was promoted while it was away",
    interventions: 2,
  },
  {
    name: "guests are not held where the record knows of no peer",
    broken: { mustHold: (record) => RULES.mustHold(record, false) },
    begin: () => newWorld({ restores: 1 }),
    promise: "a side serves whose peer was promoted while it was away",
    interventions: 3,
  },
  {
    name: "a restart forgets that the side is outdated",
    broken: { restarted: (record) => ({ ...record, outdated: false }) },
    begin: protectedWorld,
    promise: OWN_STATE,
    interventions: 3,
  },
  {
    name: "a restart forgets that the role was handed over",
    broken: { restarted: (record) => ({ ...record, handOver: null }) },
    begin: protectedWorld,
    promise: "a side serves that has handed its role over",
    interventions: 3,
  },
  {
    name: "what a former primary holds counts as a checkpoint of the pair",
    broken: {
      demoted: (record, checkpoint, discardsOwn) => ({
        ...RULES.demoted(record, checkpoint, discardsOwn),
        outdated: false,
      }),
    },
    begin: protectedWorld,
    promise: OWN_STATE,
    interventions: 2,
  },
  {
    name: "data stays given up after a commit",
    broken: { committed: (record) => ({ ...record, outdated: false }) },
    begin: replaced,
    promise: ONLY_COPY,
    interventions: 3,
  },
  {
    name: "a rollback begins no lineage",
    broken: { rolledBack: (record) => record },
    begin: (rules) => protectedWorld(rules, { rollbacks: 1 }),
    promise: ROLLBACK_UNDONE,
    interventions: 3,
  },
  {
    name: "a lineage that began with a rollback is like any other",
    broken: { decide: decideOn(({ rolledBackFrom: _, ...facts }) => facts) },
    begin: (rules) => protectedWorld(rules, { rollbacks: 1 }),
    promise: "a primary gives way to a checkpoint that nobody has promoted",
    interventions: 3,
  },
  {
    name: "a rollback does not mark what it drops",
    broken: { marksAtRollback: false },
    begin: (rules) => protectedWorld(rules, { rollbacks: 1, isBuffered: true }),
    promise: DIFFER,
    interventions: 3,
  },
  {
    name: "two without a common history are a pair",
    broken: {
      decide: decideUnless((verdict, primary, secondary) =>
        verdict.kind === "refused" && verdict.rule === "unrelated" ? syncAnyway(primary, secondary) : verdict,
      ),
    },
    begin: replaced,
    promise: ONLY_COPY,
    interventions: 1,
  },
  {
    name: "a secondary without a checkpoint is taken for blank",
    broken: {
      decide: decideUnless((verdict, primary, secondary) =>
        secondary.committed === 0 && verdict.kind !== "sync" && !primary.outdated
          ? syncAnyway(primary, secondary)
          : verdict,
      ),
    },
    begin: replaced,
    promise: ONLY_COPY,
    interventions: 2,
  },
  {
    name: "a secondary without a lineage is taken for blank, whatever it has committed",
    broken: {
      decide: decideOn((facts) => (facts.lineage === null ? { ...facts, committed: 0 } : facts)),
    },
    begin: () => newWorld({ replacements: 1 }),
    promise: ONLY_COPY,
    interventions: 3,
  },
];
