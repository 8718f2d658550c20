import { describe, expect, it } from "vitest";
import { EPOCH_LEAD_MAX } from "../../../../proto/limits.ts";
import type { Hello } from "../../../../proto/replication-messages.ts";
import { findMismatch } from "../../../../shared/replication/mismatch.ts";
import { primaryHello, secondaryHello } from "../../../support/hellos.ts";

const disks = (...sizes: (readonly [string, number | null])[]): Partial<Hello> => ({
  disks: sizes.map(([name, sizeBytes]) => ({ name, sizeBytes })),
});

/** A secondary that has grown to 1024 bytes for a primary that may not have. */
const grownFrom = (formerSizeBytes: number): Partial<Hello> => ({
  disks: [{ name: "a", sizeBytes: 1024, formerSizeBytes }],
  lineage: "1",
});

describe("a mismatch of two agents", () => {
  it.each<readonly [string, Partial<Hello>, Partial<Hello>, string, readonly string[]]>([
    ["VM", { vm: "mail" }, { vm: "web" }, "vm-mismatch", ['"mail"', '"web"']],
    ["mode", { mode: "colo" }, { mode: "mc" }, "mode-mismatch", ['"colo"', '"mc"']],
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

  it.each<Partial<Hello>>([
    { epochSeen: 7 + EPOCH_LEAD_MAX },
    { committed: 7 + EPOCH_LEAD_MAX },
    { prepared: [7 + EPOCH_LEAD_MAX] },
  ])("of their epochs, of which one side can never have come so far, is refused by the other: %o", (far) => {
    const self = secondaryHello({ epochSeen: 6 });
    expect(findMismatch(self, primaryHello(far))?.code).toBe("protocol-error");
    expect(findMismatch({ ...self, epochSeen: 7 }, primaryHello(far))).toBeUndefined();
  });

  it("of a disk that was never of the primary's size is refused, though its secondary has grown", () => {
    expect(findMismatch(primaryHello(disks(["a", 256])), secondaryHello(grownFrom(512)))?.code).toBe("size-mismatch");
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
    ["a disk that has grown while its secondary was away", disks(["a", 1024]), { ...disks(["a", 512]), lineage: "1" }],
    ["a disk that has grown on the secondary first", disks(["a", 1024]), grownFrom(512)],
    ["a disk that was to grow, and has not", disks(["a", 512]), grownFrom(512)],
  ])("is not seen in %s", (_, ours, theirs) => {
    expect(findMismatch(primaryHello(ours), secondaryHello(theirs))).toBeUndefined();
    expect(findMismatch(secondaryHello(theirs), primaryHello(ours))).toBeUndefined();
  });
});
