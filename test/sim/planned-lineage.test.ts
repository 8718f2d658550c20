import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ScriptedTrio } from "./scripted-trio.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";

const TTL_MS = 3_000;
/** Sooner than a paused secondary tries again. */
const SOON_MS = 1_000;
/** From a write without C on, in milliseconds: C's mark at the arbiter, the lineage there, the record, and B has heard of it. */
const MOMENTS_MS = 60;

async function started(): Promise<{ trio: ScriptedTrio; arbiter: SimArbiter }> {
  let arbiter: SimArbiter | undefined;
  const trio = new ScriptedTrio("colo", (world) => {
    arbiter = new SimArbiter(world, new SeededRandom(1), TTL_MS);
    return { arbiter: { service: arbiter, ttlMs: TTL_MS }, peerTimeoutMs: 1_000, storage: { syncMs: [1, 4] } };
  });
  await trio.start();
  assert(arbiter !== undefined);
  return { trio, arbiter };
}

/** C takes no writes any more, and is there. */
async function pauseC(trio: ScriptedTrio): Promise<void> {
  const disk = { kind: "generation-data", error: "io-error", times: Number.POSITIVE_INFINITY } as const;
  trio.c.host.disk.faults.inject({ op: ["write", "allocate"], ...disk });
  await trio.write(3, 0x33);
  await trio.until("the pause", () => trio.peer("c")?.replication === "PausedSyncS");
}

/** The primary reaches B no more, which the arbiter knows before the next write is acknowledged. */
async function loseB(trio: ScriptedTrio): Promise<void> {
  trio.cutOff(trio.b);
  await trio.until("the loss of B", () => trio.peer("b")?.connection !== "Connected");
  await trio.write(4, 0x44);
}

/** C is lost, and `ms` after A's next write A reaches neither B nor the arbiter: B takes over, and A comes back. */
async function cutOffAfter(ms: number): Promise<{ isUnheard: boolean; reason: string | null }> {
  const { trio, arbiter } = await started();
  trio.cutOff(trio.c);
  await trio.until("the loss of C", () => trio.peer("c")?.connection !== "Connected");
  const write = trio.writeOnce(3, 0x33).catch(() => undefined);
  await trio.world.run({ forMs: ms });
  trio.cutOff(trio.a);
  arbiter.cut("a", true);
  const known = trio.status(trio.b).lineage;
  await trio.until("B to take over", () => trio.b.agent?.role === "Primary");
  const isUnheard = trio.status().lineage !== known;
  for (const member of [trio.a, trio.c]) trio.cutOff(member, false);
  arbiter.cut("a", false);
  const told = (): string | null => trio.status().protection.reason;
  await trio.until("A to have met B", () => ["outdated", "split-brain"].includes(told() ?? ""));
  const reason = told();
  trio.a.host.crash("process");
  await write;
  return { isUnheard, reason };
}

describe("a primary with two secondaries and an arbiter", () => {
  it("is behind the one that takes over, whenever it was cut off as a lineage began", async () => {
    let unheard = 0;
    for (let ms = 0; ms < MOMENTS_MS; ms += 1) {
      const { isUnheard, reason } = await cutOffAfter(ms);
      expect(reason, `after ${ms} ms`).toBe("outdated");
      if (isUnheard) unheard += 1;
    }
    expect(unheard).toBeGreaterThan(0);
  });

  it("is taken over from by one that was paused, and has not heard of what began since", async () => {
    const { trio } = await started();
    await pauseC(trio);
    await trio.write(4, 0x34);
    expect(trio.status().lineage).not.toBe(trio.status(trio.c).lineage);
    await loseB(trio);
    expect(trio.peer("c")?.mayTakeOver).toBe(true);
    trio.a.host.crash("power");
    await trio.until("C to take over", () => trio.c.role === "Primary");
    expect(await trio.read(4, trio.c)).toBe(0x11);
  });

  it("serves on while the arbiter is away, and the only one that could take over is paused", async () => {
    const { trio, arbiter } = await started();
    await loseB(trio);
    arbiter.stop(true);
    await pauseC(trio);
    let isWritten = false;
    trio.world.schedule(0, () => void trio.writeOnce(5, 0x55).then(() => (isWritten = true)));
    await trio.world.run({ until: () => isWritten, forMs: SOON_MS });
    expect(isWritten).toBe(true);
  });

  it("says that guests wait while a lineage that a secondary is to hear of cannot begin, since the arbiter is away", async () => {
    const { trio, arbiter } = await started();
    arbiter.stop(true);
    await pauseC(trio);
    let isWritten = false;
    trio.world.schedule(0, () => void trio.writeOnce(4, 0x44).then(() => (isWritten = true)));
    await trio.until("guests to wait", () => trio.status().protection.reason === "held");
    expect(isWritten).toBe(false);
    arbiter.stop(false);
    await trio.until("the write", () => isWritten);
    expect(trio.status().protection.reason).not.toBe("held");
  });
});
