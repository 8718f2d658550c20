import { AssertionError } from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { type RangeHold, RangeLock } from "../../../../shared/block/range-lock.ts";

function now(result: RangeHold | Promise<RangeHold>): RangeHold {
  if (result instanceof Promise) throw new Error("the range was not free");
  return result;
}

/** Acquires, and appends `name` to `granted` when the range is held. */
function request(lock: RangeLock, granted: string[], name: string, offset: number, length: number): Promise<RangeHold> {
  return Promise.resolve(lock.acquire(offset, length)).then((hold) => {
    granted.push(name);
    return hold;
  });
}

describe("the range lock", () => {
  it("gives ranges that do not touch each other's bytes at once", () => {
    const lock = new RangeLock();
    const holds = [now(lock.acquire(0, 10)), now(lock.acquire(10, 10)), now(lock.acquire(30, 1))];
    expect(lock.overlaps(20, 10)).toBe(false);
    for (const hold of holds) lock.release(hold);
    expect(lock.overlaps(0, 20)).toBe(false);
  });

  it.each([
    ["the same", 100, 10],
    ["its first byte", 91, 10],
    ["its last byte", 109, 10],
    ["within it", 105, 1],
    ["around it", 0, 1000],
  ])("makes a range that overlaps wait: %s", async (_, offset, length) => {
    const lock = new RangeLock();
    const hold = now(lock.acquire(100, 10));
    expect(lock.overlaps(offset, length)).toBe(true);
    const waiting = lock.acquire(offset, length);
    expect(waiting).toBeInstanceOf(Promise);
    lock.release(hold);
    lock.release(await waiting);
    expect(lock.overlaps(0, 1000)).toBe(false);
  });

  it("is exact beyond 2^41", () => {
    const lock = new RangeLock();
    const far = 2 ** 41 + 1;
    now(lock.acquire(far, 2 ** 32));
    expect(lock.overlaps(far - 1, 1)).toBe(false);
    expect(lock.overlaps(far + 2 ** 32 - 1, 1)).toBe(true);
    expect(lock.overlaps(far + 2 ** 32, 1)).toBe(false);
    expect(lock.overlaps(1, 1)).toBe(false);
  });

  it("lets nobody pass an earlier waiter that overlaps, though the bytes are free", async () => {
    const lock = new RangeLock();
    const granted: string[] = [];
    const first = now(lock.acquire(0, 10));
    const wide = request(lock, granted, "wide", 0, 100);
    const behind = request(lock, granted, "behind", 50, 10);
    const aside = request(lock, granted, "aside", 200, 10);
    expect(lock.overlaps(90, 1)).toBe(true);
    await aside;
    expect(granted).toEqual(["aside"]);
    lock.release(first);
    const wideHold = await wide;
    expect(granted).toEqual(["aside", "wide"]);
    lock.release(wideHold);
    await behind;
    expect(granted).toEqual(["aside", "wide", "behind"]);
  });

  it("waits for all that overlap, not only for the first that is released", async () => {
    const lock = new RangeLock();
    const granted: string[] = [];
    const holds = [now(lock.acquire(0, 10)), now(lock.acquire(10, 10)), now(lock.acquire(20, 10))];
    const wide = request(lock, granted, "wide", 5, 20);
    for (const hold of holds) {
      expect(granted).toEqual([]);
      lock.release(hold);
      await Promise.resolve();
    }
    await wide;
  });

  it("serves a thousand writers of one range in their order", async () => {
    const lock = new RangeLock();
    const order: number[] = [];
    const writers = Array.from({ length: 1000 }, async (_, n) => {
      const hold = await lock.acquire(4096, 4096);
      order.push(n);
      lock.release(hold);
    });
    await Promise.all(writers);
    expect(order).toEqual(Array.from({ length: 1000 }, (_, n) => n));
    expect(lock.overlaps(0, 2 ** 40)).toBe(false);
  });

  it("calls a second release, or a foreign one, a bug", () => {
    const lock = new RangeLock();
    const hold = now(lock.acquire(0, 10));
    const other = now(lock.acquire(10, 10));
    lock.release(hold);
    expect(() => lock.release(hold)).toThrow(AssertionError);
    expect(() => new RangeLock().release(other)).toThrow(AssertionError);
    expect(() => lock.acquire(0, 0)).toThrow(AssertionError);
    expect(() => lock.acquire(-1, 2)).toThrow(AssertionError);
  });
});
