import { describe, expect, it } from "vitest";
import { decodeMessage } from "../../proto/replication-messages.ts";
import type { PairMember } from "./pair.ts";
import { urlOf } from "./pair.ts";
import { COMMAND, ScriptedTrio } from "./scripted-trio.ts";

/** Orders on C, the connected secondary of A, to follow B instead, which was promoted by force while it was cut off. */

/** `hasParted`: A's guests have written cluster 3 since, so that C has a history that B does not go back to. */
async function besidePromoted({ hasParted }: { hasParted: boolean }): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio();
  await trio.start();
  trio.cutOff(trio.b);
  await trio.until("the loss", () => trio.inSync().length === 1);
  if (hasParted) await trio.write(3, 0x33);
  await trio.lost(trio.b);
  await trio.failover(trio.b, { force: true });
  await trio.do("the merge", () => trio.merged(trio.b));
  await trio.write(4, 0x44, trio.b);
  if (hasParted) {
    trio.cutOff(trio.b, false);
    await trio.until("the split brain", () => trio.peer("b")?.lastError?.code === "split-brain");
  } else {
    // A goes on, and hears of nothing.
    trio.world.network.partition("b", "c", false);
  }
  expect(follows(trio, trio.a)).toBe(true);
  return trio;
}

function follows(trio: ScriptedTrio, primary: PairMember): boolean {
  const peer = trio.status(trio.c).peers[0];
  return peer?.connection === "Connected" && peer.agentId === trio.status(primary).agentId;
}

/** Whom C dials, by its record. */
function dialled(trio: ScriptedTrio): string | null | undefined {
  return trio.status(trio.c).peers[0]?.url;
}

/** C has lost its power, and has a checkpoint of its primary since. */
async function restarted(trio: ScriptedTrio, primary: PairMember): Promise<void> {
  trio.c.host.crash("power");
  await trio.until("the loss of C", () => trio.inSync(primary).length === 0);
  await trio.restart(trio.c);
  await trio.until("C to be back", () => trio.inSync(primary).length === 1);
  await trio.checkpoint(primary);
}

/** C follows B, through restarts, however often A dials it. */
async function expectFollowsB(trio: ScriptedTrio): Promise<void> {
  expect(follows(trio, trio.b)).toBe(true);
  expect(dialled(trio)).toBe(urlOf("b"));
  await trio.until("C to have everything", () => trio.inSync(trio.b).length === 1);
  await trio.world.run({ forMs: 30_000 });
  expect(follows(trio, trio.b)).toBe(true);
  await trio.checkpoint(trio.b);
  await restarted(trio, trio.b);
  expect([await trio.read(3, trio.c), await trio.read(4, trio.c)]).toEqual([0x11, 0x44]);
}

/** C has never stopped following A, and dials nobody, as before. */
async function expectFollowsA(trio: ScriptedTrio): Promise<void> {
  expect(follows(trio, trio.a)).toBe(true);
  expect(trio.syncs).toEqual([]);
  await restarted(trio, trio.a);
  expect(dialled(trio)).toBeNull();
  expect([await trio.read(3, trio.c), await trio.read(4, trio.c)]).toEqual([0x33, 0x11]);
}

/** Resolves with whether the answer says that C is connected, and whom it is about. */
function discard(trio: ScriptedTrio, primary: PairMember, timeoutMs: number = COMMAND.timeoutMs): Promise<unknown> {
  return trio.do("the order", async () => {
    const order = { dryRun: false, discardMyData: true, peer: urlOf(primary.name), timeoutMs };
    try {
      const answer = await trio.c.agent?.connect(order, new AbortController().signal);
      return { connected: answer?.connected, peer: answer?.verdict.peer, rule: answer?.verdict.rule };
    } catch (error) {
      return (error as { code: string }).code;
    }
  });
}

/** B answers who asks, and no session of it ever begins on C. */
function neverBegins(trio: ScriptedTrio): void {
  trio.world.network.intercept = (receiver, data) =>
    decodeMessage(data).type === "begin" && receiver.process.host.name === "c" ? "cut" : "deliver";
}

describe("a secondary that is connected, and gives its data up for another primary's", () => {
  it("follows that one", async () => {
    const trio = await besidePromoted({ hasParted: true });
    const { agentId } = trio.status(trio.b);
    expect(await discard(trio, trio.b)).toEqual({ connected: true, peer: agentId, rule: "own-data-discarded" });
    await expectFollowsB(trio);
  });

  it("has given up nothing, and goes on following its own, where that one never begins", async () => {
    const trio = await besidePromoted({ hasParted: true });
    trio.syncs.length = 0;
    neverBegins(trio);
    expect(await discard(trio, trio.b)).toBe("timed-out");
    trio.world.network.intercept = undefined;
    await expectFollowsA(trio);
    // B dials it as its own from now on, and has no consent.
    expect(await trio.follow(trio.c, trio.b)).toBe("split-brain");
    expect(follows(trio, trio.a)).toBe(true);
  });

  it.each(["process", "power"] as const)(
    "has the whole order in its record, wherever it dies behind the first word of that one: %s",
    async (kind) => {
      let deaths = 0;
      for (let call = 1; ; call += 1) {
        const trio = await besidePromoted({ hasParted: true });
        trio.c.host.disk.faults.crashAt(call, kind);
        let answer: unknown;
        trio.world.schedule(0, () => {
          const order = { dryRun: false, discardMyData: true, peer: urlOf("b"), ...COMMAND };
          void trio.c.agent?.connect(order, new AbortController().signal).then(() => (answer = "done"));
        });
        await trio.world.run({ until: () => answer !== undefined || !trio.c.host.alive, forMs: 120_000 });
        const hasDied = !trio.c.host.alive;
        trio.c.host.disk.faults.clear();
        if (hasDied) await trio.restart(trio.c);
        expect(dialled(trio)).toBe(urlOf("b"));
        await trio.until("C to have everything", () => trio.inSync(trio.b).length === 1);
        await trio.checkpoint(trio.b);
        expect([await trio.read(3, trio.c), await trio.read(4, trio.c)]).toEqual([0x11, 0x44]);
        if (!hasDied) break;
        deaths += 1;
      }
      expect(deaths).toBeGreaterThan(0);
    },
  );
});

describe("a secondary that is connected, and is to rejoin another primary", () => {
  it("follows that one where it is behind it", async () => {
    const trio = await besidePromoted({ hasParted: false });
    expect(await trio.follow(trio.c, trio.b)).toBe("done");
    await expectFollowsB(trio);
  });

  it("goes on following its own where the two have parted", async () => {
    const trio = await besidePromoted({ hasParted: true });
    trio.syncs.length = 0;
    expect(await trio.follow(trio.c, trio.b)).toBe("split-brain");
    await expectFollowsA(trio);
  });

  it("goes on following its own where that one never begins", async () => {
    const trio = await besidePromoted({ hasParted: false });
    trio.syncs.length = 0;
    neverBegins(trio);
    expect(await trio.follow(trio.c, trio.b)).toBe("timed-out");
    trio.world.network.intercept = undefined;
    await trio.write(3, 0x33);
    await expectFollowsA(trio);
  });
});
