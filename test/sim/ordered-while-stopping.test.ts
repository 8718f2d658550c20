import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { Agent } from "../../cli/agent.ts";
import { ScriptedPair } from "./scripted-pair.ts";

const DRAIN_MS = 1_000;
const TIMEOUT_MS = 60_000;
/** From the order to stop on, until after its end. */
const MOMENTS_MS = Array.from({ length: 20 }, (_, index) => index);

const { signal } = new AbortController();
const ORDERS: readonly (readonly [string, (agent: Agent, epoch: number) => Promise<unknown>])[] = [
  [
    "promoted",
    (agent) => agent.failover({ force: true, dryRun: false, discardActive: false, timeoutMs: TIMEOUT_MS }, signal),
  ],
  ["rolled back", (agent, epoch) => agent.rollback({ epoch, timeoutMs: TIMEOUT_MS }, signal)],
  [
    "made to give its checkpoint up",
    (agent) => agent.resync({ giveUpCheckpoint: true, timeoutMs: TIMEOUT_MS }, signal),
  ],
];

/** A secondary without its primary is stopped, and `ms` later it gets an order. Resolves with what that comes to. */
async function orderedAfter(ms: number, order: (agent: Agent, epoch: number) => Promise<unknown>): Promise<string> {
  const scripted = new ScriptedPair(1, "process", { retain: 2, storage: { syncMs: [2, 4] } });
  const { primary, secondary } = scripted.pair;
  await scripted.start();
  await scripted.fillOverlays();
  primary.host.crash("process");
  await scripted.until("the loss", () => secondary.status?.peers[0]?.connection === "Connecting");
  const { agent } = secondary;
  assert(agent !== undefined);
  const { committed } = agent.status().epoch;
  const outcome = await scripted.do("a stop", async () => {
    const stopped = secondary.stop(DRAIN_MS);
    await scripted.world.sleep(ms);
    const ordered = scripted.calls.make(secondary, "order", TIMEOUT_MS, () => order(agent, committed - 1));
    await stopped;
    return ordered;
  });
  secondary.host.crash("process");
  secondary.host.restart();
  assert(await scripted.do("the next start", () => secondary.start()));
  expect(secondary.role, `after ${ms} ms`).toBe("Secondary");
  expect(secondary.agent?.status().epoch.committed, `after ${ms} ms`).toBe(committed);
  return outcome.kind === "failed" ? outcome.error.code : outcome.kind;
}

describe("a secondary that is being stopped", () => {
  it.each(ORDERS)("is not %s behind that", async (_, order) => {
    const outcomes = new Set<string>();
    for (const ms of MOMENTS_MS) outcomes.add(await orderedAfter(ms, order));
    expect([...outcomes]).toEqual(["shutting-down"]);
  });
});
