import { describe, expect, it } from "vitest";
import { SharedVmState } from "../../../primary/shared-vm-state.ts";

/** Pieces of one byte, and how many were read. */
function pieces(count: number): { bytes: AsyncIterator<Uint8Array, unknown>; read: () => number } {
  let read = 0;
  const bytes = {
    next: () => {
      read += 1;
      const isDone = read > count;
      return Promise.resolve(
        isDone ? { done: true as const, value: undefined } : { done: false, value: Uint8Array.of(read) },
      );
    },
  };
  return { bytes, read: () => read };
}

async function all(reader: AsyncIterator<Uint8Array, unknown>): Promise<number[]> {
  const got: number[] = [];
  for (;;) {
    const { done, value } = await reader.next();
    if (done === true) return got;
    got.push(value[0] ?? 0);
  }
}

describe("a VM state that several secondaries are sent", () => {
  it("is read once, and each of them has all of it", async () => {
    const { bytes, read } = pieces(3);
    const state = new SharedVmState(bytes, 2);
    expect(await Promise.all([all(state.reader(0)), all(state.reader(1))])).toEqual([
      [1, 2, 3],
      [1, 2, 3],
    ]);
    expect(read()).toBe(4);
  });

  it("waits for the slowest, and goes on without one that takes no more", async () => {
    const { bytes, read } = pieces(2);
    const state = new SharedVmState(bytes, 2);
    const quick = all(state.reader(0));
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    expect(read()).toBe(0);
    state.leave(1);
    expect(await quick).toEqual([1, 2]);
  });
});
