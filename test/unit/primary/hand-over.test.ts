import { describe, expect, it } from "vitest";
import { GuestPolicy } from "../../../primary/guest-policy.ts";
import { handOver, type HandOverContext } from "../../../primary/hand-over.ts";
import type { SourceSession } from "../../../primary/source-session.ts";
import { ColobusError } from "../../../proto/errors.ts";
import type { StateRecord } from "../../../proto/state-record.ts";
import { Deadline } from "../../../shared/host/deadline.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { MemoryStorage } from "../../support/memory-storage.ts";
import { SilentLog } from "../../support/silent-log.ts";
import { stateRecord } from "../../support/state-records.ts";

const PEER = "b".repeat(32);
const TIMEOUT_MS = 60_000;

class Scene {
  readonly guests: GuestPolicy;
  readonly state: StateFile;
  asked = 0;
  /** What happens while the checkpoint is taken, and while it is recorded whom the role goes to. */
  checkpoint: () => void = () => undefined;
  recording: () => void = () => undefined;

  private constructor(state: StateFile) {
    this.state = state;
    this.guests = new GuestPolicy({
      state,
      mayHaveHadPeer: false,
      mayBeSuperseded: false,
      splitBrain: () => undefined,
      log: new SilentLog(),
      emit: () => undefined,
    });
  }

  static async open(): Promise<Scene> {
    const storage = new MemoryStorage();
    storage.makeDirectory("/state");
    const created = await StateFile.create(storage, "/state", stateRecord({ role: "Primary" }));
    return new Scene(created);
  }

  async handOver(): Promise<void> {
    const session: Partial<SourceSession> = {
      peer: { agentId: PEER } as SourceSession["peer"],
      request: () => {
        this.asked += 1;
        return Promise.resolve(0);
      },
    };
    const { state } = this;
    const recorded = {
      get record(): StateRecord {
        return state.record;
      },
      update: (change: (record: StateRecord) => StateRecord) => {
        const updated = state.update(change);
        this.recording();
        return updated;
      },
    };
    const deadline = new Deadline(new ManualClock(), TIMEOUT_MS, new AbortController().signal);
    const context: HandOverContext = {
      state: recorded as StateFile,
      session: session as SourceSession,
      guests: this.guests,
      disks: [],
      deadline,
      siblings: [],
      arbiter: undefined,
      assertSynced: () => undefined,
      checkpoint: () => Promise.resolve(this.checkpoint()),
      letGo: () => Promise.resolve(),
      assertInSync: () => undefined,
    };
    try {
      await handOver(context, "1".repeat(32));
    } finally {
      deadline.end();
    }
  }
}

describe("a primary that hands its role over", () => {
  it("holds its guests, records whom the role goes to, and asks", async () => {
    const scene = await Scene.open();
    await scene.handOver();
    expect(scene.asked).toBe(1);
    expect(scene.state.record.handOver).toBe(PEER);
    expect(scene.guests.isHeld).toBe(true);
  });

  it.each(["checkpoint", "recording"] as const)(
    "asks nobody when guests were let go on during the %s",
    async (moment) => {
      const scene = await Scene.open();
      scene[moment] = () => scene.guests.release();
      await expect(scene.handOver()).rejects.toMatchObject({ code: "not-in-sync" });
      expect(scene.asked).toBe(0);
      expect(scene.state.record.handOver).toBeNull();
      expect(scene.guests.gate.state).toBe("open");
    },
  );

  it("leaves guests frozen that were, when it fails", async () => {
    const scene = await Scene.open();
    scene.guests.freeze(new ColobusError("quorum-failure", "two copies differ", "Look at them."));
    scene.checkpoint = () => {
      throw new ColobusError("timed-out", "no checkpoint");
    };
    await expect(scene.handOver()).rejects.toMatchObject({ code: "timed-out" });
    expect(scene.guests.gate.state).toBe("frozen");
  });

  it("asks nobody once its guests are refused", async () => {
    const scene = await Scene.open();
    scene.recording = () => scene.guests.leave();
    await expect(scene.handOver()).rejects.toMatchObject({ code: "shutting-down" });
    expect(scene.asked).toBe(0);
    expect(scene.state.record.handOver).toBeNull();
  });
});
