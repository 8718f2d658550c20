import { describe, expect, it } from "vitest";
import type { ArbiterRecord } from "../../../../proto/arbiter-record.ts";
import { decideServing, decideTakeover } from "../../../../shared/arbiter/claim-rules.ts";

const RECORD: ArbiterRecord = {
  version: 1,
  vm: "vm",
  lineage: "first",
  holder: "a",
  committed: 7,
  next: [],
  outdated: [],
  peers: [],
  ttlMs: 10_000,
};

function kindOfServing(
  record: Partial<ArbiterRecord> | undefined,
  { leaseHolder = null, isFollowed = false }: { leaseHolder?: string | null; isFollowed?: boolean } = {},
): string {
  const state = { record: record && { ...RECORD, ...record }, revision: "1", leaseHolder };
  return decideServing({ state, agentId: "a", lineage: "first", isFollowed }).kind;
}

describe("a primary", () => {
  it("claims what nobody has served, what it has served last, and its own history", () => {
    expect(kindOfServing(undefined)).toBe("claim");
    expect(kindOfServing({ lineage: "later" })).toBe("claim");
    expect(kindOfServing({ holder: "b" })).toBe("claim");
  });

  it("is refused where another serves a later history, or has gone on without it", () => {
    expect(kindOfServing({ holder: "b", lineage: "later" })).toBe("refused");
    expect(kindOfServing({ holder: "b", outdated: ["a"] })).toBe("refused");
  });

  it("claims from whom it has as its secondary", () => {
    expect(kindOfServing({ holder: "b", lineage: "later" }, { isFollowed: true })).toBe("claim");
  });

  it("waits for another's lease, whatever it has", () => {
    for (const record of [undefined, {}, { holder: "b" }]) {
      expect(kindOfServing(record, { leaseHolder: "b", isFollowed: true })).toBe("wait");
      expect(kindOfServing(record, { leaseHolder: "a" })).toBe("claim");
    }
  });
});

function kindOfTakeover(
  record: Partial<ArbiterRecord> | undefined,
  {
    leaseHolder = null,
    committed = 7,
    lineages = ["first"],
  }: { leaseHolder?: string | null; committed?: number; lineages?: readonly string[] } = {},
): string {
  const state = { record: record && { ...RECORD, ...record }, revision: "1", leaseHolder };
  return decideTakeover({ state, agentId: "b", lineages, committed }).kind;
}

describe("a secondary", () => {
  it("takes over the history that it has, at the checkpoint that it has, or a later one", () => {
    expect(kindOfTakeover({})).toBe("claim");
    expect(kindOfTakeover({}, { committed: 8 })).toBe("claim");
  });

  it("is refused without a record, without the history, the checkpoint, or writes that were acknowledged", () => {
    expect(kindOfTakeover(undefined)).toBe("refused");
    expect(kindOfTakeover({ lineage: "later" })).toBe("refused");
    expect(kindOfTakeover({}, { committed: 6 })).toBe("refused");
    expect(kindOfTakeover({ outdated: ["b"] })).toBe("refused");
  });

  it("takes over a history that goes on in its own, which the holder has not told the arbiter of yet", () => {
    expect(kindOfTakeover({}, { lineages: ["alone", "first"] })).toBe("claim");
    expect(kindOfTakeover({ outdated: ["b"] }, { lineages: ["alone", "first"] })).toBe("refused");
  });

  it("is refused once another one has taken over, whatever becomes of that", () => {
    const taken = { holder: "c", lineage: "taken", outdated: ["a"] };
    expect(kindOfTakeover(taken, { leaseHolder: "c" })).toBe("refused");
    expect(kindOfTakeover(taken, { committed: 9 })).toBe("refused");
  });

  it("takes up its own takeover that was cut off", () => {
    expect(kindOfTakeover({ holder: "b", lineage: "later", outdated: ["a"] })).toBe("claim");
  });

  it("waits for another's lease", () => {
    expect(kindOfTakeover({}, { leaseHolder: "a" })).toBe("wait");
    expect(kindOfTakeover({}, { leaseHolder: "b" })).toBe("claim");
  });
});
