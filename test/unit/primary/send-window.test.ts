import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SendWindow } from "../../../primary/send-window.ts";
import { UNSTABLE_WINDOWS } from "../../../proto/limits.ts";
import { turn } from "../../support/memory-storage.ts";

const RANGE = { disk: 0, firstCluster: 0, endCluster: 1 };
/** What an operation costs beside its payload. */
const COST = 128;

function at(cluster: number): typeof RANGE {
  return { disk: 0, firstCluster: cluster, endCluster: cluster + 1 };
}

/** Whether what is pending has been settled, asked after everything that can happen has. */
async function isDone(pending: Promise<void> | undefined): Promise<boolean> {
  let done = pending === undefined;
  void pending?.then(() => {
    done = true;
  });
  await turn();
  return done;
}

describe("the send window", () => {
  it("numbers operations from 1, and counts what is not stable", () => {
    const window = new SendWindow(1000);
    expect(window.isEmpty).toBe(true);
    expect([window.add(RANGE, 10), window.add(RANGE, 20), window.sequence]).toEqual([1, 2, 2]);
    expect(window.unstableBytes).toBe(30 + 2 * COST);
    expect(window.acknowledge(2, 1)).toBe(true);
    expect(window.unstableBytes).toBe(20 + COST);
    expect(window.acknowledge(2, 2)).toBe(true);
    expect([window.unstableBytes, window.isEmpty]).toEqual([0, true]);
  });

  it("has writers wait while it is full of what was not received, and wakes all of them together", async () => {
    const window = new SendWindow(1000);
    expect(window.room()).toBeUndefined();
    window.add(RANGE, 500);
    expect(window.room()).toBeUndefined();
    window.add(RANGE, 500);
    const waiters = [window.room(), window.room()];
    expect(await isDone(waiters[0])).toBe(false);
    window.acknowledge(1, 0);
    expect(await isDone(waiters[0])).toBe(true);
    expect(await isDone(waiters[1])).toBe(true);
  });

  it("has writers wait while too much is received and not stable", async () => {
    const window = new SendWindow(1000);
    for (let count = 1; count <= UNSTABLE_WINDOWS; count += 1) window.add(RANGE, 1000);
    window.acknowledge(UNSTABLE_WINDOWS, 0);
    const room = window.room();
    expect(await isDone(room)).toBe(false);
    window.acknowledge(UNSTABLE_WINDOWS, 1);
    expect(await isDone(room)).toBe(true);
  });

  it("is filled by operations without payload too", () => {
    const window = new SendWindow(10 * COST);
    for (let count = 0; count < 10; count += 1) window.add(RANGE, 0);
    expect(window.room()).toBeDefined();
  });

  it("tells when an operation is received, and when it is stable", async () => {
    const window = new SendWindow(1000);
    window.add(RANGE, 1);
    window.add(RANGE, 1);
    const received = window.acknowledged(2, "received");
    const stable = window.acknowledged(2, "stable");
    window.acknowledge(2, 1);
    expect([await isDone(received), await isDone(stable)]).toEqual([true, false]);
    expect(window.acknowledged(1, "stable")).toBeUndefined();
    window.acknowledge(2, 2);
    expect(await isDone(stable)).toBe(true);
    expect(window.acknowledged(0, "stable")).toBeUndefined();
  });

  it("says whether an acknowledgement was news", () => {
    const window = new SendWindow(1000);
    window.add(RANGE, 1);
    expect(window.acknowledge(0, 0)).toBe(false);
    expect(window.acknowledge(1, 0)).toBe(true);
    expect(window.acknowledge(1, 0)).toBe(false);
    expect(window.acknowledge(1, 1)).toBe(true);
  });

  it.each([
    ["more than was sent", 3, 0],
    ["stable before received", 1, 2],
    ["less received than before", 0, 0],
    ["less stable than before", 2, 0],
  ])("refuses an acknowledgement of %s, and stays as it was", (_, received, stable) => {
    const window = new SendWindow(1000);
    window.add(RANGE, 1);
    window.add(RANGE, 1);
    window.acknowledge(1, 1);
    const before = window.unstableBytes;
    expect(() => window.acknowledge(received, stable)).toThrow(
      expect.objectContaining({ code: "protocol-error" }) as Error,
    );
    expect(window.unstableBytes).toBe(before);
  });

  it("lets everybody go when the session is lost, and names what may be missing", async () => {
    const window = new SendWindow(1);
    for (let cluster = 1; cluster <= 3; cluster += 1) window.add(at(cluster), 1);
    window.acknowledge(2, 1);
    const waiting = [window.room(), window.acknowledged(3, "received"), window.acknowledged(3, "stable")];
    expect(window.abandon().map(({ firstCluster }) => firstCluster)).toEqual([2, 3]);
    for (const pending of waiting) expect(await isDone(pending)).toBe(true);
    expect(window.room()).toBeUndefined();
    expect([window.isEmpty, window.unstableBytes]).toEqual([true, 0]);
  });

  it("never forgets an operation that is not stable, in any order of sending and acknowledging", () => {
    const step = fc.oneof(
      fc.record({ add: fc.nat({ max: 50 }) }),
      fc.record({ received: fc.nat({ max: 10 }), stable: fc.nat({ max: 10 }) }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const window = new SendWindow(1000);
        const sizes: number[] = [];
        let received = 0;
        let stable = 0;
        for (const action of steps) {
          if ("add" in action) {
            window.add(at(sizes.length), action.add);
            sizes.push(action.add);
          } else {
            received = Math.min(sizes.length, received + action.received);
            stable = Math.min(received, stable + action.stable);
            window.acknowledge(received, stable);
          }
          expect(window.sequence).toBe(sizes.length);
          const cost = (from: number): number => sizes.slice(from).reduce((sum, size) => sum + size + COST, 0);
          expect(window.unstableBytes).toBe(cost(stable));
          expect(window.room() === undefined).toBe(cost(received) < 1000 && cost(stable) < UNSTABLE_WINDOWS * 1000);
        }
        expect(window.abandon().map(({ firstCluster }) => firstCluster)).toEqual(
          sizes.map((_, index) => index).slice(stable),
        );
      }),
    );
  });
});
