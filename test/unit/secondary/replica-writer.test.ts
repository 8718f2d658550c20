import assert from "node:assert/strict";
import { describe, expect, it, vi } from "vitest";
import { BATCH_MAX_OPERATIONS, NBD_MAX_IN_FLIGHT_BYTES, UNSTABLE_WINDOWS } from "../../../proto/limits.ts";
import type { Operation } from "../../../proto/replication-messages.ts";
import type { Durability } from "../../../proto/words.ts";
import { turn, type MemoryStorage } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, pattern, seededStorage } from "../../support/overlay-bench.ts";
import { BENCH_WINDOW_BYTES, imagePath, makeSecondary, ReplicaBench } from "../../support/replica-bench.ts";

const SIZE = 8 * CLUSTER_BYTES;

async function bench(durability: Durability = "process"): Promise<{ storage: MemoryStorage; bench: ReplicaBench }> {
  const storage = seededStorage(1);
  await makeSecondary(storage, [{ name: "vda", content: Buffer.alloc(SIZE) }], durability);
  const made = ReplicaBench.open(storage);
  await made.begin(1);
  return { storage, bench: made };
}

async function committed(durability: Durability = "process"): Promise<{ storage: MemoryStorage; bench: ReplicaBench }> {
  const made = await bench(durability);
  await made.bench.barrier(1);
  await made.bench.commit(1);
  return made;
}

function write(offset: number, payload: Buffer): Operation {
  return { kind: "write", disk: 0, offset, length: payload.length, payload };
}

function wipe(kind: "zero" | "discard", offset: number, length: number): Operation {
  return { kind, disk: 0, offset, length, payload: Buffer.alloc(0) };
}

function image(storage: MemoryStorage): Buffer {
  return storage.disk.readFile(imagePath("vda"));
}

describe("the replica writer", () => {
  it("applies operations in order, whatever they are", async () => {
    const { storage, bench: made } = await committed();
    made.push([write(0, Buffer.alloc(3000, 1)), wipe("zero", 100, 1000), write(500, Buffer.alloc(10, 2))]);
    made.push([wipe("discard", 2000, 500), write(2100, Buffer.alloc(10, 3))]);
    await made.drained();
    const expected = Buffer.alloc(SIZE);
    expected.fill(1, 0, 3000).fill(0, 100, 1100).fill(2, 500, 510).fill(0, 2000, 2500).fill(3, 2100, 2110);
    expect(image(storage)).toEqual(expected);
  });

  it("applies what has arrived when its session ends, up to the first request, where images follow the primary", async () => {
    const { storage, bench: made } = await committed();
    let hasRun = false;
    made.follows = true;
    for (let value = 1; value <= 3; value += 1) made.push([write(value * 100, Buffer.alloc(100, value))]);
    made.writer.enqueue(async () => {
      hasRun = true;
      return Promise.resolve();
    });
    made.push([write(400, Buffer.alloc(100, 4))]);
    await made.writer.stop();
    const expected = Buffer.alloc(SIZE);
    expected.fill(1, 100, 200).fill(2, 200, 300).fill(3, 300, 400);
    expect(image(storage)).toEqual(expected);
    expect(hasRun).toBe(false);
  });

  it("drops what has arrived when its session ends, where there is a checkpoint to return to", async () => {
    const { storage, bench: made } = await committed();
    for (let value = 1; value <= 3; value += 1) made.push([write(value * 100, Buffer.alloc(100, value))]);
    await made.writer.stop();
    expect(image(storage).subarray(300, 400)).toEqual(Buffer.alloc(100));
  });

  it("calls what is in the page cache stable where process crashes are all that is to be survived", async () => {
    const { bench: made } = await committed();
    made.push([write(0, Buffer.from("x")), write(1, Buffer.from("y"))]);
    await expect.poll(() => made.stable).toBe(2);
  });

  it("calls nothing stable before it is synced where losses of power are to be survived", async () => {
    const { storage, bench: made } = await committed("power");
    made.push([write(0, Buffer.from("x"))]);
    await made.drained();
    await turn();
    expect(made.stable).toBe(0);
    await made.writer.makeStable();
    made.writer.acknowledge();
    expect(made.stable).toBe(1);
    expect(storage.disk.readDurable(imagePath("vda"))[0]).toBe("x".charCodeAt(0));
  });

  it("syncs behind the stream by itself", async () => {
    const { bench: made } = await committed("power");
    made.push([write(0, Buffer.from("x"))]);
    await expect.poll(() => made.stable).toBe(1);
  });

  it("syncs behind what it compared and found equal while another sync was running", async () => {
    const { storage, bench: made } = await committed("power");
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    let syncs = 0;
    storage.hold = (op, path) => {
      if (op !== "sync" || path !== imagePath("vda")) return undefined;
      syncs += 1;
      return syncs === 1 ? held : undefined;
    };
    made.writer.compare({ comparing: true, rewriting: false });
    made.push([write(0, Buffer.from("x"))]);
    await expect.poll(() => syncs).toBe(1);
    made.push([write(0, Buffer.from("x"))]);
    await made.drained();
    release();
    await expect.poll(() => made.stable).toBe(2);
  });

  it("saves each original once for an epoch, before it is overwritten", async () => {
    const { bench: made } = await committed();
    made.push([write(0, pattern(CLUSTER_BYTES, 1))]);
    await made.barrier(2);
    await made.commit(2);
    made.push([write(5, Buffer.from("a")), write(9, Buffer.from("b"))]);
    made.push([write(7, Buffer.from("c"))]);
    await made.drained();
    expect(made.disks[0]?.hidden.describeGenerations()).toEqual([{ epoch: 3, bytes: CLUSTER_BYTES }]);
    expect(await made.readView(0, 0, CLUSTER_BYTES)).toEqual(pattern(CLUSTER_BYTES, 1));
  });

  it("saves nothing of what is zero and stays zero", async () => {
    const { bench: made } = await committed();
    made.push([wipe("discard", 0, SIZE), wipe("zero", 0, CLUSTER_BYTES)]);
    await made.drained();
    expect(made.disks[0]?.hidden.isEmpty).toBe(true);
  });

  it("while comparing neither writes nor saves what is equal already", async () => {
    const { storage, bench: made } = await committed();
    const content = pattern(2 * CLUSTER_BYTES, 1);
    made.push([write(0, content)]);
    await made.barrier(2);
    await made.commit(2);
    made.writer.compare({ comparing: true, rewriting: false });
    made.push([write(0, content), wipe("discard", 2 * CLUSTER_BYTES, CLUSTER_BYTES)]);
    await made.drained();
    expect(made.disks[0]?.hidden.isEmpty).toBe(true);
    // An operation of the same batch that undoes an earlier one is not equal to what is there at the end.
    made.push([wipe("discard", 0, CLUSTER_BYTES), write(0, content.subarray(0, CLUSTER_BYTES))]);
    await made.drained();
    expect(image(storage).subarray(0, content.length)).toEqual(content);
    expect(await made.readView(0, 0, content.length)).toEqual(content);
    await expect.poll(() => made.stable).toBe(5);
  });

  it("while rewriting writes what is equal already, and saves no original of it", async () => {
    const { bench: made } = await committed();
    const content = pattern(2 * CLUSTER_BYTES, 1);
    made.push([write(0, content)]);
    await made.barrier(2);
    await made.commit(2);
    made.writer.compare({ comparing: true, rewriting: true });
    const base = made.disks[0]?.base;
    assert(base !== undefined);
    const writes = vi.spyOn(base, "write");
    made.push([write(0, content)]);
    await made.drained();
    expect(writes).toHaveBeenCalledOnce();
    expect(made.disks[0]?.hidden.isEmpty).toBe(true);
  });

  it.each<readonly [string, Operation]>([
    ["of a disk that is not there", { ...write(0, Buffer.from("x")), disk: 1 }],
    ["that begins behind the end", write(SIZE, Buffer.from("x"))],
    ["that goes over the end", wipe("zero", SIZE - 1, 2)],
    ["that is larger than any disk", wipe("discard", 2 ** 52, 2 ** 52)],
  ])("refuses an operation %s, and applies nothing of its message", async (_, operation) => {
    const { storage, bench: made } = await committed();
    const before = image(storage);
    expect(() => made.push([write(0, Buffer.from("x")), operation])).toThrow(
      expect.objectContaining({ code: "protocol-error" }) as Error,
    );
    await made.drained();
    expect(image(storage)).toEqual(before);
  });

  it("refuses a gap in the stream, and a repetition", async () => {
    const { bench: made } = await committed();
    for (const firstSequence of [2, 0]) {
      expect(() => made.writer.push({ type: "data", firstSequence, operations: [write(0, Buffer.from("x"))] })).toThrow(
        /operation/,
      );
    }
  });

  it("ends the stream with overlay-full when an original finds no room, and the base is as it was", async () => {
    const { storage, bench: made } = await committed();
    made.push([write(0, pattern(SIZE, 1))]);
    await made.barrier(2);
    await made.commit(2);
    const before = image(storage);
    storage.disk.capacityBytes = storage.disk.usedBytes;
    made.push([write(0, Buffer.from("x")), write(3 * CLUSTER_BYTES, Buffer.from("y"))]);
    await expect.poll(() => made.failure?.code).toBe("overlay-full");
    expect(image(storage)).toEqual(before);
    expect(await made.readView(0)).toEqual(before);
  });

  it("ends the stream with the error of a base that cannot be written", async () => {
    const { storage, bench: made } = await committed();
    storage.disk.faults.inject({ op: "write", kind: "image", error: "io-error" });
    made.push([write(0, Buffer.from("x"))]);
    await expect.poll(() => made.failure?.code).toBe("io-error");
    await made.writer.stop();
  });

  it("ends the stream when a sync fails, at a barrier too", async () => {
    for (const atBarrier of [false, true]) {
      const { storage, bench: made } = await committed("power");
      storage.disk.faults.inject({ op: "sync", kind: "image", error: "io-error" });
      made.push([write(0, Buffer.from("x"))]);
      if (atBarrier) void made.barrier(2).catch(() => undefined);
      await expect.poll(() => made.failure?.code).toBe("io-error");
      await made.writer.stop();
      expect(made.checkpoints.prepared).toEqual([]);
    }
  });

  it("can be stopped while a sync is under way, even if that fails", async () => {
    const { storage, bench: made } = await committed("power");
    let release = (): void => undefined;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    storage.hold = (op, path) => (op === "sync" && path === imagePath("vda") ? released : undefined);
    storage.disk.faults.inject({ op: "sync", kind: "image", error: "io-error" });
    made.push([write(0, Buffer.from("x"))]);
    await made.drained();
    const stable = made.writer.makeStable();
    await turn();
    let stopped = false;
    const stopping = made.writer.stop().then(() => {
      stopped = true;
    });
    await turn();
    expect(stopped).toBe(false);
    release();
    await expect(stable).rejects.toMatchObject({ code: "io-error" });
    await stopping;
  });

  it("applies nothing that was queued once it is stopped", async () => {
    const { storage, bench: made } = await committed();
    made.push([write(0, Buffer.from("x"))]);
    const stopping = made.writer.stop();
    made.writer.enqueue(() => expect.unreachable());
    await stopping;
    const before = image(storage);
    await turn();
    expect(image(storage)).toEqual(before);
  });

  it("refuses what goes far beyond the window, and takes more when that is applied", async () => {
    const { bench: made } = await committed();
    const payload = Buffer.alloc(SIZE, 1);
    const most = UNSTABLE_WINDOWS * BENCH_WINDOW_BYTES + NBD_MAX_IN_FLIGHT_BYTES;
    const pushAll = (): void => {
      for (let sent = 0; sent < 2 * most; sent += payload.length) made.push([write(0, payload)]);
    };
    expect(pushAll).toThrow(
      expect.objectContaining({ code: "protocol-error", message: expect.stringMatching(/window/) as string }) as Error,
    );
    await made.drained();
    await made.begin(2);
    made.push([write(0, payload)]);
    await made.drained();
  });

  it("takes a very long queue of operations without payload in small pieces", async () => {
    const { bench: made } = await committed();
    made.writer.compare({ comparing: true, rewriting: false });
    const message = Array.from({ length: BATCH_MAX_OPERATIONS }, (_, index) => wipe("discard", index % SIZE, 1));
    for (let count = 0; count < 64; count += 1) made.push(message);
    let turns = 0;
    let isDone = false;
    const countTurn = (): void => {
      turns += 1;
      if (!isDone) setImmediate(countTurn);
    };
    countTurn();
    await made.drained();
    isDone = true;
    expect(turns).toBeGreaterThan(8);
  });
});

function original(cluster: number, payload: Buffer, disk = 0): Operation {
  return { kind: "original", disk, offset: cluster * CLUSTER_BYTES, length: payload.length, payload };
}

describe("the replica writer of a shared disk", () => {
  const content = Buffer.alloc(SIZE, 1);

  async function shared(durability: Durability = "process"): Promise<{ storage: MemoryStorage; bench: ReplicaBench }> {
    const storage = seededStorage(1);
    await makeSecondary(storage, [{ name: "vda", content }], durability, { mode: "shared" });
    const made = ReplicaBench.open(storage);
    await made.begin(1);
    await made.barrier(1);
    await made.commit(1);
    return { storage, bench: made };
  }

  async function view(made: ReplicaBench): Promise<Buffer> {
    const target = Buffer.alloc(SIZE);
    await made.disks[0]?.view.read(target, 0);
    return target;
  }

  it("keeps originals, and leaves the disk alone", async () => {
    const { storage, bench: made } = await shared();
    made.push([original(1, Buffer.alloc(2 * CLUSTER_BYTES, 7)), wipeOriginal(5)]);
    await made.drained();
    expect(image(storage)).toEqual(content);
    const expected = Buffer.from(content);
    expected.fill(7, CLUSTER_BYTES, 3 * CLUSTER_BYTES).fill(0, 5 * CLUSTER_BYTES, 6 * CLUSTER_BYTES);
    expect(await view(made)).toEqual(expected);
  });

  it("keeps the first original of a cluster, in one batch and in the next", async () => {
    const { bench: made } = await shared();
    made.push([original(3, Buffer.alloc(CLUSTER_BYTES, 7)), original(2, Buffer.alloc(3 * CLUSTER_BYTES, 8))]);
    made.push([original(2, Buffer.alloc(2 * CLUSTER_BYTES, 9))]);
    await made.drained();
    const expected = Buffer.from(content);
    expected.fill(8, 2 * CLUSTER_BYTES, 5 * CLUSTER_BYTES).fill(7, 3 * CLUSTER_BYTES, 4 * CLUSTER_BYTES);
    expect(await view(made)).toEqual(expected);
  });

  it("calls an original stable when it is saved, durably where losses of power are to be survived", async () => {
    const { storage, bench: made } = await shared("power");
    made.push([original(0, Buffer.alloc(CLUSTER_BYTES, 7))]);
    await expect.poll(() => made.stable).toBe(1);
    storage.crash("power");
    const again = ReplicaBench.open(storage);
    const target = Buffer.alloc(CLUSTER_BYTES);
    await again.disks[0]?.view.read(target, 0);
    expect(target).toEqual(Buffer.alloc(CLUSTER_BYTES, 7));
  });

  it("keeps nothing before there is a checkpoint to lead back to", async () => {
    const storage = seededStorage(1);
    await makeSecondary(storage, [{ name: "vda", content }], "process", { mode: "shared" });
    const made = ReplicaBench.open(storage);
    await made.begin(1);
    made.push([original(0, Buffer.alloc(CLUSTER_BYTES, 7))]);
    await expect.poll(() => made.stable).toBe(1);
    expect(made.disks[0]?.hidden.isEmpty).toBe(true);
  });

  it.each<readonly [string, Operation]>([
    ["a write", write(0, Buffer.alloc(CLUSTER_BYTES))],
    ["a trim", wipe("discard", 0, CLUSTER_BYTES)],
    ["half an original", original(0, Buffer.alloc(CLUSTER_BYTES / 2))],
    ["a shifted original", { ...original(0, Buffer.alloc(CLUSTER_BYTES)), offset: 512 }],
  ])("takes %s for an error of the primary", async (_, operation) => {
    const { bench: made } = await shared();
    expect(() => made.push([operation])).toThrow(expect.objectContaining({ code: "protocol-error" }));
  });

  it("takes an original for an error of a primary that sends its writes", async () => {
    const { bench: made } = await committed();
    expect(() => made.push([original(0, Buffer.alloc(CLUSTER_BYTES))])).toThrow(
      expect.objectContaining({ code: "protocol-error" }),
    );
  });
});

function wipeOriginal(cluster: number): Operation {
  const empty = Buffer.alloc(0);
  return { kind: "zero-original", disk: 0, offset: cluster * CLUSTER_BYTES, length: CLUSTER_BYTES, payload: empty };
}
