import { describe, expect, it } from "vitest";
import { urlOf } from "./pair.ts";
import { COMMAND, ScriptedTrio } from "./scripted-trio.ts";

/** Orders to follow another side that come to nothing: whom an agent dials is as it was, now and after a restart. */

/** A keeps up with both, whom it alone dials, through a loss of the links and through a restart. */
async function expectBothFollow(trio: ScriptedTrio): Promise<void> {
  await trio.until("both to be in sync", () => trio.inSync().length === 2);
  for (const member of [trio.b, trio.c]) trio.cutOff(member);
  await trio.until("the loss of both", () => trio.inSync().length === 0);
  for (const member of [trio.b, trio.c]) trio.cutOff(member, false);
  await trio.until("both to be in sync", () => trio.inSync().length === 2);
  trio.a.host.crash("process");
  await trio.restart(trio.a);
  await trio.until("both to be in sync", () => trio.inSync().length === 2);
  expect(trio.status().peers.map(({ url }) => url)).toEqual([urlOf("b"), urlOf("c")]);
}

/** C, cut off, was promoted by force: A's guests have written cluster 3 since, and those of C cluster 4. */
async function withPartedC(): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio();
  await trio.start();
  trio.cutOff(trio.c);
  await trio.until("the loss", () => trio.inSync().length === 1);
  await trio.write(3, 0x33);
  await trio.lost(trio.c);
  await trio.failover(trio.c, { force: true });
  await trio.write(4, 0x44, trio.c);
  trio.cutOff(trio.c, false);
  return trio;
}

describe("a rejoin that is refused leaves a primary with its secondaries", () => {
  it("where the peer is one of them", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    expect(await trio.follow(trio.a, trio.c)).toBe("not-applicable");
    expect(trio.inSync().length).toBe(2);
    await expectBothFollow(trio);
  });

  it("where nobody answers", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    trio.cutOff(trio.c);
    await trio.until("the loss", () => trio.inSync().length === 1);
    expect(await trio.follow(trio.a, trio.c)).toBe("timed-out");
    trio.cutOff(trio.c, false);
    await expectBothFollow(trio);
  });

  it("where the peer has parted from it, which has no place with it", async () => {
    const trio = await withPartedC();
    expect(await trio.follow(trio.a, trio.c)).toBe("split-brain");
    await trio.write(5, 0x55);
    expect(await trio.read(5, trio.b)).not.toBe(0x55);
    await trio.checkpoint();
    expect(await trio.read(5, trio.b)).toBe(0x55);
    trio.a.host.crash("process");
    await trio.restart(trio.a);
    await trio.until("B to be in sync", () => trio.inSync().length === 1);
    expect(trio.status().peers.map(({ url }) => url)).toEqual([urlOf("b"), urlOf("c")]);

    // And the order that the refusal names is about that peer, of all those that are dialled.
    await trio.do("the other order", async () => {
      const order = { dryRun: false, discardMyData: true, peer: urlOf("c"), ...COMMAND };
      await trio.a.agent?.connect(order, new AbortController().signal);
      await trio.c.agent?.wait({ condition: "synced", ...COMMAND }, new AbortController().signal);
    });
    expect(trio.status().role).toBe("Secondary");
    await trio.checkpoint(trio.c);
    expect([await trio.read(3, trio.a), await trio.read(4, trio.a)]).toEqual([0x11, 0x44]);
  });
});

describe("a promoted side that dials nobody", () => {
  it("gives up its data without an address, for the other one dials it", async () => {
    const trio = await withPartedC();
    expect(await trio.follow(trio.c, trio.a)).toBe("split-brain");
    await trio.do("the other order", async () => {
      await trio.c.agent?.connect({ dryRun: false, discardMyData: true, ...COMMAND }, new AbortController().signal);
    });
    expect(trio.status(trio.c).role).toBe("Secondary");
    await trio.until("both to be in sync", () => trio.inSync().length === 2);
    await trio.checkpoint();
    expect([await trio.read(3, trio.c), await trio.read(4, trio.c)]).toEqual([0x33, 0x11]);
  });
});

describe("a secondary that is to follow another side", () => {
  it("goes on waiting for whom it knows where nobody answers", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    const newcomer = await trio.newcomer("d");
    newcomer.host.crash("process");
    expect(await trio.follow(trio.c, newcomer)).toBe("timed-out");
    trio.c.host.crash("process");
    await trio.restart(trio.c);
    expect(trio.status(trio.c).peers[0]?.url).toBeNull();
    await expectBothFollow(trio);
  });

  it("is told at once where it follows it already", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    expect(await trio.follow(trio.c, trio.a)).toBe("done");
    expect(trio.inSync().length).toBe(2);
  });
});

describe("an outdated primary", () => {
  it("that rejoins dials that side alone from then on, also after a restart", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    trio.a.host.crash("process");
    await trio.lost(trio.c);
    await trio.failover(trio.c);
    await trio.do("the merge", () => trio.merged(trio.c));
    await trio.restart(trio.a);
    await trio.until("A to be outdated", () => trio.status().protection.reason === "outdated");
    expect(await trio.follow(trio.a, trio.c)).toBe("done");
    trio.a.host.crash("power");
    await trio.restart(trio.a);
    expect(trio.status().role).toBe("Secondary");
    expect(trio.status().peers.map(({ url }) => url)).toEqual([urlOf("c")]);
    await trio.do("the sync", async () => {
      await trio.c.agent?.wait({ condition: "synced", ...COMMAND }, new AbortController().signal);
    });
  });
});
