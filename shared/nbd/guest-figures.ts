/**
 * What guests' requests came to: how many of each kind, how long they took, how many bytes they moved, and how many
 * failed. `GuestFigures` are an export's, and outlive its clients; a `RequestTimer` is a connection's.
 *
 * A request lasts from when the agent takes it up, which is when the received bytes that it came in are looked at, until
 * its reply is ready. Most are done before the agent looks at anything else: all of those that came together are timed
 * with one look at the clock before and one behind them, so that a write pays nothing but an addition.
 */
import { GUEST_OPERATIONS, LATENCY_BOUNDS_SECONDS, type GuestOperation } from "../../proto/metrics.ts";
import { COMMAND } from "../../proto/nbd-protocol.ts";
import type { Clock } from "../host/clock.ts";
import { Histogram } from "../host/histogram.ts";

export class GuestFigures {
  readonly #seconds = GUEST_OPERATIONS.map(() => new Histogram(LATENCY_BOUNDS_SECONDS));
  readonly #bytes = new Float64Array(GUEST_OPERATIONS.length);
  /** Requests that were refused, or failed. */
  errors = 0;

  seconds(operation: GuestOperation): Histogram {
    return this.#secondsAt(GUEST_OPERATIONS.indexOf(operation));
  }

  bytes(operation: GuestOperation): number {
    return this.#bytes[GUEST_OPERATIONS.indexOf(operation)] ?? 0;
  }

  /** Requests of one kind, by its place in GUEST_OPERATIONS, that took `ms` each and moved `bytes` together. */
  add(operation: number, requests: number, bytes: number, ms: number): void {
    this.#secondsAt(operation).observe(ms / 1000, requests);
    this.#bytes[operation] = (this.#bytes[operation] ?? 0) + bytes;
  }

  #secondsAt(operation: number): Histogram {
    const histogram = this.#seconds[operation];
    if (histogram === undefined) throw new RangeError("no such operation");
    return histogram;
  }
}

export class RequestTimer {
  readonly #clock: Clock;
  readonly #figures: GuestFigures;
  readonly #requests = new Float64Array(GUEST_OPERATIONS.length);
  readonly #bytes = new Float64Array(GUEST_OPERATIONS.length);
  #begunMs = 0;
  #hasFinished = false;

  constructor(clock: Clock, figures: GuestFigures) {
    this.#clock = clock;
    this.#figures = figures;
  }

  /** When the requests that are looked at now were begun: a request that takes longer hands it in when it is done. */
  get begunMs(): number {
    return this.#begunMs;
  }

  /** Requests are looked at from now on; one that was put off had begun at `begunMs`. */
  begin(begunMs = this.#clock.nowMs()): void {
    this.#begunMs = begunMs;
  }

  /** A request is done in the same turn in which it was begun. */
  finished(type: number, bytes: number): void {
    const operation = operationOf(type);
    if (operation === undefined) return;
    this.#requests[operation] = (this.#requests[operation] ?? 0) + 1;
    this.#bytes[operation] = (this.#bytes[operation] ?? 0) + bytes;
    this.#hasFinished = true;
  }

  /** A request is done that was begun earlier. */
  finishedLater(type: number, bytes: number, begunMs: number): void {
    const operation = operationOf(type);
    if (operation !== undefined) this.#figures.add(operation, 1, bytes, this.#clock.nowMs() - begunMs);
  }

  failed(): void {
    this.#figures.errors += 1;
  }

  /** Accounts for what has been finished since `begin`. */
  end(): void {
    if (!this.#hasFinished) return;
    this.#hasFinished = false;
    const tookMs = this.#clock.nowMs() - this.#begunMs;
    for (let operation = 0; operation < this.#requests.length; operation += 1) {
      const requests = this.#requests[operation] ?? 0;
      if (requests === 0) continue;
      this.#figures.add(operation, requests, this.#bytes[operation] ?? 0, tookMs);
      this.#requests[operation] = 0;
      this.#bytes[operation] = 0;
    }
  }
}

/** The place in GUEST_OPERATIONS; undefined for a request that asks for nothing to be done. */
function operationOf(type: number): number | undefined {
  switch (type) {
    case COMMAND.READ:
      return READ;
    case COMMAND.WRITE:
      return WRITE;
    case COMMAND.TRIM:
    case COMMAND.WRITE_ZEROES:
      return DISCARD;
    case COMMAND.FLUSH:
      return FLUSH;
    default:
      return undefined;
  }
}

const READ = GUEST_OPERATIONS.indexOf("read");
const WRITE = GUEST_OPERATIONS.indexOf("write");
const DISCARD = GUEST_OPERATIONS.indexOf("discard");
const FLUSH = GUEST_OPERATIONS.indexOf("flush");
