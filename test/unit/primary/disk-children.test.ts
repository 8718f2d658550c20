import { describe, expect, it } from "vitest";
import { DiskChildren } from "../../../primary/disk-children.ts";
import { GuestGate } from "../../../primary/guest-gate.ts";
import { newChild, newLocalChild } from "../../../primary/recorded-quorum.ts";
import { ReplicatedDisk } from "../../../primary/replicated-disk.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { clusterGeometry } from "../../../shared/block/cluster-geometry.ts";
import { JobList } from "../../../shared/jobs/job-list.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { SeededRandom } from "../../sim/seeded-random.ts";
import { SimRandom } from "../../sim/sim-random.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { MemoryImage } from "../../support/memory-image.ts";
import { MemoryStorage, turn } from "../../support/memory-storage.ts";
import { SilentLog } from "../../support/silent-log.ts";
import { stateRecord } from "../../support/state-records.ts";

const CLUSTER = 4096;
const GEOMETRY = clusterGeometry(8 * CLUSTER, CLUSTER);
const POLICY = { voteThreshold: 1, readPattern: "fifo", rewriteCorrupted: false, blkverify: false } as const;
const DIRECTORY = "/state";

/** A disk with a copy `b` beside its image, which lacks everything to begin with, and what is recorded of them. */
class ChildrenBench {
  readonly storage: MemoryStorage;
  readonly clock = new ManualClock();
  readonly local = new MemoryImage(GEOMETRY.sizeBytes);
  readonly image = new MemoryImage(GEOMETRY.sizeBytes);
  readonly state: StateFile;
  readonly children: DiskChildren;
  readonly disk: ReplicatedDisk;

  private constructor(storage: MemoryStorage, state: StateFile) {
    this.storage = storage;
    this.state = state;
    this.children = new DiskChildren({
      storage,
      clock: this.clock,
      random: new SimRandom(new SeededRandom(1)),
      log: new SilentLog(),
      state,
      jobs: new JobList(this.clock, () => undefined),
      emit: () => undefined,
      stateDirectory: DIRECTORY,
      extentBytes: CLUSTER,
      settleEveryMs: 1_000,
      dirtyFileMinBytes: undefined,
      timeoutMs: 1_000,
      speed: 0,
      policy: POLICY,
      open: () => this.image,
      measure: () => Promise.resolve(GEOMETRY.sizeBytes),
      localMended: () => undefined,
      disk: "vda",
      local: this.local,
      geometry: GEOMETRY,
      freeze: () => undefined,
    });
    this.disk = new ReplicatedDisk("vda", this.children.child, new GuestGate(), {
      mark: () => undefined,
      forward: () => undefined,
      room: () => undefined,
      flush: () => undefined,
      failed: () => undefined,
      refused: () => undefined,
    });
    this.children.start(this.disk);
  }

  static async begin(): Promise<ChildrenBench> {
    const storage = new MemoryStorage();
    storage.makeDirectory(DIRECTORY);
    const quorum = { ...POLICY, children: [newLocalChild(), newChild("b", "/b.img")] };
    const disk = { name: "vda", image: "/a.img", sizeBytes: GEOMETRY.sizeBytes, cleanMark: null, quorum };
    return new ChildrenBench(
      storage,
      await StateFile.create(storage, DIRECTORY, stateRecord({ role: "Primary", disks: [disk] })),
    );
  }

  get recorded(): boolean | undefined {
    return this.state.record.disks[0]?.quorum?.children[1]?.sound;
  }

  async until(what: () => boolean): Promise<void> {
    for (let turns = 0; !what(); turns += 1) {
      if (turns > 10_000) throw new RangeError("it never comes to that");
      this.clock.advance(1);
      await turn();
    }
  }
}

describe("the copies of a disk", () => {
  it("acknowledges no write that a copy misses while that copy is being recorded as sound", async () => {
    const bench = await ChildrenBench.begin();
    // Which update it is that calls the copy sound shows in what it has written.
    let resume: (() => void) | undefined;
    bench.storage.hold = (op, path) => {
      const lacksNothing = bench.children.describe()[1]?.dirtyBytes === 0;
      if (resume !== undefined || op !== "sync" || !path.startsWith(`${DIRECTORY}/state`) || !lacksNothing) return;
      return new Promise((resolve) => {
        resume = resolve;
      });
    };
    await bench.until(() => resume !== undefined);
    expect(bench.recorded).toBe(false);
    bench.image.gate = () => {
      throw new ColobusError("io-error", "the device is broken");
    };
    let isDone = false;
    const writing = Promise.resolve(bench.disk.write(Buffer.from("abc"), 0, { fua: false })).then(() => {
      isDone = true;
    });
    for (let turns = 0; turns < 20; turns += 1) await turn();
    expect(bench.children.describe().map(({ state }) => state)).toEqual(["sound", "broken"]);
    expect(isDone).toBe(false);
    resume?.();
    await writing;
    expect(bench.recorded).toBe(false);
    expect(bench.local.bytes.toString("latin1", 0, 3)).toBe("abc");
  });
});
