import { performance } from "node:perf_hooks";
import type { Clock, Timer } from "./clock.ts";

/** Node turns a longer delay into 1 ms, so a longer one is waited for in parts. */
const LONGEST_DELAY_MS = 2 ** 31 - 1;

class NodeTimer implements Timer {
  #handle: NodeJS.Timeout;

  constructor(delayMs: number, callback: () => void) {
    this.#handle = this.#arm(delayMs, callback);
  }

  #arm(delayMs: number, callback: () => void): NodeJS.Timeout {
    if (delayMs <= LONGEST_DELAY_MS) return setTimeout(callback, delayMs).unref();
    return setTimeout(() => {
      this.#handle = this.#arm(delayMs - LONGEST_DELAY_MS, callback);
    }, LONGEST_DELAY_MS).unref();
  }

  cancel(): void {
    clearTimeout(this.#handle);
  }
}

/** The machine's time. */
export class NodeClock implements Clock {
  nowMs(): number {
    return performance.now();
  }

  wallMs(): number {
    return Date.now();
  }

  after(delayMs: number, callback: () => void): Timer {
    return new NodeTimer(delayMs, callback);
  }

  defer(callback: () => void): void {
    setImmediate(callback);
  }
}
