import { describe, expect, it } from "vitest";
import { urlOf, type PairMember } from "./pair.ts";
import { COMMAND, ScriptedTrio } from "./scripted-trio.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";

/**
 * B misses a checkpoint with a VM state, which C has, or has no checkpoint at all. It gets none of the disks in place of that,
 * also from another process of the primary's: only whoever sends the states takes the next one.
 */

const NEVER = new AbortController().signal;
const WHILE_MS = 20_000;
const TTL_MS = 3_000;

async function cutOff(trio: ScriptedTrio, member: PairMember, name: "b" | "c"): Promise<void> {
  trio.cutOff(member);
  await trio.until(`the loss of ${name}`, () => trio.peer(name)?.connection !== "Connected");
}

/** A checkpoint with a VM state, or one that is only prepared. Resolves with its epoch. */
async function take(trio: ScriptedTrio, prepare: boolean): Promise<number> {
  return trio.do("a checkpoint with a VM state", async () => {
    const pieces = [Buffer.alloc(1024, 0x77)].values();
    const bytes = { next: () => Promise.resolve(pieces.next()) };
    const answer = await trio.a.agent?.checkpointWithVmState({ prepare, ...COMMAND }, bytes, NEVER);
    return answer?.epoch ?? 0;
  });
}

async function missedByB({ prepare = false } = {}): Promise<{ trio: ScriptedTrio; epoch: number }> {
  const trio = new ScriptedTrio();
  await trio.start();
  await cutOff(trio, trio.b, "b");
  return { trio, epoch: await take(trio, prepare) };
}

const inSyncAgain = (trio: ScriptedTrio, how: number): Promise<void> =>
  trio.until(`${how} to be in sync`, () => trio.inSync().length === how);

/** C has the state, and the next one protects by both. */
async function expectKept(trio: ScriptedTrio, epoch: number): Promise<void> {
  await trio.world.run({ forMs: WHILE_MS });
  expect(trio.status(trio.c).vmstate?.epoch).toBe(epoch);
  expect(trio.status(trio.b).protection.reason).toBe("no-checkpoint");
  const next = await take(trio, false);
  for (const member of [trio.b, trio.c]) expect(trio.status(member).vmstate?.epoch).toBe(next);
}

describe("a primary that was started again", () => {
  it("hears from the secondary that its checkpoint has a VM state", async () => {
    const { trio, epoch } = await missedByB();
    trio.a.host.crash("process");
    await trio.restart(trio.a);
    await inSyncAgain(trio, 1);
    trio.cutOff(trio.b, false);
    await inSyncAgain(trio, 2);
    await expectKept(trio, epoch);
  });

  it("hears so of one that is prepared, and commits it", async () => {
    const { trio, epoch } = await missedByB({ prepare: true });
    trio.a.host.crash("process");
    await trio.restart(trio.a);
    await inSyncAgain(trio, 1);
    await trio.do("a commit", async () => trio.a.agent?.commit({ epoch, ...COMMAND }, NEVER));
    trio.cutOff(trio.b, false);
    await inSyncAgain(trio, 2);
    await expectKept(trio, epoch);
  });

  it.each(["died", "stopped"])(
    "knows by its record, where it has %s, and the one that has it is back last",
    async (how) => {
      const { trio, epoch } = await missedByB();
      if (how === "stopped") await trio.do("a stop", () => trio.a.stop(1_000));
      trio.a.host.crash("process");
      trio.cutOff(trio.c);
      trio.world.network.partition("a", "b", false);
      await trio.restart(trio.a);
      await inSyncAgain(trio, 1);
      await trio.world.run({ forMs: WHILE_MS });
      trio.cutOff(trio.c, false);
      await inSyncAgain(trio, 2);
      await expectKept(trio, epoch);
    },
  );
});

describe("a secondary without any checkpoint beside one that holds a VM state", () => {
  interface Scene {
    readonly trio: ScriptedTrio;
    readonly newcomer: PairMember;
    readonly epoch: number;
  }

  /** Another agent than B, with a blank copy, has everything. */
  async function newcomerInSync(hasArbiter = false): Promise<Scene> {
    const trio = new ScriptedTrio("colo", (world) =>
      hasArbiter ? { arbiter: { service: new SimArbiter(world, new SeededRandom(1), TTL_MS), ttlMs: TTL_MS } } : {},
    );
    await trio.start();
    const epoch = await take(trio, false);
    trio.b.host.crash("power");
    await trio.until("the loss of b", () => trio.peer("b")?.connection !== "Connected");
    const newcomer = await trio.newcomer("d");
    expect(await trio.accept({ peer: urlOf("d"), insteadOf: urlOf("b") })).toBe("done");
    await inSyncAgain(trio, 2);
    await trio.world.run({ forMs: WHILE_MS });
    return { trio, newcomer, epoch };
  }

  it("gets the next one where it is new", async () => {
    const { trio, newcomer, epoch } = await newcomerInSync();
    expect(trio.status(trio.c).vmstate?.epoch).toBe(epoch);
    expect(trio.status(newcomer).epoch.committed).toBe(0);
    expect(trio.status().protection.state).toBe("Protected");
    const next = await take(trio, false);
    for (const member of [newcomer, trio.c]) expect(trio.status(member).vmstate?.epoch).toBe(next);
  });

  it.each([false, true])("gets one of the disks when the other one is given up; with an arbiter: %s", async (has) => {
    const { trio, newcomer, epoch } = await newcomerInSync(has);
    trio.c.host.crash("power");
    await trio.until("the loss of c", () => trio.peer("c")?.connection !== "Connected");
    await trio.world.run({ forMs: WHILE_MS });
    expect(trio.status(newcomer).epoch.committed).toBe(0);
    expect(await trio.forget(urlOf("c"))).toBe("done");
    await trio.until("a checkpoint", () => trio.status(newcomer).epoch.committed > epoch);
  });

  it("gets the next one where it has given its own up", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    const epoch = await take(trio, false);
    await trio.do("B gives it up", async () => trio.b.agent?.resync({ giveUpCheckpoint: true, ...COMMAND }, NEVER));
    await trio.world.run({ forMs: WHILE_MS });
    expect(trio.status(trio.c).vmstate?.epoch).toBe(epoch);
    expect(trio.status(trio.b).epoch.committed).toBe(0);
    const next = await take(trio, false);
    for (const member of [trio.b, trio.c]) expect(trio.status(member).vmstate?.epoch).toBe(next);
  });

  it("gets one of the disks where both have given theirs up", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    const epoch = await take(trio, false);
    for (const member of [trio.b, trio.c]) {
      await trio.do("a give-up", async () => member.agent?.resync({ giveUpCheckpoint: true, ...COMMAND }, NEVER));
    }
    const hasLater = (member: PairMember): boolean => trio.status(member).epoch.committed > epoch;
    await trio.until("a checkpoint", () => hasLater(trio.b) && hasLater(trio.c));
  });
});
