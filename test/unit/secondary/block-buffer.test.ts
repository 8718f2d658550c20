import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { DISK_RETRY_MS, OVERLAY_RESERVE_BYTES } from "../../../proto/limits.ts";
import { openImage } from "../../../shared/block/image.ts";
import type { DiskImage } from "../../../shared/block/disk-image.ts";
import { BlockBuffer } from "../../../secondary/block-buffer.ts";
import type { BufferedChange } from "../../../secondary/buffer-log.ts";
import { BufferMemory } from "../../../secondary/buffer-memory.ts";
import { FragmentIndex, positionBehind } from "../../../secondary/fragment-index.ts";
import type { OverlayContext } from "../../../secondary/overlay-files.ts";
import { OverlayQuota, type OverlayUsage } from "../../../secondary/overlay-quota.ts";
import { clusterGeometry } from "../../../shared/block/cluster-geometry.ts";
import type { ColobusError } from "../../../proto/errors.ts";
import type { Durability } from "../../../proto/words.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { present } from "../../support/present.ts";
import { SimInode } from "../../sim/sim-inode.ts";
import { turn, type MemoryStorage } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, overlaysOn, pattern, seededStorage } from "../../support/overlay-bench.ts";

const SIZE = 16 * CLUSTER_BYTES;
const IMAGE = "/images/vda.img";
const DIRECTORY = "/state/disks/vda";
const TURNS = 50;

/** A block buffer over an empty disk whose checkpoint 1 is committed. */
class Scene {
  readonly storage: MemoryStorage;
  readonly clock = new ManualClock();
  readonly failures: ColobusError[] = [];
  readonly context: OverlayContext;
  readonly base: DiskImage;
  readonly buffer: BlockBuffer;
  applied = 0;
  wanted = 0;

  constructor({
    fragments = 1000,
    durability = "process",
    coldProbability = 0,
    limitBytes,
  }: { fragments?: number; durability?: Durability; coldProbability?: number; limitBytes?: number } = {}) {
    this.storage = seededStorage(1, coldProbability);
    const measure = (): OverlayUsage => {
      const { allocatedBytes, keptBytes } = this.buffer;
      return { totalBytes: allocatedBytes, freeableBytes: allocatedBytes - keptBytes };
    };
    const quota =
      limitBytes === undefined ? undefined : new OverlayQuota(limitBytes, measure, () => (this.wanted += 1));
    this.context = { ...overlaysOn(this.storage, SIZE, durability), quota };
    this.storage.disk.addDirectory("/images");
    this.storage.disk.addFile(IMAGE, SIZE);
    this.base = openImage(this.storage, IMAGE);
    const memory = new BufferMemory({ bytes: 0, fragments }, () => (this.wanted += 1));
    const host = {
      memory,
      clock: this.clock,
      failed: (reason: ColobusError) => void this.failures.push(reason),
      applied: () => void (this.applied += 1),
    };
    this.buffer = BlockBuffer.recover(this.context, this.base, { committed: 1, open: 2 }, host);
  }

  write(offset: number, length: number, seed: number): Promise<void> {
    const change: BufferedChange = { kind: "write", offset, length, payload: pattern(length, seed) };
    return this.buffer.append([change]);
  }

  commit(epoch: number): void {
    this.buffer.openEpoch(epoch + 1);
    this.buffer.keepThrough(epoch);
    this.buffer.release(epoch);
  }

  /** Lets what is under way go on until nothing more happens by itself. */
  async settle(): Promise<void> {
    for (let left = TURNS; left > 0; left -= 1) {
      this.clock.endTurn();
      await turn();
    }
  }

  logs(): string[] {
    return this.storage.list(DIRECTORY);
  }

  /** What all logs take. */
  get logBytes(): number {
    return this.logs().reduce((sum, name) => sum + this.storage.disk.readFile(`${DIRECTORY}/${name}`).length, 0);
  }

  /** One epoch after the other, with so many pieces each, all over the disk. */
  async fillEpochs(epochs: readonly number[], pieces: number): Promise<void> {
    for (const epoch of epochs) {
      for (let piece = 0; piece < pieces; piece += 1) await this.write(piece * (SIZE / pieces), 64, epoch);
      this.buffer.openEpoch(epoch + 1);
    }
  }

  join(atMost: number): Promise<void> {
    return this.buffer.join(
      () => [1],
      atMost,
      (change) => Promise.resolve(change()),
    );
  }

  content(): Buffer {
    return this.storage.disk.readFile(IMAGE);
  }

  async latest(): Promise<Buffer> {
    const found = Buffer.alloc(SIZE);
    await this.buffer.readLatest(found, 0);
    return found;
  }
}

/**
 * What a start finds, behind the death of the process, or a loss of power that has what was written, and neither a change of
 * size nor a removal that no sync has covered.
 */
async function afterCrash({ buffer, base, storage, context }: Scene): Promise<Buffer> {
  buffer.close();
  storage.disk.crash(context.durability, {
    keptNames: ({ unsyncedCount }) => Math.min(unsyncedCount, 1),
    losePower: (inode) => {
      const operations = inode.unsynced();
      inode.losePowerKeeping((operation) => ({
        keepsWhole: operations[operation]?.kind !== "truncate",
        keepsSector: () => true,
        keepsSize: true,
      }));
    },
  });
  const recovered = BlockBuffer.recover(context, base, { committed: 1, open: 3 });
  const found = Buffer.alloc(SIZE);
  await recovered.readLatest(found, 0);
  return found;
}

describe.each<Durability>(["process", "power"])(
  "an append that fails in its middle, with durability %s",
  (durability) => {
    const LENGTH = 20_000;
    const rewrites = [1, 2, 3, 4, 5].map((seed): BufferedChange => {
      return { kind: "write", offset: 0, length: LENGTH, payload: pattern(LENGTH, seed) };
    });
    const failing = async (scene: Scene): Promise<void> => {
      // The first piece has whole records.
      const skip = scene.logs().length === 0 ? 2 : 1;
      scene.storage.disk.faults.inject({ op: "write", kind: "buffer-log", error: "out-of-space", skip });
      await expect(scene.buffer.append(rewrites)).rejects.toMatchObject({ code: "out-of-space" });
    };

    it.each([
      ["behind others", true],
      ["the first of its log", false],
    ])("leaves nothing that a later start would count: %s", async (_, hasOthers) => {
      const scene = new Scene({ durability });
      if (hasOthers) {
        await scene.write(30_000, 1000, 7);
        await scene.buffer.makeDurable();
      }
      const before = await scene.latest();
      await failing(scene);
      scene.buffer.openEpoch(3);
      await scene.buffer.makeDurable();
      await scene.buffer.sync();
      expect(before.equals(await afterCrash(scene))).toBe(true);
    });

    it("leaves nothing behind what is written next", async () => {
      const scene = new Scene({ durability });
      await scene.write(30_000, 1000, 7);
      await failing(scene);
      await scene.write(0, LENGTH, 8);
      await scene.buffer.makeDurable();
      const expected = await scene.latest();
      expect(expected.subarray(0, LENGTH)).toEqual(pattern(LENGTH, 8));
      expect(expected.equals(await afterCrash(scene))).toBe(true);
    });

    it("keeps a session from beginning while what it has left cannot be cut off", async () => {
      const scene = new Scene({ durability });
      await scene.write(30_000, 1000, 7);
      await scene.buffer.makeDurable();
      const before = await scene.latest();
      scene.storage.disk.faults.inject({ op: "truncate", kind: "buffer-log", error: "io-error", times: 3 });
      await failing(scene);
      await expect(scene.write(0, LENGTH, 8)).rejects.toMatchObject({ code: "io-error" });
      scene.buffer.openEpoch(3);
      await expect(scene.buffer.makeDurable()).rejects.toMatchObject({ code: "io-error" });
      await scene.buffer.makeDurable();
      expect(await scene.latest()).toEqual(before);
      expect(before.equals(await afterCrash(scene))).toBe(true);
    });
  },
);

it("does not bring back after a loss of power what a failed fsync has cost", async () => {
  const scene = new Scene({ durability: "power" });
  await scene.write(0, 1000, 1);
  await scene.buffer.sync();
  const before = await scene.latest();
  await scene.write(500, 1000, 2);
  const log = scene.storage.disk.find(`${DIRECTORY}/buffer.2.0.log`);
  assert(log instanceof SimInode);
  scene.storage.disk.faults.inject({ op: "sync", kind: "buffer-log", error: "io-error", times: 1 });
  log.makeDurable(log.position); // the device has it, and an error for something else of the file
  await expect(scene.buffer.sync()).rejects.toMatchObject({ code: "io-error" });
  await scene.buffer.makeDurable();
  expect(await scene.latest()).toEqual(before);
  expect(before.equals(await afterCrash(scene))).toBe(true);
});

it("asks for a checkpoint before its index is full, is full then, and takes more when something is applied", async () => {
  const scene = new Scene({ fragments: 8 });
  for (let piece = 0; piece < 5; piece += 1) await scene.write(piece * 1000, 10, piece);
  expect(scene.wanted).toBe(0);
  for (let piece = 5; piece < 8; piece += 1) await scene.write(piece * 1000, 10, piece);
  expect(scene.wanted).toBe(1);
  await expect(scene.write(9000, 10, 9)).rejects.toMatchObject({ code: "overlay-full" });
  scene.commit(2);
  const waiting = scene.write(9000, 10, 9);
  await scene.settle();
  await waiting;
  expect(scene.applied).toBe(1);
  expect((await scene.latest()).subarray(9000, 9010)).toEqual(pattern(10, 9));
});

it("tries again what could not be applied, and shows it meanwhile", async () => {
  const scene = new Scene();
  await scene.write(0, SIZE / 2, 1);
  scene.storage.disk.faults.inject({ op: "write", kind: "image", error: "io-error" });
  scene.commit(2);
  await scene.settle();
  expect(scene.failures).toMatchObject([{ code: "io-error" }]);
  expect(scene.buffer.keptBytes).toBeGreaterThan(SIZE / 2);
  expect((await scene.latest()).subarray(0, SIZE / 2)).toEqual(pattern(SIZE / 2, 1));
  scene.storage.disk.faults.clear();
  scene.clock.advance(DISK_RETRY_MS);
  await scene.settle();
  expect(scene.applied).toBe(1);
  expect(scene.content().subarray(0, SIZE / 2)).toEqual(pattern(SIZE / 2, 1));
  expect(scene.buffer.allocatedBytes).toBe(0);
});

it("drops what a failed fsync may have lost, keeps what was synced before, and goes on in the same log", async () => {
  const scene = new Scene({ durability: "power" });
  await scene.write(0, 1000, 1);
  await scene.buffer.sync();
  await scene.write(500, 1000, 2);
  scene.storage.disk.faults.inject({ op: "sync", kind: "buffer-log", error: "io-error", times: 1 });
  await expect(scene.buffer.sync()).rejects.toMatchObject({ code: "io-error" });
  await scene.buffer.makeDurable();
  const kept = await scene.latest();
  expect(kept.subarray(0, 1000)).toEqual(pattern(1000, 1));
  expect(kept.subarray(1000).every((byte) => byte === 0)).toBe(true);
  await scene.write(500, 1000, 3);
  await scene.buffer.sync();
  expect((await scene.latest()).subarray(500, 1500)).toEqual(pattern(1000, 3));
});

it("lets the base be written beside it once no crash brings its logs back, also when that has to be tried again", async () => {
  const scene = new Scene({ durability: "power" });
  await scene.write(0, SIZE, 1);
  await scene.buffer.sync();
  scene.storage.disk.faults.inject({ op: "syncDirectory", error: "io-error", times: 1 });
  const [begun] = await Promise.allSettled([scene.buffer.beginWithoutBarrier(), scene.settle()]);
  expect(begun).toMatchObject({ status: "rejected", reason: { code: "io-error" } });
  expect(scene.buffer.isApplied).toBe(false);
  scene.clock.advance(DISK_RETRY_MS);
  await scene.settle();
  expect(scene.buffer.isApplied).toBe(true);
  expect(scene.buffer.beginWithoutBarrier()).toBeUndefined();
  scene.storage.crash("power");
  expect(scene.logs().filter((name) => !name.includes("spare"))).toEqual([]);
});

it("calls no log durable of which one of two fsyncs at a time has failed", async () => {
  const scene = new Scene({ durability: "power" });
  await scene.write(0, 1000, 1);
  scene.storage.disk.faults.inject({ op: "sync", kind: "buffer-log", error: "io-error", times: 1 });
  const outcomes = await Promise.allSettled([scene.buffer.sync(), scene.buffer.sync()]);
  expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  await expect(scene.buffer.flush()).rejects.toMatchObject({ code: "io-error" });
});

it("stops to apply when it is ended, and goes on when that is taken back", async () => {
  const scene = new Scene();
  await scene.write(0, SIZE, 1);
  await scene.buffer.end();
  scene.commit(2);
  await scene.settle();
  expect(scene.content().every((byte) => byte === 0)).toBe(true);
  scene.buffer.resume();
  await scene.settle();
  expect(scene.content()).toEqual(pattern(SIZE, 1));
});

it("puts everything into the base when the checkpoint is given up", async () => {
  const scene = new Scene();
  await scene.write(0, 5000, 1);
  scene.buffer.openEpoch(3);
  await scene.write(2000, 5000, 2);
  const giving = scene.buffer.giveUp()();
  await scene.settle();
  await giving;
  expect(scene.content().subarray(0, 2000)).toEqual(pattern(5000, 1).subarray(0, 2000));
  expect(scene.content().subarray(2000, 7000)).toEqual(pattern(5000, 2));
  expect(scene.buffer.isApplied).toBe(true);
});

it.each<Durability>(["process", "power"])(
  "does not let the base be written beside it while a log is there that a start would apply, with durability %s",
  async (durability) => {
    const scene = new Scene({ durability });
    await scene.write(0, 5000, 1);
    scene.storage.disk.faults.inject({ op: ["rename", "removeBehind"], error: "io-error", times: 1 });
    const giving = scene.buffer.giveUp()();
    await scene.settle();
    await giving;
    expect(scene.logs()).toEqual(["buffer.2.0.log"]);
    expect(scene.buffer.isApplied).toBe(false);
    scene.clock.advance(DISK_RETRY_MS);
    await scene.settle();
    expect(scene.logs()).toEqual([]);
    expect(scene.buffer.isApplied).toBe(true);
  },
);

it("joins what withdrawn checkpoints leave, and shows the same", async () => {
  const scene = new Scene();
  for (let epoch = 2; epoch < 12; epoch += 1) {
    await scene.write(epoch * 300, 1000, epoch);
    scene.buffer.openEpoch(epoch + 1);
  }
  const before = await scene.latest();
  const joining = scene.buffer.join(
    () => [1],
    3,
    (change) => Promise.resolve(change()),
  );
  for (let left = 10; left > 0; left -= 1) await scene.settle();
  await joining;
  expect(scene.buffer.describeGenerations().length).toBeLessThanOrEqual(3);
  expect(await scene.latest()).toEqual(before);
});

it.each([
  ["begun", { op: ["open", "write"], error: "out-of-space" }],
  ["written", { op: "write", skip: 1, error: "out-of-space" }],
  ["made durable", { op: "sync", error: "io-error" }],
] as const)("is as it was, and can be applied, when what was to be joined cannot be %s", async (_, fault) => {
  const scene = new Scene({ durability: "power" });
  const changes = [2, 3, 4, 5];
  for (const epoch of changes) {
    await scene.write(epoch * 300, 1000, epoch);
    await scene.buffer.sync();
    scene.buffer.openEpoch(epoch + 1);
  }
  const [before, logs] = [await scene.latest(), scene.logs()];
  scene.storage.disk.faults.inject({ ...fault, kind: "buffer-log" });
  const joining = scene.buffer
    .join(
      () => [1],
      3,
      (change) => Promise.resolve(change()),
    )
    .then(
      () => "done",
      (error: unknown) => (error as ColobusError).code,
    );
  await scene.settle();
  expect(await joining).toBe(fault.error);
  expect(scene.logs().filter((name) => !name.includes("spare"))).toEqual(logs);
  scene.storage.disk.faults.clear();
  scene.commit(5);
  await scene.settle();
  expect(scene.buffer.isApplied).toBe(true);
  expect(scene.content()).toEqual(before);
});

it.each(["taken", "not taken"])(
  "removes what was joined, and is %s when a commit comes, before anything that is newer",
  async (fate) => {
    const scene = new Scene({ durability: "power" });
    for (const epoch of [2, 3, 4, 5]) {
      await scene.write(0, 1000, epoch);
      await scene.buffer.sync();
      scene.buffer.openEpoch(epoch + 1);
    }
    const removed: number[] = [];
    scene.storage.disk.faults.intercept = ({ op, path }) => {
      const [, epoch] = /\/buffer\.(\d+)\.\d+\.log$/.exec(path) ?? [];
      if ((op === "rename" || op === "removeBehind") && epoch !== undefined) removed.push(Number(epoch));
      return undefined;
    };
    let decide = (): void => undefined;
    const decided = new Promise<void>((resolve) => {
      decide = resolve;
    });
    const joining = scene.buffer.join(
      () => [1],
      3,
      async (change) => {
        const isTaken = fate === "taken" && change();
        await decided;
        return isTaken || change();
      },
    );
    await scene.settle();
    expect(scene.logs()).toContain("buffer.3.4.log");
    scene.commit(5);
    await scene.settle();
    decide();
    await scene.settle();
    await joining;
    expect(removed).toEqual([2, 3, 3, 4, 5]);
    expect(scene.content().subarray(0, 1000)).toEqual(pattern(1000, 5));
    expect(scene.buffer.isApplied).toBe(true);
  },
);

it("joins those first that have the least to copy", async () => {
  const scene = new Scene();
  for (const [epoch, length] of [20_000, 1000, 5000, 100, 100, 100].entries()) {
    await scene.write(0, length, epoch);
    scene.buffer.openEpoch(epoch + 3);
  }
  const joining = scene.buffer.join(
    () => [1],
    5,
    (change) => Promise.resolve(change()),
  );
  await scene.settle();
  await joining;
  expect(scene.buffer.describeGenerations().map(({ epoch }) => epoch)).toEqual([2, 3, 4, 6, 7]);
});

describe("a join near a full disk", () => {
  const EPOCHS = [2, 3, 4, 5];
  const PIECES = 400;

  it("goes no further than the limit of the overlays", async () => {
    const full = new Scene({ fragments: 10_000 });
    await full.fillEpochs(EPOCHS, PIECES);
    const limitBytes = Math.ceil(full.logBytes * 1.2);
    const scene = new Scene({ fragments: 10_000, limitBytes });
    await scene.fillEpochs(EPOCHS, PIECES);
    const wanted = scene.wanted;
    let mostBytes = 0;
    scene.storage.disk.faults.intercept = ({ op }) => {
      if (op === "write") mostBytes = Math.max(mostBytes, scene.logBytes);
      return undefined;
    };
    const joining = scene.join(3);
    await scene.settle();
    await joining;
    expect(mostBytes).toBeLessThanOrEqual(limitBytes);
    expect(scene.logs()).toEqual(full.logs());
    expect(scene.wanted).toBe(wanted);
    expect(scene.buffer.allocatedBytes).toBe(scene.logBytes);
  });

  it("is counted while it is under way, and asks for no checkpoint", async () => {
    const scene = new Scene({ fragments: 10_000, limitBytes: 400_000 });
    await scene.fillEpochs(EPOCHS, PIECES);
    const [before, countedBytes] = [await scene.latest(), scene.buffer.allocatedBytes];
    let mostBytes = 0;
    scene.storage.disk.faults.intercept = ({ op }) => {
      if (op !== "write") return undefined;
      mostBytes = Math.max(mostBytes, scene.buffer.allocatedBytes);
      expect(scene.buffer.allocatedBytes - scene.buffer.keptBytes).toBe(countedBytes);
      return undefined;
    };
    const joining = scene.join(3);
    await scene.settle();
    await joining;
    expect(mostBytes).toBeGreaterThan(countedBytes * 1.2);
    expect(scene.buffer.describeGenerations()).toHaveLength(3);
    expect(scene.buffer.allocatedBytes).toBe(scene.logBytes);
    expect(await scene.latest()).toEqual(before);
    expect(scene.wanted).toBe(0);
  });

  it("leaves the others on its file system what they need", async () => {
    const scene = new Scene({ fragments: 10_000 });
    await scene.fillEpochs(EPOCHS, PIECES);
    const logs = scene.logs();
    scene.storage.disk.capacityBytes = scene.storage.disk.usedBytes + OVERLAY_RESERVE_BYTES;
    let written = 0;
    scene.storage.disk.faults.intercept = ({ op }) => {
      if (op === "write") written += 1;
      return undefined;
    };
    const joining = scene.join(3);
    await scene.settle();
    await joining;
    expect(written).toBe(0);
    expect(scene.logs()).toEqual(logs);
  });

  it("gives its room to the stream that finds none", async () => {
    const scene = new Scene({ fragments: 10_000 });
    await scene.fillEpochs(EPOCHS, PIECES);
    const logs = scene.logs();
    const roomBytes = scene.storage.disk.usedBytes + 3 * 4096;
    const joining = scene.join(3);
    expect(scene.storage.disk.usedBytes).toBeGreaterThan(roomBytes - 3 * 4096);
    scene.storage.disk.capacityBytes = roomBytes;
    const appended = scene.write(0, 2 * CLUSTER_BYTES, 9);
    await scene.settle();
    await joining;
    await appended;
    expect((await scene.latest()).subarray(0, 2 * CLUSTER_BYTES)).toEqual(pattern(2 * CLUSTER_BYTES, 9));
    expect(scene.logs()).toEqual([...logs, "buffer.6.5.log"]);
  });
});

it("joins no log before it is known whether an fsync has cost some of it", async () => {
  const left = new Scene({ durability: "power" });
  await left.fillEpochs([2, 3, 4, 5], 4);
  await left.buffer.flush();
  left.buffer.close();
  const { context, base, clock } = left;
  const memory = new BufferMemory({ bytes: 0, fragments: 1000 }, () => undefined);
  const host = { memory, clock, failed: () => undefined, applied: () => undefined };
  const buffer = BlockBuffer.recover(context, base, { committed: 1, open: 6, mayHaveLostWrites: true }, host);
  const join = async (): Promise<void> => {
    const joining = buffer.join(
      () => [1],
      3,
      (change) => Promise.resolve(change()),
    );
    await left.settle();
    await joining;
  };
  await join();
  expect(buffer.describeGenerations()).toHaveLength(4);
  await buffer.makeDurable();
  await join();
  expect(buffer.describeGenerations()).toHaveLength(3);
});

describe("a log that cannot be read", () => {
  const STABLE = 1000;
  const begin = async (): Promise<Scene> => {
    const scene = new Scene({ durability: "power" });
    await scene.write(0, STABLE, 1);
    await scene.buffer.makeDurable();
    return scene;
  };
  const inBase = (scene: Scene): Buffer => scene.content().subarray(0, STABLE);

  it("keeps what was called stable when what an append has left is to be cut off", async () => {
    const scene = await begin();
    const { faults } = scene.storage.disk;
    faults.inject({ op: "write", kind: "buffer-log", error: "out-of-space" });
    faults.inject({ op: "truncate", kind: "buffer-log", error: "io-error" });
    await expect(scene.write(2000, STABLE, 2)).rejects.toMatchObject({ code: "out-of-space" });
    faults.inject({ op: "readNow", kind: "buffer-log", error: "io-error" });
    await expect(scene.buffer.makeDurable()).rejects.toMatchObject({ code: "io-error" });
    await scene.buffer.makeDurable();
    scene.commit(2);
    await scene.settle();
    expect(inBase(scene)).toEqual(pattern(STABLE, 1));
  });

  it("keeps what was called stable when what a failed fsync may have cost is to be dropped", async () => {
    const scene = await begin();
    const { faults } = scene.storage.disk;
    await scene.write(2000, STABLE, 2);
    faults.inject({ op: "sync", kind: "buffer-log", error: "io-error" });
    await expect(scene.buffer.sync()).rejects.toMatchObject({ code: "io-error" });
    faults.inject({ op: "readNow", kind: "buffer-log", error: "io-error" });
    await expect(scene.buffer.makeDurable()).rejects.toMatchObject({ code: "io-error" });
    const giving = scene.buffer.giveUp()();
    await scene.settle();
    await giving;
    expect(inBase(scene)).toEqual(pattern(STABLE, 1));
  });

  it("shows nothing else in its place when something is to be written behind it", async () => {
    const scene = await begin();
    const { faults } = scene.storage.disk;
    await scene.write(2000, STABLE, 2);
    faults.inject({ op: "sync", kind: "buffer-log", error: "io-error" });
    await expect(scene.buffer.sync()).rejects.toMatchObject({ code: "io-error" });
    await scene.buffer.makeDurable();
    faults.inject({ op: "readNow", kind: "buffer-log", error: "io-error" });
    await expect(scene.write(2000, STABLE, 3)).rejects.toMatchObject({ code: "io-error" });
    expect((await scene.latest()).subarray(0, STABLE)).toEqual(pattern(STABLE, 1));
    await scene.write(2000, STABLE, 3);
    scene.commit(2);
    await scene.settle();
    expect(inBase(scene)).toEqual(pattern(STABLE, 1));
  });
});

it("tries at once to apply what is left when a session begins, after a removal has failed", async () => {
  const scene = new Scene();
  await scene.write(0, 5000, 1);
  scene.storage.disk.faults.inject({ op: ["rename", "removeBehind"], error: "io-error", times: 1 });
  const giving = scene.buffer.giveUp()();
  await scene.settle();
  await giving;
  expect(scene.failures).toMatchObject([{ code: "io-error" }]);
  const beginning = scene.buffer.beginWithoutBarrier();
  await scene.settle();
  await beginning;
  expect(scene.buffer.isApplied).toBe(true);
  expect(scene.applied).toBe(1);
});

it("stops to join what a commit lets go into the base", async () => {
  const scene = new Scene({ fragments: 10_000 });
  for (const epoch of [2, 3, 4, 5]) {
    for (let piece = 0; piece < SIZE / 128; piece += 1) await scene.write(piece * 128, 64, epoch);
    scene.buffer.openEpoch(epoch + 1);
  }
  let copied = 0;
  scene.storage.disk.faults.intercept = ({ op, path }) => {
    if (op === "write" && path.endsWith("/buffer.3.4.log")) copied += 1;
    return undefined;
  };
  const joining = scene.buffer.join(
    () => [1],
    3,
    (change) => Promise.resolve(change()),
  );
  scene.commit(5);
  await scene.settle();
  await scene.settle();
  await joining;
  expect(copied).toBeGreaterThan(0);
  expect(copied).toBeLessThan(SIZE / 128 / 2);
  expect(scene.buffer.isApplied).toBe(true);
});

it("begins a log in the file of one that is applied, and reads back nothing of that one", async () => {
  const scene = new Scene();
  await scene.write(0, SIZE, 1);
  scene.commit(2);
  await scene.settle();
  expect(scene.logs()).toEqual(["buffer.spare.0.log"]);
  await scene.write(CLUSTER_BYTES, 100, 2);
  expect(scene.logs()).toEqual(["buffer.3.1.log"]);
  expect(scene.storage.disk.readFile(`${DIRECTORY}/buffer.3.1.log`).length).toBeGreaterThan(SIZE);
  scene.buffer.close();
  const recovered = BlockBuffer.recover(scene.context, scene.base, { committed: 2, open: 3 });
  const found = Buffer.alloc(SIZE);
  await recovered.readLatest(found, 0);
  const expected = pattern(SIZE, 1);
  pattern(100, 2).copy(expected, CLUSTER_BYTES);
  expect(found).toEqual(expected);
});

it("leaves an applied log's file alone under power until its old name cannot come back", async () => {
  const scene = new Scene({ durability: "power" });
  // As a start does: what an earlier process has removed is settled once.
  scene.buffer.release(1);
  await scene.settle();
  const epochOf = async (epoch: number): Promise<void> => {
    await scene.write(0, 100, epoch);
    await scene.buffer.sync();
    scene.commit(epoch);
    await scene.settle();
  };
  await epochOf(2);
  expect(scene.logs()).toEqual(["buffer.spare.0.log"]);
  await scene.write(0, 100, 3);
  expect(scene.logs()).toEqual(["buffer.3.1.log", "buffer.spare.0.log"]);
  await epochOf(3);
  expect(scene.logs()).toEqual(["buffer.spare.0.log", "buffer.spare.1.log"]);
  await scene.write(0, 100, 4);
  expect(scene.logs()).toEqual(["buffer.4.2.log", "buffer.spare.1.log"]);
});

it("gives up the files it has put by when there is no space, and leaves none behind a clean stop", async () => {
  const scene = new Scene();
  await scene.write(0, SIZE, 1);
  scene.buffer.openEpoch(3);
  await scene.write(0, 100, 2);
  scene.commit(3);
  await scene.settle();
  expect(scene.logs()).toEqual(["buffer.spare.0.log", "buffer.spare.1.log"]);
  scene.storage.disk.faults.inject({ op: "write", kind: "buffer-log", error: "out-of-space", times: 1 });
  await scene.write(0, 100, 3);
  expect((await scene.latest()).subarray(0, 100)).toEqual(pattern(100, 3));
  expect(scene.logs()).toEqual(["buffer.4.2.log"]);
  scene.commit(4);
  await scene.settle();
  expect(scene.logs()).toEqual(["buffer.spare.2.log"]);
  await scene.buffer.flush();
  expect(scene.logs()).toEqual([]);
});

it("indexes zeroes of terabytes in little, and writes over them", () => {
  const clusterBytes = 65_536;
  const index = new FragmentIndex(clusterGeometry(2 ** 44, clusterBytes));
  index.add(100, 2 ** 44 - 100, -1);
  expect(index.count).toBe(1);
  index.add(2 ** 40 + 5, 10, 77);
  expect(index.count).toBe(2);
  const fragment = index.first(2 ** 40 / clusterBytes);
  expect([index.startOf(fragment), index.lengthOf(fragment), index.positionOf(fragment)]).toEqual([5, 10, 77]);
  expect(index.zeroesOf(2 ** 40 / clusterBytes)).toBe(-1);
  expect(index.zeroesOf(0)).toBeUndefined();
  expect(positionBehind(-2, 5)).toBe(-2);
});

it.each(["applied", "rolled back"] as const)(
  "keeps the order of its logs where one that is %s cannot be removed: none is applied again over newer data",
  async (fate) => {
    const scene = new Scene();
    await scene.write(0, CLUSTER_BYTES, 2);
    scene.storage.disk.faults.inject({ op: ["rename", "removeBehind"], error: "io-error", times: 1 });
    if (fate === "applied") scene.commit(2);
    else
      await scene.buffer
        .rollBack(1)()
        .catch(() => undefined); // told, and tried again
    await scene.settle();
    scene.buffer.openEpoch(3);
    await scene.write(0, CLUSTER_BYTES, 3);
    scene.commit(3);
    await scene.settle();
    scene.clock.advance(DISK_RETRY_MS);
    await scene.settle();
    const recovered = BlockBuffer.recover(scene.context, scene.base, { committed: 3, open: 4 });
    const found = Buffer.alloc(CLUSTER_BYTES);
    await recovered.readLatest(found, 0);
    expect(found).toEqual(pattern(CLUSTER_BYTES, 3));
    expect(recovered.isApplied).toBe(true);
  },
);

it("tells of a read that has failed only when no other part of it is under way", async () => {
  const scene = new Scene({ coldProbability: 1 });
  await scene.write(0, 512, 1);
  await scene.write(1024, 512, 2);
  // What comes last stays in memory.
  for (let round = 0; round < 4; round += 1) await scene.write(8 * CLUSTER_BYTES, 8 * CLUSTER_BYTES, 3 + round);
  const ends: { readonly fail: () => void; readonly land: () => void }[] = [];
  scene.storage.hold = (_op, path) =>
    path.endsWith(".log")
      ? new Promise((resolve, reject) => {
          ends.push({ fail: () => reject(new Error("gone")), land: resolve });
        })
      : undefined;
  const found = Buffer.alloc(CLUSTER_BYTES);
  let outcome = "waits";
  const reading = scene.buffer.readLatest(found, 0)?.catch(() => (outcome = "failed"));
  await scene.settle();
  expect(ends).toHaveLength(2);
  present(ends[0]).fail();
  await scene.settle();
  expect(outcome).toBe("waits");
  present(ends[1]).land();
  await reading;
  expect(outcome).toBe("failed");
  expect(found.subarray(1024, 1536).equals(pattern(512, 2))).toBe(true);
});
