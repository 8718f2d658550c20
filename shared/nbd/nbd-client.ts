/**
 * Owns: one export of an NBD server, over one connection after another. Requests outlive connections: what a server has
 * not answered is sent to the next one.
 *
 * How: while there is no connection, requests wait; after `giveUpMs` they fail, and so do later ones at once, until a
 * connection is made, which is tried for ever with growing pauses. A new connection is first given to `restore`, which
 * brings the server to what it had answered before; only then do requests go on.
 *
 * Invariants: every request is settled once. Nothing but `restore` sends anything over a connection that is not restored.
 */
import assert from "node:assert/strict";
import { asColobusError, ColobusError, type ErrorCode } from "../../proto/errors.ts";
import { NBD_CLIENT_GIVE_UP_MS, RECONNECT_MAX_MS, RECONNECT_MIN_MS } from "../../proto/limits.ts";
import type { StreamSource } from "../host/byte-stream.ts";
import type { Clock, Timer } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import type { Random } from "../host/random.ts";
import { ClientConnection } from "./client-connection.ts";
import { negotiate, type ServerExport } from "./client-handshake.ts";
import type { OpenRequest } from "./open-request.ts";

/** Reasons that say nothing of the image itself. */
const CONNECTION_FAULTS: readonly ErrorCode[] = ["connection-lost", "protocol-error", "timed-out"];

export interface NbdClientOptions {
  readonly source: StreamSource;
  readonly exportName: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Requests fail when the first dial has, and not after a while. */
  readonly failsFast: boolean;
  /** The server is left alone until there is something to ask it. */
  readonly onDemand: boolean;
  /** The server is there, or is lost: then `reason` says why, also for each later try that has failed. */
  readonly changed: (reason: ColobusError | undefined) => void;
  /** Awaited before a server takes the place of one that requests were sent to. */
  readonly replacing: () => Promise<void>;
  /** Throws a ColobusError when the export is not what it has to be. */
  readonly accept: (exported: ServerExport) => void;
  /** Brings a server that was connected anew up to date, by requests that it gives to `send`. Rejects when that fails. */
  readonly restore: (send: (request: OpenRequest) => void) => Promise<void>;
}

interface Waiter {
  resolve(): void;
  reject(reason: ColobusError): void;
}

export class NbdClient {
  readonly #options: NbdClientOptions;
  readonly #abort = new AbortController();
  #connection: ClientConnection | undefined;
  /** The connection is restored: requests may go on. */
  #isOpen = false;
  readonly #restoring: OpenRequest[] = [];
  #waiting: OpenRequest[] = [];
  /** Why requests fail. */
  #failure: ColobusError | undefined;
  #openWaiters: Waiter[] = [];
  #made = 0;
  #pauseMs = RECONNECT_MIN_MS;
  #redial: Timer | undefined;
  #giveUp: Timer | undefined;
  #wasEverOpen = false;
  /** Why there is no connection. */
  #lastReason: ColobusError | undefined;
  /** What a server that is being connected knows may be too old. */
  #isStale = false;
  /** The connection was ended to be made anew. */
  #isReturning = false;
  /** There is no connection, and none is made, until there is something to ask. */
  #isResting = true;

  constructor(options: NbdClientOptions) {
    this.#options = options;
    if (!options.onDemand) this.#wake();
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** Whether a request would be sent at once. */
  get hasRoom(): boolean {
    return this.#isOpen && this.#connection?.hasRoom === true && this.#waiting.length === 0;
  }

  /** Why requests fail now; undefined: they do not, or wait. */
  get failure(): ColobusError | undefined {
    return this.#failure;
  }

  /** The server was never asked for anything since it was left last, or ever. */
  get isResting(): boolean {
    return this.#isResting;
  }

  /** Resolves when a connection is open; rejects when that has failed for the moment. */
  untilOpen(): Promise<void> {
    this.#wake();
    if (this.#isOpen) return Promise.resolve();
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#openWaiters.push({ resolve, reject });
    });
  }

  /** Takes a request; it is settled when a server has answered it, or none is there to. */
  submit(request: OpenRequest): void {
    if (this.#failure !== undefined) {
      request.settle(this.#failure);
      return;
    }
    this.#wake();
    request.number = this.#made;
    this.#made += 1;
    if (this.hasRoom) this.#connection?.submit(request);
    else this.#waiting.push(request);
  }

  /** The server cannot be relied on any more: the connection is made anew, and the server restored. */
  distrust(reason: ColobusError): void {
    this.#connection?.end(reason);
  }

  /** Leaves the server; whatever is asked from now on, or is not answered yet, is asked on a connection that is made anew. */
  leave(): void {
    if (this.#isOpen) this.#leaveToReturn();
    else if (!this.#isResting) this.#isStale = true;
  }

  /** Fails what waits, and leaves the server. */
  close(): void {
    if (this.#abort.signal.aborted) return;
    const reason = new ColobusError("shutting-down", "the image is closed");
    this.#abort.abort();
    this.#redial?.cancel();
    this.#giveUp?.cancel();
    this.#connection?.disconnect(reason);
    this.#fail(reason);
  }

  #leaveToReturn(): void {
    this.#pauseMs = 0;
    this.#isReturning = true;
    this.#connection?.disconnect(new ColobusError("connection-lost", "the connection is made anew"));
  }

  #wake(): void {
    if (!this.#isResting || this.#abort.signal.aborted) return;
    this.#isResting = false;
    this.#startGivingUp();
    void this.#dial();
  }

  async #dial(): Promise<void> {
    this.#isStale = false;
    const { source, exportName, clock, replacing, accept, restore } = this.#options;
    let connection: ClientConnection | undefined;
    try {
      if (this.#wasEverOpen) await replacing();
      const stream = await source.dial(this.#abort.signal);
      const negotiated = await negotiate(stream, exportName, clock);
      if (this.#abort.signal.aborted) {
        negotiated.stream.close();
        return;
      }
      const made: ClientConnection = new ClientConnection({
        negotiated,
        clock,
        answered: () => this.#pump(),
        ended: (reason) => this.#ended(made, reason),
      });
      connection = made;
      this.#connection = made;
      made.start();
      accept(negotiated.exported);
      await restore((request) => {
        if (made.endedBy === undefined) {
          this.#restoring.push(request);
          this.#pump();
        } else request.settle(made.endedBy);
      });
      // It may have ended with nothing under way that would fail by it.
      if (made.endedBy !== undefined) throw made.endedBy;
    } catch (error) {
      this.#dialFailed(connection, asColobusError(error));
      return;
    }
    this.#opened();
  }

  #opened(): void {
    const { log, source } = this.#options;
    if (this.#wasEverOpen && !this.#isReturning)
      log.info({ image: source.name }, "the server of an image is connected again");
    this.#wasEverOpen = true;
    this.#isReturning = false;
    this.#isOpen = true;
    this.#failure = undefined;
    this.#pauseMs = RECONNECT_MIN_MS;
    this.#giveUp?.cancel();
    this.#giveUp = undefined;
    this.#options.changed(undefined);
    if (this.#isStale) {
      this.#leaveToReturn();
      return;
    }
    for (const waiter of this.#openWaiters.splice(0)) waiter.resolve();
    this.#pump();
  }

  #dialFailed(connection: ClientConnection | undefined, reason: ColobusError): void {
    if (this.#abort.signal.aborted) return;
    if (connection !== undefined && this.#connection === connection) {
      this.#connection = undefined;
      connection.end(reason);
      for (const request of connection.takeUnanswered()) request.settle(reason);
    }
    this.#restoring.length = 0;
    // A server that is not there may come back before anybody has to know; one that is wrong stays wrong.
    if (!reason.row.retry || (this.#options.failsFast && !this.#wasEverOpen)) this.#fail(this.#explain(reason));
    this.#lastReason = reason;
    this.#options.changed(this.#explain(reason));
    this.#dialLater();
  }

  #ended(connection: ClientConnection, reason: ColobusError): void {
    if (this.#connection !== connection) return; // the dial that had made it knows already
    this.#connection = undefined;
    const unanswered = connection.takeUnanswered();
    if (!this.#isOpen) {
      // It was being restored: that fails with its requests, and the dial that waits for it goes on.
      for (const request of [...unanswered, ...this.#restoring.splice(0)]) request.settle(reason);
      return;
    }
    this.#isOpen = false;
    this.#waiting = [...unanswered, ...this.#waiting];
    if (this.#abort.signal.aborted) return;
    const { log, source } = this.#options;
    if (!this.#isReturning) {
      log.warn({ image: source.name, reason }, "the connection to the server of an image is lost");
      this.#options.changed(this.#explain(reason));
    }
    if (this.#isReturning && this.#waiting.length === 0 && this.#openWaiters.length === 0) {
      this.#isResting = true;
      return;
    }
    this.#lastReason = reason;
    this.#startGivingUp();
    this.#dialLater();
  }

  #dialLater(): void {
    const { clock, random } = this.#options;
    const pauseMs = this.#pauseMs * (0.5 + random.fraction());
    this.#pauseMs = Math.min(Math.max(this.#pauseMs * 2, RECONNECT_MIN_MS), RECONNECT_MAX_MS);
    this.#redial = clock.after(pauseMs, () => void this.#dial());
  }

  #startGivingUp(): void {
    this.#giveUp ??= this.#options.clock.after(NBD_CLIENT_GIVE_UP_MS, () => {
      this.#giveUp = undefined;
      const reason = this.#lastReason ?? new ColobusError("timed-out", "it does not answer");
      this.#fail(this.#explain(reason));
    });
  }

  #explain(reason: ColobusError): ColobusError {
    if (!CONNECTION_FAULTS.includes(reason.code)) return reason;
    return new ColobusError(
      "io-error",
      `the server of image ${this.#options.source.name} cannot be used: ${reason.message}`,
      reason.action === "" ? "Start the server, or mend the way to it: the agent connects by itself." : reason.action,
      { cause: reason },
    );
  }

  #fail(reason: ColobusError): void {
    this.#failure = reason;
    for (const request of this.#waiting.splice(0)) request.settle(reason);
    for (const waiter of this.#openWaiters.splice(0)) waiter.reject(reason);
  }

  #pump(): void {
    const connection = this.#connection;
    const queue = this.#isOpen ? this.#waiting : this.#restoring;
    if (connection === undefined || queue.length === 0) return;
    let sent = 0;
    for (let next = queue[0]; next !== undefined && connection.hasRoom; next = queue[sent]) {
      connection.submit(next);
      sent += 1;
    }
    queue.splice(0, sent);
    assert(sent > 0 || !connection.hasRoom, "what there is room for is sent");
  }
}
