import { afterEach, describe, expect, it, vi } from "vitest";
import { NodeClock } from "../../../../shared/host/node-clock.ts";

const clock = new NodeClock();
const DAY_MS = 24 * 3600 * 1000;

afterEach(() => {
  vi.useRealTimers();
});

describe("NodeClock", () => {
  it("goes forward only, in fractions of milliseconds", async () => {
    const times = [clock.nowMs()];
    for (let n = 0; n < 100; n += 1) times.push(clock.nowMs());
    expect(times.toSorted((a, b) => a - b)).toEqual(times);
    expect(times.some((time) => !Number.isInteger(time))).toBe(true);
    expect(Math.abs(clock.wallMs() - new Date().getTime())).toBeLessThan(60_000);
  });

  it("calls back once, after the delay, and not when cancelled", () => {
    vi.useFakeTimers();
    const called = vi.fn<() => void>();
    const cancelled = vi.fn<() => void>();
    clock.after(100, called);
    clock.after(100, cancelled).cancel();
    vi.advanceTimersByTime(99);
    expect(called).not.toHaveBeenCalled();
    vi.advanceTimersByTime(1000);
    expect(called).toHaveBeenCalledOnce();
    expect(cancelled).not.toHaveBeenCalled();
  });

  it("waits out delays that are too long for one timer of Node", () => {
    vi.useFakeTimers();
    const called = vi.fn<() => void>();
    const cancelled = vi.fn<() => void>();
    clock.after(60 * DAY_MS, called);
    const timer = clock.after(60 * DAY_MS, cancelled);
    vi.advanceTimersByTime(59 * DAY_MS);
    expect(called).not.toHaveBeenCalled();
    timer.cancel();
    vi.advanceTimersByTime(DAY_MS);
    expect(called).toHaveBeenCalledOnce();
    expect(cancelled).not.toHaveBeenCalled();
  });

  it("does not keep the process alive with its timers", () => {
    const timers = (): number => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
    const before = timers();
    const pending = [clock.after(60_000, () => {}), clock.after(60 * DAY_MS, () => {})];
    expect(timers()).toBe(before);
    for (const timer of pending) timer.cancel();
  });

  it("defers to after everything that is already queued, in order", async () => {
    const order: string[] = [];
    await new Promise<void>((resolve) => {
      clock.defer(() => order.push("deferred"));
      clock.defer(() => {
        order.push("deferred later");
        resolve();
      });
      process.nextTick(() => order.push("tick"));
      queueMicrotask(() => order.push("microtask"));
      order.push("now");
    });
    expect(order.slice(0, 1)).toEqual(["now"]);
    expect(order.slice(1, 3).toSorted()).toEqual(["microtask", "tick"]);
    expect(order.slice(3)).toEqual(["deferred", "deferred later"]);
  });
});
