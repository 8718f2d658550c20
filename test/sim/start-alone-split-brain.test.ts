import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { ColobusError } from "../../proto/errors.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { ScriptedTrio } from "./scripted-trio.ts";
import { backUp, putBack } from "./state-backup.ts";

/** Start-alone on a primary whose guests wait, and that has met a peer which was written to as well. */

const DISK = { name: "vda", sizeBytes: 0 } as const;
const FORCE = "`colobus start-alone --force`";
const WHILE_MS = 20_000;

interface Scripted {
  do<T>(what: string, work: () => Promise<T>): Promise<T>;
}

/** Resolves with what the operator is told: `released`, `nobody waits`, or the error. */
function startAlone(scripted: Scripted, { agent }: PairMember, force = false): Promise<string | ColobusError> {
  assert(agent !== undefined);
  return scripted.do("start-alone", () =>
    agent.startAlone({ force }).then(
      ({ released }) => (released ? "released" : "nobody waits"),
      (error: ColobusError) => error,
    ),
  );
}

/** Refused, with what to do instead; what status says to do is as good. */
async function expectRefused(scripted: Scripted, member: PairMember): Promise<ColobusError> {
  const refused = await startAlone(scripted, member);
  assert(typeof refused !== "string", `it is refused, and not ${JSON.stringify(refused)}`);
  expect(refused.code).toBe("split-brain");
  const protection = member.status?.protection;
  expect(protection?.reason).toBe("split-brain");
  for (const action of [refused.action, protection?.nextAction]) {
    expect(action).toContain("`colobus connect --discard-my-data`");
    expect(action).toContain(FORCE);
    expect(action).not.toContain("`colobus start-alone`");
  }
  return refused;
}

/** A read of the member's guest, which has to be answered in the end. */
function askRead(member: PairMember): { readonly isDone: () => boolean } {
  let isDone = false;
  void member
    .device(DISK)
    ?.read(Buffer.alloc(4096), 0)
    ?.then(() => {
      isDone = true;
    });
  return { isDone: () => isDone };
}

/** The two cannot reach each other, and A knows. */
async function parted({ world, pair }: ScriptedPair): Promise<void> {
  world.network.partition("a", "b", true);
  await world.runUntil("the loss", () => pair.primary.status?.peers[0]?.connection !== "Connected", WHILE_MS);
}

/** A has gone on alone and died, B was promoted, and both have been written to. A starts again, and meets B. */
async function heldBesidePromoted(): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(1, "power");
  const { world, pair } = scripted;
  const { primary: a, secondary: b } = pair;
  await scripted.start();
  await parted(scripted);
  await scripted.do("a write on A", () => scripted.guestWrite(0, 0, 4096, "bytes"));
  a.host.crash("power");
  expect((await scripted.do("the failover", () => scripted.failOver())).kind).toBe("done");
  await scripted.do("a write on B", () => scripted.guestWrite(0, 8192, 8192, "bytes", { by: b }));
  a.host.restart();
  assert(await scripted.do("the start of A", () => a.start()));
  expect(a.status?.protection.nextAction).toContain("`colobus start-alone`");
  world.network.partition("a", "b", false);
  await scripted.until("the split brain", () => a.status?.protection.reason === "split-brain");
  return scripted;
}

describe("start-alone where the peer was promoted, and both sides were written to", () => {
  it("changes nothing, and says what either side would lose", async () => {
    const scripted = await heldBesidePromoted();
    const { primary: a, secondary: b } = scripted.pair;
    const read = askRead(a);
    const { message } = await expectRefused(scripted, a);
    expect(message).toContain(`the peer ${b.status?.agentId}, which is Primary`);
    expect(message).toMatch(/ [1-9]\d* bytes here or [1-9]\d* bytes there /);
    await scripted.do("some time", () => scripted.world.sleep(WHILE_MS));
    expect(read.isDone()).toBe(false);
    expect(await startAlone(scripted, a, true)).toBe("released");
    await scripted.until("the read", () => read.isDone());
    // Nobody waits any more: there is nothing to refuse.
    expect(await startAlone(scripted, a)).toBe("nobody waits");
  });

  it("takes the word of an operator that the other side is gone, and not its silence", async () => {
    const scripted = await heldBesidePromoted();
    const { primary: a, secondary: b } = scripted.pair;
    b.host.crash("power");
    await scripted.do("some time", () => scripted.world.sleep(WHILE_MS));
    await expectRefused(scripted, a);
    expect(await startAlone(scripted, a, true)).toBe("released");
    expect((await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes"))).kind).toBe("done");
  });

  it("lets nobody go on by force who is outdated", async () => {
    const scripted = new ScriptedPair(1, "power");
    const { primary: a } = scripted.pair;
    await scripted.start();
    a.host.crash("power");
    expect((await scripted.do("the failover", () => scripted.failOver())).kind).toBe("done");
    a.host.restart();
    assert(await scripted.do("the start of A", () => a.start()));
    await scripted.until("A to be outdated", () => a.status?.protection.reason === "outdated");
    expect(await startAlone(scripted, a, true)).toMatchObject({ code: "outdated" });
  });
});

describe("start-alone where the peer is Secondary, and has a history that this side was put back behind", () => {
  it("is refused in the same way", async () => {
    const scripted = new ScriptedPair(1, "power");
    const { world, pair } = scripted;
    const { primary: a, secondary: b } = pair;
    world.network.partition("a", "b", true);
    assert(await scripted.do("the first start", () => a.start()));
    const before = backUp(a.host.disk);
    world.network.partition("a", "b", false);
    await scripted.do("the first session", async () => {
      await b.start();
      await scripted.wait("committed");
    });
    await parted(scripted);
    await scripted.do("a write alone", () => scripted.guestWrite(0, 0, 4096, "bytes"));
    world.network.partition("a", "b", false);
    await scripted.do("the sync", async () => {
      await scripted.wait("synced");
      await scripted.checkpoint();
    });
    a.host.crash("process");
    putBack(a.host.disk, before);
    a.host.restart();
    assert(await scripted.do("the start on the old state", () => a.start()));
    await scripted.until("the split brain", () => a.status?.protection.reason === "split-brain");
    const { message } = await expectRefused(scripted, a);
    expect(message).toContain(`the peer ${b.status?.agentId}, which is Secondary`);
    expect(await startAlone(scripted, a, true)).toBe("released");
  });
});

/** B was promoted by force while it was cut off, and A, which serves with C, knows. */
async function servingBesidePromoted(onPeerLoss: "continue" | "freeze"): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio("colo", { onPeerLoss });
  await trio.start();
  trio.cutOff(trio.b);
  await trio.until("the loss", () => trio.inSync().length === 1);
  await trio.write(3, 0x33);
  await trio.lost(trio.b);
  await trio.failover(trio.b, { force: true });
  await trio.write(4, 0x44, trio.b);
  trio.cutOff(trio.b, false);
  await trio.until("the split brain", () => trio.peer("b")?.lastError?.code === "split-brain");
  return trio;
}

describe("start-alone on a primary of several secondaries, of which one was promoted", () => {
  it("is refused while another one has not spoken", async () => {
    const trio = await heldWithoutC();
    const read = askRead(trio.a);
    await expectRefused(trio, trio.a);
    await trio.world.run({ forMs: WHILE_MS });
    expect(read.isDone()).toBe(false);
    expect(await startAlone(trio, trio.a, true)).toBe("released");
    await trio.until("the read", () => read.isDone());
  });

  it("is refused where its secondaries are lost, and writes are frozen", async () => {
    const trio = await servingBesidePromoted("freeze");
    expect(await startAlone(trio, trio.a)).toBe("nobody waits");
    trio.c.host.crash("power");
    await trio.until("the loss of C", () => trio.inSync().length === 0);
    let isWritten = false;
    trio.world.schedule(0, () => {
      void trio.writeOnce(5, 0x55).then(() => {
        isWritten = true;
      });
    });
    await trio.world.run({ forMs: WHILE_MS });
    await expectRefused(trio, trio.a);
    await trio.world.run({ forMs: WHILE_MS });
    expect(isWritten).toBe(false);
    expect(await startAlone(trio, trio.a, true)).toBe("released");
    await trio.until("the write", () => isWritten);
  });

  it("is not refused for one that an operator has given up, until that one is heard again", async () => {
    const trio = await heldWithoutC();
    const { agentId } = trio.status(trio.b);
    expect(await trio.forget(agentId)).toBe("done");
    expect(trio.status().protection).toMatchObject({
      reason: "held",
      nextAction: expect.stringContaining("`colobus start-alone`"),
    });
    await trio.do("a dial", async () => {
      const order = { dryRun: false, discardMyData: false, acceptNewPeer: true, peer: urlOf("a") };
      const request = { ...order, insteadOf: trio.status(trio.a).agentId, timeoutMs: WHILE_MS };
      await trio.b.agent?.connect(request, new AbortController().signal);
    });
    await trio.until("A to have heard it", () => trio.status().protection.reason === "split-brain");
    await expectRefused(trio, trio.a);
  });

  async function heldWithoutC(): Promise<ScriptedTrio> {
    const trio = await servingBesidePromoted("continue");
    for (const member of [trio.a, trio.c]) member.host.crash("power");
    await trio.restart(trio.a);
    await trio.until("the split brain", () => trio.peer("b")?.lastError?.code === "split-brain");
    return trio;
  }
});
