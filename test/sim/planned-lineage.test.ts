import { describe, expect, it } from "vitest";
import { ScriptedTrio } from "./scripted-trio.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";

const TTL_MS = 3_000;
/** From a write without C on, in milliseconds: C's mark at the arbiter, the lineage there, the record, and B has heard of it. */
const MOMENTS_MS = 60;

/** C is lost, and `ms` after A's next write A reaches neither B nor the arbiter: B takes over, and A comes back. */
async function cutOffAfter(ms: number): Promise<{ isUnheard: boolean; reason: string | null }> {
  let arbiter: SimArbiter | undefined;
  const trio = new ScriptedTrio("colo", (world) => {
    arbiter = new SimArbiter(world, new SeededRandom(1), TTL_MS);
    return { arbiter: { service: arbiter, ttlMs: TTL_MS }, peerTimeoutMs: 1_000, storage: { syncMs: [1, 4] } };
  });
  await trio.start();
  trio.cutOff(trio.c);
  await trio.until("the loss of C", () => trio.peer("c")?.connection !== "Connected");
  const write = trio.writeOnce(3, 0x33).catch(() => undefined);
  await trio.world.run({ forMs: ms });
  trio.cutOff(trio.a);
  arbiter?.cut("a", true);
  const known = trio.status(trio.b).lineage;
  await trio.until("B to take over", () => trio.b.agent?.role === "Primary");
  const isUnheard = trio.status().lineage !== known;
  for (const member of [trio.a, trio.c]) trio.cutOff(member, false);
  arbiter?.cut("a", false);
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
});
