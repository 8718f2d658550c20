/**
 * The transmission phase of one NBD connection: takes the parser's requests, bounds what is in flight, and answers.
 *
 * Requests run concurrently: one that the disk does not finish at once does not stop those behind it, until the bounds on
 * requests, unsent replies or memory are reached, and then nothing more is read from this client. The payload of a write
 * is the exception: while the disk holds a piece of it, the rest stays in the socket. A failed or refused write is
 * answered after its payload was consumed.
 *
 * Requests that cannot be done any more because the agent is being stopped get no answer: those that can are answered, and the
 * connection ends, so that the client asks the agent that is started next.
 *
 * Invariants: every request is answered at most once, and exactly once unless the client or the agent leaves before; an `OpenWrite` always
 * sees `end` or `abandon`; the budget gets back what was taken.
 */
import {
  NBD_MAX_IN_FLIGHT_REQUESTS_PER_CLIENT,
  NBD_MAX_UNSENT_BYTES_PER_CLIENT,
  NBD_SPARSE_READ_MIN_BYTES,
} from "../../proto/limits.ts";
import { COMMAND, COMMAND_FLAG, emptyRequestHeader } from "../../proto/nbd-protocol.ts";
import type { RequestHeader } from "../../proto/nbd-protocol.ts";
import { asColobusError } from "../../proto/errors.ts";
import type { ErrorCode } from "../../proto/errors.ts";
import type { BlockDevice, Extent, OpenWrite, Pending } from "../block/block-device.ts";
import type { Clock } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import type { BudgetHolder } from "./byte-budget.ts";
import type { RequestTimer } from "./guest-figures.ts";
import { ALLOCATION_CONTEXT_ID, type NegotiatedExport } from "./handshake.ts";
import type { InputBuffer } from "./input-buffers.ts";
import type { MetaExtent } from "./meta-context.ts";
import { allocationExtents, blockStatusChunk, extentsWanted, statusBytes } from "./block-status.ts";
import { startPlain } from "./plain-request.ts";
import { NO_INPUT, PayloadInput, releaseAll, type HeldInput } from "./payload-input.ts";
import { PayloadWatch, type PayloadState } from "./payload-watch.ts";
import { fillReadReply, fillSparseReply, planSparseRead, readReplyBytes, sparseReplyBytes } from "./read-reply.ts";
import type { ReadPiece } from "./read-reply.ts";
import type { ReplyWriter, Reservation } from "./reply-writer.ts";
import type { RequestHandler } from "./request-parser.ts";
import { identityOf, type RequestIdentity } from "./request-identity.ts";
import { errnoOf, refusalFromFailure, refusalOf } from "./request-refusal.ts";
import type { Refusal } from "./request-refusal.ts";

export interface TransmissionOptions {
  readonly negotiated: NegotiatedExport;
  readonly writer: ReplyWriter;
  readonly budget: BudgetHolder;
  /** Begun and ended by whoever hands input in. */
  readonly timer: RequestTimer;
  readonly clock: Clock;
  readonly log: Log;
  readonly clientName: string;
  /** The client has stopped in the middle of a payload, and others wait for the range: it is to be dropped. */
  readonly stalled: () => void;
  /** Something has finished: parsing may be able to go on, or the connection to end. Called in a turn of its own. */
  readonly progressed: () => void;
}

/** What a request without data in its reply has until it is done. */
interface Held {
  /** Of the budget. */
  readonly chargedBytes: number;
  readonly input: HeldInput;
}

const NOTHING_HELD: Held = { chargedBytes: 0, input: NO_INPUT };

export class Transmission implements RequestHandler {
  readonly #negotiated: NegotiatedExport;
  readonly #writer: ReplyWriter;
  readonly #budget: BudgetHolder;
  readonly #timer: RequestTimer;
  readonly #log: Log;
  readonly #clientName: string;
  readonly #progressed: () => void;
  readonly #payloads = new PayloadInput();
  readonly #reportedCodes = new Set<ErrorCode>();
  #requestsInFlight = 0;
  /** The write whose payload is arriving. */
  readonly #write = emptyRequestHeader();
  #payloadIsArriving = false;
  #openWrite: OpenWrite | undefined;
  #openWriteBegunMs = 0;
  #writeRefusal: Refusal | undefined;
  /** The disk works on a piece of the payload, or on opening the write. */
  #diskHoldsPayload = false;
  /** Payload that has come in pieces so far. */
  #payloadBytes = 0;
  readonly #payloadWatch: PayloadWatch;
  /** A request that waits for memory; `#waitsForBudget` without it means waiting for others' to be given back. */
  #parked: { readonly request: RequestHeader; readonly bytes: number; readonly begunMs: number } | undefined;
  #waitsForBudget = false;
  #disconnected = false;
  #stopping = false;

  constructor(options: TransmissionOptions) {
    this.#negotiated = options.negotiated;
    this.#writer = options.writer;
    this.#budget = options.budget;
    this.#timer = options.timer;
    this.#log = options.log;
    this.#clientName = options.clientName;
    const { clock, stalled } = options;
    this.#payloadWatch = new PayloadWatch(
      clock,
      () => this.#payloadState(),
      () => this.#payloadStalled(stalled),
    );
    this.#progressed = options.progressed;
  }

  /** What is parsed from now on lies in `input`, which the caller holds meanwhile. */
  arrivesIn(input: InputBuffer | undefined): void {
    this.#payloads.arrivesIn(input);
  }

  get isBlocked(): boolean {
    return (
      this.#diskHoldsPayload ||
      this.#waitsForBudget ||
      this.#requestsInFlight >= NBD_MAX_IN_FLIGHT_REQUESTS_PER_CLIENT ||
      this.#writer.unsentBytes > NBD_MAX_UNSENT_BYTES_PER_CLIENT ||
      this.hasEnded
    );
  }

  /** No further request will be taken: the client asked to end, broke the protocol, or was stopped between requests. */
  get hasEnded(): boolean {
    return this.#disconnected || (this.#stopping && !this.#payloadIsArriving);
  }

  /** No request is in flight. */
  get isIdle(): boolean {
    return this.#requestsInFlight === 0 && !this.#diskHoldsPayload && this.#parked === undefined;
  }

  /** Requests that have begun are finished, a write whose payload is arriving included; no further one is taken. */
  stop(): void {
    this.#stopping = true;
  }

  /** No further input will arrive. A write whose payload is incomplete is given up without an answer. */
  inputEnded(): void {
    this.#disconnected = true;
    this.#payloadIsArriving = false;
    if (!this.#diskHoldsPayload) this.#abandonOpenWrite();
  }

  /** Nothing can be sent any more. Requests in flight run on, and their answers are dropped. */
  clientGone(): void {
    this.inputEnded();
    this.#payloadWatch.cancel();
    if (this.#waitsForBudget) this.#budget.stopWaiting();
    this.#waitsForBudget = false;
    this.#parked = undefined;
  }

  /** The bytes that were waited for are taken now. */
  budgetGranted(): void {
    const parked = this.#parked;
    this.#waitsForBudget = false;
    this.#parked = undefined;
    if (parked !== undefined) {
      const { request, bytes, begunMs } = parked;
      this.#timer.begin(begunMs);
      if (request.type === COMMAND.READ) this.#runRead(request, bytes);
      else this.#runStatus(request, bytes);
      this.#timer.end();
    }
    this.#progressed();
  }

  onBreach(fault: string): void {
    this.#log.warn({ client: this.#clientName, fault }, "NBD client broke the protocol");
    this.inputEnded();
  }

  onRequest(request: Readonly<RequestHeader>): void {
    if (request.type === COMMAND.DISC) {
      this.#disconnected = true;
      return;
    }
    const refusal = refusalOf(request, this.#negotiated);
    if (request.type === COMMAND.WRITE && request.length > 0) {
      Object.assign(this.#write, request);
      this.#payloadIsArriving = true;
      this.#writeRefusal = refusal;
      return;
    }
    if (refusal !== undefined) {
      this.#refuse(request, refusal);
    } else if (request.type === COMMAND.READ) {
      this.#read(request);
    } else if (request.type === COMMAND.BLOCK_STATUS) {
      this.#status(request);
    } else {
      this.#runPlain(request);
    }
  }

  onPayload(piece: Buffer, isLast: boolean): void {
    if (isLast) this.#payloadIsArriving = false;
    if (this.#writeRefusal !== undefined) {
      if (isLast) this.#refuse(this.#write, this.#writeRefusal);
    } else if (this.#openWrite !== undefined) {
      this.#push(this.#openWrite, piece, isLast);
    } else if (piece.length === this.#write.length) {
      this.#writeWhole(piece);
    } else {
      this.#startOpenWrite(piece);
    }
  }

  // Writes

  #writeWhole(payload: Buffer): void {
    const write = this.#write;
    let pending: Pending;
    try {
      pending = this.#negotiated.nbdExport.device.write(payload, write.offset, this.#payloads.flagsOf(write));
    } catch (thrown) {
      this.#fail(write, thrown);
      return;
    }
    if (pending === undefined) {
      this.#timer.finished(write.type, write.length);
      this.#writer.simpleReply(0, write.cookieHigh, write.cookieLow);
      return;
    }
    this.#budget.charge(payload.length);
    this.#track(pending, write, this.#timer.begunMs, { chargedBytes: payload.length, input: this.#payloads.hold() });
    if (this.#budget.isExhausted) {
      this.#waitsForBudget = true;
      this.#budget.waitFor(0);
    }
  }

  /** Opens the write and pushes its first piece, which is never its last. */
  #startOpenWrite(piece: Buffer): void {
    const { offset, length } = this.#write;
    this.#openWriteBegunMs = this.#timer.begunMs;
    this.#payloads.holdForOpen();
    let opened: OpenWrite | Promise<OpenWrite>;
    try {
      opened = this.#negotiated.nbdExport.device.openWrite(offset, length, this.#payloads.flagsOf(this.#write));
    } catch (thrown) {
      this.#payloadFailed(thrown, false);
      return;
    }
    if (opened instanceof Promise) {
      this.#diskHoldsPayload = true;
      opened.then(
        (open) => {
          this.#diskHoldsPayload = false;
          this.#openWrite = open;
          if (this.#disconnected) this.#abandonOpenWrite();
          else {
            this.#payloadWatch.begin();
            this.#push(open, piece, false);
          }
          this.#progressed();
        },
        (thrown: unknown) => {
          this.#diskHoldsPayload = false;
          this.#payloadFailed(thrown, false);
          this.#progressed();
        },
      );
    } else {
      this.#openWrite = opened;
      this.#payloadWatch.begin();
      this.#push(opened, piece, false);
    }
  }

  #payloadState(): PayloadState | undefined {
    const open = this.#openWrite;
    if (open === undefined) return undefined;
    return {
      progress: this.#payloadBytes + this.#writer.timesTaken,
      isDisksTurn: this.#diskHoldsPayload,
      isWaitedFor: () => open.isWaitedFor?.() === true,
    };
  }

  #payloadStalled(stalled: () => void): void {
    const { offset, length } = this.#write;
    const fields = { client: this.#clientName, export: this.#negotiated.nbdExport.name, offset, length };
    this.#log.warn(fields, "NBD client stopped in the middle of a write while others waited for its range");
    stalled();
  }

  #push(open: OpenWrite, piece: Buffer, isLast: boolean): void {
    this.#payloads.holdForOpen();
    this.#payloadBytes += piece.length;
    let pending: Pending;
    try {
      pending = open.push(piece);
    } catch (thrown) {
      this.#payloadFailed(thrown, isLast);
      return;
    }
    if (pending === undefined) {
      this.#payloads.pushed(open);
      if (isLast) this.#endOpenWrite(open);
      return;
    }
    this.#diskHoldsPayload = true;
    pending.then(
      () => {
        this.#diskHoldsPayload = false;
        this.#payloads.pushed(open);
        if (isLast) this.#endOpenWrite(open);
        else if (this.#disconnected) this.#abandonOpenWrite();
        this.#progressed();
      },
      (thrown: unknown) => {
        this.#diskHoldsPayload = false;
        this.#payloadFailed(thrown, isLast);
        this.#progressed();
      },
    );
  }

  #endOpenWrite(open: OpenWrite): void {
    this.#openWrite = undefined;
    const input = this.#payloads.takeOpen();
    const write = this.#write;
    let pending: Pending;
    try {
      pending = open.end();
    } catch (thrown) {
      this.#fail(write, thrown);
      return;
    }
    if (pending === undefined) {
      releaseAll(input);
      this.#timer.finishedLater(write.type, write.length, this.#openWriteBegunMs);
      this.#writer.simpleReply(0, write.cookieHigh, write.cookieLow);
    } else this.#track(pending, write, this.#openWriteBegunMs, { chargedBytes: 0, input });
  }

  /** The rest of the payload is consumed, and then the write is answered. */
  #payloadFailed(thrown: unknown, isLast: boolean): void {
    this.#abandonOpenWrite();
    if (isLast) this.#fail(this.#write, thrown);
    else this.#writeRefusal = this.#refusalFrom(this.#write, thrown);
  }

  #abandonOpenWrite(): void {
    const open = this.#openWrite;
    this.#openWrite = undefined;
    this.#payloads.takeOpen(); // it stays the disk's
    open?.abandon();
  }

  // Reads

  #read(request: Readonly<RequestHeader>): void {
    if (request.length === 0) {
      if (this.#negotiated.structuredReplies) this.#writer.emptyChunk(request.cookieHigh, request.cookieLow);
      else this.#writer.simpleReply(0, request.cookieHigh, request.cookieLow);
      return;
    }
    const bytes = readReplyBytes(request.length, this.#negotiated.structuredReplies);
    if (this.#budget.tryTake(bytes)) this.#runRead(request, bytes);
    else this.#park(request, bytes);
  }

  #park(request: Readonly<RequestHeader>, bytes: number): void {
    this.#parked = { request: { ...request }, bytes, begunMs: this.#timer.begunMs };
    this.#waitsForBudget = true;
    this.#budget.waitFor(bytes);
  }

  /** `takenBytes` of the budget are taken: what a reply of one piece needs, and no reply needs more. */
  #runRead(request: Readonly<RequestHeader>, takenBytes: number): void {
    const { structuredReplies, nbdExport } = this.#negotiated;
    let reservation: Reservation | undefined;
    let pending: Pending;
    try {
      const device = nbdExport.device;
      const pieces = this.#planSparse(device, request);
      reservation = this.#writer.reserve(pieces === undefined ? takenBytes : sparseReplyBytes(pieces));
      const { buffer, position } = reservation;
      pending =
        pieces === undefined
          ? fillReadReply(device, request, structuredReplies, buffer, position)
          : fillSparseReply(device, request, pieces, buffer, position);
    } catch (thrown) {
      if (reservation !== undefined) this.#writer.discard(reservation);
      this.#budget.giveBack(takenBytes);
      this.#fail(request, thrown);
      return;
    }
    this.#budget.giveBack(takenBytes - reservation.length);
    if (pending === undefined) {
      this.#timer.finished(request.type, request.length);
      this.#writer.commit(reservation, reservation.length);
    } else this.#trackRead(pending, request, reservation);
  }

  #planSparse(device: BlockDevice, { flags, offset, length }: Readonly<RequestHeader>): ReadPiece[] | undefined {
    if (length < NBD_SPARSE_READ_MIN_BYTES || !this.#negotiated.structuredReplies) return undefined;
    return (flags & COMMAND_FLAG.DF) === 0 ? planSparseRead(device, offset, length) : undefined;
  }

  #trackRead(pending: Promise<void>, request: Readonly<RequestHeader>, reservation: Reservation): void {
    const identity = identityOf(request);
    const { begunMs } = this.#timer;
    this.#requestsInFlight += 1;
    pending.then(
      () => {
        this.#requestsInFlight -= 1;
        this.#timer.finishedLater(identity.type, identity.length, begunMs);
        this.#writer.commit(reservation, reservation.length);
        this.#progressed();
      },
      (thrown: unknown) => {
        this.#requestsInFlight -= 1;
        this.#writer.discard(reservation);
        this.#budget.giveBack(reservation.length);
        this.#fail(identity, thrown);
        this.#progressed();
      },
    );
  }

  // Block status

  #status(request: Readonly<RequestHeader>): void {
    const { allocationContext, contexts } = this.#negotiated;
    const bytes = statusBytes(request, contexts.length + (allocationContext ? 1 : 0));
    if (this.#budget.tryTake(bytes)) this.#runStatus(request, bytes);
    else this.#park(request, bytes);
  }

  /** `takenBytes` of the budget are taken: no reply needs more. */
  #runStatus(request: Readonly<RequestHeader>, takenBytes: number): void {
    const { allocationContext, nbdExport } = this.#negotiated;
    let extents: Extent[] | Promise<Extent[]> | undefined;
    try {
      if (allocationContext) {
        extents = nbdExport.device.extents(request.offset, request.length, extentsWanted(request));
      }
    } catch (thrown) {
      this.#statusFailed(request, takenBytes, thrown);
      return;
    }
    if (extents instanceof Promise) this.#trackExtents(extents, { ...request }, takenBytes);
    else this.#replyExtents(extents, request, takenBytes);
  }

  /** One chunk for each context that was selected; `allocation` is undefined where base:allocation was not. */
  #replyExtents(allocation: readonly Extent[] | undefined, request: Readonly<RequestHeader>, takenBytes: number): void {
    let chunks: readonly Buffer[];
    try {
      chunks = this.#statusChunks(allocation, request);
    } catch (thrown) {
      this.#statusFailed(request, takenBytes, thrown);
      return;
    }
    let bytes = 0;
    for (const chunk of chunks) {
      this.#writer.append(chunk, chunk.length);
      bytes += chunk.length;
    }
    this.#budget.giveBack(takenBytes - bytes);
  }

  /** Errors: a context's. */
  #statusChunks(allocation: readonly Extent[] | undefined, request: Readonly<RequestHeader>): Buffer[] {
    const { offset, length } = request;
    const answers: { readonly id: number; readonly extents: readonly MetaExtent[] }[] = [];
    if (allocation !== undefined) answers.push({ id: ALLOCATION_CONTEXT_ID, extents: allocationExtents(allocation) });
    for (const { id, context } of this.#negotiated.contexts) {
      answers.push({ id, extents: context.extents(offset, length, extentsWanted(request)) });
    }
    return answers.map(({ id, extents }, index) =>
      blockStatusChunk(id, extents, request, index === answers.length - 1),
    );
  }

  #trackExtents(pending: Promise<Extent[]>, request: Readonly<RequestHeader>, takenBytes: number): void {
    this.#requestsInFlight += 1;
    pending.then(
      (extents) => {
        this.#requestsInFlight -= 1;
        this.#replyExtents(extents, request, takenBytes);
        this.#progressed();
      },
      (thrown: unknown) => {
        this.#requestsInFlight -= 1;
        this.#statusFailed(request, takenBytes, thrown);
        this.#progressed();
      },
    );
  }

  #statusFailed(request: Readonly<RequestHeader>, takenBytes: number, thrown: unknown): void {
    this.#budget.giveBack(takenBytes);
    this.#fail(request, thrown);
  }

  // Everything else

  #runPlain(request: Readonly<RequestHeader>): void {
    let pending: Pending;
    try {
      pending = startPlain(this.#negotiated.nbdExport.device, request);
    } catch (thrown) {
      this.#fail(request, thrown);
      return;
    }
    if (pending === undefined) {
      this.#timer.finished(request.type, request.length);
      this.#writer.simpleReply(0, request.cookieHigh, request.cookieLow);
    } else this.#track(pending, request, this.#timer.begunMs, NOTHING_HELD);
  }

  /** A request without data in its reply, which is answered when `pending` is done. */
  #track(
    pending: Promise<void>,
    request: Readonly<RequestHeader>,
    begunMs: number,
    { chargedBytes, input }: Held,
  ): void {
    const identity = identityOf(request);
    this.#requestsInFlight += 1;
    pending.then(
      () => {
        this.#requestsInFlight -= 1;
        releaseAll(input);
        this.#budget.giveBack(chargedBytes);
        this.#timer.finishedLater(identity.type, identity.length, begunMs);
        this.#writer.simpleReply(0, identity.cookieHigh, identity.cookieLow);
        this.#progressed();
      },
      (thrown: unknown) => {
        this.#requestsInFlight -= 1;
        this.#budget.giveBack(chargedBytes);
        this.#fail(identity, thrown);
        this.#progressed();
      },
    );
  }

  // Failures

  #fail(request: RequestIdentity, thrown: unknown): void {
    const refusal = this.#refusalFrom(request, thrown);
    if (refusal !== undefined) this.#refuse(request, refusal);
  }

  /** A request is not to be answered: no further one is taken, and the connection ends when the others are done. */
  #leaveUnanswered(): void {
    if (this.#disconnected) return;
    this.#log.info({ client: this.#clientName }, "NBD client is sent away with requests unanswered");
    this.inputEnded();
  }

  #refuse({ cookieHigh, cookieLow }: RequestIdentity, refusal: Refusal): void {
    this.#timer.failed();
    if (this.#negotiated.structuredReplies) {
      this.#writer.errorChunk(errnoOf(refusal), refusal.message, cookieHigh, cookieLow);
    } else {
      this.#writer.simpleReply(errnoOf(refusal), cookieHigh, cookieLow);
    }
  }

  /** undefined: the request is not to be answered, and this is the end of the connection. */
  #refusalFrom({ type, flags }: RequestIdentity, thrown: unknown): Refusal | undefined {
    const error = asColobusError(thrown);
    const refusal = refusalFromFailure(error, type, flags);
    if (refusal === undefined) {
      this.#leaveUnanswered();
      return undefined;
    }
    const fields = { client: this.#clientName, export: this.#negotiated.nbdExport.name, command: type };
    if (error.code === "internal") {
      this.#log.error({ ...fields, err: thrown }, "NBD request failed unexpectedly");
    } else if (!this.#reportedCodes.has(error.code)) {
      // A disk that fails does so with every request; the log needs to hear of each reason once from each client.
      this.#reportedCodes.add(error.code);
      this.#log.warn({ ...fields, code: error.code, reason: error.message }, "NBD request failed");
    }
    return refusal;
  }
}
