import { describe, expect, it } from "vitest";
import { CopySync } from "../../../primary/copy-sync.ts";
import { follow, FollowedChild, unfollow } from "../../../primary/followed-child.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { COPY_CLUSTER_BYTES as CLUSTER, COPY_TIMEOUT_MS, CopyBench } from "../../support/copy-bench.ts";
import { MemoryDevice } from "../../support/memory-device.ts";
import { turn } from "../../support/memory-storage.ts";

const NO_FUA = { fua: false } as const;
const failure = (): ColobusError => new ColobusError("io-error", "the device is broken");

async function syncAll(sync: CopySync): Promise<void> {
  while ((await sync.step(Infinity)) !== undefined);
}

describe("a child that others follow", () => {
  it("has a new follower brought what it lacks, and written what comes meanwhile", async () => {
    const bench = new CopyBench(64);
    for (let cluster = 0; cluster < 64; cluster += 2) {
      void bench.local.write(Buffer.alloc(CLUSTER, cluster + 1), cluster * CLUSTER, NO_FUA);
    }
    const target = new MemoryDevice(bench.disk.sizeBytes);
    target.bytes.fill(0xee);
    const copy = bench.copy(target);
    await follow(bench.disk, copy);
    const sync = new CopySync(bench.disk, copy, bench.geometry);
    let writes = 0;
    for (let moved = await sync.step(3 * CLUSTER); moved !== undefined; moved = await sync.step(3 * CLUSTER)) {
      writes += 1;
      await bench.disk.write(Buffer.alloc(700, writes), (writes * 7919) % (63 * CLUSTER), NO_FUA);
    }
    expect(writes).toBeGreaterThan(10);
    expect(await copy.finishSync()).toBe(true);
    copy.becomeSound();
    await bench.disk.write(Buffer.from("last"), 5, NO_FUA);
    expect(target.bytes.equals(bench.local.bytes)).toBe(true);
    expect(sync.progress.doneBytes).toBe(sync.progress.totalBytes);
  });

  it("writes clean clusters at once, and lets dirty ones stay dirty", async () => {
    const bench = new CopyBench(4);
    const target = new MemoryDevice(bench.disk.sizeBytes);
    const copy = bench.copy(target);
    await follow(bench.disk, copy);
    await copy.place(0, CLUSTER);
    expect(bench.disk.write(Buffer.from("clean"), 10, NO_FUA)).toBeUndefined();
    expect(bench.disk.write(Buffer.from("dirty"), CLUSTER + 10, NO_FUA)).toBeUndefined();
    expect(target.bytes.toString("latin1", 10, 15)).toBe("clean");
    expect(target.bytes[CLUSTER + 10]).toBe(0);
    expect(copy.dirtyBytes).toBe(3 * CLUSTER);
  });

  it("tells both that what it is given is lent", async () => {
    const bench = new CopyBench(4);
    const target = new MemoryDevice(bench.disk.sizeBytes);
    const copy = bench.copy(target);
    await follow(bench.disk, copy);
    await copy.place(0, CLUSTER);
    const lent: unknown[] = [];
    for (const device of [bench.local, target]) device.write = (_, __, { isLent }) => void lent.push(isLent);
    await bench.disk.write(Buffer.from("clean"), 10, { fua: false, isLent: true });
    expect(lent).toEqual([true, true]);
  });

  it("only marks what changes where the follower is not written through", async () => {
    const bench = new CopyBench(4);
    const target = new MemoryDevice(bench.disk.sizeBytes);
    const copy = bench.copy(target, { isWrittenThrough: false });
    await follow(bench.disk, copy);
    const sync = new CopySync(bench.disk, copy, bench.geometry);
    await syncAll(sync);
    void bench.disk.write(Buffer.from("x"), 0, NO_FUA);
    expect([target.bytes[0], copy.dirtyBytes]).toEqual([0, CLUSTER]);
    await syncAll(sync);
    expect(target.bytes.toString("latin1", 0, 1)).toBe("x");
    copy.writeThrough();
    void bench.disk.write(Buffer.from("y"), 0, NO_FUA);
    expect(target.bytes.toString("latin1", 0, 1)).toBe("y");
  });

  it("fails no request of a guest when a follower fails, and knows what that one lacks", async () => {
    const bench = new CopyBench(8);
    const target = new MemoryDevice(bench.disk.sizeBytes);
    const copy = bench.copy(target);
    await follow(bench.disk, copy);
    const sync = new CopySync(bench.disk, copy, bench.geometry);
    await syncAll(sync);
    target.gate = ({ kind }) => {
      if (kind !== "flush") throw failure();
      return undefined;
    };
    expect(bench.disk.write(Buffer.from("a"), 0, NO_FUA)).toBeUndefined();
    expect(bench.disk.zero(2 * CLUSTER, CLUSTER, { fua: false, mayUnmap: true })).toBeUndefined();
    expect([copy.state, copy.dirtyBytes, copy.fault?.code]).toEqual(["broken", 2 * CLUSTER, "io-error"]);
    expect(bench.refused).toEqual([]);
    await expect(sync.step(Infinity)).rejects.toMatchObject({ code: "io-error" });
    target.gate = undefined;
    copy.beginSync();
    await syncAll(sync);
    expect(target.bytes.equals(bench.local.bytes)).toBe(true);
  });

  it("takes what the child itself has refused for lacking on the follower", async () => {
    const bench = new CopyBench(4);
    const copy = bench.copy(new MemoryDevice(bench.disk.sizeBytes), { state: "sound" });
    await follow(bench.disk, copy);
    bench.local.gate = () => {
      throw failure();
    };
    expect(() => bench.disk.write(Buffer.from("a"), CLUSTER, NO_FUA)).toThrow("broken");
    bench.local.gate = () => Promise.reject(failure());
    await expect(bench.disk.write(Buffer.from("a"), 3 * CLUSTER, NO_FUA)).rejects.toThrow("broken");
    expect([copy.state, copy.dirtyBytes]).toEqual(["syncing", 2 * CLUSTER]);
  });

  it("gives a follower up that hangs, and delays nothing beyond its time limit", async () => {
    const bench = new CopyBench(4);
    const target = new MemoryDevice(bench.disk.sizeBytes);
    const copy = bench.copy(target, { state: "sound" });
    await follow(bench.disk, copy);
    let land = (): void => undefined;
    target.gate = () =>
      new Promise<void>((resolve) => {
        land = resolve;
      });
    const written = bench.disk.write(Buffer.from("late"), 0, NO_FUA);
    bench.clock.advance(COPY_TIMEOUT_MS - 1);
    await turn();
    expect(copy.state).toBe("sound");
    bench.clock.advance(1);
    await written;
    expect([copy.state, copy.fault?.code, copy.isUnsettled]).toEqual(["broken", "child-timed-out", true]);
    target.gate = undefined;
    expect(bench.disk.write(Buffer.from("next"), 0, NO_FUA)).toBeUndefined();
    land();
    await turn();
    expect([copy.isUnsettled, copy.dirtyBytes, target.bytes.toString("latin1", 0, 4)]).toEqual([
      false,
      CLUSTER,
      "late",
    ]);
    expect(bench.clock.pendingTimers).toBe(0);
  });

  it("lacks everything that was not flushed when a flush fails, also what was placed meanwhile", async () => {
    const bench = new CopyBench(4);
    const target = new MemoryDevice(bench.disk.sizeBytes);
    const copy = bench.copy(target);
    await follow(bench.disk, copy);
    await syncAll(new CopySync(bench.disk, copy, bench.geometry));
    target.gate = ({ kind }) => (kind === "flush" ? Promise.reject(failure()) : undefined);
    expect(await copy.finishSync()).toBe(false);
    expect([copy.state, copy.dirtyBytes]).toEqual(["broken", 4 * CLUSTER]);
  });

  it("is the child alone again when the last follower is gone", async () => {
    const bench = new CopyBench(4);
    const [first, second] = [1, 2].map(() => bench.copy(new MemoryDevice(bench.disk.sizeBytes)));
    if (first === undefined || second === undefined) throw new Error("there are two");
    await follow(bench.disk, first);
    await follow(bench.disk, second);
    await unfollow(bench.disk, first);
    expect(bench.disk.child).toBeInstanceOf(FollowedChild);
    await unfollow(bench.disk, second);
    expect(bench.disk.child).toBe(bench.local);
  });
});
