import { describe, expect, it } from "vitest";
import { decodeMessage } from "../../proto/replication-messages.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { ScriptedTrio } from "./scripted-trio.ts";
import type { StorageProfile } from "./sim-disk.ts";

/** Agents that dial each other, as a failover and a rejoin leave them: there is one session, however long its records take. */

/** What a handshake has to be recorded by, a sync, and a checkpoint. */
const SETTLED_AFTER_SYNCS = 60;
const DIAL_PAUSES_MS = 10_000;

function slow(syncMs: number): { readonly storage: Partial<StorageProfile> } {
  return { storage: { syncMs: [syncMs, syncMs], stallProbability: 0 } };
}

function isFollowedBy(primary: PairMember, count: number): boolean {
  const followed = primary.status?.peers.filter(({ replication }) => replication === "Established");
  return followed?.length === count;
}

describe.each([5, 150, 300, 1_000])("with fsyncs of %i ms", (syncMs) => {
  const withinMs = DIAL_PAUSES_MS + SETTLED_AFTER_SYNCS * syncMs;

  it.each([1, 2, 3])("two agents that dial each other come to one session, which lasts: seed %i", async (seed) => {
    const scripted = new ScriptedPair(seed, "power", slow(syncMs));
    const { world, pair } = scripted;
    pair.secondary.reconfigure({ peers: [urlOf("a")] });
    let opened = 0;
    world.network.intercept = ({ process }, data) => {
      if (process.host.name === "a" && decodeMessage(data).type === "seal") opened += 1;
      return "deliver";
    };
    for (const member of [pair.secondary, pair.primary]) await scripted.do("a start", () => member.start());
    const isInSync = (): boolean => isFollowedBy(pair.primary, 1);
    await world.runUntil("the stream", isInSync, withinMs);
    await world.run({ forMs: 20_000, until: () => !isInSync() });
    expect(isInSync()).toBe(true);
    world.network.cut("a", "b");
    await world.runUntil("the loss", () => !isInSync(), 1_000);
    await world.runUntil("the stream", isInSync, withinMs);
    // Both may dial at once, before either knows of the other's link.
    expect(opened).toBeLessThanOrEqual(2 * 2);
    await scripted.checkRecovery();
  });

  it("two secondaries that dial their primary, which dials them, come to one session each", async () => {
    const trio = new ScriptedTrio("colo", slow(syncMs));
    for (const member of [trio.b, trio.c]) member.reconfigure({ peers: [urlOf("a")] });
    for (const member of [trio.b, trio.c, trio.a]) await trio.do("a start", () => member.start());
    const areInSync = (): boolean => isFollowedBy(trio.a, 2);
    await trio.world.runUntil("both streams", areInSync, withinMs);
    await trio.world.run({ forMs: 20_000, until: () => !areInSync() });
    expect(areInSync()).toBe(true);
  });
});

it("a link that hangs while its session opens keeps two that dial each other apart for no longer than the peer timeout", async () => {
  const scripted = new ScriptedPair(1, "power", slow(300));
  const { world, pair } = scripted;
  pair.secondary.reconfigure({ peers: [urlOf("a")] });
  for (const member of [pair.secondary, pair.primary]) await scripted.do("a start", () => member.start());
  await world.runUntil("the handshake", () => pair.primary.status?.peers[0]?.agentId !== null, 5_000);
  expect(isFollowedBy(pair.primary, 1)).toBe(false);
  world.network.cut("a", "b", "nobody");
  await world.runUntil("the stream", () => isFollowedBy(pair.primary, 1), 5_000 + DIAL_PAUSES_MS + 60 * 300);
});
