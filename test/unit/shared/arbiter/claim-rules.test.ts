import { describe, expect, it } from "vitest";
import type { ArbiterRecord } from "../../../../proto/arbiter-record.ts";
import { decideServing, decideTakeover } from "../../../../shared/arbiter/claim-rules.ts";

const RECORD: ArbiterRecord = {
  version: 1,
  vm: "vm",
  lineage: "first",
  holder: "a",
  committed: 7,
  outdated: [],
  ttlMs: 10_000,
};

function kindOfServing(
  record: Partial<ArbiterRecord> | undefined,
  { leaseHolder = null, hasSecondary = false }: { leaseHolder?: string | null; hasSecondary?: boolean } = {},
): string {
  const state = { record: record && { ...RECORD, ...record }, revision: "1", leaseHolder };
  return decideServing({ state, agentId: "a", lineage: "first", hasSecondary }).kind;
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
    expect(kindOfServing({ holder: "b", lineage: "later" }, { hasSecondary: true })).toBe("claim");
  });

  it("waits for another's lease, whatever it has", () => {
    for (const record of [undefined, {}, { holder: "b" }]) {
      expect(kindOfServing(record, { leaseHolder: "b", hasSecondary: true })).toBe("wait");
      expect(kindOfServing(record, { leaseHolder: "a" })).toBe("claim");
    }
  });
});

function kindOfTakeover(
  record: Partial<ArbiterRecord> | undefined,
  { leaseHolder = null, committed = 7 }: { leaseHolder?: string | null; committed?: number } = {},
): string {
  const state = { record: record && { ...RECORD, ...record }, revision: "1", leaseHolder };
  return decideTakeover({ state, agentId: "b", lineage: "first", committed }).kind;
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

  it("takes up its own takeover that was cut off", () => {
    expect(kindOfTakeover({ holder: "b", lineage: "later", outdated: ["a"] })).toBe("claim");
  });

  it("waits for another's lease", () => {
    expect(kindOfTakeover({}, { leaseHolder: "a" })).toBe("wait");
    expect(kindOfTakeover({}, { leaseHolder: "b" })).toBe("claim");
  });
});
