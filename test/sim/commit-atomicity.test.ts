import { describe, expect, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * All disks of a VM commit together: a checkpoint over two disks is prepared and committed, and the secondary dies at
 * each of its storage calls on the way, and at each of those that free what the commit has dropped. Whenever that is,
 * both disks show the same checkpoint afterwards, the one that was answered if one was, and the pair goes on.
 */
const SEEDS = [1, 2];
const WITHIN_MS = 60_000;
/** An answered checkpoint leaves overlays to be freed behind it: death may come there too. */
const FREED_WITHIN_MS = 50;
/** What a checkpoint of these disks takes at least. */
const CALLS_MIN = 30;

/** Lives until the secondary dies at its `dyingCall`-th storage call after the checkpoint began; false when it outlived that. */
async function dieAt(seed: number, dyingCall: number, durability: Durability): Promise<boolean> {
  const scripted = new ScriptedPair(seed, durability);
  const { world, pair, model } = scripted;
  await scripted.start();
  await scripted.fillOverlays();
  const before = model.committed;
  const { host } = pair.secondary;
  host.disk.faults.crashAt(dyingCall, durability);
  let answered = false;
  world.schedule(0, () => {
    void scripted.checkpoint().then((done) => {
      answered = done;
    });
  });
  await world.run({ until: () => !host.alive || answered, forMs: WITHIN_MS });
  if (host.alive) await world.run({ until: () => !host.alive, forMs: FREED_WITHIN_MS });
  if (host.alive) return false;
  const committed = await scripted.restartSecondary();
  expect(answered ? [before + 1] : [before, before + 1]).toContain(committed);
  await scripted.checkRecovery();
  return true;
}

describe("a checkpoint of two disks, whose secondary dies at every storage call", () => {
  it.each<Durability>(["process", "power"])("is committed on both disks, or on none: %s", async (durability) => {
    let deaths = 0;
    for (const seed of SEEDS) {
      for (let call = 1; await dieAt(seed, call, durability); call += 1) deaths += 1;
    }
    expect(deaths).toBeGreaterThan(SEEDS.length * CALLS_MIN);
  });
});
