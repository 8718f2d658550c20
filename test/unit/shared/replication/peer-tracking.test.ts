import { describe, expect, it } from "vitest";
import { StateFile } from "../../../../shared/journal/state-file.ts";
import { PeerTracking } from "../../../../shared/replication/peer-tracking.ts";
import type { MemoryStorage } from "../../../support/memory-storage.ts";
import { trackingOptions, STATE_DIRECTORY } from "../../../support/replica-bench.ts";
import { seededStorage } from "../../../support/overlay-bench.ts";
import { stateRecord } from "../../../support/state-records.ts";

const SIZE = 40 * 4096;
const FORMER = "f".repeat(32);
const NEXT = "e".repeat(32);

async function tracking(): Promise<{ storage: MemoryStorage; state: StateFile; tracking: PeerTracking }> {
  const storage = seededStorage(1);
  storage.disk.addDirectory(STATE_DIRECTORY);
  for (const name of ["vda", "vdb"]) storage.disk.addDirectory(`${STATE_DIRECTORY}/disks/${name}`);
  const disks = ["vda", "vdb"].map((name) => ({ name, image: `/images/${name}`, sizeBytes: SIZE, cleanMark: null }));
  const record = stateRecord({ role: "Primary", durability: "power", disks });
  const state = await StateFile.create(storage, STATE_DIRECTORY, record);
  const found = PeerTracking.open(trackingOptions(storage, state));
  await found.begin(FORMER, "full");
  return { storage, state, tracking: found };
}

describe("what is known of a peer's copy", () => {
  it("is all of the next one's that it lacks, however early that one comes", async () => {
    const { state, tracking: found } = await tracking();
    const forgetting = found.forget();
    await Promise.all([forgetting, found.begin(NEXT, "full")]);
    expect([found.peer, state.record.tracks, found.bytes]).toEqual([NEXT, NEXT, 2 * SIZE]);
    await found.close();
  });

  it("is nothing once it is forgotten, however late its own beginning ends", async () => {
    const { state, tracking: found } = await tracking();
    const beginning = found.begin(FORMER, "full");
    await Promise.all([beginning, found.forget()]);
    expect([found.peer, state.record.tracks, found.isClean]).toEqual([null, null, true]);
    await found.close();
  });

  it("stays when that it is forgotten cannot be recorded", async () => {
    const { storage, state, tracking: found } = await tracking();
    storage.disk.faults.inject({ error: "io-error", op: "sync", path: `${STATE_DIRECTORY}/state` });
    await expect(found.forget()).rejects.toMatchObject({ code: "io-error" });
    expect([found.peer, state.record.tracks, found.bytes]).toEqual([FORMER, FORMER, 2 * SIZE]);
    await found.close();
  });
});
