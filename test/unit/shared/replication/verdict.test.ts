import { describe, expect, it } from "vitest";
import { decide, type HistoryFacts, type Verdict } from "../../../../shared/replication/verdict.ts";

const PAIR_A = { peer: "b", sessions: ["s2", "s1"] };
const PAIR_B = { peer: "a", sessions: ["s2"] };

/** A primary "a" of lineage L1 that has its secondary's bitmap, with `changes`. */
function primary(changes: Partial<HistoryFacts> = {}): HistoryFacts {
  return {
    agentId: "a",
    role: "Primary",
    lineage: "L1",
    shared: true,
    ancestors: [],
    heard: [],
    pairing: PAIR_A,
    tracks: "b",
    committed: 5,
    outdated: false,
    discardsOwn: false,
    handOver: null,
    assumeInSync: false,
    ...changes,
  };
}

/** The secondary "b" that fits it. */
function secondary(changes: Partial<HistoryFacts> = {}): HistoryFacts {
  return primary({ agentId: "b", role: "Secondary", pairing: PAIR_B, tracks: null, ...changes });
}

const delta = { kind: "sync", source: "a", target: "b", extent: "delta" } as const;
const full = { ...delta, extent: "full" } as const;
const ROLLED_BACK: Partial<HistoryFacts> = { lineage: "R", ancestors: ["L1"], committed: 3, rolledBackFrom: 5 };
const BLANK: Partial<HistoryFacts> = { lineage: null, pairing: null, committed: 0 };

describe("the verdict of a handshake", () => {
  it.each<readonly [string, HistoryFacts, HistoryFacts, Partial<Verdict>]>([
    // A primary and its secondary
    ["two that were never apart", primary(), secondary(), { ...delta, rule: "same-lineage" }],
    [
      "a secondary that is behind",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary(),
      { ...delta, rule: "target-behind" },
    ],
    [
      "a session that only one side has recorded",
      primary({ pairing: { peer: "b", sessions: ["s3", "s2"] } }),
      secondary(),
      delta,
    ],
    [
      "a blank secondary",
      primary({ tracks: null, pairing: null }),
      secondary(BLANK),
      { ...full, rule: "blank-target" },
    ],
    [
      "one that the operator vouches for",
      primary({ tracks: null, pairing: null, assumeInSync: true }),
      secondary(BLANK),
      { ...full, extent: "assumed" },
    ],
    [
      "one whose images are to be made, whatever the operator says",
      primary({ tracks: null, pairing: null, assumeInSync: true }),
      secondary({ ...BLANK, disks: [{ sizeBytes: 4096 }, { sizeBytes: null }] }),
      full,
    ],
    [
      "one that the operator vouches for, and that has met a primary since",
      primary({ tracks: null, pairing: null, assumeInSync: true }),
      secondary({ ...BLANK, pairing: PAIR_B }),
      full,
    ],
    [
      "a blank one whose first sync was interrupted",
      primary({ committed: 0 }),
      secondary({ lineage: null, committed: 0 }),
      delta,
    ],
    ["one that shows less than it acknowledged", primary(), secondary({ committed: 4 }), full],
    ["one that was restored from a backup", primary(), secondary({ pairing: { peer: "a", sessions: ["s0"] } }), full],
    [
      "one that was replaced by another of its history",
      primary(),
      secondary({ agentId: "c" }),
      { ...full, target: "c" },
    ],
    [
      "one that has met another primary since",
      primary(),
      secondary({ pairing: { peer: "x", sessions: ["s2"] } }),
      full,
    ],
    ["a primary that knows nothing of it", primary({ tracks: null }), secondary(), full],
    [
      "one that was promoted",
      primary(),
      secondary({ role: "Primary", lineage: "L2", ancestors: ["L1"] }),
      { kind: "outdated", agent: "a", newer: "b" },
    ],
    // A former primary
    [
      "a former primary with a list of its changes",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ tracks: "a", outdated: true }),
      delta,
    ],
    [
      "one whose list is about another peer",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ tracks: "c", outdated: true }),
      full,
    ],
    [
      "a secondary that is ahead of the primary",
      primary(),
      secondary({ lineage: "L2", ancestors: ["L1"] }),
      { kind: "outdated", agent: "a", newer: "b" },
    ],
    ["one that was rolled back", primary(), secondary(ROLLED_BACK), { kind: "refused", rule: "rolled-back" }],
    [
      "one that was rolled back, of a primary that has gone on alone",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary(ROLLED_BACK),
      { kind: "refused", rule: "rolled-back" },
    ],
    [
      "one that was rolled back in its first sync, and has adopted nothing",
      primary(),
      secondary({ ...ROLLED_BACK, ancestors: [], heard: ["L1"] }),
      { kind: "refused", rule: "rolled-back" },
    ],
    [
      "one that was rolled back, of a primary that it has nothing in common with",
      primary({ lineage: "other" }),
      secondary(ROLLED_BACK),
      { kind: "refused", rule: "unrelated" },
    ],
    [
      "one that was rolled back, of a primary that has gone on from there",
      primary({ lineage: "L2", ancestors: ["R", "L1"] }),
      secondary(ROLLED_BACK),
      { ...delta, rule: "target-behind" },
    ],
    [
      "one that was rolled back, and gives that up",
      primary(),
      secondary({ ...ROLLED_BACK, tracks: "a", discardsOwn: true }),
      { ...delta, rule: "own-data-discarded" },
    ],
    [
      "one that was put back to a backup and rolled back then, and gives that up",
      primary(),
      secondary({ ...ROLLED_BACK, tracks: "a", rolledBackFrom: 4, discardsOwn: true }),
      full,
    ],
    [
      "an agent that was replaced",
      primary({ replaced: ["b"] }),
      secondary(),
      { kind: "refused", rule: "replaced-peer" },
    ],
    [
      "an agent that was replaced, and gives its data up",
      primary({ replaced: ["c", "b"] }),
      secondary({ lineage: "L2", ancestors: ["L1"], discardsOwn: true }),
      { kind: "refused", rule: "replaced-peer" },
    ],
    [
      "an agent that was replaced, and is ahead of the primary",
      primary({ replaced: ["b"] }),
      secondary({ lineage: "L2", ancestors: ["L1"] }),
      { kind: "outdated", agent: "a", newer: "b" },
    ],
    [
      "a secondary that is ahead of a primary which has told nobody of its history",
      primary({ shared: false }),
      secondary({ lineage: "L2", ancestors: ["L1"] }),
      { kind: "split-brain", rule: "put-back" },
    ],
    [
      "a promoted side that is ahead of a primary which has told nobody of its history",
      primary({ shared: false }),
      secondary({ role: "Primary", lineage: "L2", ancestors: ["L1"] }),
      { kind: "split-brain", rule: "put-back" },
    ],
    [
      "a primary that knows that it is outdated",
      primary({ outdated: true }),
      secondary(),
      { kind: "outdated", agent: "a", rule: "source-outdated" },
    ],
    [
      "a role that was handed over and arrived",
      primary({ handOver: "b" }),
      secondary({ role: "Primary", lineage: "L2", ancestors: ["L1"] }),
      { kind: "hand-over", from: "a", to: "b" },
    ],
    ["one that did not arrive", primary({ handOver: "b" }), secondary(), delta],
    [
      "one that went to another agent",
      primary({ handOver: "x" }),
      secondary({ role: "Primary", lineage: "L2", ancestors: ["L1"] }),
      { kind: "outdated", agent: "a" },
    ],
    // Two that have parted
    [
      "a primary that went on alone, and a promoted side",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ role: "Primary", lineage: "L3", ancestors: ["L1"] }),
      { kind: "split-brain", rule: "diverged" },
    ],
    [
      "a promoted side that had heard of it",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ role: "Primary", lineage: "L3", ancestors: ["L2", "L1"] }),
      { kind: "outdated", agent: "a" },
    ],
    [
      "a forced promotion that had only heard of it",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ role: "Primary", lineage: "L3", ancestors: [], heard: ["L2"] }),
      { kind: "split-brain" },
    ],
    [
      "a secondary with another branch",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ lineage: "L3", ancestors: ["L1"] }),
      { kind: "split-brain" },
    ],
    [
      "the same, once its data was given up",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ lineage: "L3", ancestors: ["L1"], discardsOwn: true, tracks: "a" }),
      { ...delta, rule: "own-data-discarded" },
    ],
    [
      "the same, once its data was given up for this primary's",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ lineage: "L3", ancestors: ["L1"], discardsOwn: true, discardsOwnFor: "a", tracks: "a" }),
      { ...delta, rule: "own-data-discarded" },
    ],
    [
      "the same, once its data was given up for another primary's",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ lineage: "L3", ancestors: ["L1"], discardsOwn: true, discardsOwnFor: "c", tracks: "a" }),
      { kind: "split-brain" },
    ],
    ["strangers", primary(), secondary({ lineage: "M1" }), { kind: "refused", rule: "unrelated" }],
    [
      "strangers, once one has given up its data",
      primary(),
      secondary({ lineage: "M1", discardsOwn: true, pairing: null }),
      full,
    ],
    [
      "two primaries without a common history",
      primary(),
      secondary({ role: "Primary", lineage: "M1" }),
      { kind: "refused", rule: "unrelated" },
    ],
    // What cannot be
    [
      "two primaries of one lineage",
      primary(),
      secondary({ role: "Primary" }),
      { kind: "refused", rule: "two-primaries" },
    ],
    ["two secondaries", primary({ role: "Secondary" }), secondary(), { kind: "refused", rule: "no-primary" }],
    ["an agent and itself", primary(), secondary({ agentId: "a" }), { kind: "refused", rule: "same-agent" }],
    [
      "two that are each other's ancestors",
      primary({ lineage: "L2", ancestors: ["L1"] }),
      secondary({ role: "Primary", lineage: "L1", ancestors: ["L2"] }),
      { kind: "split-brain" },
    ],
  ])("is the same on both sides for %s", (_, one, other, expected) => {
    expect(decide(one, other)).toMatchObject(expected);
    expect(decide(other, one)).toEqual(decide(one, other));
  });
});
