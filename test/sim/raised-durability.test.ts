import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * A secondary that never fsyncs is killed, and is started again with durability `power`. What its earlier process has called
 * stable, and committed, may be in the page cache alone; a later loss of power must not take any of it.
 */
const CLUSTER = 4096;
/** A loss of power leaves of what is unsynced what chance will have. */
const SEEDS = [1, 2, 3, 4, 5, 6];

describe.each(["colo", "mc", "mirror"] as const)("a secondary of mode %s that is to fsync from now on", (mode) => {
  it("returns to its checkpoint after a loss of power", async () => {
    for (const seed of SEEDS) {
      const scripted = new ScriptedPair(seed, "process", { mode });
      const { primary, secondary } = scripted.pair;
      await scripted.start();
      await scripted.do("a write", () => scripted.guestWrite(0, 0, 9 * CLUSTER, "bytes"));
      if (mode !== "mirror") await scripted.do("a checkpoint", () => scripted.checkpoint());
      await scripted.until("it is stable", () => primary.status?.peers[0]?.lagBytes === 0);
      primary.host.crash("process");
      secondary.host.crash("process");
      secondary.reconfigure({ durability: "power" });
      secondary.host.restart();
      assert(await scripted.do("a start", () => secondary.start()));
      secondary.host.crash("power");
      expect(await scripted.restartSecondary()).toBeGreaterThan(0);
    }
  });
});
