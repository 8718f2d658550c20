import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { urlOf, type PairMember } from "./pair.ts";
import { ScriptedTrio } from "./scripted-trio.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";

/** A primary that was taken over from, and whose operator gives up whoever took over, though that one serves: only the arbiter knows. */

const TTL_MS = 3_000;

interface Scene {
  readonly trio: ScriptedTrio;
  readonly arbiter: SimArbiter;
  /** Who has taken over, and is followed by the other one. */
  readonly successor: PairMember;
}

async function takenOverFrom(): Promise<Scene> {
  let arbiter: SimArbiter | undefined;
  const trio = new ScriptedTrio("colo", (world) => {
    arbiter = new SimArbiter(world, new SeededRandom(1), TTL_MS);
    return { arbiter: { service: arbiter, ttlMs: TTL_MS }, peerTimeoutMs: 1_000 };
  });
  assert(arbiter !== undefined);
  await trio.start();
  trio.cutOff(trio.a);
  arbiter.cut("a", true);
  const promoted = (): PairMember | undefined => [trio.b, trio.c].find(({ role }) => role === "Primary");
  await trio.until("the takeover", () => promoted() !== undefined);
  const successor = promoted();
  assert(successor !== undefined);
  await trio.until("its secondary", () => trio.inSync(successor).length === 1);
  arbiter.cut("a", false);
  await trio.until("the refusal", () => leaseOf(trio, trio.a) === "other");
  return { trio, arbiter, successor };
}

/** A blank agent follows A, which has forgotten those that it had. */
async function followedByNewcomer({ trio }: Scene): Promise<void> {
  await trio.newcomer("d");
  expect(await trio.forget(urlOf("c"))).toBe("done");
  expect(await trio.accept({ peer: urlOf("d"), insteadOf: urlOf("b") })).toBe("done");
  await trio.until("the newcomer to follow", () => trio.inSync().length === 1);
}

function leaseOf(trio: ScriptedTrio, member: PairMember): string | undefined {
  return trio.status(member).failover.arbiter?.state;
}

/** What becomes of a guest's read. */
async function outcomeOfRead(trio: ScriptedTrio, member: PairMember): Promise<unknown> {
  return trio.read(3, member).catch((error: unknown) => (error as { code?: string }).code);
}

describe("a primary whose successor was given up by its operator, and serves", () => {
  it("claims nothing by a newcomer that follows it, while the successor serves by its secondary's promise", async () => {
    const scene = await takenOverFrom();
    const { trio, arbiter, successor } = scene;
    await trio.write(3, 0x33, successor);
    await followedByNewcomer(scene);
    arbiter.cut(successor.name, true);
    await trio.world.run({ forMs: 3 * TTL_MS });
    await trio.write(4, 0x44, successor);
    expect(leaseOf(trio, trio.a)).not.toBe("own");
    expect(await outcomeOfRead(trio, trio.a)).toBe("lease-refused");
    arbiter.cut(successor.name, false);
    await trio.until("the lease", () => leaseOf(trio, successor) === "own");
    expect(await trio.read(3, successor)).toBe(0x33);
  });

  it("claims nothing while all that have its data are away, and serves again by start-alone", async () => {
    const scene = await takenOverFrom();
    const { trio } = scene;
    await followedByNewcomer(scene);
    for (const { host } of [trio.b, trio.c]) host.crash("power");
    await trio.world.run({ forMs: 3 * TTL_MS });
    expect(await outcomeOfRead(trio, trio.a)).toBe("lease-refused");
    await trio.do("start-alone", async () => trio.a.agent?.startAlone({ force: false }));
    expect(leaseOf(trio, trio.a)).toBe("own");
    expect(await trio.read(3, trio.a)).toBe(0x11);
    await trio.until("a protected VM", () => trio.status().protection.state === "Protected");
  });
});
