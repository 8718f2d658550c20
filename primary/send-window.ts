import { ColobusError } from "../proto/errors.ts";
import { OPERATION_COST_BYTES, UNSTABLE_WINDOWS } from "../proto/limits.ts";
import type { Pending } from "../shared/block/block-device.ts";

/** Clusters of one disk that an operation touched. */
export interface SentRange {
  readonly disk: number;
  readonly firstCluster: number;
  readonly endCluster: number;
}

// A row of the table of what was sent.
const DISK = 0;
const FIRST_CLUSTER = 1;
const END_CLUSTER = 2;
const COST = 3;
const ROW_FIELDS = 4;
const INITIAL_ROWS = 16;

interface Waiter {
  readonly sequence: number;
  readonly resolve: () => void;
}

/**
 * Owns what was handed to one session and is not yet stable on the secondary. It bounds how much that may be: a writer
 * waits while the window is full. When the session is lost, what is still in here may be missing there.
 *
 * Operations are numbered 1, 2, 3 … in the session. The secondary acknowledges two positions: *received*, which frees
 * the window, and *stable*, after which an operation is forgotten.
 */
export class SendWindow {
  #windowBytes: number;
  /** Operations after `#stable`: the one of number N at row N modulo the number of rows. */
  #sent = new Float64Array(INITIAL_ROWS * ROW_FIELDS);
  #sequence = 0;
  #received = 0;
  #stable = 0;
  #unreceivedBytes = 0;
  #unstableBytes = 0;
  #spaceWaiters: (() => void)[] = [];
  #receivedWaiters: Waiter[] = [];
  #stableWaiters: Waiter[] = [];

  constructor(windowBytes: number) {
    this.#windowBytes = windowBytes;
  }

  /** The secondary takes no more than this: the smaller window counts. */
  limit(windowBytes: number): void {
    this.#windowBytes = Math.min(this.#windowBytes, windowBytes);
  }

  /** The number of the last operation. */
  get sequence(): number {
    return this.#sequence;
  }

  get unstableBytes(): number {
    return this.#unstableBytes;
  }

  /** What was sent and is not known to be stable on the secondary, oldest first. */
  unstable(): SentRange[] {
    const sent = this.#sent;
    const ranges: SentRange[] = [];
    for (let sequence = this.#stable + 1; sequence <= this.#sequence; sequence += 1) {
      const row = this.#rowOf(sequence);
      ranges.push({
        disk: sent[row + DISK] as number,
        firstCluster: sent[row + FIRST_CLUSTER] as number,
        endCluster: sent[row + END_CLUSTER] as number,
      });
    }
    return ranges;
  }

  /** Whether another operation has to wait. */
  get isFull(): boolean {
    return this.#unreceivedBytes >= this.#windowBytes || this.#unstableBytes >= this.#windowBytes * UNSTABLE_WINDOWS;
  }

  get isEmpty(): boolean {
    return this.#stable === this.#sequence;
  }

  /** Notes an operation that is being sent and returns its number. */
  add(range: SentRange, payloadBytes: number): number {
    const cost = payloadBytes + OPERATION_COST_BYTES;
    if ((this.#sequence - this.#stable) * ROW_FIELDS === this.#sent.length) this.#grow();
    this.#sequence += 1;
    const row = this.#rowOf(this.#sequence);
    this.#sent[row + DISK] = range.disk;
    this.#sent[row + FIRST_CLUSTER] = range.firstCluster;
    this.#sent[row + END_CLUSTER] = range.endCluster;
    this.#sent[row + COST] = cost;
    this.#unreceivedBytes += cost;
    this.#unstableBytes += cost;
    return this.#sequence;
  }

  /** Done at once while there is room, else when there is room again or the session is lost. */
  room(): Pending {
    if (!this.isFull) return undefined;
    return new Promise((resolve) => {
      this.#spaceWaiters.push(resolve);
    });
  }

  /** Done when the secondary has acknowledged the operation, or the session is lost. */
  acknowledged(sequence: number, position: "received" | "stable"): Pending {
    if (sequence <= (position === "received" ? this.#received : this.#stable)) return undefined;
    return new Promise((resolve) => {
      (position === "received" ? this.#receivedWaiters : this.#stableWaiters).push({ sequence, resolve });
    });
  }

  /** Takes an acknowledgement. True when it was news. Errors: `protocol-error` for positions that cannot be. */
  acknowledge(received: number, stable: number): boolean {
    if (stable > received || received > this.#sequence || received < this.#received || stable < this.#stable) {
      throw new ColobusError(
        "protocol-error",
        `the peer acknowledged ${received} (stable ${stable}) after ${this.#received} (${this.#stable}) of ${this.#sequence}`,
      );
    }
    const isNews = received > this.#received || stable > this.#stable;
    this.#unreceivedBytes -= this.#costBetween(this.#received, received);
    this.#unstableBytes -= this.#costBetween(this.#stable, stable);
    this.#received = received;
    this.#stable = stable;
    if (this.#spaceWaiters.length > 0 && !this.isFull) wakeAll(this.#spaceWaiters.splice(0));
    this.#receivedWaiters = wakeThrough(this.#receivedWaiters, received);
    this.#stableWaiters = wakeThrough(this.#stableWaiters, stable);
    return isNews;
  }

  /** The session is lost: lets everybody go, and returns the ranges that may be missing on the secondary. */
  abandon(): SentRange[] {
    const missing = this.unstable();
    this.#received = this.#sequence;
    this.#stable = this.#sequence;
    this.#unreceivedBytes = 0;
    this.#unstableBytes = 0;
    wakeAll(this.#spaceWaiters.splice(0));
    this.#receivedWaiters = wakeThrough(this.#receivedWaiters, Infinity);
    this.#stableWaiters = wakeThrough(this.#stableWaiters, Infinity);
    return missing;
  }

  #rowOf(sequence: number): number {
    return (sequence * ROW_FIELDS) % this.#sent.length;
  }

  /** What the operations after number `from`, up to `to`, cost together. */
  #costBetween(from: number, to: number): number {
    let cost = 0;
    for (let sequence = from + 1; sequence <= to; sequence += 1) {
      cost += this.#sent[this.#rowOf(sequence) + COST] as number;
    }
    return cost;
  }

  #grow(): void {
    const old = this.#sent;
    const grown = new Float64Array(2 * old.length);
    for (let sequence = this.#stable + 1; sequence <= this.#sequence; sequence += 1) {
      const row = this.#rowOf(sequence);
      grown.set(old.subarray(row, row + ROW_FIELDS), (sequence * ROW_FIELDS) % grown.length);
    }
    this.#sent = grown;
  }
}

function wakeAll(waiters: readonly (() => void)[]): void {
  for (const wake of waiters) wake();
}

/** Wakes the waiters up to `sequence` and returns the others. */
function wakeThrough(waiters: Waiter[], sequence: number): Waiter[] {
  if (waiters.length === 0) return waiters;
  const waiting: Waiter[] = [];
  for (const waiter of waiters) {
    if (waiter.sequence <= sequence) waiter.resolve();
    else waiting.push(waiter);
  }
  return waiting;
}
