import { describe, expect, it } from "vitest";
import { KNOWN_PEERS_MAX } from "../../proto/limits.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/** The secondary has lost its state directory, and comes back as another agent. */
async function replaceSecondary(scripted: ScriptedPair, count: number): Promise<void> {
  const { secondary } = scripted.pair;
  secondary.host.crash("process");
  secondary.host.disk.rename("/state", `/lost-${count}`);
  secondary.host.restart();
  expect(await scripted.do("a start", () => secondary.start())).toBe(true);
}

describe("a primary of shared disks without a mark", () => {
  it("takes no more agents for its secondary than its record has room for, and says so on both sides", async () => {
    const scripted = new ScriptedPair(1, "power", { mode: "shared" });
    const { primary, secondary } = scripted.pair;
    await scripted.start();
    for (let count = 1; count < KNOWN_PEERS_MAX; count += 1) {
      await replaceSecondary(scripted, count);
      const { agentId } = secondary.status ?? {};
      await scripted.until("protection", () => {
        const { protection, peers } = primary.status ?? {};
        return protection?.state === "Protected" && peers?.[0]?.agentId === agentId;
      });
    }
    await replaceSecondary(scripted, KNOWN_PEERS_MAX);
    for (const member of [primary, secondary]) {
      await scripted.until("a refusal", () => member.status?.peers[0]?.lastError?.code === "role-conflict");
      expect(member.status?.peers[0]).toMatchObject({
        connection: "Connecting",
        lastError: {
          message: expect.stringMatching(/64 agents have been this primary's secondary/) as string,
          action: expect.stringMatching(/keep its state directory/) as string,
        },
      });
    }
    // The record is one that the agent can start with.
    primary.host.crash("process");
    primary.host.restart();
    expect(await scripted.do("a start", () => primary.start())).toBe(true);
  });
});
