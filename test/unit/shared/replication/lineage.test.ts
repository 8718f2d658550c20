import { describe, expect, it } from "vitest";
import { ANCESTORS_MAX, KNOWN_PEERS_MAX } from "../../../../proto/limits.ts";
import { fitsStateSlot, type StateRecord } from "../../../../proto/state-record.ts";
import {
  adopted,
  demoted,
  givenUpFor,
  givenUpForNoOther,
  goneAlone,
  heard,
  knownBy,
  mayHaveSucceeded,
  mustHold,
  peerGivenUp,
  promoted,
  relatedPeersOf,
  shared,
  succeededBy,
} from "../../../../shared/replication/lineage.ts";
import { stateRecord } from "../../../support/state-records.ts";

function record(changes: Partial<StateRecord["history"]> = {}, rest: Partial<StateRecord> = {}): StateRecord {
  return stateRecord({
    role: "Primary",
    lineage: "L1",
    history: { origin: "created", shared: true, ancestors: ["L0"], heard: [], ...changes },
    tracks: "peer",
    pairing: { peer: "peer", sessions: ["s"] },
    ...rest,
  });
}

describe("a side's history", () => {
  it("is what each peer may have that it is recorded of, that was left behind, or given up", () => {
    const whole = record(
      { knownBy: ["peer", "gone", ""], left: [{ peer: "left", lineage: "L0" }] },
      {
        otherPeers: [{ slot: 1, pairing: { peer: "other", sessions: [] }, tracks: null, committed: 0 }],
        replaced: ["old"],
      },
    );
    expect([...relatedPeersOf(whole)].sort()).toEqual(["gone", "left", "old", "other", "peer"]);
  });

  it("may be succeeded by who knows, or has known, it, under a history that it does not go back to", () => {
    const whole = record({ knownBy: ["peer"], heard: ["L9"], left: [{ peer: "left", lineage: "L0" }] });
    expect(["peer", "left", "former"].map((peer) => mayHaveSucceeded(whole, peer, "later"))).toEqual([
      true,
      true,
      false,
    ]);
    for (const lineage of ["L0", "L1", "L9"]) expect(mayHaveSucceeded(whole, "peer", lineage)).toBe(false);
  });

  it("is as good as those before it where it came from a primary, and as none for a side that no primary has spoken to", () => {
    const secondary = record({ origin: "adopted" }, { role: "Secondary" });
    expect(succeededBy(secondary)).toEqual(["L1", "L0"]);
    expect(succeededBy(record())).toEqual(["L1"]);
    expect(succeededBy({ ...secondary, pairing: null })).toEqual([]);
    expect(succeededBy({ ...secondary, lineage: null })).toEqual([]);
  });

  it("branches off when a primary goes on alone", () => {
    expect(goneAlone(record(), "L2")).toMatchObject({
      lineage: "L2",
      history: { origin: "alone", shared: false, ancestors: ["L1", "L0"] },
    });
  });

  it("goes back to what it has heard after a promotion from a checkpoint, and not after a forced one", () => {
    const target = record({ heard: ["L9"] }, { role: "Secondary", outdated: true, discardsOwn: true });
    expect(promoted(target, "L2", true)).toMatchObject({
      role: "Primary",
      lineage: "L2",
      outdated: false,
      discardsOwn: false,
      history: { origin: "promotion", shared: false, ancestors: ["L9", "L1", "L0"], heard: [] },
    });
    expect(promoted(target, "L2", false).history).toMatchObject({ ancestors: ["L1", "L0"], heard: ["L9"] });
    expect(promoted(record({}, { lineage: null }), "L2", false).history.ancestors).toEqual(["L0"]);
  });

  it("is that of the source once everything has arrived", () => {
    expect(adopted(record({ heard: ["L2"] }), { lineage: "L2", ancestors: ["L1"] })).toMatchObject({
      lineage: "L2",
      history: { origin: "adopted", shared: true, ancestors: ["L1"], heard: [] },
    });
  });

  it("is given up for one peer's data: the consent ends with a session with another one, and with a promotion", () => {
    const target = givenUpFor(record({}, { role: "Secondary" }), "peer");
    expect(target).toMatchObject({ discardsOwn: true, discardsOwnFor: "peer" });
    expect(givenUpForNoOther(target, "peer")).toBe(target);
    for (const after of [givenUpForNoOther(target, "other"), promoted(target, "L2", true)]) {
      expect(after.discardsOwn).toBe(false);
      expect(after).not.toHaveProperty("discardsOwnFor");
    }
    // Where nobody is named it is for whoever comes.
    const unnamed = record({}, { role: "Secondary", discardsOwn: true });
    expect(givenUpForNoOther(unnamed, "other")).toBe(unnamed);
  });

  it("is no checkpoint of the peer that it is given up for, and nothing of it becomes one", () => {
    const prepared = [{ epoch: 8, atMs: 2 }];
    const target = record({}, { role: "Secondary", committed: { epoch: 7, atMs: 1 }, prepared });
    expect(givenUpFor(target, "peer")).toMatchObject({ outdated: true, committed: { epoch: 7 }, prepared: [] });
    expect(givenUpFor(record({}, { role: "Secondary" }), "peer").outdated).toBe(false);
  });

  it("hears of another lineage once, and of its own not at all", () => {
    const before = record();
    expect(heard(before, "L1")).toBe(before);
    const once = heard(before, "L2");
    expect(once.history.heard).toEqual(["L2"]);
    expect(heard(once, "L2")).toBe(once);
  });

  it("keeps a bounded number of ancestors, the newest", () => {
    let present = record();
    for (let count = 0; count < 100; count += 1) present = goneAlone(present, `N${count}`);
    expect(present.history.ancestors.length).toBeLessThanOrEqual(ANCESTORS_MAX);
    expect(present.history.ancestors[0]).toBe("N98");
  });

  it("stays related to a peer that it has left behind, however often it has parted from another one since", () => {
    let present = goneAlone(shared(shared(record({ shared: false }), "b"), "c"), "N0", ["c"]);
    const last = present.history.ancestors[0] ?? "";
    for (let count = 1; count < 100; count += 1) present = goneAlone(shared(present, "c"), `N${count}`);
    expect(present.history.ancestors).toContain(last);
    expect(present.history.ancestors.length).toBeLessThanOrEqual(ANCESTORS_MAX);
    expect(shared(present, "b").history.left).toEqual([{ peer: "c", lineage: "N98" }]);
  });

  it("knows who may know it: those that were told, and those that stay when a new one begins", () => {
    const both = shared(shared(record({ shared: false }), "b"), "c");
    expect(knownBy(both)).toEqual(["b", "c"]);
    expect(knownBy(goneAlone(both, "L2", ["c"]))).toEqual(["c"]);
    expect(knownBy(goneAlone(both, "L2"))).toEqual([]);
  });

  it("is told to no more peers than a record has room for, until a new one begins", () => {
    let present = record({ shared: false });
    for (let count = 0; count < KNOWN_PEERS_MAX; count += 1) present = shared(present, `peer ${count}`);
    expect(fitsStateSlot(present)).toBe(true);
    expect(() => shared(present, "one more")).toThrow(
      expect.objectContaining({
        code: "role-conflict",
        message: expect.stringMatching(/^64 agents have been this primary's secondary/) as string,
        action: expect.stringMatching(/keep its state directory/) as string,
      }) as Error,
    );
    expect(knownBy(shared(present, "peer 0"))).toHaveLength(KNOWN_PEERS_MAX);
    expect(knownBy(shared(goneAlone(present, "L2"), "one more"))).toEqual(["one more"]);
  });

  it("of a former primary keeps its own state as an outdated checkpoint", () => {
    const after = demoted(
      record({}, { prepared: [{ epoch: 3, atMs: 1 }], handOver: "peer", arbiterUntold: true }),
      { epoch: 9, atMs: 2 },
      true,
    );
    expect(after).toMatchObject({
      role: "Secondary",
      committed: { epoch: 9, atMs: 2 },
      prepared: [],
      epochReserved: 9,
      outdated: true,
      discardsOwn: true,
      handOver: null,
      tracks: "peer",
      pairing: { peer: "peer" },
    });
    expect(after.arbiterUntold).toBeUndefined();
    // Where nothing was tracked, no list of changes can be complete.
    expect(demoted(record({}, { tracks: null }), { epoch: 9, atMs: 2 }, false).pairing).toBeNull();
  });

  it.each<readonly [string, boolean, StateRecord]>([
    ["a new one", false, record({ shared: false })],
    ["one whose secondary may have adopted its lineage", true, shared(record({ shared: false }), "b")],
    ["one that went on alone", true, goneAlone(record(), "L2")],
    ["one that was promoted, and that nobody has followed yet", false, promoted(record(), "L2", true)],
    ["one that was promoted, and has a secondary", true, shared(promoted(record(), "L2", true), "b")],
    ["an outdated one", true, record({ shared: false }, { outdated: true })],
    ["one that has handed its role over", true, record({ shared: false }, { handOver: "peer" })],
    ["a secondary", false, record({}, { role: "Secondary" })],
  ])("tells whether a primary that starts must hold its guests: %s", (_, holds, present) => {
    expect(mustHold(present, false)).toBe(holds);
  });

  it("makes a primary hold that may have been put back to before its first session, and no promoted one", () => {
    expect(mustHold(record({ shared: false }), true)).toBe(true);
    expect(mustHold(promoted(record(), "L2", true), true)).toBe(false);
    expect(mustHold(record({ shared: false }, { role: "Secondary" }), true)).toBe(false);
  });
});

describe("a peer that was given up", () => {
  const other = { slot: 2, pairing: { peer: "other", sessions: ["t"] }, tracks: "other", committed: 40 };
  const several = record({ knownBy: ["peer", "other"] }, { committed: { epoch: 41, atMs: 7 }, otherPeers: [other] });

  it("is refused, and may still know the lineage", () => {
    const left = peerGivenUp(record());
    expect(left).toMatchObject({ pairing: null, tracks: null, replaced: ["peer"] });
    expect(knownBy(left)).toEqual(["peer"]);
  });

  it("leaves its place in the record to another one, with what that one has", () => {
    const left = peerGivenUp(several);
    expect(left).toMatchObject({ pairing: other.pairing, tracks: "other", peerSlot: 2, replaced: ["peer"] });
    expect(left).toMatchObject({ committed: { epoch: 40, atMs: 0 } });
    expect(left.otherPeers).toBeUndefined();
    const alike = peerGivenUp({ ...several, otherPeers: [{ ...other, committed: 41 }] });
    expect(alike.committed).toEqual({ epoch: 41, atMs: 7 });
  });

  it("leaves the record's own peer where it is", () => {
    const left = peerGivenUp(several, 2);
    expect(left).toMatchObject({ pairing: { peer: "peer" }, tracks: "peer", replaced: ["other"] });
    expect(left.otherPeers).toBeUndefined();
  });
});
