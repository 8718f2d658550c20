import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * A secondary that takes too long is left behind within its session (`--on-congestion detach`): the primary goes on in a
 * history of its own, and brings it that. A checkpoint that was prepared before is committed in the middle of this sync.
 */
const WINDOW_BYTES = 8 * 4096;
const COMMAND = { timeoutMs: 60_000 } as const;

async function committedInSync(): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(1, "power", {
    disks: [{ name: "vda", sizeBytes: 128 * 4096 }],
    onCongestion: "detach",
    windowBytes: WINDOW_BYTES,
    storage: { syncMs: [40, 60] },
    primaryStorage: { syncMs: [0.1, 1] },
  });
  const { primary, secondary } = scripted.pair;
  await scripted.start();
  const before = primary.agent?.status().lineage;
  const epoch = await scripted.do("a barrier", () => scripted.prepare());
  assert(epoch !== undefined);
  await scripted.do("more than the window holds", async () => {
    for (let offset = 0; offset < 96 * 4096; offset += 4096) await scripted.guestWrite(0, offset, 4096, "bytes");
  });
  await scripted.until("the sync", () => secondary.agent?.status().peers[0]?.replication === "SyncTarget");
  expect(primary.agent?.status().lineage).not.toBe(before);
  const outcome = await scripted.do("the commit", () => scripted.decisionOutcome("commit", epoch));
  expect(outcome.kind).toBe("done");
  expect(secondary.agent?.status()).toMatchObject({
    epoch: { committed: epoch },
    peers: [{ replication: "SyncTarget" }],
  });
  return scripted;
}

describe("a checkpoint that is committed in the middle of a later sync", () => {
  it("does not have the secondary forget whose history that sync brings: once promoted, it supersedes it", async () => {
    const scripted = await committedInSync();
    const { primary, secondary } = scripted.pair;
    primary.host.crash("process");
    await scripted.until("the loss", () => secondary.agent?.status().peers[0]?.connection !== "Connected");
    await scripted.do("the failover", async () => {
      const request = { force: false, dryRun: false, discardActive: false, ...COMMAND };
      await secondary.agent?.failover(request, new AbortController().signal);
    });
    primary.host.restart();
    assert(await scripted.do("the former primary", () => primary.start()));
    const told = (): string | null | undefined => primary.agent?.status().protection.reason;
    await scripted.until("the two to have met", () => ["outdated", "split-brain"].includes(told() ?? ""));
    expect(told()).toBe("outdated");
  });
});
