import { describe, expect, it } from "vitest";
import { decodeMessage } from "../../proto/replication-messages.ts";
import { COMMAND, ScriptedTrio } from "./scripted-trio.ts";

const NEVER = new AbortController().signal;

/** B, which is cut off, is lost; the primary goes on with C. */
async function withoutB(): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio();
  await trio.start();
  await trio.write(3, 0x33);
  trio.cutOff(trio.b);
  await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
  return trio;
}

async function backAgain(trio: ScriptedTrio): Promise<void> {
  trio.cutOff(trio.b, false);
  await trio.until("both to be in sync", () => trio.inSync().length === 2);
}

/** The primary dies, and its secondaries know. */
async function die(trio: ScriptedTrio): Promise<void> {
  trio.a.host.crash("power");
  for (const member of [trio.b, trio.c]) await trio.lost(member);
}

/** The primary dies, and again after its next process has brought B, and B alone, everything. */
async function dieTwice(trio: ScriptedTrio): Promise<void> {
  trio.cutOff(trio.c);
  trio.a.host.crash("process");
  await trio.restart(trio.a);
  trio.cutOff(trio.b, false);
  await trio.until("B to be in sync", () => trio.inSync().length === 1);
  trio.a.host.crash("power");
  await trio.lost(trio.b);
}

function commit(trio: ScriptedTrio, epoch: number): Promise<unknown> {
  return trio.do("a commit", async () => trio.a.agent?.commit({ epoch, ...COMMAND }, NEVER));
}

function prepare(trio: ScriptedTrio): Promise<number> {
  return trio.do("a barrier", async () => {
    const answer = await trio.a.agent?.checkpoint({ prepare: true, ...COMMAND }, NEVER);
    return answer?.epoch ?? 0;
  });
}

describe("a secondary that lacks a checkpoint that was told to be committed", () => {
  it("is not promoted without an operator's word, though it has heard of the history since, and the other one is", async () => {
    const trio = await withoutB();
    const epoch = await trio.checkpoint();
    await backAgain(trio);
    expect(trio.status(trio.b).epoch.committed).toBeLessThan(epoch ?? 0);
    await die(trio);
    await expect(trio.failover(trio.b)).rejects.toMatchObject({
      code: "outdated",
      message: expect.stringContaining(`checkpoint ${epoch}`) as string,
    });
    trio.b.host.crash("process");
    await trio.restart(trio.b);
    await expect(trio.failover(trio.b)).rejects.toMatchObject({ code: "outdated" });
    await trio.failover(trio.c);
    expect(await trio.read(3, trio.c)).toBe(0x33);
  });

  it("is not promoted where it has heard of the history from a primary that has died since", async () => {
    const trio = await withoutB();
    const epoch = await trio.checkpoint();
    await dieTwice(trio);
    await expect(trio.failover(trio.b)).rejects.toMatchObject({
      code: "outdated",
      message: expect.stringContaining(`checkpoint ${epoch}`) as string,
    });
  });

  it("is not promoted where it was in sync again when the checkpoint was committed", async () => {
    const trio = await withoutB();
    const epoch = await prepare(trio);
    await backAgain(trio);
    await commit(trio, epoch);
    await die(trio);
    await expect(trio.failover(trio.b)).rejects.toMatchObject({ code: "outdated" });
    await trio.failover(trio.b, { force: true });
    expect(await trio.read(3, trio.b)).toBe(0x11);
  });

  it("has parted from the one that has it where it has not heard of that", async () => {
    const trio = await withoutB();
    const epoch = await prepare(trio);
    await backAgain(trio);
    const { network } = trio.world;
    network.intercept = (receiver, data) => {
      if (decodeMessage(data).type !== "told") return "deliver";
      trio.cutOff(trio.b);
      return receiver.process.host.name === "b" ? "cut" : "deliver";
    };
    await commit(trio, epoch);
    trio.a.host.crash("power");
    network.intercept = undefined;
    trio.cutOff(trio.b, false);
    await trio.lost(trio.b);
    await trio.failover(trio.b);
    expect(await trio.follow(trio.c, trio.b)).toBe("split-brain");
    expect(await trio.read(3, trio.c)).toBe(0x33);
  });

  it("is promoted once it has committed the next one, and where nothing was told without it", async () => {
    const trio = await withoutB();
    await backAgain(trio);
    await die(trio);
    await trio.failover(trio.b);
    expect(await trio.read(3, trio.b)).toBe(0x11);

    const other = await withoutB();
    await other.checkpoint();
    await backAgain(other);
    await other.checkpoint();
    await die(other);
    await other.failover(other.b);
    expect(await other.read(3, other.b)).toBe(0x33);
  });

  it("is promoted where the one that had it has given it up, though the primary has died since", async () => {
    const trio = await withoutB();
    await trio.checkpoint();
    await trio.do("C gives it up", async () => trio.c.agent?.resync({ giveUpCheckpoint: true, ...COMMAND }, NEVER));
    await trio.until("A to hear of it", () => trio.peer("c")?.committed === null);
    await dieTwice(trio);
    await trio.failover(trio.b);
    expect(await trio.read(3, trio.b)).toBe(0x11);
  });

  it("is promoted where the one that had it was given up", async () => {
    const trio = await withoutB();
    await trio.checkpoint();
    trio.c.host.crash("power");
    await trio.until("the loss of C", () => trio.peer("c")?.connection !== "Connected");
    expect(await trio.forget("ws://c")).toBe("done");
    trio.cutOff(trio.b, false);
    await trio.until("B to be in sync", () => trio.inSync().length === 1);
    trio.a.host.crash("power");
    await trio.lost(trio.b);
    await trio.failover(trio.b);
    expect(await trio.read(3, trio.b)).toBe(0x11);
  });
});
