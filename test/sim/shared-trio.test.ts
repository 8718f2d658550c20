import { describe, expect, it } from "vitest";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { ScriptedTrio } from "./scripted-trio.ts";
import { runSharedTrioLife } from "./shared-role-life.ts";

/** Lives of a primary with two secondaries on shared disks; `COLOBUS_SHARED_TRIO_LIVES` says how many. */
const groups = lifeGroups(livesToLive("COLOBUS_SHARED_TRIO_LIVES", { inCi: 90, here: 30 }), 30);

const FENCED = { fenced: true };
const FORCED = { fenced: true, force: true };

async function started(onPeerLoss: "continue" | "freeze" = "freeze"): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio("shared", { onPeerLoss, locksApart: true });
  await trio.start("shared");
  return trio;
}

async function powerOff(trio: ScriptedTrio, member: PairMember): Promise<void> {
  member.host.crash("power");
  for (const other of [trio.b, trio.c]) if (other.host.alive) await trio.lost(other);
}

describe("a primary with two secondaries on one shared disk", () => {
  it("shows both the checkpoint, whatever is overwritten, and both the next one", async () => {
    const trio = await started();
    await trio.write(3, 0x33);
    await trio.write(3, 0x34);
    for (const member of [trio.b, trio.c]) expect(await trio.read(3, member)).toBe(0x11);
    const epoch = await trio.checkpoint();
    for (const member of [trio.b, trio.c]) {
      expect(trio.status(member).epoch.committed).toBe(epoch);
      expect(await trio.read(3, member)).toBe(0x34);
    }
  });

  it("is refused by one that has no mark to go by", async () => {
    const trio = new ScriptedTrio("shared", { unmarked: ["c"] });
    for (const member of [trio.b, trio.c, trio.a]) await trio.do("a start", () => member.start());
    await trio.until("C's refusal", () => trio.status(trio.c).peers[0]?.lastError?.code === "not-supported");
    await trio.until("B to take originals", () => trio.inSync().length === 1);
    expect(trio.peer("c")?.connection).not.toBe("Connected");
  });

  it("goes on with the one that protects it, and the one that was cut off gets a new checkpoint", async () => {
    const trio = await started();
    await trio.write(3, 0x33);
    trio.cutOff(trio.b);
    await trio.write(4, 0x44);
    expect(trio.peer("b")?.connection).not.toBe("Connected");
    expect(trio.status().protection.state).toBe("Protected");
    expect(await trio.forget(urlOf("b"))).toBe("not-supported");
    expect(await trio.accept({ peer: "ws://d:1", insteadOf: urlOf("b") })).toBe("not-supported");
    expect(await trio.read(4, trio.c)).toBe(0x11);
    await expect(trio.read(4, trio.b)).rejects.toMatchObject({ code: "unprotected" });
    await expect(trio.failover(trio.b, FENCED)).rejects.toMatchObject({ code: "unprotected" });
    trio.cutOff(trio.b, false);
    await trio.until("both to take originals", () => trio.inSync().length === 2);
    await trio.checkpoint();
    await trio.write(4, 0x45);
    for (const member of [trio.b, trio.c]) expect(await trio.read(4, member)).toBe(0x44);
  });

  it("freezes its guests when the last one is lost, whose checkpoint stands", async () => {
    const trio = await started();
    for (const member of [trio.b, trio.c]) trio.cutOff(member);
    await trio.until("the loss of both", () => trio.inSync().length === 0);
    let isDone = false;
    trio.world.schedule(0, () => {
      void trio.writeOnce(4, 0x44).then(() => {
        isDone = true;
      });
    });
    await trio.world.run({ forMs: 60_000 });
    expect(isDone).toBe(false);
    for (const member of [trio.b, trio.c]) expect(await trio.read(4, member)).toBe(0x11);
    trio.cutOff(trio.c, false);
    await trio.until("the write", () => isDone);
    expect(await trio.read(4, trio.c)).toBe(0x11);
    await expect(trio.read(4, trio.b)).rejects.toMatchObject({ code: "unprotected" });
  });

  it("goes on without any where it may, and both checkpoints are void", async () => {
    const trio = await started("continue");
    for (const member of [trio.b, trio.c]) trio.cutOff(member);
    await trio.write(4, 0x44);
    for (const member of [trio.b, trio.c]) {
      await expect(trio.read(4, member)).rejects.toMatchObject({ code: "unprotected" });
      trio.cutOff(member, false);
    }
    await trio.until("both to take originals", () => trio.inSync().length === 2);
    await trio.checkpoint();
    for (const member of [trio.b, trio.c]) expect(await trio.read(4, member)).toBe(0x44);
  });

  it("has no older checkpoint than the one that it has told of to go back to", async () => {
    const trio = await started();
    await trio.write(3, 0x33);
    trio.cutOff(trio.b);
    await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
    await trio.checkpoint();
    await powerOff(trio, trio.a);
    trio.cutOff(trio.b, false);
    await expect(trio.failover(trio.b, FENCED)).rejects.toMatchObject({ code: "unprotected" });
    await trio.failover(trio.c, FENCED);
    expect(await trio.read(3, trio.c)).toBe(0x33);
  });

  it("is not protected by one that has an older checkpoint than it has told of", async () => {
    const trio = await started();
    trio.cutOff(trio.b);
    await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
    await trio.checkpoint();
    trio.cutOff(trio.c);
    trio.cutOff(trio.b, false);
    await trio.until(
      "B to take originals",
      () => trio.peer("b")?.replication === "Established" && trio.inSync().length === 1,
    );
    expect(trio.status().protection).toMatchObject({ state: "NotProtected", reason: "no-checkpoint" });
    await trio.checkpoint();
    expect(trio.status().protection.state).toBe("Protected");
    await trio.write(3, 0x33);
    expect(await trio.read(3, trio.b)).toBe(0x11);
  });

  it("is followed by one of them from its checkpoint, which the others can never be promoted beside", async () => {
    const trio = await started();
    await trio.write(3, 0x33);
    await trio.checkpoint();
    await trio.write(4, 0x44);
    await powerOff(trio, trio.a);
    await trio.failover(trio.b, FENCED);
    for (const request of [FENCED, FORCED]) {
      await expect(trio.failover(trio.c, request)).rejects.toMatchObject({
        code: expect.stringMatching(/image-busy|unprotected/),
      });
    }
    expect(await trio.read(3, trio.b)).toBe(0x33);
    expect(await trio.read(4, trio.b)).toBe(0x11);
    await trio.do("the merge", () => trio.merged(trio.b));
    await trio.write(5, 0x55, trio.b);
    await trio.world.run({ forMs: 1_000 }); // until the mark says that the merge is over
    await expect(trio.failover(trio.c, FENCED)).rejects.toMatchObject({ code: "unprotected" });
    // Whom the operator has fenced is A, and B writes the disk.
    await expect(trio.failover(trio.c, FORCED)).rejects.toMatchObject({ code: "image-busy" });
    await expect(trio.read(3, trio.c)).rejects.toMatchObject({ code: "unprotected" });
    expect(trio.status(trio.c).epoch.committed).toBeGreaterThan(0);
    expect(await trio.follow(trio.c, trio.b)).toBe("done");
    await trio.until("C to take originals", () => trio.inSync(trio.b).length === 1);
    await trio.restart(trio.a);
    await trio.until("A to be outdated", () => trio.status(trio.a).protection.reason === "outdated");
    expect(await trio.follow(trio.a, trio.b)).toBe("done");
    await trio.until("both to take originals", () => trio.inSync(trio.b).length === 2);
    await trio.checkpoint(trio.b);
    await trio.write(5, 0x56, trio.b);
    for (const member of [trio.a, trio.c]) {
      expect([await trio.read(3, member), await trio.read(4, member), await trio.read(5, member)]).toEqual([
        0x33, 0x11, 0x55,
      ]);
    }
  });

  it("lets its guests wait, and leaves the disk alone, when it starts beside one that was promoted and one that was not", async () => {
    const trio = await started();
    trio.a.host.crash("power");
    await trio.lost(trio.b);
    trio.cutOff(trio.b);
    await trio.failover(trio.b, FENCED);
    await trio.do("the merge", () => trio.merged(trio.b));
    await trio.restart(trio.a);
    await trio.until("C's refusal", () => trio.peer("c")?.lastError?.code === "outdated");
    await trio.world.run({ forMs: 10_000 });
    expect(trio.status().protection.reason).toBe("held");
    await trio.write(3, 0x33, trio.b);
    trio.cutOff(trio.b, false);
    await trio.until("A to be outdated", () => trio.status().protection.reason === "outdated");
  });

  it("leaves the disk alone when it starts after one was promoted by force that it has never met", async () => {
    const trio = new ScriptedTrio("shared", { locksApart: true });
    for (const member of [trio.b, trio.a]) await trio.do("a start", () => member.start());
    await trio.until("B to take originals", () => trio.inSync().length === 1);
    await trio.checkpoint();
    trio.cutOff(trio.c);
    trio.a.host.crash("power");
    await trio.lost(trio.b);
    await trio.do("a start", () => trio.c.start());
    await trio.failover(trio.c, FORCED);
    await trio.do("the merge", () => trio.merged(trio.c));
    await trio.write(3, 0x33, trio.c);
    await trio.restart(trio.a);
    await trio.until("B's refusal", () => trio.peer("b")?.lastError?.code === "outdated");
    await trio.do("start-alone", async () => void trio.a.agent?.startAlone({ force: false }));
    let isDone = false;
    trio.world.schedule(0, () => {
      void trio.writeOnce(3, 0x44).then(() => {
        isDone = true;
      });
    });
    await trio.world.run({ forMs: 60_000 });
    expect(isDone).toBe(false);
    expect(await trio.read(3, trio.c)).toBe(0x33);
  });

  it("hands its role to one of them, and the other one follows that", async () => {
    const trio = await started();
    await trio.write(3, 0x33);
    await trio.do("a switchover", async () => {
      const { agentId } = trio.status(trio.c);
      const request = { closeClients: true, peer: agentId, timeoutMs: 60_000 };
      await trio.a.agent?.switchover(request, new AbortController().signal);
    });
    expect(await trio.read(3, trio.c)).toBe(0x33);
    await trio.do("the merge", () => trio.merged(trio.c));
    for (const member of [trio.a, trio.b]) expect(await trio.follow(member, trio.c)).toBe("done");
    await trio.until("both to take originals", () => trio.inSync(trio.c).length === 2);
    await trio.write(3, 0x34, trio.c);
    await trio.checkpoint(trio.c);
    for (const member of [trio.a, trio.b]) expect(await trio.read(3, member)).toBe(0x34);
  });

  it.each(groups)("keeps every checkpoint, and one writer, in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runSharedTrioLife(seed));
    process.stdout.write(`shared trio lives ${from} to ${to}: ${totals.describe()}\n`);
    const counted = ["failovers", "at once", "of another one", "switchovers", "follows", "rejoins", "alone"] as const;
    for (const name of [...counted, "refused unprotected", "refused busy", "views read", "power losses"] as const) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
  });
});
