import { describe, expect, it } from "vitest";
import { EVENTS_KEPT } from "../../../../proto/limits.ts";
import { EventLog } from "../../../../shared/control/event-log.ts";
import { ManualClock } from "../../../support/manual-clock.ts";

const sequences = (events: readonly { sequence: number }[]): number[] => events.map((event) => event.sequence);

describe("the event log", () => {
  it("numbers events from 1 and dates them by the wall clock", () => {
    const clock = new ManualClock();
    const log = new EventLog(clock);
    log.emit("agent-started", { pid: 7 });
    clock.advance(1500);
    log.emit("peer-connected");
    expect(log.since(0)).toEqual([
      { sequence: 1, at: new Date(clock.wallMs() - 1500).toISOString(), type: "agent-started", data: { pid: 7 } },
      { sequence: 2, at: new Date(clock.wallMs()).toISOString(), type: "peer-connected", data: {} },
    ]);
  });

  it("returns what follows a number, and nothing after the last one", () => {
    const log = new EventLog(new ManualClock());
    for (let i = 0; i < 5; i++) log.emit("merged");
    expect(sequences(log.since(3))).toEqual([4, 5]);
    expect(log.since(5)).toEqual([]);
  });

  it("returns everything to a reader that has seen an earlier life of the agent", () => {
    const log = new EventLog(new ManualClock());
    log.emit("agent-started");
    log.emit("merged");
    expect(sequences(log.since(900))).toEqual([1, 2]);
  });

  it("keeps the last EVENTS_KEPT events", () => {
    const log = new EventLog(new ManualClock());
    for (let i = 0; i < EVENTS_KEPT + 3; i++) log.emit("merged");
    const kept = sequences(log.since(0));
    expect(kept).toHaveLength(EVENTS_KEPT);
    expect(kept.at(0)).toBe(4);
    expect(kept.at(-1)).toBe(EVENTS_KEPT + 3);
    expect(sequences(log.since(EVENTS_KEPT + 1))).toEqual([EVENTS_KEPT + 2, EVENTS_KEPT + 3]);
  });

  it("gives later events to followers until they stop", () => {
    const log = new EventLog(new ManualClock());
    const seen: number[] = [];
    log.emit("merged");
    const stop = log.follow((event) => seen.push(event.sequence));
    log.emit("merged");
    log.emit("merged");
    stop();
    log.emit("merged");
    expect(seen).toEqual([2, 3]);
  });

  it("keeps the order for every follower when a follower emits", () => {
    const log = new EventLog(new ManualClock());
    const late: number[] = [];
    log.follow((event) => {
      if (event.type === "failover") log.emit("role-changed");
    });
    log.follow((event) => late.push(event.sequence));
    log.emit("failover");
    expect(late).toEqual([1, 2]);
  });

  it("does not give a follower the event during which it began to follow", () => {
    const log = new EventLog(new ManualClock());
    const seen: number[] = [];
    const stop = log.follow(() => {
      stop();
      log.follow((event) => seen.push(event.sequence));
    });
    log.emit("merged");
    log.emit("merged");
    expect(seen).toEqual([2]);
  });
});
