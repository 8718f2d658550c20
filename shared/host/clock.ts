/** Time as the agents see it. In production it is Node's; in the simulator it is virtual. */
export interface Timer {
  cancel(): void;
}

export interface Clock {
  /** Monotonic milliseconds, with fractions. Only differences mean anything. */
  nowMs(): number;
  /**
   * Milliseconds since 1970, for people and records; never for decisions, but how old it is what an earlier process has left,
   * and that a term is over which the monotonic clock, standing still while the host is suspended, does not see the end of.
   */
  wallMs(): number;
  /** Calls `callback` once after `delayMs`. A timer does not keep the process alive. */
  after(delayMs: number, callback: () => void): Timer;
  /** Calls `callback` at the end of this turn of the event loop, after the input that has already arrived. */
  defer(callback: () => void): void;
}
