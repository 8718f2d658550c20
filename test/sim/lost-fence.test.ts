import { describe, expect, it } from "vitest";
import { ScriptedPair } from "./scripted-pair.ts";

describe("a secondary of a shared disk", () => {
  it("is not promoted when a reload takes its fence hook away before that has run", async () => {
    const fenced: string[] = [];
    const scripted = new ScriptedPair(1, "power", {
      mode: "shared",
      isMarked: true,
      fence: ({ name }) => {
        fenced.push(name);
        return Promise.resolve();
      },
    });
    const { primary, secondary } = scripted.pair;
    await scripted.start();
    // Its lock on the disk goes with it, as one that another host does not see.
    primary.host.crash("process");
    await scripted.until("the loss", () => secondary.agent?.status().peers[0]?.connection === "Connecting");
    const outcome = await scripted.do("a failover", () => {
      const failing = scripted.failOver();
      secondary.loseFence();
      return failing;
    });
    expect(outcome).toMatchObject({ kind: "failed", error: { code: "fence-failed" } });
    expect(secondary.agent?.role).toBe("Secondary");
    expect(fenced).toEqual([]);
  });
});
