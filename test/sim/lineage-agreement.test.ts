import { describe, expect, it } from "vitest";
import { ScriptedPair } from "./scripted-pair.ts";

const TRIES = 100;

/** Around the time at which the lost session comes back, in virtual time. */
const WRITE_WITHIN_MS = 160;
const SETTLED_MS = 1_000;

describe("a write that goes on alone just as the secondary comes back", () => {
  it("leaves the two with one lineage", async () => {
    let mintedCount = 0;
    for (let seed = 1; seed <= TRIES; seed += 1) {
      const scripted = new ScriptedPair(seed, "power", { storage: { syncMs: [5, 20] } });
      const { world, pair } = scripted;
      await scripted.start();
      const before = pair.primary.agent?.status().lineage;
      await scripted.do("a lost session", async () => {
        world.network.cut("a", "b");
        await world.sleep(world.random.within([0, WRITE_WITHIN_MS]));
        await scripted.guestWrite(0, 0, 4096, "bytes");
        await scripted.wait("synced");
        await world.sleep(SETTLED_MS);
      });
      const [here, there] = [pair.primary, pair.secondary].map(({ agent }) => agent?.status().lineage);
      if (here !== before) mintedCount += 1;
      expect(here, `seed ${seed}`).toBe(there);
    }
    expect(mintedCount).toBeGreaterThan(0);
  });
});
