import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ScriptedPair } from "./scripted-pair.ts";

const TRIES = 100;
const DEATHS = 40;

/** Around the time at which the lost session comes back, in virtual time. */
const WRITE_WITHIN_MS = 160;
const SETTLED_MS = 1_000;
const SYNC_MAX_MS = 20;

describe("a write that goes on alone just as the secondary comes back", () => {
  it("leaves the two with one lineage", async () => {
    let mintedCount = 0;
    for (let seed = 1; seed <= TRIES; seed += 1) {
      const scripted = new ScriptedPair(seed, "power", { storage: { syncMs: [5, SYNC_MAX_MS] } });
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

describe("a primary that loses its power as the secondary hears of a lineage that began without it", () => {
  it("has diverged from it when it writes alone afterwards, and knows so", async () => {
    for (let seed = 1; seed <= DEATHS; seed += 1) {
      const scripted = new ScriptedPair(seed, "power", { primaryStorage: { syncMs: [5, SYNC_MAX_MS] } });
      const { world, pair } = scripted;
      const { primary, secondary } = pair;
      await scripted.start();
      await scripted.do("a lost session", async () => {
        world.network.cut("a", "b");
        await scripted.guestWrite(0, 0, 4096, "bytes");
      });
      await scripted.until(
        "the session to come back",
        () => primary.agent?.status().peers[0]?.connection === "Connected",
      );
      await scripted.do("some time", () => world.sleep(world.random.within([0, SYNC_MAX_MS])));
      world.network.partition("a", "b", true);
      primary.host.crash("power");
      primary.host.restart();
      assert(await scripted.do("the start of the primary", () => primary.start()));
      expect(await primary.agent?.startAlone({ force: false }), `seed ${seed}`).toEqual({ released: true });
      const written = await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes"));
      expect(written.kind, `seed ${seed}`).toBe("done");
      expect((await scripted.do("the failover", () => scripted.failOver())).kind, `seed ${seed}`).toBe("done");
      world.network.partition("a", "b", false);
      for (const member of [primary, secondary]) {
        await scripted.until(
          `split brain, seed ${seed}`,
          () => member.agent?.status().protection.reason === "split-brain",
        );
      }
      const dryRun = await scripted.do("a dry run", async () =>
        primary.agent?.connect({ dryRun: true, discardMyData: false, timeoutMs: 5_000 }, new AbortController().signal),
      );
      // By its history: not because it was seen to have forgotten a session.
      expect(dryRun?.verdict, `seed ${seed}`).toMatchObject({ kind: "split-brain", rule: "diverged" });
    }
  });
});
