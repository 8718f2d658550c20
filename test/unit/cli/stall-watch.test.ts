import { describe, expect, it } from "vitest";
import { StallWatch } from "../../../cli/stall-watch.ts";
import { EventLoopDelay } from "../../../shared/host/event-loop-delay.ts";
import { HeldUpClock } from "../../support/held-up-clock.ts";

function watched() {
  const clock = new HeldUpClock();
  const events: unknown[] = [];
  const watch = new StallWatch({
    eventLoopDelay: new EventLoopDelay(clock),
    clock,
    emit: (type, data) => void events.push({ type, ...data }),
  });
  watch.start();
  const holdUp = (ms: number): void => {
    clock.holdUp(ms);
    clock.advance(100);
  };
  return { clock, events, watch, holdUp };
}

describe("an agent that is held up", () => {
  it("tells a stall at once, and nothing of what is shorter", () => {
    const { events, watch, holdUp } = watched();
    holdUp(999);
    expect(events).toEqual([]);
    holdUp(1000);
    expect(events).toEqual([{ type: "stalled", stalls: 1, longestMs: 1000 }]);
    expect(watch.describe()?.stalls).toBe(1);
    expect(watch.describe()?.maxMs).toBeCloseTo(1000, -2);
  });

  it("tells the stalls that follow together, and then is ready to tell the next one at once", () => {
    const { clock, events, watch, holdUp } = watched();
    for (const ms of [1000, 4000, 3000]) holdUp(ms);
    expect(events).toHaveLength(1);
    clock.advance(20_000);
    expect(events.slice(1)).toEqual([{ type: "stalled", stalls: 2, longestMs: 4000 }]);
    clock.advance(20_000);
    holdUp(2000);
    expect(events.slice(2)).toEqual([{ type: "stalled", stalls: 1, longestMs: 2000 }]);
    expect(watch.describe()?.stalls).toBe(4);
  });

  it("leaves no timer when it is stopped", () => {
    const { clock, watch, holdUp } = watched();
    holdUp(1000);
    watch.stop();
    expect(clock.pendingTimers).toBe(0);
  });

  it("knows nothing where nobody measures", () => {
    const options = { clock: new HeldUpClock(), emit: () => undefined };
    const watch = new StallWatch(options);
    watch.start();
    expect(watch.describe()).toBeNull();
    expect(options.clock.pendingTimers).toBe(0);
  });
});
