import { describe, expect, it } from "vitest";
import { LineageKeeper } from "../../../primary/lineage-keeper.ts";
import type { PermitKeeper } from "../../../primary/permit-keeper.ts";
import type { SourceSession } from "../../../primary/source-session.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { knownBy } from "../../../shared/replication/lineage.ts";
import { SeededRandom } from "../../sim/seeded-random.ts";
import { SimRandom } from "../../sim/sim-random.ts";
import { MemoryStorage } from "../../support/memory-storage.ts";
import { stateRecord } from "../../support/state-records.ts";

const PEER = "b".repeat(32);
const FIRST = "1".repeat(32);

interface Scene {
  readonly state: StateFile;
  readonly lineages: LineageKeeper;
}

/** A primary that no peer is connected to. */
async function primaryKnownBy(peers: readonly string[], keeper?: PermitKeeper): Promise<Scene> {
  const storage = new MemoryStorage();
  storage.makeDirectory("/state");
  const state = await StateFile.create(
    storage,
    "/state",
    stateRecord({
      role: "Primary",
      lineage: FIRST,
      pairing: { peer: PEER, sessions: [] },
      history: { origin: "created", shared: peers.length > 0, knownBy: [...peers], ancestors: [], heard: [] },
    }),
  );
  const lineages = new LineageKeeper({
    state,
    random: new SimRandom(new SeededRandom(1)),
    emit: () => undefined,
    assertServing: () => undefined,
    streaming: () => new Map<string, SourceSession>(),
    keeper: () => keeper,
  });
  return { state, lineages };
}

describe("a write that goes on alone just as the secondary is to hear of the lineage", () => {
  it("begins a new one first where that secondary knows the present one already", async () => {
    const { state, lineages } = await primaryKnownBy([PEER]);
    const alone = lineages.parted();
    let told: string | null = null;
    const sharing = lineages.share(PEER, () => {
      told = state.record.lineage;
    });
    await alone;
    expect(state.record.lineage).not.toBe(FIRST);
    await sharing;
    expect(told).toBe(state.record.lineage);
    expect(knownBy(state.record)).toEqual([PEER]);
  });

  it("begins a new one first also when it comes while that is being recorded", async () => {
    const { state, lineages } = await primaryKnownBy([PEER]);
    let told: string | null = null;
    const sharing = lineages.share(PEER, () => {
      told = state.record.lineage;
    });
    await Promise.resolve();
    await lineages.parted();
    expect(state.record.lineage).not.toBe(FIRST);
    await sharing;
    expect(told).toBe(state.record.lineage);
  });

  it("goes on under the present one where that secondary has not heard of it", async () => {
    const { state, lineages } = await primaryKnownBy([]);
    const sharing = lineages.share(PEER, () => undefined);
    await lineages.parted();
    await sharing;
    expect(state.record.lineage).toBe(FIRST);
    expect(knownBy(state.record)).toEqual([PEER]);
  });

  it("asks no arbiter for one that is nobody else's: it has parted from whoever takes over", async () => {
    const asked: string[] = [];
    const keeper = {
      mayBegin: (lineage: string, isNeeded: () => boolean) => (isNeeded() ? void asked.push(lineage) : undefined),
      hasBegun: () => undefined,
    } as unknown as PermitKeeper;
    const { state, lineages } = await primaryKnownBy([PEER], keeper);
    await lineages.parted();
    expect(state.record.lineage).not.toBe(FIRST);
    expect(asked).toEqual([]);
  });
});
