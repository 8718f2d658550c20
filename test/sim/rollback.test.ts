import { describe, expect, it } from "vitest";
import type { ClusterBitmap } from "../../shared/block/cluster-bitmap.ts";
import { present } from "../support/present.ts";
import { readRemains } from "./crash-remains.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { RoleSwap } from "./role-swap.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { CLUSTER, COMMAND, ScriptedTrio } from "./scripted-trio.ts";

/**
 * A secondary that was rolled back, and the primary that comes back to it: neither undoes what an operator has done, until
 * an operator says which of the two goes on; and then what differs is sent.
 */
const MODES = ["colo", "mc"] as const;
/** The last cluster of the second disk. */
const LAST = 15;

function errorOf({ status }: PairMember): string | undefined {
  return status?.peers[0]?.lastError?.code;
}

/** The network parts the two behind three checkpoints, and the secondary is back at the first of them. */
async function rolledBack(mode: (typeof MODES)[number]): Promise<{ scripted: ScriptedPair; swap: RoleSwap }> {
  const scripted = new ScriptedPair(1, "power", { mode, retain: 2 });
  const { secondary } = scripted.pair;
  const swap = new RoleSwap(scripted, secondary.host);
  await scripted.start();
  const target = present(secondary.status?.epoch.committed);
  await scripted.fillOverlays();
  await scripted.do("a checkpoint", () => scripted.checkpoint());
  await scripted.do("a write", () => scripted.guestWrite(1, 0, 3 * CLUSTER, "bytes"));
  await scripted.do("the partition", () => swap.part());
  await scripted.do("a rollback", () => scripted.rollBack(target));
  return { scripted, swap };
}

function dirtyOf({ world, pair }: ScriptedPair): readonly ClusterBitmap[] {
  return present(readRemains(world, pair.secondary.host).dirty);
}

describe.each(MODES)("a rollback in mode %s", (mode) => {
  it("is undone by nobody but an operator, and the primary serves meanwhile", async () => {
    const { scripted, swap } = await rolledBack(mode);
    const { primary, secondary } = scripted.pair;
    const back = present(secondary.status?.epoch.committed);
    swap.setParted(false);
    for (const member of [primary, secondary]) {
      await scripted.until("a refusal", () => errorOf(member) === "rolled-back");
      expect(member.status?.peers[0]).toMatchObject({ connection: "Connecting", replication: "Off" });
    }
    expect((await scripted.do("a write", () => scripted.guestWrite(0, 0, CLUSTER, "bytes"))).kind).toBe("done");
    const answer = await scripted.do("a dry run", async () =>
      secondary.agent?.connect({ dryRun: true, discardMyData: false, ...COMMAND }, new AbortController().signal),
    );
    expect(answer?.verdict).toMatchObject({ kind: "refused", rule: "rolled-back" });
    expect(await scripted.do("the view", () => scripted.lookAtView())).toBe(back);
    await scripted.undoRollback();
    await scripted.checkEnd();
    expect(secondary.status?.lineage).toBe(primary.status?.lineage);
  });

  it("is what goes on with a failover, with what its VM has written there, and the old primary gets what differs", async () => {
    const { scripted, swap } = await rolledBack(mode);
    const marked = dirtyOf(scripted);
    const clean = [...Array(LAST + 1).keys()].find((cluster) => marked[1]?.has(cluster) === false);
    await scripted.do("a write of the view", () => scripted.viewWrite(1, present(clean) * CLUSTER, CLUSTER));
    await scripted.do("a flush of the view", () => scripted.flushView(1));
    expect(await scripted.do("the failover", () => swap.promote(false))).toBe(true);
    const sizes = (dirty: readonly ClusterBitmap[]): number[] => dirty.map(({ size }) => size);
    expect(sizes(dirtyOf(scripted))).toEqual([marked[0]?.size, present(marked[1]).size + 1]);
    await scripted.do("the end", () => swap.checkTogether());
  });
});

/** A primary and two secondaries that retain the checkpoint before their last one, `first`: cluster 1 was written between. */
async function startedTrio(mode: "colo" | "shared"): Promise<{ trio: ScriptedTrio; first: number }> {
  const trio = new ScriptedTrio(
    mode,
    mode === "shared" ? { retain: 2, onPeerLoss: "continue", locksApart: true } : { retain: 2 },
  );
  await trio.start(mode);
  const first = present(await trio.checkpoint());
  await trio.write(1, 0x21);
  await trio.checkpoint();
  return { trio, first };
}

describe("a rollback of one of two secondaries", () => {
  it("leaves the other one with the primary, and costs a delta when it is given up", async () => {
    const { trio, first } = await startedTrio("colo");
    trio.cutOff(trio.b);
    await trio.lost(trio.b);
    await trio.rollBack(trio.b, first);
    await trio.write(2, 0x22);
    trio.cutOff(trio.b, false);
    await trio.until("the refusal", () => errorOf(trio.b) === "rolled-back");
    await trio.write(3, 0x23);
    const epoch = await trio.checkpoint();
    expect(trio.status(trio.c).epoch.committed).toBe(epoch);
    expect(await trio.read(1, trio.b)).toBe(0x11);
    expect(await trio.follow(trio.b, trio.a)).toBe("rolled-back");
    expect(await trio.discard(trio.b)).toBe("done");
    await trio.until("both to have everything", () => trio.inSync().length === 2);
    expect(trio.syncs.at(-1)).toEqual({ peer: "b", bytes: 3 * CLUSTER });
    await trio.checkpoint();
    for (const [cluster, byte] of [0x21, 0x22, 0x23].entries()) {
      expect(await trio.read(cluster + 1, trio.b)).toBe(byte);
    }
  });

  it("is followed by the other one behind a failover, also where the old primary is gone", async () => {
    const { trio, first } = await startedTrio("colo");
    trio.a.host.crash("power");
    for (const member of [trio.b, trio.c]) await trio.lost(member);
    await trio.rollBack(trio.b, first);
    await trio.failover(trio.b);
    expect(await trio.follow(trio.c, trio.b)).toBe("done");
    await trio.until("the other one to have everything", () => trio.inSync(trio.b).length === 1);
    await trio.checkpoint(trio.b);
    expect(await trio.read(1, trio.c)).toBe(0x11);
    await trio.restart(trio.a);
    expect(trio.status(trio.a).protection.reason).toBe("held");
    expect(await trio.follow(trio.a, trio.b)).toBe("done");
  });
});

describe("a rollback on a shared disk", () => {
  it("is kept from the primary that comes back, and is given up by an operator", async () => {
    const { trio, first } = await startedTrio("shared");
    trio.cutOff(trio.b);
    await trio.lost(trio.b);
    await trio.rollBack(trio.b, first);
    trio.cutOff(trio.b, false);
    await trio.until("the refusal", () => errorOf(trio.b) === "rolled-back");
    expect(trio.peer("b")?.url).toBe(urlOf("b"));
    expect(await trio.discard(trio.b)).toBe("done");
    await trio.until("both to take originals", () => trio.inSync().length === 2);
    await trio.checkpoint();
    expect(await trio.read(1, trio.b)).toBe(0x21);
  });
});
