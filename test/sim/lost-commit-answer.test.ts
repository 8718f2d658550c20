import { describe, expect, it } from "vitest";
import { decodeMessage } from "../../proto/replication-messages.ts";
import { ScriptedPair } from "./scripted-pair.ts";

const LATER_MS = 60_000;

/** The link ends in place of the answer to the next commit; the answer before it is the barrier's. */
function loseCommitAnswer({ world }: ScriptedPair): void {
  let answers = 0;
  world.network.intercept = (_, data) => {
    if (decodeMessage(data).type !== "answer") return "deliver";
    answers += 1;
    return answers === 2 ? "cut" : "deliver";
  };
}

describe("a commit whose answer was lost", () => {
  it("has an age on the primary as well, once the two have met again", async () => {
    const scripted = new ScriptedPair(1, "process");
    const { world, pair } = scripted;
    loseCommitAnswer(scripted);
    await scripted.start();
    await scripted.do("a long time", async () => {
      await new Promise<void>((resolve) => {
        world.schedule(LATER_MS, resolve);
      });
    });
    const [here, there] = [pair.primary, pair.secondary].map(({ agent }) => agent?.status());
    expect(there?.epoch.committed).toBe(1);
    expect(here?.recoverable?.epoch).toBe(1);
    expect(here?.recoverable?.ageMs).toBeGreaterThanOrEqual(LATER_MS);
  });

  it("has saved its writes for the primary as well", async () => {
    const scripted = new ScriptedPair(2, "process");
    const { pair } = scripted;
    await scripted.start();
    loseCommitAnswer(scripted);
    await scripted.do("a checkpoint", async () => {
      await scripted.guestWrite(0, 0, 4096, "bytes");
      expect(await scripted.checkpoint()).toBe(false);
      await scripted.wait("synced");
    });
    const [here, there] = [pair.primary, pair.secondary].map(({ agent }) => agent?.status());
    expect(here?.recoverable?.epoch).toBe(there?.epoch.committed);
    expect(here?.recoverable?.wouldLose).toMatchObject({ writes: 0, bytes: 0 });
  });
});
