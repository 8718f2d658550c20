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
  readonly other = new MemoryImage(GEOMETRY.sizeBytes);
  readonly state: StateFile;
  readonly children: DiskChildren;
  readonly disk: ReplicatedDisk;
  /** Why the copy cannot be opened, the next time that somebody tries. */
  unopened: ColobusError | undefined;

  private constructor(storage: MemoryStorage, state: StateFile, unopened?: ColobusError) {
    this.storage = storage;
    this.state = state;
    this.unopened = unopened;
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
      open: (_disk, { image }) => {
        const { unopened } = this;
        this.unopened = undefined;
        if (unopened !== undefined) throw unopened;
        return image === "/b.img" ? this.image : this.other;
      },
      measure: () => Promise.resolve(GEOMETRY.sizeBytes),
      release: () => undefined,
      localMended: () => undefined,
      disk: "vda",
      local: this.local,
      geometry: { ...GEOMETRY },
      freeze: () => undefined,
    });
    this.disk = new ReplicatedDisk("vda", GEOMETRY, this.children.child, new GuestGate(), {
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

  /** The agent is stopped in good order, and started again. */
  async restart(unopened?: ColobusError): Promise<ChildrenBench> {
    await this.children.stop(new ColobusError("shutting-down", "the agent is being stopped"));
    await this.children.close();
    return new ChildrenBench(this.storage, this.state, unopened);
  }

  get recorded(): boolean | undefined {
    return this.state.record.disks[0]?.quorum?.children[1]?.sound;
  }

  /** As status has them: name, state, and what each lacks. */
  get copies(): [string, string, number | undefined][] {
    return this.children.describe().map(({ name, state, dirtyBytes }) => [name, state, dirtyBytes]);
  }

  get recordedNames(): string[] {
    return this.state.record.disks[0]?.quorum?.children.map(({ name }) => name) ?? [];
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

  const areSound = (bench: ChildrenBench) => (): boolean => bench.copies.every(([, state]) => state === "sound");
  const write = async (bench: ChildrenBench, text: string): Promise<void> =>
    bench.disk.write(Buffer.from(text), 0, { fua: false });

  it("brings a copy everything that nobody can tell to be as it was left", async () => {
    const bench = await ChildrenBench.begin();
    await bench.until(areSound(bench));
    await write(bench, "one");
    const again = await bench.restart();
    expect(again.copies[1]).toEqual(["b", "sound", 0]);
    const away = await again.restart(new ColobusError("image-missing", "its file system is not mounted yet"));
    expect(away.copies[1]).toEqual(["b", "syncing", GEOMETRY.sizeBytes]);
    await away.until(areSound(away));
  });

  it("believes none that may have been changed while another one is as it was left", async () => {
    const bench = await ChildrenBench.begin();
    await bench.children.add("c", "/c.img", { create: false });
    await bench.until(areSound(bench));
    bench.local.gate = () => {
      throw new ColobusError("io-error", "the device is broken");
    };
    await write(bench, "one");
    const again = await bench.restart(new ColobusError("image-missing", "its file system is not mounted yet"));
    expect(again.copies.slice(1)).toEqual([
      ["b", "syncing", GEOMETRY.sizeBytes],
      ["c", "sound", 0],
    ]);
  });

  it("keeps a copy until the one that replaces it has everything, and takes the two in one record", async () => {
    const bench = await ChildrenBench.begin();
    await bench.until(areSound(bench));
    let letWrite: (() => void) | undefined;
    bench.other.gate = ({ kind }) =>
      kind === "write" && letWrite === undefined
        ? new Promise((resolve) => {
            letWrite = resolve;
          })
        : undefined;
    await write(bench, "one");
    await bench.children.replace("b", "/c.img", { create: false });
    expect(bench.copies.map(([name, state]) => [name, state])).toEqual([
      ["local", "sound"],
      ["b", "sound"],
      ["b.new", "syncing"],
    ]);
    await expect(bench.children.replace("b", "/d.img", { create: false })).rejects.toMatchObject({
      code: "child-refused",
    });
    await expect(bench.children.remove("b")).rejects.toMatchObject({ code: "child-refused" });
    await bench.until(() => letWrite !== undefined);
    expect(bench.image.isClosed).toBe(false);
    letWrite?.();
    await bench.until(() => bench.image.isClosed);
    expect(bench.copies).toEqual([
      ["local", "sound", 0],
      ["b", "sound", 0],
    ]);
    expect(bench.state.record.disks[0]?.quorum?.children[1]).toMatchObject({ name: "b", image: "/c.img", sound: true });
    expect(bench.other.bytes.equals(bench.local.bytes)).toBe(true);
    // And once more, with a bitmap that lies elsewhere.
    await bench.children.replace("b", "/b.img", { create: false });
    await bench.until(() => bench.other.isClosed);
    expect(bench.recordedNames).toEqual(["local", "b"]);
  });

  it("puts a copy back when the one that replaces it breaks while that is recorded", async () => {
    const bench = await ChildrenBench.begin();
    await bench.until(areSound(bench));
    let resume: (() => void) | undefined;
    bench.storage.hold = (op, path) => {
      const lacksNothing = bench.children.describe()[2]?.dirtyBytes === 0;
      if (resume !== undefined || op !== "sync" || !path.startsWith(`${DIRECTORY}/state`) || !lacksNothing) return;
      return new Promise((resolve) => {
        resume = resolve;
      });
    };
    await bench.children.replace("b", "/c.img", { create: false });
    await bench.until(() => resume !== undefined);
    bench.other.gate = () => {
      throw new ColobusError("io-error", "the device is broken");
    };
    // Changes wait; a flush, which goes to all copies, does not.
    const flushing = Promise.resolve(bench.disk.flush());
    resume?.();
    await flushing;
    await bench.until(() => bench.recordedNames.length === 3);
    expect(bench.copies.slice(0, 2)).toEqual([
      ["local", "sound", 0],
      ["b", "sound", 0],
    ]);
    bench.other.gate = undefined;
    await bench.until(() => bench.image.isClosed);
    expect(bench.recordedNames).toEqual(["local", "b"]);
  });

  it("gives a replacement up when that is taken out", async () => {
    const bench = await ChildrenBench.begin();
    await bench.until(areSound(bench));
    bench.other.gate = () => {
      throw new ColobusError("io-error", "the device is broken");
    };
    await bench.children.replace("b", "/c.img", { create: false });
    await bench.until(() => bench.copies[2]?.[1] === "broken");
    await bench.children.remove("b.new");
    expect(bench.recordedNames).toEqual(["local", "b"]);
    expect(bench.copies.length).toBe(2);
    await expect(bench.children.replace("local", "/c.img", { create: false })).rejects.toMatchObject({
      code: "child-refused",
    });
    await expect(bench.children.replace("z", "/c.img", { create: false })).rejects.toMatchObject({
      code: "child-unknown",
    });
  });

  it("takes no image that something else in the agent gets at the same moment", async () => {
    const bench = await ChildrenBench.begin();
    await bench.until(areSound(bench));
    const adding = bench.children.add("c", "/c.img", { create: false });
    const other = { name: "vdb", image: "/c.img", sizeBytes: GEOMETRY.sizeBytes, cleanMark: null };
    await bench.state.update((record) => ({ ...record, disks: [...record.disks, other] }));
    await expect(adding).rejects.toMatchObject({ code: "child-refused" });
    expect(bench.recordedNames).toEqual(["local", "b"]);
  });

  it("goes on with another image of the disk's own beside the same copies", async () => {
    const bench = await ChildrenBench.begin();
    await bench.until(areSound(bench));
    await write(bench, "one");
    const image = new MemoryImage(GEOMETRY.sizeBytes);
    image.bytes.set(bench.local.bytes);
    await bench.disk.whileStill(() => bench.children.pivot(image, () => Promise.resolve()));
    await write(bench, "two");
    expect([image, bench.image, bench.local].map(({ bytes }) => bytes.toString("latin1", 0, 3))).toEqual([
      "two",
      "two",
      "one",
    ]);
    // What happens to the former image concerns nobody any more.
    bench.local.gate = () => {
      throw new ColobusError("io-error", "the device is broken");
    };
    await bench.disk.flush();
    expect(bench.copies.map(([, state]) => state)).toEqual(["sound", "sound"]);
    await bench.children.remove("b");
    await write(bench, "six");
    expect(image.bytes.toString("latin1", 0, 3)).toBe("six");
    expect(bench.children.child).toBe(image);
  });
});
