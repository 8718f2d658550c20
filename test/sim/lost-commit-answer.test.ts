import { describe, expect, it } from "vitest";
import type { AgentEvent } from "../../proto/status.ts";
import { decodeMessage } from "../../proto/replication-messages.ts";
import type { PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

const LATER_MS = 60_000;

/** The link ends in place of the answer to the next barrier, which commits as well. */
function loseCommitAnswer({ world }: ScriptedPair): void {
  let isLost = false;
  world.network.intercept = (_, data) => {
    if (isLost || decodeMessage(data).type !== "answer") return "deliver";
    isLost = true;
    return "cut";
  };
}

/** The epochs of the events of a type that a side tells from now on. */
function epochsOf(member: PairMember, type: AgentEvent["type"]): number[] {
  const epochs: number[] = [];
  member.agent?.follow((event) => {
    if (event.type === type) epochs.push(Number(event.data.epoch));
  });
  return epochs;
}

describe("a commit whose answer was lost", () => {
  it("has an age on the primary as well, once the two have met again", async () => {
    const scripted = new ScriptedPair(1, "process");
    const { world, pair } = scripted;
    loseCommitAnswer(scripted);
    await scripted.start();
    await scripted.do("a long time", () => world.sleep(LATER_MS));
    const [here, there] = [pair.primary, pair.secondary].map(({ agent }) => agent?.status());
    expect(there?.epoch.committed).toBe(1);
    expect(here?.recoverable?.epoch).toBe(1);
    expect(here?.recoverable?.ageMs).toBeGreaterThanOrEqual(LATER_MS);
    expect(here?.recoverable?.wouldLose.atLeast).toBe(false);
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
    expect(here?.recoverable?.wouldLose).toEqual({ writes: 0, bytes: 0, atLeast: false });
  });

  it("is an event of the primary as well, once", async () => {
    const scripted = new ScriptedPair(3, "process");
    const { pair, world } = scripted;
    await scripted.start();
    const here = epochsOf(pair.primary, "checkpoint-committed");
    const there = epochsOf(pair.secondary, "checkpoint-committed");
    const unknown = epochsOf(pair.primary, "checkpoint-failed");
    loseCommitAnswer(scripted);
    const asked = pair.primary.agent?.status().epoch.open;
    await scripted.do("a checkpoint", async () => {
      expect(await scripted.checkpoint()).toBe(false);
      await scripted.wait("synced");
    });
    expect(unknown).toEqual([asked]);
    expect(here).toEqual([asked]);
    // A later handshake has nothing new to tell.
    await scripted.do("another session", async () => {
      const again = epochsOf(pair.primary, "sync-finished");
      world.network.cut("a", "b");
      await scripted.until("another session", () => again.length > 0);
    });
    expect(here).toEqual([asked]);
    expect(there).toEqual([asked]);
  });

  it("is no event of a primary that has started since: nobody there has asked for it", async () => {
    const scripted = new ScriptedPair(4, "process");
    const { pair } = scripted;
    await scripted.start();
    loseCommitAnswer(scripted);
    await scripted.do("a checkpoint", () => scripted.checkpoint());
    pair.primary.host.crash("process");
    pair.primary.host.restart();
    await scripted.do("the start of the primary", () => pair.primary.start());
    const told = epochsOf(pair.primary, "checkpoint-committed");
    await scripted.do("the handshake", () => scripted.wait("synced"));
    const [here, there] = [pair.primary, pair.secondary].map(({ agent }) => agent?.status());
    expect(here?.epoch.committed).toBe(there?.epoch.committed);
    expect(told).toEqual([]);
  });
});
