import { describe, expect, it } from "vitest";
import { ScriptedPair } from "./scripted-pair.ts";

const COMMAND = { timeoutMs: 60_000 } as const;

describe("a failover that is only tried out", () => {
  it.each([
    { mode: "colo", discardActive: false },
    { mode: "colo", discardActive: true },
    { mode: "mc", discardActive: false },
    { mode: "mc", discardActive: true },
  ] as const)(
    "says what the one that follows has to merge, in mode $mode, discardActive $discardActive",
    async (variant) => {
      const { mode, discardActive } = variant;
      let merged = 0;
      for (let seed = 1; seed <= 8; seed += 1) {
        const scripted = new ScriptedPair(seed, "power", { mode });
        const { primary, secondary } = scripted.pair;
        await scripted.start();
        await scripted.fillOverlays();
        primary.host.crash("process");
        await scripted.until("the loss", () => secondary.agent?.status().peers[0]?.connection === "Connecting");
        await scripted.do("what has arrived to be applied", () => scripted.world.sleep(1_000));
        const answers = await scripted.do("the failover", async () => {
          const failover = async (dryRun: boolean) =>
            secondary.agent?.failover(
              { force: false, dryRun, discardActive, ...COMMAND },
              new AbortController().signal,
            );
          return [await failover(true), await failover(false)];
        });
        const [tried, done] = answers.map((answer) => answer?.mergeBytes);
        expect(tried, `seed ${seed}`).toBe(done);
        merged += done ?? 0;
      }
      // The buffers that are committed have been applied by then.
      if (mode === "colo" || !discardActive) expect(merged).toBeGreaterThan(0);
    },
  );
});
