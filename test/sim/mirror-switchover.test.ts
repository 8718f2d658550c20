import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { mirrorTo } from "./mirror-request.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * The role of the primary is handed over while one of its mirrors is being cancelled, which cannot be recorded at once. That is
 * the mirror's end and nobody else's: the side leaves its disks in good order, and lets go of every target.
 */
const TIMEOUT_MS = 60_000;
const TARGETS = ["/images/first.img", "/images/second.img"] as const;

describe("a switchover while a mirror is being cancelled", () => {
  it("keeps the state that this side leaves, and closes all other mirrors", async () => {
    const scripted = new ScriptedPair(1, "power");
    await scripted.start();
    const { primary, secondary } = scripted.pair;
    const { agent } = primary;
    assert(agent !== undefined);
    await scripted.do("the mirrors", async () => {
      for (const target of TARGETS) await agent.mirror(mirrorTo(target), new AbortController().signal);
    });
    const mirrors = (): string[] => agent.jobs().flatMap(({ type, state }) => (type === "mirror" ? [state] : []));
    await scripted.until("both mirrors to be ready", () => mirrors().every((state) => state === "ready"));
    const first = agent.jobs().find(({ target }) => target === TARGETS[0]);
    assert(first !== undefined);
    const before = agent.status().epoch.committed;

    primary.host.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
    await scripted.do("the switchover", async () => {
      await agent.job(first.id, "cancel", { force: true });
      expect(mirrors()).toEqual(["aborting", "ready"]);
      await agent.switchover({ closeClients: false, timeoutMs: TIMEOUT_MS }, new AbortController().signal);
    });
    await scripted.until("the new role", () => agent.status().role === "Secondary");
    expect(agent.status().epoch.committed).toBeGreaterThan(before);
    expect(secondary.agent?.status().role).toBe("Primary");
    for (const target of TARGETS) {
      expect(primary.host.disk.file(target).locks.size, `${target} is locked`).toBe(0);
    }
  });
});
