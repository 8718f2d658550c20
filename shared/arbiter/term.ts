import type { Clock } from "../host/clock.ts";

/** One moment on both clocks: the monotonic one stands still while a host is suspended, and the other may be set. */
export interface Moment {
  readonly nowMs: number;
  readonly wallMs: number;
}

export function momentOf(clock: Clock): Moment {
  return { nowMs: clock.nowMs(), wallMs: clock.wallMs() };
}

export function later({ nowMs, wallMs }: Moment, ms: number): Moment {
  return { nowMs: nowMs + ms, wallMs: wallMs + ms };
}

/** Whether neither clock has come to `end` yet. */
export function isBefore(clock: Clock, end: Moment | undefined): boolean {
  return end !== undefined && clock.nowMs() < end.nowMs && clock.wallMs() < end.wallMs;
}
