import { describe, expect, it } from "vitest";
import type { Status } from "../../proto/status.ts";
import { SimArbiter } from "./sim-arbiter.ts";
import type { PairMember } from "./pair.ts";
import { COMMAND, ScriptedTrio } from "./scripted-trio.ts";
import { SeededRandom } from "./seeded-random.ts";

const NEVER = new AbortController().signal;

/** B misses a checkpoint, which C has. Resolves with its number. */
async function missedByB(trio = new ScriptedTrio(), checkpoint = () => trio.checkpoint()): Promise<Missed> {
  await trio.start();
  await trio.write(3, 0x33);
  await loseB(trio);
  const epoch = (await checkpoint()) ?? 0;
  expect(trio.status(trio.b).epoch.committed).toBeLessThan(epoch);
  return { trio, epoch };
}

interface Missed {
  readonly trio: ScriptedTrio;
  readonly epoch: number;
}

async function loseB(trio: ScriptedTrio): Promise<void> {
  trio.cutOff(trio.b);
  await trio.until("the loss of B", () => trio.peer("b")?.connection !== "Connected");
}

/** B is back: the first moment at which it lacks nothing but the checkpoint. */
async function backAgain(trio: ScriptedTrio): Promise<void> {
  trio.cutOff(trio.b, false);
  await trio.until("both to be in sync", () => trio.inSync().length === 2);
}

async function backAgainAlone(trio: ScriptedTrio): Promise<void> {
  trio.cutOff(trio.b, false);
  await trio.until("B to be in sync", () => trio.inSync().length === 1);
}

/** A later checkpoint than that one protects the VM on B. */
async function protectedByB(trio: ScriptedTrio, epoch: number): Promise<void> {
  await trio.until("a checkpoint on B", () => (trio.peer("b")?.committed ?? 0) > epoch);
  expect(protectionOf(trio.status())).toBe("Protected");
}

async function loseC(trio: ScriptedTrio): Promise<void> {
  trio.c.host.crash("power");
  await trio.until("the loss of C", () => trio.peer("c")?.connection !== "Connected");
}

async function dieAfter(trio: ScriptedTrio, member: PairMember): Promise<void> {
  trio.a.host.crash("power");
  await trio.lost(member);
}

function withVmState(trio: ScriptedTrio): Promise<number | undefined> {
  return trio.do("a checkpoint with a VM state", async () => {
    const pieces = [Buffer.alloc(1024, 0x77)].values();
    const bytes = { next: () => Promise.resolve(pieces.next()) };
    const answer = await trio.a.agent?.checkpointWithVmState({ prepare: false, ...COMMAND }, bytes, NEVER);
    return answer?.epoch;
  });
}

function promotedOf(trio: ScriptedTrio): PairMember | undefined {
  return [trio.b, trio.c].find((member) => trio.status(member).role === "Primary");
}

function protectionOf(status: Status): string {
  return status.protection.reason ?? status.protection.state;
}

describe("a secondary that is in sync again and lacks a checkpoint that was told", () => {
  it.each(["colo", "mc"] as const)("gets the next one by itself, and could be failed over to: %s", async (mode) => {
    const { trio, epoch } = await missedByB(new ScriptedTrio(mode));
    await backAgain(trio);
    await protectedByB(trio, epoch);
    await loseC(trio);
    expect(protectionOf(trio.status())).toBe("Protected");
    expect(trio.status().recoverable?.epoch).toBe(trio.status(trio.b).epoch.committed);
    expect(protectionOf(trio.status(trio.b))).toBe("Protected");
    await dieAfter(trio, trio.b);
    await trio.failover(trio.b);
    expect(await trio.read(3, trio.b)).toBe(0x33);
  });

  it("gets the next one where it was in sync when the one that it lacks was committed", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    await loseB(trio);
    const prepared = await trio.do("a barrier", async () =>
      trio.a.agent?.checkpoint({ prepare: true, ...COMMAND }, NEVER),
    );
    const epoch = prepared?.epoch ?? 0;
    await backAgain(trio);
    await trio.do("a commit", async () => trio.a.agent?.commit({ epoch, ...COMMAND }, NEVER));
    await protectedByB(trio, epoch);
    expect(trio.status(trio.c).epoch.committed).toBe(trio.status(trio.b).epoch.committed);
  });

  it("gets the next one from the side that was promoted, and protects nothing before", async () => {
    const { trio, epoch } = await missedByB();
    await backAgain(trio);
    // B is told, and dies before the next one.
    expect(trio.status(trio.b).epoch.committed).toBeLessThan(epoch);
    trio.cutOff(trio.b);
    const former = trio.status().agentId;
    await dieAfter(trio, trio.c);
    await trio.failover(trio.c);
    trio.cutOff(trio.b, false);
    let isCommitted = false;
    trio.world.schedule(0, () => {
      void trio.c.agent?.wait({ condition: "committed", ...COMMAND }, NEVER).then(() => (isCommitted = true));
    });
    expect(await trio.follow(trio.b, trio.c)).toBe("done");
    await trio.until("B to be in sync", () => trio.inSync(trio.c).length === 1);
    const status = trio.status(trio.c);
    // The checkpoint that this side was promoted from is not the former primary's.
    expect(status.peers.find(({ agentId }) => agentId === former)?.committed).toBeNull();
    expect(protectionOf(status)).toBe("no-checkpoint");
    expect(status.protection.nextAction).toContain(`checkpoint ${trio.status(trio.b).epoch.committed}, and ${epoch}`);
    expect(status.recoverable).toBeNull();
    expect(isCommitted).toBe(false);
    await trio.until("the wait", () => isCommitted);
    expect(protectionOf(trio.status(trio.c))).toBe("Protected");
    expect(trio.status(trio.c).recoverable?.epoch).toBe(trio.status(trio.b).epoch.committed);
    trio.c.host.crash("power");
    await trio.lost(trio.b);
    await trio.failover(trio.b);
    expect(await trio.read(3, trio.b)).toBe(0x33);
  });

  it("gets no checkpoint of the disks in place of a VM state, and protects nothing until whoever sends those does", async () => {
    const trio = new ScriptedTrio();
    const { epoch } = await missedByB(trio, () => withVmState(trio));
    await backAgain(trio);
    await trio.world.run({ forMs: 20_000 });
    expect(trio.status(trio.c).vmstate?.epoch).toBe(epoch);
    expect(protectionOf(trio.status())).toBe("Protected");
    expect(protectionOf(trio.status(trio.b))).toBe("no-checkpoint");
    expect(trio.status(trio.b).protection.nextAction).toContain(`and ${epoch} was told`);
    trio.cutOff(trio.c);
    await trio.until("the loss of C", () => trio.peer("c")?.connection !== "Connected");
    expect(protectionOf(trio.status())).toBe("no-checkpoint");
    // C may be there still when this side is not.
    expect(trio.status().recoverable?.epoch).toBe(epoch);
    const next = await withVmState(trio);
    expect(protectionOf(trio.status())).toBe("Protected");
    expect(protectionOf(trio.status(trio.b))).toBe("Protected");
    expect(trio.status(trio.b).vmstate?.epoch).toBe(next);
  });

  it("is known to lack it, by its own word, after the primary has forgotten who had it, and gets the next one", async () => {
    const trio = new ScriptedTrio();
    const { epoch } = await missedByB(trio, () => withVmState(trio));
    await backAgain(trio);
    await loseC(trio);
    trio.cutOff(trio.b);
    await trio.until("the loss of B", () => trio.peer("b")?.connection !== "Connected");
    expect(await trio.forget("ws://c")).toBe("done");
    trio.a.host.crash("process");
    await trio.restart(trio.a);
    await backAgainAlone(trio);
    expect(trio.status(trio.b).epoch.committed).toBeLessThan(epoch);
    expect(protectionOf(trio.status())).toBe("no-checkpoint");
    await protectedByB(trio, epoch);
  });

  it("gets the next one where an arbiter decides, and may take over then", async () => {
    const ttlMs = 6_000;
    const trio = new ScriptedTrio("colo", (world) => ({
      arbiter: { service: new SimArbiter(world, new SeededRandom(1), ttlMs), ttlMs },
    }));
    const { epoch } = await missedByB(trio);
    expect(trio.peer("b")?.mayTakeOver).toBe(false);
    await backAgain(trio);
    await trio.until("B to be a successor", () => trio.peer("b")?.mayTakeOver === true);
    await protectedByB(trio, epoch);
    // Nobody has missed a checkpoint; and B, which has followed another primary, is outdated to the arbiter until it commits.
    await dieAfter(trio, trio.b);
    await trio.until("a primary", () => promotedOf(trio) !== undefined);
    const promoted = promotedOf(trio) ?? trio.c;
    await trio.until("the other one", () => trio.inSync(promoted).length === 1);
    expect(protectionOf(trio.status(promoted))).toBe("no-checkpoint");
    await trio.until("a protected VM", () => protectionOf(trio.status(promoted)) === "Protected");
    expect(trio.status(promoted).peers.filter(({ mayTakeOver }) => mayTakeOver)).toHaveLength(1);
  });
});
