import { describe, expect, it } from "vitest";
import { COMMAND } from "../../../../proto/nbd-protocol.ts";
import type { WriteFlags } from "../../../../shared/block/block-device.ts";
import { InputBufferPool } from "../../../../shared/nbd/input-buffers.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { deferred } from "../../../support/deferred.ts";
import { MemoryDevice } from "../../../support/memory-device.ts";
import { decodeAnswers, negotiation, request } from "../../../support/nbd-client.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../../support/nbd-harness.ts";

const { READ, WRITE } = COMMAND;
const READ_COOKIE = 2;
const READ_BYTES = 512;
const payload = Buffer.alloc(4096, 7);
const write = request({ type: WRITE, cookie: 1, offset: 0, payload });

describe("input buffers", () => {
  it("are used again a turn after everybody who holds one has released it", () => {
    const clock = new ManualClock();
    const pool = new InputBufferPool(clock);
    const buffer = pool.take();
    buffer.hold();
    buffer.release();
    clock.endTurn();
    expect(pool.take()).not.toBe(buffer);
    buffer.release();
    expect(pool.take()).not.toBe(buffer);
    clock.endTurn();
    expect(pool.take()).toBe(buffer);
  });

  it("are kept until what was deferred before the last release has run", () => {
    const clock = new ManualClock();
    const pool = new InputBufferPool(clock);
    const first = pool.take();
    const second = pool.take();
    const backBeforeBatch: boolean[] = [];
    first.release();
    clock.defer(() => {
      const taken = [pool.take(), pool.take()];
      backBeforeBatch.push(taken.includes(second));
    });
    second.release();
    clock.endTurn();
    expect(backBeforeBatch).toEqual([false]);
  });
});

/** Keeps views of what it is given, as a disk may that sends it on at the end of the turn. */
class KeepingDevice extends MemoryDevice {
  readonly kept: { readonly view: Uint8Array; readonly flags: WriteFlags }[] = [];

  override write(source: Uint8Array, offset: number, flags: WriteFlags): Promise<void> | undefined {
    this.kept.push({ view: source, flags });
    return super.write(source, offset, flags);
  }

  /** From now on pieces are taken at once, and written when `later` resolves. */
  writeBehind(later: Promise<void>): void {
    this.openWrite = (offset) => {
      const pieces: Uint8Array[] = [];
      const written = later.then(() => Buffer.concat(pieces).copy(this.bytes, offset));
      return {
        push: (piece) => {
          pieces.push(piece);
          return undefined;
        },
        end: () => written.then(() => undefined),
        abandon: () => undefined,
        isBehind: () => true,
      };
    };
  }
}

function start(): { harness: NbdHarness; device: KeepingDevice } {
  const device = new KeepingDevice(1024 * 1024);
  const harness = new NbdHarness(new TestDirectory(new TestExport("vda", device)));
  harness.send(negotiation("vda"));
  harness.takeOutput();
  return { harness, device };
}

const answersOf = (harness: NbdHarness): number[] =>
  decodeAnswers(harness.takeOutput(), (cookie) => (cookie === READ_COOKIE ? READ_BYTES : 0)).map(
    ({ cookie }) => cookie,
  );

describe("a write's payload", () => {
  it("is lent until the turn is over in which the disk was done with it", () => {
    const { harness, device } = start();
    const atEndOfTurn: number[] = [];
    harness.clock.defer(() => atEndOfTurn.push(device.kept[0]?.view[0] ?? -1));
    harness.send(write);
    expect(device.kept[0]?.flags).toEqual({ fua: false, isLent: true });
    expect(atEndOfTurn).toEqual([7]);
    expect(device.kept[0]?.view[0]).toBe(0xdb);
    expect(harness.inputBuffersBack).toBe(1);
  });

  it("stays as it is while the disk holds it, whatever comes behind it in the same buffer", async () => {
    const { harness, device } = start();
    const held = deferred();
    device.gate = (operation) => (operation.kind === "write" ? held.promise : undefined);
    harness.send(
      Buffer.concat([write, request({ type: READ, cookie: READ_COOKIE, offset: 8192, length: READ_BYTES })]),
    );
    await harness.settle();
    expect(answersOf(harness)).toEqual([READ_COOKIE]);
    expect(harness.inputBuffersBack).toBe(0);
    held.resolve();
    await harness.settle();
    expect(answersOf(harness)).toEqual([1]);
    expect(device.bytes.subarray(0, 4096).equals(payload)).toBe(true);
    expect(harness.inputBuffersBack).toBe(1);
  });

  it("in pieces comes back before the request is done, where the disk has taken them", async () => {
    const { harness, device } = start();
    const held = deferred();
    device.gate = (operation) => (operation.kind === "end" ? held.promise : undefined);
    harness.send(write.subarray(0, 1000), write.subarray(1000, 2000));
    expect(harness.inputBuffersBack).toBe(2);
    harness.send(write.subarray(2000));
    expect(harness.inputBuffersBack).toBe(3);
    held.resolve();
    await harness.settle();
    expect(answersOf(harness)).toEqual([1]);
  });

  it.each(["takes its time with each", "is behind with them"])(
    "in pieces stays as it is where the disk %s",
    async (how) => {
      const { harness, device } = start();
      const held = deferred();
      if (how === "is behind with them") device.writeBehind(held.promise);
      else device.gate = (operation) => (operation.kind === "push" ? held.promise : undefined);
      harness.send(write.subarray(0, 1000), write.subarray(1000, 2000), write.subarray(2000));
      await harness.settle();
      expect(harness.inputBuffersBack).toBe(0);
      held.resolve();
      await harness.settle();
      expect(answersOf(harness)).toEqual([1]);
      expect(device.bytes.subarray(0, 4096).equals(payload)).toBe(true);
      expect(harness.inputBuffersBack).toBe(3);
    },
  );

  it.each(["write", "push", "end"])("stays the disk's where it has failed (%s)", async (kind) => {
    const { harness, device } = start();
    const held = deferred();
    device.gate = (operation) => (operation.kind === kind ? held.promise : undefined);
    harness.send(...(kind === "write" ? [write] : [write.subarray(0, 1000), write.subarray(1000)]));
    held.reject(new Error("the disk has failed"));
    await harness.settle();
    expect(answersOf(harness)).toEqual([1]);
    expect(harness.inputBuffersBack).toBe({ write: 0, push: 1, end: 2 }[kind]);
  });

  it("stays the disk's where the client has gone before it was complete", async () => {
    const { harness, device } = start();
    device.writeBehind(deferred().promise);
    harness.send(write.subarray(0, 1000), write.subarray(1000, 2000));
    harness.disconnect();
    await harness.settle();
    expect(harness.inputBuffersBack).toBe(0);
  });
});
