import { describe, expect, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * The primary is gone, and the secondary dies at each of its storage calls between the operator's `failover` and the end
 * of the merge. Started again it is a secondary that can be promoted, or the primary that it was about to become; both
 * disks show the committed checkpoint with what its own VM has written, and at the end the images alone hold it.
 */
const WITHIN_MS = 60_000;
/** What a promotion and the merge of these disks take at least. */
const CALLS_MIN = 30;

/** False when the secondary was promoted and had merged everything before its `dyingCall`-th storage call. */
async function dieAt(dyingCall: number, durability: Durability): Promise<boolean> {
  const scripted = new ScriptedPair(dyingCall, durability);
  const { world, pair } = scripted;
  const { host } = pair.secondary;
  await scripted.start();
  await scripted.fillOverlays();
  pair.primary.host.crash("power");
  host.disk.faults.crashAt(dyingCall, durability);
  const isMerged = (): boolean => pair.secondary.agent?.jobs().some(({ state }) => state === "concluded") === true;
  world.schedule(0, () => void scripted.failOver());
  await world.run({ until: () => !host.alive || isMerged(), forMs: WITHIN_MS });
  if (host.alive) return false;
  await scripted.restartSecondary();
  expect((await scripted.do("the failover", () => scripted.failOver())).kind).toBe("done");
  await scripted.checkPromoted();
  return true;
}

describe("a failover, whose host dies at every storage call", () => {
  it.each<Durability>(["process", "power"])("serves the committed checkpoint: %s", async (durability) => {
    let deaths = 0;
    while (await dieAt(deaths + 1, durability)) deaths += 1;
    expect(deaths).toBeGreaterThan(CALLS_MIN);
  });
});
