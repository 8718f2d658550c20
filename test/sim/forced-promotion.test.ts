import { describe, expect, it } from "vitest";
import { urlOf } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

const COMMAND = { timeoutMs: 60_000 } as const;
const FAILOVER = { force: true, dryRun: false, discardActive: false, ...COMMAND } as const;

describe("a secondary that is promoted by force from a state that was outdated", () => {
  it.each([0, 1, 2, 3, 4, 8, 16, 32])(
    "does not supersede a primary that it has heard of, %i ms into their session",
    async (afterMs) => {
      const scripted = new ScriptedPair(1, "power");
      const { world } = scripted;
      const { primary: a, secondary: b } = scripted.pair;
      const reasonOf = ({ agent }: typeof a): string | null | undefined => agent?.status().protection.reason;
      const never = new AbortController().signal;
      await scripted.start();
      a.host.crash("power");
      await scripted.do("the failover to B", async () => {
        await b.agent?.failover(FAILOVER, never);
        await b.agent?.wait({ condition: "merged", ...COMMAND }, never);
      });
      expect((await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes", { by: b }))).kind).toBe(
        "done",
      );
      a.host.restart();
      expect(await scripted.do("the start of A", () => a.start())).toBe(true);
      await scripted.until("A to be outdated", () => reasonOf(a) === "outdated");

      await scripted.do("a rejoin that is cut off in its sync", async () => {
        a.agent?.rejoin({ peer: urlOf("b"), ...COMMAND }, never).catch(() => undefined); // it ends as it may
        await scripted.until("the session", () => a.agent?.status().peers[0]?.connection === "Connected");
        await world.sleep(afterMs);
        world.network.partition("a", "b", true);
        await a.agent?.failover(FAILOVER, never);
      });
      world.network.partition("a", "b", false);
      await scripted.until("the verdict", () => [a, b].every((side) => reasonOf(side) !== "connecting"));
      expect([reasonOf(a), reasonOf(b)]).toEqual(["split-brain", "split-brain"]);
    },
  );
});
