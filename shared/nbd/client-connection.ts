/**
 * Owns: one connection to an NBD server in the transmission phase, and the requests that are under way on it.
 *
 * How: a request takes a slot of a fixed table, which its cookie names together with a number that no other request of the
 * connection has had; so a reply that comes twice, or to nobody, is found out.
 *
 * Invariants: `ended` is called exactly once, and after it no request is settled any more: the owner takes what is left
 * with `takeUnanswered` and sends it again elsewhere, or gives it up. By then nothing of it is under way here any more: what
 * came to the server later would overwrite what it is asked elsewhere.
 *
 * Does not: order requests, or decide what an error means.
 */
import assert from "node:assert/strict";
import { asColobusError, ColobusError, NBD_ERRNO } from "../../proto/errors.ts";
import { NBD_CLIENT_IN_FLIGHT_MAX, NBD_CLIENT_REQUEST_TIMEOUT_MS } from "../../proto/limits.ts";
import { COMMAND, encodeRequest, putRequest, REQUEST_BYTES } from "../../proto/nbd-protocol.ts";
import type { ByteStream } from "../host/byte-stream.ts";
import type { Clock, Timer } from "../host/clock.ts";
import type { NegotiatedStream, ServerExport } from "./client-handshake.ts";
import { ReplyParser } from "./client-reply-parser.ts";
import type { OpenRequest } from "./open-request.ts";

export interface ClientConnectionOptions {
  readonly negotiated: NegotiatedStream;
  readonly clock: Clock;
  /** A request was answered: there is room for another. */
  readonly answered: () => void;
  readonly ended: (reason: ColobusError) => void;
}

/** Request headers are laid out in buffers of this many: a buffer for each would cost more than the request. */
const HEADERS_PER_BUFFER = 256;

export class ClientConnection {
  readonly exported: ServerExport;
  readonly #stream: ByteStream;
  readonly #clock: Clock;
  readonly #answered: () => void;
  readonly #notifyEnded: (reason: ColobusError) => void;
  readonly #takeOver: () => void;
  readonly #requests: (OpenRequest | undefined)[] = [];
  readonly #sequences: number[] = [];
  readonly #freeSlots: number[] = [];
  readonly #header = { flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 };
  #headers = Buffer.alloc(HEADERS_PER_BUFFER * REQUEST_BYTES);
  #headersUsed = 0;
  #nextSequence = 1;
  #inFlight = 0;
  #timer: Timer | undefined;
  #endedBy: ColobusError | undefined;

  constructor(options: ClientConnectionOptions) {
    const { exported, stream, takeOver } = options.negotiated;
    this.exported = exported;
    this.#stream = stream;
    this.#clock = options.clock;
    this.#answered = options.answered;
    this.#notifyEnded = options.ended;
    const parser = new ReplyParser({
      structuredReplies: exported.structuredReplies,
      allocationContextId: exported.allocationContextId,
      find: (cookieHigh, cookieLow) =>
        this.#sequences[cookieLow] === cookieHigh ? this.#requests[cookieLow] : undefined,
      finished: (request) => this.#finish(request),
    });
    const handlers = {
      data: (chunk: Buffer): void => {
        if (this.#endedBy !== undefined) return;
        try {
          parser.feed(chunk);
        } catch (error) {
          this.end(asColobusError(error));
        }
      },
      closed: (reason: ColobusError): void => this.#over(reason),
    };
    this.#takeOver = () => takeOver(handlers);
  }

  /** Takes what the server sends. What came with the end of its handshake may end the connection before this returns. */
  start(): void {
    this.#takeOver();
  }

  /** Why the connection has ended; undefined: it has not. */
  get endedBy(): ColobusError | undefined {
    return this.#endedBy;
  }

  get hasRoom(): boolean {
    return this.#endedBy === undefined && this.#inFlight < NBD_CLIENT_IN_FLIGHT_MAX;
  }

  /** Sends a request; there must be room. It is settled when it is answered. */
  submit(request: OpenRequest): void {
    assert(this.hasRoom, "there is room for the request");
    const slot = this.#freeSlots.pop() ?? this.#requests.length;
    const sequence = this.#nextSequence;
    this.#nextSequence = sequence === 0xffffffff ? 1 : sequence + 1;
    this.#requests[slot] = request;
    this.#sequences[slot] = sequence;
    this.#inFlight += 1;
    request.begin(slot, this.#clock.nowMs());
    const header = this.#putHeader(request, sequence, slot);
    this.#stream.send(request.payload === undefined ? [header] : [header, request.payload]);
    this.#timer ??= this.#clock.after(NBD_CLIENT_REQUEST_TIMEOUT_MS / 2, () => this.#checkAges());
  }

  /** The requests that were not answered, oldest first; the connection has ended. */
  takeUnanswered(): OpenRequest[] {
    const requests = this.#requests.filter((request) => request !== undefined);
    this.#requests.length = 0;
    this.#inFlight = 0;
    return requests.sort((one, other) => one.number - other.number);
  }

  /** Gives the connection up because of `reason`. */
  end(reason: ColobusError): void {
    this.#stream.abort();
    this.#over(reason);
  }

  /** Takes leave of the server, and ends the connection; gives it up while anything is under way. */
  disconnect(reason: ColobusError): void {
    if (this.#endedBy !== undefined || this.#inFlight > 0) {
      this.end(reason);
      return;
    }
    this.#stream.send([
      encodeRequest({ flags: 0, type: COMMAND.DISC, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 }),
    ]);
    this.#stream.close();
    this.#over(reason);
  }

  #putHeader({ flags, type, offset, length }: OpenRequest, cookieHigh: number, cookieLow: number): Buffer {
    if (this.#headersUsed === this.#headers.length) {
      this.#headers = Buffer.alloc(HEADERS_PER_BUFFER * REQUEST_BYTES);
      this.#headersUsed = 0;
    }
    const start = this.#headersUsed;
    this.#headersUsed += REQUEST_BYTES;
    Object.assign(this.#header, { flags, type, cookieHigh, cookieLow, offset, length });
    putRequest(this.#headers, start, this.#header);
    return this.#headers.subarray(start, this.#headersUsed);
  }

  #finish(request: OpenRequest): void {
    if (request.errno === NBD_ERRNO.ESHUTDOWN) {
      // Not an answer: the server leaves, and the next one is asked.
      this.end(new ColobusError("connection-lost", "the NBD server is being stopped", "Start it again."));
      return;
    }
    const { slot } = request;
    this.#requests[slot] = undefined;
    this.#sequences[slot] = 0;
    this.#freeSlots.push(slot);
    this.#inFlight -= 1;
    request.settle(undefined);
    this.#answered();
  }

  /** Ends the connection when a request has waited too long: the server, or the way to it, has stopped. */
  #checkAges(): void {
    this.#timer = undefined;
    if (this.#endedBy !== undefined || this.#inFlight === 0) return;
    const nowMs = this.#clock.nowMs();
    const isLate = this.#requests.some(
      (request) => request !== undefined && nowMs - request.sentMs >= NBD_CLIENT_REQUEST_TIMEOUT_MS,
    );
    if (isLate) {
      const reason = `the NBD server did not answer a request for ${NBD_CLIENT_REQUEST_TIMEOUT_MS} ms`;
      this.end(new ColobusError("timed-out", reason, "Look at the server, its log and its disks."));
    } else this.#timer = this.#clock.after(NBD_CLIENT_REQUEST_TIMEOUT_MS / 2, () => this.#checkAges());
  }

  #over(reason: ColobusError): void {
    if (this.#endedBy !== undefined) return;
    this.#endedBy = reason;
    this.#timer?.cancel();
    this.#notifyEnded(reason);
  }
}
