import { describe, expect, it } from "vitest";
import {
  NOTHING_SET,
  syncSettingsOf,
  withMergeSettings,
  withSyncSettings,
} from "../../../../shared/journal/operator-settings.ts";
import { demoted, peerGivenUp } from "../../../../shared/replication/lineage.ts";
import { stateRecord } from "../../../support/state-records.ts";

const PAUSED = { isPaused: true };
const PAIRING = { peer: "b".repeat(32), sessions: [] };

describe("what an operator has set, in a state record", () => {
  it("is about one slot, and leaves nothing behind", () => {
    const record = stateRecord({ role: "Primary" });
    const one = withSyncSettings(record, 0, PAUSED);
    const both = withSyncSettings(one, 2, { speed: 100, isPaused: false });
    expect([0, 1, 2].map((slot) => syncSettingsOf(both, slot))).toEqual([
      PAUSED,
      NOTHING_SET,
      { speed: 100, isPaused: false },
    ]);
    expect(withSyncSettings(withSyncSettings(both, 0, NOTHING_SET), 2, NOTHING_SET)).toEqual(record);
  });

  it("goes with the secondary that is given up, and with the role", () => {
    const record = stateRecord({
      role: "Primary",
      pairing: PAIRING,
      tracks: PAIRING.peer,
      otherPeers: [{ slot: 1, pairing: { peer: "c".repeat(32), sessions: [] }, tracks: null, committed: 0 }],
      syncs: [
        { slot: 0, isPaused: true },
        { slot: 1, isPaused: true },
      ],
    });
    expect(peerGivenUp(record, 1).syncs).toEqual([{ slot: 0, isPaused: true }]);
    expect(peerGivenUp(record, 0).syncs).toEqual([{ slot: 1, isPaused: true }]);
    expect(demoted(record, { epoch: 1, atMs: 0 }, false)).not.toHaveProperty("syncs");
  });

  it("is nothing to a merge that is done", () => {
    const merging = stateRecord({ role: "Primary", merge: { epoch: 6, activeEpoch: 7 } });
    const paused = withMergeSettings(merging, PAUSED);
    expect(paused.merge).toEqual({ epoch: 6, activeEpoch: 7, settings: PAUSED });
    expect(withMergeSettings(paused, NOTHING_SET)).toEqual(merging);
    expect(withMergeSettings({ ...paused, merge: null }, PAUSED).merge).toBeNull();
  });
});
