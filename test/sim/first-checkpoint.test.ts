import { describe, expect, it } from "vitest";
import { ScriptedPair } from "./scripted-pair.ts";
import type { CrashKind } from "./simulated-crash.ts";

/**
 * A secondary that makes its images itself dies at each of its storage calls from its first start to its first
 * checkpoint, starts again, and loses its power once that checkpoint is committed: nothing that the checkpoint stands
 * on may have been left to chance by the process that died first.
 */
const STARTED_WITHIN_MS = 60_000;
/** What a first start takes at least. */
const CALLS_MIN = 20;

/** False when the secondary had its first checkpoint before its `dyingCall`-th storage call. */
async function dieAt(dyingCall: number, kind: CrashKind): Promise<boolean> {
  const scripted = new ScriptedPair(dyingCall, "power", { createImages: true });
  const { world, pair, model } = scripted;
  const { host } = pair.secondary;
  host.disk.faults.crashAt(dyingCall, kind);
  world.schedule(0, () => {
    void pair.secondary.start();
    void pair.primary.start();
  });
  await world.run({ until: () => !host.alive || model.counts.committed > 0, forMs: STARTED_WITHIN_MS });
  if (host.alive) return false;
  await scripted.restartSecondary();
  await scripted.do("the first checkpoint", () => scripted.wait("committed"));
  host.crash("power");
  expect(await scripted.restartSecondary()).toBeGreaterThan(0);
  await scripted.checkRecovery();
  return true;
}

describe("a secondary that dies at every storage call before its first checkpoint", () => {
  it.each<CrashKind>(["process", "power"])("keeps that checkpoint when it loses its power later: %s", async (kind) => {
    let deaths = 0;
    while (await dieAt(deaths + 1, kind)) deaths += 1;
    expect(deaths).toBeGreaterThan(CALLS_MIN);
  });
});
