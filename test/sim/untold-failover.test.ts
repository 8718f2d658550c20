import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ARBITER_PAIR_TTL_MS, startedArbiterPair } from "./arbiter-pair.ts";
import { readRecord } from "./crash-remains.ts";
import type { ScriptedPair } from "./scripted-pair.ts";
import type { SimArbiter } from "./sim-arbiter.ts";

/** A failover that is forced while the arbiter does not answer: whoever was promoted tells it later, in whatever process. */

/** What a side that tells it writes before it has told it, at least: its record at the start, and that it has. */
const CALLS_MIN = 4;

/** A is lost, and B promoted under an arbiter that is away. */
async function promotedUntold(): Promise<{ scripted: ScriptedPair; arbiter: SimArbiter }> {
  const { scripted, arbiter } = await startedArbiterPair();
  arbiter.stop(true);
  scripted.pair.primary.host.crash("power");
  expect((await scripted.do("the failover", () => scripted.failOver())).kind).toBe("done");
  return { scripted, arbiter };
}

async function restartB(scripted: ScriptedPair): Promise<void> {
  const { secondary } = scripted.pair;
  secondary.host.restart();
  assert(await scripted.do("the start of B", () => secondary.start()));
}

function leaseOf({ pair }: ScriptedPair): string | undefined {
  return pair.secondary.status?.failover.arbiter?.state;
}

describe("a promotion that the arbiter was not told of", () => {
  it("is told to it by the next process, before a former primary that is back may serve", async () => {
    const { scripted, arbiter } = await promotedUntold();
    const { primary, secondary } = scripted.pair;
    secondary.host.crash("power");
    await restartB(scripted);
    await scripted.world.run({ forMs: 3 * ARBITER_PAIR_TTL_MS });
    arbiter.stop(false);
    await scripted.until("the lease", () => leaseOf(scripted) === "own");
    const content = Buffer.alloc(512);
    await scripted.do("a read", async () => secondary.device(scripted.disks[0] ?? assert.fail())?.read(content, 0));
    scripted.world.network.partition("a", "b", true);
    primary.host.restart();
    assert(await scripted.do("the start of A", () => primary.start()));
    await scripted.until("A to be refused", () => primary.status?.failover.arbiter?.state === "other");
    await scripted.world.run({ forMs: 3 * ARBITER_PAIR_TTL_MS });
    expect(leaseOf(scripted)).toBe("own");
  });

  it("is told to it once, whenever the side dies that tells it", async () => {
    for (let call = 1; ; call += 1) {
      const { scripted, arbiter } = await promotedUntold();
      const { host } = scripted.pair.secondary;
      host.crash("process");
      arbiter.stop(false);
      host.restart();
      host.disk.faults.crashAt(call, "process");
      await scripted.do("the start of B", () => scripted.pair.secondary.start());
      const isTold = (): boolean => leaseOf(scripted) === "own" && readRecord(host).arbiterUntold === undefined;
      await scripted.world.run({ until: () => !host.alive || isTold(), forMs: 10 * ARBITER_PAIR_TTL_MS });
      const hasDied = !host.alive;
      host.disk.faults.clear();
      if (hasDied) await restartB(scripted);
      await scripted.until("the arbiter to be told", isTold);
      if (hasDied) continue;
      expect(call).toBeGreaterThan(CALLS_MIN);
      return;
    }
  });
});
