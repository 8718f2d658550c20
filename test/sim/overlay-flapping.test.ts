import { describe, expect, it } from "vitest";
import type { AgentEvent } from "../../proto/status.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * A secondary whose limit is too small for what its primary's guest overwrites between a checkpoint and the next one's
 * commit: each commit makes room, and what comes then fills it at once.
 */
const CLUSTER = 4096;
const DISK = { name: "vda", sizeBytes: 64 * CLUSTER };
const LIMIT_BYTES = 26 * CLUSTER;
const BUSY_MS = 300_000;
const STEP_MS = 50;
const REQUEST = { timeoutMs: 2_000 } as const;

describe("overlays that are full again as soon as there is room", () => {
  it("are left alone for longer each time, and taken up again when the guest has calmed down", async () => {
    const scripted = new ScriptedPair(1, "power", { disks: [DISK], overlayLimitBytes: LIMIT_BYTES });
    await scripted.start();
    const { primary, secondary } = scripted.pair;
    const { signal } = new AbortController();
    const events: AgentEvent[] = [];
    secondary.agent?.follow((event) => events.push(event));
    const count = (type: AgentEvent["type"]): number => events.filter((event) => event.type === type).length;
    const write = (clusters: number): Promise<unknown> => scripted.guestWrite(0, 0, clusters * CLUSTER, "bytes");
    const ask = (what: Promise<unknown> | undefined): Promise<unknown> => Promise.resolve(what).catch(() => undefined);
    await scripted.do("a busy guest, and an operator", async () => {
      const untilMs = scripted.world.nowMs + BUSY_MS;
      while (scripted.world.nowMs < untilMs) {
        const status = secondary.agent?.status();
        const epoch = status?.epoch.prepared.at(-1);
        if (status?.protection.reason === "overlay-full") {
          if (epoch !== undefined) await ask(primary.agent?.commit({ epoch, ...REQUEST }, signal));
        } else if (primary.agent?.status().peers[0]?.replication === "Established") {
          await write(14);
          await ask(primary.agent.checkpoint({ prepare: true, ...REQUEST }, signal));
          await write(16);
        }
        await scripted.world.sleep(STEP_MS);
      }
    });
    const full = count("overlay-full");
    expect(full).toBeGreaterThan(5);
    expect(full).toBeLessThan(20);
    expect(count("protection-changed")).toBeLessThan(100);
    await scripted.checkRecovery();
  });
});
