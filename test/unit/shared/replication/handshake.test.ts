import { describe, expect, it } from "vitest";
import type { Hello } from "../../../../proto/replication-messages.ts";
import { decideSync, findMismatch, type SyncDecision } from "../../../../shared/replication/handshake.ts";
import { primaryHello, secondaryHello } from "../../../support/hellos.ts";

const disks = (...sizes: (readonly [string, number | null])[]): Partial<Hello> => ({
  disks: sizes.map(([name, sizeBytes]) => ({ name, sizeBytes })),
});

describe("a mismatch of two agents", () => {
  it.each<readonly [string, Partial<Hello>, Partial<Hello>, string, readonly string[]]>([
    ["VM", { vm: "mail" }, { vm: "web" }, "vm-mismatch", ['"mail"', '"web"']],
    ["mode", { mode: "colo" }, { mode: "mc" }, "mode-mismatch", ['"colo"', '"mc"']],
    ["role", { role: "Primary" }, { role: "Primary" }, "role-conflict", ["Primary"]],
    ["cluster size", { clusterBytes: 4096 }, { clusterBytes: 65_536 }, "cluster-size-mismatch", ["4096", "65536"]],
    ["disk's name", disks(["vda", 512]), disks(["vdb", 512]), "disk-mismatch", ["vda", "vdb"]],
    ["number of disks", disks(["vda", 512]), disks(["vda", 512], ["vdb", 512]), "disk-mismatch", ["vda, vdb"]],
    [
      "disk's size",
      disks(["a", 512], ["b", 1024]),
      disks(["b", 2048], ["a", 512]),
      "size-mismatch",
      ["disk b", "1024", "2048"],
    ],
  ])("of the %s is refused by both, in a sentence that names both values", (_, ours, theirs, code, values) => {
    const self = primaryHello(ours);
    const peer = secondaryHello(theirs);
    for (const mismatch of [findMismatch(self, peer), findMismatch(peer, self)]) {
      expect(mismatch?.code).toBe(code);
      for (const value of values) expect(mismatch?.message).toContain(value);
      expect(mismatch?.action).not.toBe("");
    }
  });

  it("of disk sizes says which image is to be made larger, and how large", () => {
    const mismatch = findMismatch(primaryHello(disks(["vda", 2048])), secondaryHello(disks(["vda", 1024])));
    expect(mismatch?.action).toMatch(/peer's one is smaller.*truncate -s 2048/);
    const reverse = findMismatch(secondaryHello(disks(["vda", 1024])), primaryHello(disks(["vda", 2048])));
    expect(reverse?.action).toMatch(/local one is smaller.*truncate -s 2048/);
  });

  it.each<readonly [string, Partial<Hello>, Partial<Hello>]>([
    ["agents that fit", {}, {}],
    ["disks in another order", disks(["a", 512], ["b", 1024]), disks(["b", 1024], ["a", 512])],
    ["an image that is yet to be made", disks(["a", 512]), disks(["a", null])],
    ["another release of the same protocol", { agentVersion: "9.0" }, {}],
    ["another acknowledgement policy", { ack: "applied" }, {}],
  ])("is not seen in %s", (_, ours, theirs) => {
    expect(findMismatch(primaryHello(ours), secondaryHello(theirs))).toBeUndefined();
    expect(findMismatch(secondaryHello(theirs), primaryHello(ours))).toBeUndefined();
  });
});

const SECONDARY_LINEAGES = ["none", "same", "other"] as const;
const TRACKED = ["this one", "another", "nobody"] as const;
const COMMITTED = ["less", "as much", "more"] as const;
type Outcome = SyncDecision["kind"];
type Table = Record<
  (typeof SECONDARY_LINEAGES)[number],
  Record<(typeof TRACKED)[number], Record<(typeof COMMITTED)[number], readonly [Outcome, Outcome]>>
>;

const same = <T>(outcome: T): Record<(typeof COMMITTED)[number], T> => ({
  "less": outcome,
  "as much": outcome,
  "more": outcome,
});

/** By the secondary's lineage, whom the primary's dirty map counts from, what the secondary has committed: without, and with --assume-in-sync. */
const DECISIONS: Table = {
  none: {
    "this one": same(["delta", "delta"]),
    "another": same(["full", "assumed"]),
    "nobody": same(["full", "assumed"]),
  },
  same: {
    "this one": { "less": ["full", "full"], "as much": ["delta", "delta"], "more": ["delta", "delta"] },
    "another": same(["full", "full"]),
    "nobody": same(["full", "full"]),
  },
  other: {
    "this one": same(["refused", "refused"]),
    "another": same(["refused", "refused"]),
    "nobody": same(["refused", "refused"]),
  },
};

const CELLS = SECONDARY_LINEAGES.flatMap((lineage) =>
  TRACKED.flatMap((tracked) => COMMITTED.map((committed) => ({ lineage, tracked, committed }))),
);

describe("what is to be sent", () => {
  it.each(CELLS)(
    "to a secondary of $lineage lineage, tracking $tracked, that has committed $committed",
    ({ lineage, tracked, committed }) => {
      const secondary = secondaryHello({
        lineage: { none: null, same: "L", other: "M" }[lineage],
        committed: { "less": 4, "as much": 5, "more": 6 }[committed],
      });
      const tracks = { "this one": secondary.agentId, "another": "c".repeat(32), "nobody": null }[tracked];
      const [usual, assuming] = DECISIONS[lineage][tracked][committed];
      for (const [assumeInSync, expected] of [
        [false, usual],
        [true, assuming],
      ] as const) {
        const primary = primaryHello({ lineage: "L", committed: 5, tracks, assumeInSync });
        expect(decideSync(primary, secondary).kind).toBe(expected);
      }
    },
  );

  it("is refused with both lineages", () => {
    expect(decideSync(primaryHello({ lineage: "LL" }), secondaryHello({ lineage: "MM" }))).toMatchObject({
      kind: "refused",
      reason: { code: "unrelated", message: expect.stringMatching(/MM.*LL/) as string },
    });
  });
});
