import { describe, expect, it } from "vitest";
import { decodeMessage } from "../../proto/replication-messages.ts";
import type { PairMember } from "./pair.ts";
import { urlOf } from "./pair.ts";
import { COMMAND, ScriptedTrio } from "./scripted-trio.ts";

/** Orders on C, the connected secondary of A, to follow B instead, which was promoted by force while it was cut off. */

/** `hasParted`: A's guests have written cluster 3 since, so that C has a history that B does not go back to. */
async function besidePromoted({
  hasParted,
  mode = "colo",
}: {
  readonly hasParted: boolean;
  readonly mode?: "colo" | "mc" | "mirror";
}): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio(mode);
  await trio.start(mode);
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
function discard(trio: ScriptedTrio, primary?: PairMember, timeoutMs: number = COMMAND.timeoutMs): Promise<unknown> {
  return trio.do("the order", async () => {
    const peer = primary === undefined ? {} : { peer: urlOf(primary.name) };
    const order = { dryRun: false, discardMyData: true, ...peer, timeoutMs };
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

/** C has followed B by order, and B has lost its power before the end of the sync. */
async function cutOffInSync(mode: "colo" | "mc" | "mirror" = "colo"): Promise<ScriptedTrio> {
  const trio = await besidePromoted({ hasParted: true, mode });
  if (mode !== "mirror") await trio.checkpoint();
  let isCut = false;
  trio.world.network.intercept = (receiver, data) => {
    const message = decodeMessage(data);
    const isEnd = message.type === "sync" && message.phase === "end" && receiver.process.host.name === "c";
    isCut ||= isEnd;
    return isEnd ? "cut" : "deliver";
  };
  expect(await discard(trio, trio.b)).toMatchObject({ connected: true });
  await trio.until("the end of the sync", () => isCut);
  trio.b.host.crash("power");
  trio.world.network.intercept = undefined;
  return trio;
}

/** A has a checkpoint prepared, which nobody commits. */
function prepare(trio: ScriptedTrio): Promise<number | undefined> {
  return trio.do("a barrier", async () => {
    const answer = await trio.a.agent?.checkpoint({ prepare: true, ...COMMAND }, new AbortController().signal);
    return answer?.epoch;
  });
}

/** Resolves with what became of it. */
function commit(trio: ScriptedTrio, member: PairMember, epoch = 0): Promise<unknown> {
  return trio.do("a commit", async () => {
    try {
      return await member.agent?.commit({ epoch, ...COMMAND }, new AbortController().signal);
    } catch (error) {
      return (error as { code: string }).code;
    }
  });
}

/** Resolves with what became of it. */
async function failOver(trio: ScriptedTrio, member: PairMember): Promise<string> {
  try {
    await trio.failover(member);
    return "done";
  } catch (error) {
    return (error as { code: string }).code;
  }
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

describe("a secondary that dials its own primary, and gives its data up for one that dials it", () => {
  it("keeps the session with its own until the other one begins", async () => {
    const trio = await besidePromoted({ hasParted: true });
    expect(await discard(trio, trio.b)).toMatchObject({ connected: true });
    await trio.until("C to have everything", () => trio.inSync(trio.b).length === 1);
    await trio.checkpoint(trio.b);
    const partings = (): number => trio.c.agent?.events(0).filter(({ type }) => type === "split-brain").length ?? 0;
    const before = partings();
    await trio.until("A to have dialled it", () => partings() > before);
    trio.syncs.length = 0;
    const { agentId } = trio.status(trio.a);

    neverBegins(trio);
    expect(await discard(trio, undefined, 30_000)).toBe("timed-out");
    expect(follows(trio, trio.b)).toBe(true);
    expect(trio.syncs).toEqual([]);

    trio.world.network.intercept = undefined;
    const afterwards = partings();
    await trio.until("A to have dialled it again", () => partings() > afterwards);
    const answer = { connected: true, peer: agentId, rule: "own-data-discarded" };
    expect(await discard(trio)).toEqual(answer);
    await trio.until("C to have everything", () => trio.inSync().length === 1);
    await trio.checkpoint();
    expect([await trio.read(3, trio.c), await trio.read(4, trio.c)]).toEqual([0x33, 0x11]);
  });
});

describe("what a secondary has given up", () => {
  it("is no checkpoint of the side that it follows, which takes one as soon as everything is there", async () => {
    const trio = await besidePromoted({ hasParted: true });
    await trio.checkpoint();
    expect(await discard(trio, trio.b)).toMatchObject({ connected: true });
    await trio.until("C to have everything", () => trio.inSync(trio.b).length === 1);
    await trio.world.run({ forMs: 2_000 });
    trio.b.host.crash("power");
    trio.a.host.crash("power");
    await trio.lost(trio.c);
    expect(await failOver(trio, trio.c)).toBe("done");
    expect([await trio.read(3, trio.c), await trio.read(4, trio.c)]).toEqual([0x11, 0x44]);
  });

  it.each([
    { order: "a rejoin", hasParted: false },
    { order: "data given up", hasParted: true },
  ])("is not committed for another primary where it was prepared for the former one: $order", async ({ hasParted }) => {
    const trio = await besidePromoted({ hasParted });
    const epoch = await prepare(trio);
    expect(trio.status(trio.c).epoch.prepared).toEqual([epoch]);
    expect(hasParted ? await discard(trio, trio.b) : await trio.follow(trio.c, trio.b)).not.toBe("timed-out");
    expect(trio.status(trio.c).epoch.prepared).toEqual([]);
    await trio.until("the stream", () => trio.status(trio.b).peers.some(({ replication }) => replication !== "Off"));
    expect(await commit(trio, trio.b, epoch)).toBe("epoch-unknown");
  });

  it("stays given up while the other one is away, whoever dials", async () => {
    const trio = await cutOffInSync();
    trio.syncs.length = 0;
    await trio.world.run({ forMs: 30_000 });
    expect(trio.syncs).toEqual([]);
    expect(trio.status(trio.c).peers[0]?.lastError).toMatchObject({ code: "role-conflict" });
    await trio.restart(trio.b);
    // A, which has parted from it, is one that its guests wait for.
    await trio.do("an order", async () => trio.b.agent?.startAlone({ force: false }));
    await trio.until("B to be back", () => follows(trio, trio.b));
    await expectFollowsB(trio);
  });

  it("is had back by an order to follow the former one", async () => {
    const trio = await cutOffInSync();
    await trio.lost(trio.c);
    expect(await trio.follow(trio.c, trio.a)).toBe("done");
    await trio.until("C to have everything", () => trio.inSync().length === 1);
    await trio.checkpoint();
    await trio.restart(trio.b);
    await trio.world.run({ forMs: 30_000 });
    expect(follows(trio, trio.a)).toBe(true);
    expect([await trio.read(3, trio.c), await trio.read(4, trio.c)]).toEqual([0x33, 0x11]);
  });

  it.each(["colo", "mc", "mirror"] as const)(
    "is kept until the first commit, and only force goes back to it: %s",
    async (mode) => {
      const trio = await cutOffInSync(mode);
      trio.a.host.crash("power");
      await trio.lost(trio.c);
      expect(trio.status(trio.c).disks.map(({ state }) => state)).toEqual(["Outdated"]);
      expect(await failOver(trio, trio.c)).toBe("outdated");
      await trio.failover(trio.c, { force: true });
      expect([await trio.read(3, trio.c), await trio.read(4, trio.c)]).toEqual([0x33, 0x11]);
      await trio.restart(trio.b);
      await trio.until("the two to have parted", () => trio.status(trio.c).protection.reason === "split-brain");
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
