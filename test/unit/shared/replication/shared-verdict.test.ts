import { describe, expect, it } from "vitest";
import { decideShared } from "../../../../shared/replication/shared-verdict.ts";
import type { HistoryFacts, Verdict } from "../../../../shared/replication/verdict.ts";

const LINEAGES = [null, "L1", "L2"] as const;
const ANCESTORS = [[], ["L1"], ["L2"]] as const;
const FLAGS = [false, true] as const;
const PAIRINGS = [
  null,
  { peer: "other", sessions: ["s1"] },
  { peer: "other", sessions: ["s2", "s1"] },
  { peer: "other", sessions: ["s0"] },
  { peer: "stranger", sessions: ["s1"] },
] as const;

function facts(agentId: string, peer: string, changes: Partial<HistoryFacts>): HistoryFacts {
  const { pairing } = changes;
  return {
    agentId,
    role: "Primary",
    lineage: "L1",
    ancestors: [],
    shared: true,
    heard: [],
    tracks: null,
    committed: 5,
    outdated: false,
    discardsOwn: false,
    handOver: null,
    assumeInSync: false,
    ...changes,
    pairing:
      pairing === undefined || pairing === null
        ? null
        : { ...pairing, peer: pairing.peer === "other" ? peer : pairing.peer },
  };
}

function* primaries(): Iterable<HistoryFacts> {
  for (const lineage of ["L1", "L2"])
    for (const ancestors of ANCESTORS)
      for (const pairing of PAIRINGS)
        for (const outdated of FLAGS)
          if (!ancestors.some((ancestor) => ancestor === lineage))
            yield facts("a", "b", { lineage, ancestors, pairing, outdated });
}

function* secondaries(): Iterable<HistoryFacts> {
  for (const lineage of LINEAGES)
    for (const ancestors of ANCESTORS)
      for (const pairing of PAIRINGS)
        for (const committed of [0, 4, 5, 6])
          for (const discardsOwn of FLAGS)
            if (!ancestors.some((ancestor) => ancestor === lineage))
              yield facts("b", "a", { role: "Secondary", lineage, ancestors, pairing, committed, discardsOwn });
}

function haveMet(primary: HistoryFacts, secondary: HistoryFacts): boolean {
  return (
    primary.pairing?.peer === "b" &&
    secondary.pairing?.peer === "a" &&
    primary.pairing.sessions.some((session) => secondary.pairing?.sessions.includes(session))
  );
}

describe("the verdict on a shared disk", () => {
  it("keeps a checkpoint only in one history, of the last session of both, and stops a primary that is behind", () => {
    const seen: Record<string, number> = {};
    for (const primary of primaries()) {
      for (const secondary of secondaries()) {
        const verdict = decideShared(primary, secondary);
        expect(decideShared(secondary, primary)).toEqual(verdict);
        const name = verdict.kind === "sync" ? verdict.extent : verdict.kind;
        seen[name] = (seen[name] ?? 0) + 1;
        const isBehind = secondary.ancestors.includes(primary.lineage ?? "");
        const isAhead = primary.ancestors.includes(secondary.lineage ?? "");
        if (name === "keep") {
          expect(primary.lineage).toBe(secondary.lineage);
          expect(haveMet(primary, secondary)).toBe(true);
          expect(secondary.committed).toBeGreaterThanOrEqual(primary.committed);
          expect(secondary.discardsOwn || primary.outdated).toBe(false);
        }
        if (primary.outdated) expect(name).toBe("outdated");
        else if (secondary.discardsOwn) expect(name).toBe("rearm");
        else if (isBehind && !isAhead) expect(name).toBe("outdated");
        else if (isAhead && !isBehind) expect(name).toBe("rearm");
        else if (secondary.lineage === null) expect(name).toBe("rearm");
        // Nobody's writes are given up unasked where the two are of different histories.
        else if (primary.lineage !== secondary.lineage) expect(["split-brain", "refused"]).toContain(name);
      }
    }
    expect(Object.keys(seen).sort()).toEqual(["keep", "outdated", "rearm", "refused", "split-brain"]);
  });

  it("never asks for data to be sent", () => {
    for (const primary of primaries()) {
      for (const secondary of secondaries()) {
        const verdict = decideShared(primary, secondary);
        if (verdict.kind === "sync") expect(["keep", "rearm"]).toContain(verdict.extent);
      }
    }
  });

  it.each<readonly [string, HistoryFacts, HistoryFacts, Verdict]>([
    [
      "an agent and itself",
      facts("a", "b", {}),
      facts("a", "b", { role: "Secondary" }),
      { kind: "refused", rule: "same-agent" },
    ],
    [
      "two secondaries",
      facts("a", "b", { role: "Secondary" }),
      facts("b", "a", { role: "Secondary" }),
      { kind: "refused", rule: "no-primary" },
    ],
    [
      "two primaries of one history",
      facts("a", "b", {}),
      facts("b", "a", {}),
      { kind: "refused", rule: "two-primaries" },
    ],
    [
      "a former primary and the one that was promoted",
      facts("a", "b", {}),
      facts("b", "a", { lineage: "L2", ancestors: ["L1"] }),
      { kind: "outdated", rule: "primary-behind", agent: "a", newer: "b" },
    ],
  ])("knows %s", (_, one, other, verdict) => {
    expect(decideShared(one, other)).toEqual(verdict);
    expect(decideShared(other, one)).toEqual(verdict);
  });
});
