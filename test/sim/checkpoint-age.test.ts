import { describe, expect, it } from "vitest";
import type { PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

const MAX_AGE_MS = 20_000;

/** The protection as the events of an agent tell it, newest first. */
function told({ agent }: PairMember): string[] {
  const events = agent?.events(0).filter(({ type }) => type === "protection-changed") ?? [];
  return events.map(({ data }) => String(data["reason"] ?? data["state"])).reverse();
}

describe("a checkpoint that gets older than --max-checkpoint-age", () => {
  it.each(["primary", "secondary"] as const)("is told by the %s when nothing else happens", async (side) => {
    const scripted = new ScriptedPair(1, "power");
    const { pair, world } = scripted;
    const member = pair[side];
    member.reconfigure({ maxCheckpointAgeMs: MAX_AGE_MS });
    await scripted.start();
    for (let round = 0; round < 2; round += 1) {
      await scripted.do("a checkpoint", () => scripted.checkpoint());
      const takenMs = world.nowMs;
      await scripted.until("protected", () => told(member)[0] === "Protected");
      await scripted.until("too old", () => told(member)[0] === "checkpoint-too-old");
      expect(world.nowMs - takenMs).toBeLessThan(MAX_AGE_MS + 1_000);
      expect(member.status?.protection).toMatchObject({ state: "NotProtected", reason: "checkpoint-too-old" });
      expect(member.status?.recoverable?.ageMs).toBeGreaterThan(MAX_AGE_MS);
    }
    const other = side === "primary" ? pair.secondary : pair.primary;
    expect(other.status?.protection.state).toBe("Protected");
  });
});
