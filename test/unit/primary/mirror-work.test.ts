import { describe, expect, it } from "vitest";
import { DiskCopy } from "../../../primary/disk-copy.ts";
import { follow, FollowedChild } from "../../../primary/followed-child.ts";
import { MirrorTarget } from "../../../primary/mirror-target.ts";
import { MirrorWork } from "../../../primary/mirror-work.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { DISK_RETRY_MS, JOB_FOLLOW_EVERY_MS } from "../../../proto/limits.ts";
import type { MirrorMark } from "../../../proto/state-record.ts";
import { Job } from "../../../shared/jobs/job.ts";
import { DirtyMap } from "../../../shared/replication/dirty-map.ts";
import { COPY_CLUSTER_BYTES as CLUSTER, COPY_TIMEOUT_MS, CopyBench } from "../../support/copy-bench.ts";
import { MemoryImage } from "../../support/memory-image.ts";
import { turn } from "../../support/memory-storage.ts";

const NO_FUA = { fua: false } as const;
const CLUSTERS = 8;
const broken = (): ColobusError => new ColobusError("io-error", "the device is broken");

/** A mirror of a disk in memory, and its job. */
class MirrorBench {
  readonly bench = new CopyBench(CLUSTERS);
  readonly image = new MemoryImage(this.bench.disk.sizeBytes);
  readonly records: string[] = [];
  /** Asked before something is recorded. */
  recording: () => void = () => undefined;
  left: Promise<unknown> | undefined;
  readonly job: Job;
  readonly copy: DiskCopy;

  constructor(changes: Partial<MirrorMark> = {}) {
    const mark: MirrorMark = {
      id: "mirror-1",
      disk: "vda",
      target: "/new.img",
      slot: 0,
      isTracked: true,
      sync: "full",
      copyMode: "background",
      granularityBytes: CLUSTER,
      unmap: true,
      speed: 0,
      isPaused: false,
      onSourceError: "report",
      onTargetError: "report",
      startedAtMs: 0,
      outcome: null,
      endedAtMs: null,
      doneBytes: 0,
      error: null,
      ...changes,
    };
    const { clock, geometry, disk } = this.bench;
    for (let cluster = 0; cluster < CLUSTERS; cluster += 1) this.bench.local.bytes.fill(cluster + 1, cluster * CLUSTER);
    void this.bench.local.write(Buffer.from(this.bench.local.bytes), 0, NO_FUA);
    const target = new MirrorTarget(mark.target, disk.sizeBytes, () => this.image, this.image);
    const dirty = new DirtyMap(geometry);
    dirty.addAll();
    const isWrittenThrough = mark.copyMode === "write-blocking";
    this.copy = new DiskCopy({
      disk: mark.disk,
      name: mark.id,
      child: target,
      geometry,
      dirty,
      clock,
      timeoutMs: COPY_TIMEOUT_MS,
      state: "syncing",
      isWrittenThrough,
      changed: () => work.copyChanged(),
    });
    const work = new MirrorWork({
      mark,
      disk,
      geometry,
      copy: this.copy,
      target,
      record: async (outcome) => {
        this.recording();
        this.records.push(outcome);
        return Promise.resolve();
      },
      pivot: async (image) => {
        this.recording();
        this.records.push("pivoted");
        return Promise.resolve({ child: image, left: Promise.resolve() });
      },
      pivoted: (_image, left) => {
        this.left = left;
      },
      left: () => this.records.push("left"),
      keep: () => Promise.resolve(),
      ready: () => this.records.push("ready"),
    });
    this.job = new Job({ id: mark.id, clock, work, speed: 0, changed: () => undefined });
  }

  async start(): Promise<void> {
    await follow(this.bench.disk, this.copy);
    this.job.start();
    await this.settle();
  }

  /** Lets everything happen that can without time, and `ms` of it. */
  async settle(ms = 0): Promise<void> {
    this.bench.clock.advance(ms);
    for (let count = 0; count < 40; count += 1) {
      await turn();
      this.bench.clock.endTurn();
    }
  }

  write(fill: number, cluster: number): Promise<void> | undefined {
    return this.bench.disk.write(Buffer.alloc(700, fill), cluster * CLUSTER + 10, NO_FUA);
  }

  get isEqual(): boolean {
    return this.image.bytes.equals(this.bench.local.bytes);
  }
}

describe("a mirror at work", () => {
  it("is ready when everything is flushed, follows in the background, and pivots between two changes", async () => {
    const mirror = new MirrorBench();
    mirror.image.operations = [];
    await mirror.start();
    expect(mirror.job.state).toBe("ready");
    expect(mirror.records).toEqual(["ready"]);
    expect(mirror.image.operations.at(-1)?.kind).toBe("flush");
    expect(mirror.isEqual).toBe(true);
    await mirror.write(0x77, 3);
    expect(mirror.isEqual).toBe(false);
    await mirror.settle(JOB_FOLLOW_EVERY_MS);
    expect(mirror.isEqual).toBe(true);
    await mirror.write(0x78, 4);
    mirror.job.apply("complete");
    await mirror.settle();
    expect(mirror.job.describe()).toMatchObject({ state: "concluded", outcome: "pivoted", error: null });
    expect(mirror.records).toEqual(["ready", "pivoted", "left"]);
    expect(mirror.isEqual).toBe(true);
    expect(mirror.bench.disk.child).toBe(mirror.image);
    await mirror.write(0x79, 5);
    expect(mirror.isEqual).toBe(false);
    expect(mirror.image.bytes[5 * CLUSTER + 10]).toBe(0x79);
  });

  it("leaves the old image to a read that has begun on it", async () => {
    const mirror = new MirrorBench();
    await mirror.start();
    let finishRead: () => void = () => undefined;
    mirror.bench.local.gate = ({ kind }) =>
      kind === "read"
        ? new Promise<void>((resolve) => {
            finishRead = resolve;
          })
        : undefined;
    const content = Buffer.alloc(CLUSTER);
    const reading = mirror.bench.disk.read(content, 0);
    mirror.job.apply("complete");
    await mirror.settle();
    expect(mirror.job.outcome).toBe("pivoted");
    let isLeft = false;
    void mirror.left?.then(() => (isLeft = true));
    await mirror.settle();
    expect(isLeft).toBe(false);
    finishRead();
    await reading;
    await mirror.settle();
    expect(isLeft).toBe(true);
    expect(content[0]).toBe(1);
  });

  it("says that a copy is complete when it is durable, and writes nothing to it after that moment", async () => {
    const mirror = new MirrorBench({ copyMode: "write-blocking" });
    await mirror.start();
    await mirror.write(0x60, 1);
    expect(mirror.isEqual).toBe(true);
    const snapshot = Buffer.from(mirror.bench.local.bytes);
    let flush: () => void = () => undefined;
    mirror.image.gate = ({ kind }) =>
      kind === "flush"
        ? new Promise<void>((resolve) => {
            flush = resolve;
          })
        : undefined;
    mirror.job.apply("cancel");
    await mirror.settle();
    expect(mirror.job.state).toBe("ready");
    flush();
    await mirror.settle();
    flush();
    await mirror.settle();
    expect(mirror.job.describe()).toMatchObject({ state: "concluded", outcome: "completed" });
    await mirror.write(0x61, 1);
    expect(mirror.image.bytes.equals(snapshot)).toBe(true);
    expect(mirror.image.isClosed).toBe(true);
    expect(mirror.bench.disk.child).toBe(mirror.bench.local);
  });

  it("that is cancelled by force leaves at once, and is cancelled when that is recorded", async () => {
    const mirror = new MirrorBench();
    await mirror.start();
    mirror.job.apply("cancel", { force: true });
    expect(mirror.job.state).toBe("aborting");
    await mirror.settle();
    expect(mirror.job.describe()).toMatchObject({ state: "concluded", outcome: "cancelled" });
    expect(mirror.records).toEqual(["ready", "cancelled", "left"]);
    expect(mirror.bench.disk.child).not.toBeInstanceOf(FollowedChild);
  });

  it("keeps its paused bulk paused, and can be told to end only when it is ready", async () => {
    const mirror = new MirrorBench();
    mirror.job.start(true);
    await mirror.settle();
    expect(mirror.job.state).toBe("paused");
    expect(() => mirror.job.apply("complete")).toThrow("cannot be told to complete");
    mirror.job.apply("resume");
    await mirror.settle();
    mirror.job.apply("pause");
    expect(mirror.job.state).toBe("standby");
    await mirror.settle(JOB_FOLLOW_EVERY_MS);
    mirror.job.apply("resume");
    expect(mirror.job.state).toBe("ready");
  });

  it("whose target fails costs no guest's write: report", async () => {
    const mirror = new MirrorBench({ copyMode: "write-blocking" });
    await mirror.start();
    mirror.image.gate = ({ kind }) => (kind === "write" ? Promise.reject(broken()) : undefined);
    await mirror.write(0x11, 2);
    await mirror.settle(JOB_FOLLOW_EVERY_MS);
    expect(mirror.job.describe()).toMatchObject({ outcome: "failed", error: { code: "io-error" } });
    expect(mirror.records).toEqual(["ready", "failed", "left"]);
    expect(mirror.bench.local.bytes[2 * CLUSTER + 10]).toBe(0x11);
  });

  it("whose target fails costs no guest's write: stop", async () => {
    const mirror = new MirrorBench({ copyMode: "write-blocking", onTargetError: "stop" });
    await mirror.start();
    mirror.image.gate = ({ kind }) => (kind === "write" ? Promise.reject(broken()) : undefined);
    await mirror.write(0x12, 2);
    await mirror.settle(JOB_FOLLOW_EVERY_MS);
    expect(mirror.job.describe()).toMatchObject({ state: "standby", outcome: null, error: { code: "io-error" } });
    await mirror.write(0x13, 3);
    mirror.image.gate = undefined;
    await mirror.settle(10 * DISK_RETRY_MS);
    expect(mirror.job.state).toBe("standby");
    mirror.job.apply("resume");
    await mirror.settle();
    expect(mirror.job.describe()).toMatchObject({ state: "ready", error: null });
    expect(mirror.isEqual).toBe(true);
  });

  it("whose target fails costs no guest's write: ignore", async () => {
    const mirror = new MirrorBench({ onTargetError: "ignore" });
    mirror.image.gate = ({ kind, offset }) => (kind === "write" && offset === 0 ? Promise.reject(broken()) : undefined);
    await mirror.start();
    expect(mirror.job.describe()).toMatchObject({ state: "running", error: { code: "io-error" } });
    mirror.image.gate = undefined;
    await mirror.settle(DISK_RETRY_MS);
    expect(mirror.job.describe()).toMatchObject({ state: "ready", error: null });
    expect(mirror.isEqual).toBe(true);
  });

  it("tells an error of the disk from one of the target", async () => {
    const mirror = new MirrorBench({ onSourceError: "stop" });
    mirror.bench.local.gate = ({ kind }) => (kind === "read" ? Promise.reject(broken()) : undefined);
    await mirror.start();
    expect(mirror.job.describe()).toMatchObject({ state: "paused", error: { code: "io-error" } });
    expect(mirror.copy.state).toBe("syncing");
    mirror.bench.local.gate = undefined;
    mirror.job.apply("resume");
    await mirror.settle();
    expect(mirror.job.state).toBe("ready");
    expect(mirror.isEqual).toBe(true);
  });

  it("gives a target up that hangs, and goes on with it when nothing is under way there any more", async () => {
    const mirror = new MirrorBench({ copyMode: "write-blocking", onTargetError: "stop" });
    await mirror.start();
    let letGo: () => void = () => undefined;
    mirror.image.gate = ({ kind }) =>
      kind === "write"
        ? new Promise<void>((resolve) => {
            letGo = resolve;
          })
        : undefined;
    const writing = mirror.write(0x21, 1);
    await mirror.settle(COPY_TIMEOUT_MS);
    await writing;
    expect(mirror.write(0x22, 2)).toBeUndefined();
    await mirror.settle(JOB_FOLLOW_EVERY_MS);
    expect(mirror.job.describe()).toMatchObject({ state: "standby", error: { code: "child-timed-out" } });
    mirror.job.apply("resume");
    await mirror.settle();
    expect(mirror.job.state).toBe("standby");
    mirror.image.gate = undefined;
    letGo();
    await mirror.settle();
    mirror.job.apply("resume");
    await mirror.settle();
    expect(mirror.job.state).toBe("ready");
    expect(mirror.isEqual).toBe(true);
  });

  it("that cannot record its pivot has the old image, and pivots when it is told to go on", async () => {
    const mirror = new MirrorBench();
    await mirror.start();
    mirror.recording = () => {
      throw broken();
    };
    mirror.job.apply("complete");
    await mirror.settle();
    expect(mirror.job.describe()).toMatchObject({ state: "standby", outcome: null, error: { code: "io-error" } });
    expect(mirror.bench.disk.child).toBeInstanceOf(FollowedChild);
    await mirror.write(0x31, 1);
    mirror.recording = () => undefined;
    mirror.job.apply("resume");
    await mirror.settle();
    expect(mirror.job.outcome).toBe("pivoted");
    expect(mirror.isEqual).toBe(true);
  });
});
