import { describe, expect, it } from "vitest";
import { EventLoopDelay } from "../../../../shared/host/event-loop-delay.ts";
import { NodeClock } from "../../../../shared/host/node-clock.ts";
import { HeldUpClock } from "../../../support/held-up-clock.ts";

function measured() {
  const clock = new HeldUpClock();
  const delay = new EventLoopDelay(clock);
  const heard: number[] = [];
  delay.start((delayMs) => void heard.push(delayMs));
  return { clock, delay, heard };
}

describe("the event loop's delay", () => {
  it("is nothing while all timers fire in time", () => {
    const { clock, delay, heard } = measured();
    clock.advance(1000);
    expect(heard.length).toBe(50);
    expect(Math.max(...heard)).toBe(0);
    expect(delay.getFigures()).toMatchObject({ overMs: 1000, p99Ms: 0.001, maxMs: 0.001 });
  });

  it("is how much later than asked for a timer fires, told once, when it is over", () => {
    const { clock, delay, heard } = measured();
    clock.advance(190);
    clock.holdUp(1500);
    clock.advance(100);
    expect(heard.filter((ms) => ms > 0)).toEqual([1500]);
    expect(delay.getFigures().maxMs / 1500).toBeCloseTo(1, 1);
    expect(delay.getFigures().p50Ms).toBe(0.001);
  });

  it("is forgotten after a minute", () => {
    const { clock, delay } = measured();
    clock.holdUp(500);
    clock.advance(45_000);
    expect(delay.getFigures().maxMs).toBeGreaterThan(475);
    clock.advance(15_000);
    const { maxMs, overMs } = delay.getFigures();
    expect(maxMs).toBe(0.001);
    expect(overMs).toBeGreaterThanOrEqual(50_000);
    expect(overMs).toBeLessThanOrEqual(60_000);
  });

  it("ends with the measuring", () => {
    const { clock, delay, heard } = measured();
    delay.stop();
    clock.advance(1000);
    expect(heard).toEqual([]);
    expect(clock.pendingTimers).toBe(0);
  });

  it("is seen by the machine's clock when the process is kept busy", async () => {
    const clock = new NodeClock();
    const delay = new EventLoopDelay(clock);
    const longest = new Promise<number>((resolve) => {
      delay.start((delayMs) => {
        if (delayMs >= 30) resolve(delayMs);
      });
    });
    const untilMs = clock.nowMs() + 60;
    while (clock.nowMs() < untilMs);
    expect(await longest).toBeGreaterThanOrEqual(30);
    delay.stop();
  });
});
