import { describe, expect, it, vi } from "vitest";
import { CopyBeforeWrite, type OriginalsSession } from "../../../primary/copy-before-write.ts";
import type { Pending } from "../../../shared/block/block-device.ts";
import { clusterGeometry } from "../../../shared/block/cluster-geometry.ts";
import { MemoryDevice } from "../../support/memory-device.ts";

const CLUSTER = 4096;
const CLUSTERS = 8;
const NO_FUA = { fua: false };
const TRIM = { fua: false, mayUnmap: true };

interface Sent {
  readonly kind: string;
  readonly offset: number;
  readonly content: Buffer | number;
}

/** A secondary that keeps what it is sent, and says that it is stable when the test lets it. */
class FakeSession implements OriginalsSession {
  readonly sent: Sent[] = [];
  isFull = false;
  #waiters: (() => void)[] = [];

  room(): Pending {
    return undefined;
  }

  send: OriginalsSession["send"] = (kind, _range, offset, length, payload) => {
    this.sent.push({ kind, offset, content: payload === undefined ? length : Buffer.from(payload) });
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
    });
  };

  /** Everything sent so far is stable. */
  acknowledge(): void {
    for (const resolve of this.#waiters.splice(0)) resolve();
  }
}

class Bench {
  readonly device = new MemoryDevice(CLUSTERS * CLUSTER);
  session: FakeSession | undefined = new FakeSession();
  unwatched = false;
  resume: () => void = () => undefined;
  overwritten = 0;
  readonly child: CopyBeforeWrite;

  /** Content is placed in units of `placementBytes`. */
  constructor(placementBytes?: number) {
    const child = Object.assign(this.device, { placementBytes });
    this.child = new CopyBeforeWrite(0, child, clusterGeometry(CLUSTERS * CLUSTER, CLUSTER), {
      session: () => this.session,
      isUnwatched: () => this.unwatched,
      wait: () =>
        new Promise((resolve) => {
          this.resume = resolve;
        }),
      overwritten: (length) => {
        this.overwritten += length;
      },
    });
    void this.device.write(Buffer.alloc(CLUSTERS * CLUSTER, 1), 0, NO_FUA);
  }

  get sent(): readonly Sent[] {
    return this.session?.sent ?? [];
  }

  write(byte: number, offset: number, length: number): { readonly pending: Pending; isDone: boolean } {
    const pending = this.child.write(Buffer.alloc(length, byte), offset, NO_FUA);
    const write = { pending, isDone: pending === undefined };
    pending?.then(
      () => (write.isDone = true),
      () => undefined,
    );
    return write;
  }

  /** A write whose original is there. */
  async written(byte: number, offset: number, length: number): Promise<void> {
    const { pending } = this.write(byte, offset, length);
    await settle();
    this.session?.acknowledge();
    await pending;
  }
}

/** Lets everything happen that waits for nobody. */
function settle(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

describe("copy before write", () => {
  it("tells its child that what it is given is lent", async () => {
    const bench = new Bench();
    const lent: unknown[] = [];
    bench.device.write = (_, __, { isLent }) => void lent.push(isLent);
    const pending = bench.child.write(Buffer.alloc(CLUSTER, 7), 0, { fua: false, isLent: true });
    await settle();
    bench.session?.acknowledge();
    await pending;
    expect(lent).toEqual([true]);
  });

  it("overwrites nothing before its whole cluster's original is stable", async () => {
    const bench = new Bench();
    const write = bench.write(2, CLUSTER + 100, 50);
    await settle();
    expect(bench.sent).toEqual([{ kind: "original", offset: CLUSTER, content: Buffer.alloc(CLUSTER, 1) }]);
    expect(bench.device.bytes.includes(2)).toBe(false);
    expect(bench.overwritten).toBe(0);
    bench.session?.acknowledge();
    await write.pending;
    expect(bench.device.bytes.subarray(CLUSTER + 100, CLUSTER + 150)).toEqual(Buffer.alloc(50, 2));
    expect(bench.overwritten).toBe(50);
  });

  it("needs no second copy of a cluster in an epoch, and then waits for nobody", async () => {
    const bench = new Bench();
    await bench.written(2, 0, CLUSTER);
    expect(bench.write(3, 0, 10).pending).toBeUndefined();
    expect(bench.sent).toHaveLength(1);
  });

  it("has one round trip for all that is written in a turn", async () => {
    const bench = new Bench();
    const writes = [0, 2, 4, 6].map((cluster) => bench.write(2, cluster * CLUSTER, 512));
    expect(bench.sent).toHaveLength(4);
    bench.session?.acknowledge();
    for (const { pending } of writes) await pending;
  });

  it("has a write wait for an original of its cluster that is under way", async () => {
    const bench = new Bench();
    const first = bench.write(2, 0, 512);
    const second = bench.write(3, 1024, 512);
    await settle();
    expect(bench.sent).toHaveLength(1);
    expect([first.isDone, second.isDone]).toEqual([false, false]);
    bench.session?.acknowledge();
    await first.pending;
    await second.pending;
    expect(bench.sent).toHaveLength(1);
  });

  it("copies again after a barrier", async () => {
    const bench = new Bench();
    await bench.written(2, 0, CLUSTER);
    expect(bench.child.holdChanges()).toBeUndefined();
    bench.child.beginEpoch();
    const again = bench.write(3, 0, CLUSTER);
    await settle();
    expect(bench.sent.at(-1)).toEqual({ kind: "original", offset: 0, content: Buffer.alloc(CLUSTER, 2) });
    bench.session?.acknowledge();
    await again.pending;
  });

  it("does not count a copy for an epoch that began while it was under way", async () => {
    const bench = new Bench();
    const write = bench.write(2, 0, CLUSTER);
    await settle();
    void bench.child.holdChanges();
    bench.child.beginEpoch();
    bench.session?.acknowledge();
    await settle();
    expect(write.isDone).toBe(false);
    expect(bench.sent).toHaveLength(2);
    expect(bench.device.bytes[0]).toBe(1);
    bench.session?.acknowledge();
    await write.pending;
    expect(bench.device.bytes[0]).toBe(2);
  });

  it("does not count a copy for another session", async () => {
    const bench = new Bench();
    await bench.written(2, 0, CLUSTER);
    bench.session = new FakeSession();
    const write = bench.write(3, 0, CLUSTER);
    await settle();
    expect(write.isDone).toBe(false);
    expect(bench.sent).toHaveLength(1);
  });

  it("starts anew when the session is lost with an original under way", async () => {
    const bench = new Bench();
    const lost = bench.session;
    const write = bench.write(2, 0, CLUSTER);
    await settle();
    bench.session = undefined;
    lost?.acknowledge(); // an abandoned window lets everybody go
    await settle();
    expect(bench.device.bytes[0]).toBe(1);
    bench.session = new FakeSession();
    bench.resume();
    await settle();
    expect(bench.sent).toHaveLength(1);
    bench.session.acknowledge();
    await write.pending;
    expect(bench.device.bytes[0]).toBe(2);
  });

  it("begins no change while a barrier waits for those that are under way", async () => {
    const bench = new Bench();
    await bench.written(2, 0, CLUSTER);
    let finish = (): void => undefined;
    bench.device.gate = ({ kind }) =>
      kind === "write"
        ? new Promise((resolve) => {
            finish = resolve;
          })
        : undefined;
    const first = bench.write(3, 0, 512);
    const reached = vi.fn<() => void>();
    void bench.child.holdChanges()?.then(reached);
    const second = bench.write(4, 512, 512);
    await settle();
    expect(reached).not.toHaveBeenCalled();
    bench.device.gate = undefined;
    finish();
    await first.pending;
    await settle();
    expect(reached).toHaveBeenCalledOnce();
    expect(bench.device.bytes[512]).toBe(2);
    bench.child.beginEpoch();
    await settle();
    bench.session?.acknowledge();
    await second.pending;
    expect(bench.device.bytes[512]).toBe(4);
  });

  it("says that zeroes were there without sending them, and copies no hole to zero it", async () => {
    const bench = new Bench();
    void bench.device.zero(0, CLUSTER, TRIM);
    const write = bench.write(2, 0, 512);
    await settle();
    expect(bench.sent).toEqual([{ kind: "zero-original", offset: 0, content: CLUSTER }]);
    bench.session?.acknowledge();
    await write.pending;
    void bench.device.zero(2 * CLUSTER, CLUSTER, TRIM);
    await bench.child.zero(2 * CLUSTER, CLUSTER, TRIM);
    expect(bench.sent).toHaveLength(1);
  });

  it("copies what is trimmed", async () => {
    const bench = new Bench();
    const trim = bench.child.zero(CLUSTER, 2 * CLUSTER, TRIM);
    await settle();
    expect(bench.sent).toEqual([{ kind: "original", offset: CLUSTER, content: Buffer.alloc(2 * CLUSTER, 1) }]);
    expect(bench.device.bytes[CLUSTER]).toBe(1);
    bench.session?.acknowledge();
    await trim;
    expect(bench.device.bytes.subarray(CLUSTER, 3 * CLUSTER)).toEqual(Buffer.alloc(2 * CLUSTER));
  });

  it("copies the whole of what the image moves as one", async () => {
    const bench = new Bench(4 * CLUSTER);
    const write = bench.write(2, 5 * CLUSTER, 512);
    await settle();
    expect(bench.sent).toEqual([{ kind: "original", offset: 4 * CLUSTER, content: Buffer.alloc(4 * CLUSTER, 1) }]);
    expect(bench.device.bytes.includes(2)).toBe(false);
    bench.session?.acknowledge();
    await write.pending;
    expect(bench.write(3, 7 * CLUSTER, CLUSTER).isDone).toBe(true);
    expect(bench.write(3, 3 * CLUSTER, CLUSTER).isDone).toBe(false);
  });

  it("zeroes without a copy whole holes of what the image moves as one, and no part of one", async () => {
    const bench = new Bench(2 * CLUSTER);
    void bench.device.zero(CLUSTER, 6 * CLUSTER, TRIM);
    bench.device.operations = [];
    const zeroed = bench.child.zero(CLUSTER, 5 * CLUSTER, TRIM);
    await settle();
    expect(bench.sent).toMatchObject([{ offset: 0 }]);
    expect(bench.device.operations.filter(({ kind }) => kind === "zero")).toEqual([]);
    bench.session?.acknowledge();
    await zeroed;
    expect(bench.sent).toHaveLength(1);
    expect(bench.device.operations.filter(({ kind }) => kind === "zero")).toMatchObject([
      { offset: CLUSTER, length: CLUSTER },
      { offset: 2 * CLUSTER, length: 4 * CLUSTER },
    ]);
  });

  it("lets changes go on where no secondary can hold originals, and has them wait where one can", async () => {
    const bench = new Bench();
    bench.session = undefined;
    bench.unwatched = true;
    expect(bench.write(2, 0, 512).pending).toBeUndefined();
    bench.unwatched = false;
    const write = bench.write(3, 0, 512);
    await settle();
    expect(write.isDone).toBe(false);
    expect(bench.device.bytes[0]).toBe(2);
  });

  it("tells every write that waits for it when an original cannot be read, and tries again for the next", async () => {
    const bench = new Bench();
    bench.device.gate = ({ kind }) => (kind === "read" ? Promise.reject(new Error("the medium is worn")) : undefined);
    const writes = [bench.write(2, 0, 512), bench.write(3, 512, 512)];
    for (const { pending } of writes) await expect(pending).rejects.toThrow("worn");
    bench.device.gate = undefined;
    await bench.written(4, 0, 512);
    expect(bench.device.bytes[0]).toBe(4);
  });
});
