/**
 * One NBD client, from the greeting to its last reply, apart from the socket: bytes go in, replies go out through a
 * transport, and time comes from the clock.
 *
 * Life: negotiating -> transmitting -> finishing -> gone. Finishing (the client asked to end, closed its sending side, broke the
 * protocol, or the server closes) takes no more input, waits for the requests in flight, sends their replies and ends the
 * transport. Gone: the transport is closed; requests in flight still run to their end, and then `onGone` is called.
 *
 * Received bytes that cannot be taken now stay in `#rest`, at most one chunk, and the transport is paused.
 */
import assert from "node:assert/strict";
import { NBD_HANDSHAKE_TIMEOUT_MS, NBD_MAX_UNSENT_BYTES_PER_CLIENT } from "../../proto/limits.ts";
import type { Clock, Timer } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import type { BudgetHolder, ByteBudget, ByteBudgetOwner } from "./byte-budget.ts";
import type { NbdExportDirectory } from "./export.ts";
import { GuestFigures, RequestTimer } from "./guest-figures.ts";
import { Handshake } from "./handshake.ts";
import type { NegotiatedExport, TlsOffer } from "./handshake.ts";
import { INPUT_BUFFER_BYTES, type InputBuffer } from "./input-buffers.ts";
import { ReplyWriter } from "./reply-writer.ts";
import type { ReplyArenaPool } from "./reply-writer.ts";
import { RequestParser } from "./request-parser.ts";
import { Transmission } from "./transmission.ts";

/** The socket as a connection sees it. */
export interface NbdTransport {
  /** Sends the parts in order and calls `NbdConnection.sent`, later, when all are taken. */
  transmit(parts: readonly Buffer[]): void;
  /** After this, and until `resumeInput`, nothing is received. */
  pauseInput(): void;
  resumeInput(): void;
  /**
   * Encrypts what is sent and received from here on; nothing is received before `done`. `fault`: it has failed, and the
   * transport is closed. A transport without it offers no TLS.
   */
  startTls?(done: (fault: string | undefined) => void): void;
  /** Closes the sending side; whatever the client still sends is thrown away. */
  end(): void;
  /** Ends it now. */
  destroy(): void;
}

export interface NbdConnectionOptions {
  readonly transport: NbdTransport;
  readonly directory: NbdExportDirectory;
  readonly budget: ByteBudget;
  readonly arenas: ReplyArenaPool;
  readonly clock: Clock;
  readonly log: Log;
  /** Whether the client may, or must, ask for TLS first. Default: it cannot. */
  readonly tls?: TlsOffer | undefined;
  /** What to call the client in the log. */
  readonly clientName: string;
  /** The transport is closed and no request is in flight any more. */
  readonly onGone: () => void;
}

export class NbdConnection implements ByteBudgetOwner {
  readonly #transport: NbdTransport;
  readonly #directory: NbdExportDirectory;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #clientName: string;
  readonly #onGone: () => void;
  readonly #budget: BudgetHolder;
  readonly #writer: ReplyWriter;
  readonly #handshake: Handshake;
  readonly #handshakeTimer: Timer;
  #negotiated: NegotiatedExport | undefined;
  #transmission: Transmission | undefined;
  #timer: RequestTimer | undefined;
  #parser: RequestParser | undefined;
  #rest: Buffer | undefined;
  /** In which that lies, held until all of it is parsed. */
  #input: InputBuffer | undefined;
  #tlsIsStarting = false;
  #inputIsPaused = false;
  #inputEnded = false;
  #transportEnded = false;
  #transportClosed = false;
  #gone = false;

  constructor(options: NbdConnectionOptions) {
    const { transport, clock } = options;
    this.#transport = transport;
    this.#directory = options.directory;
    this.#clock = clock;
    this.#log = options.log;
    this.#clientName = options.clientName;
    this.#onGone = options.onGone;
    this.#budget = options.budget.join(this);
    this.#writer = new ReplyWriter((parts) => transport.transmit(parts), clock, options.arenas, this.#budget);
    this.#handshake = new Handshake(options.directory, (reply) => this.#writer.append(reply, 0), options.tls);
    this.#handshakeTimer = clock.after(NBD_HANDSHAKE_TIMEOUT_MS, () => this.#handshakeTimedOut());
    this.#handshake.start();
  }

  /** An export is open. */
  get isTransmitting(): boolean {
    return this.#transmission !== undefined;
  }

  /** Bytes from the client. The chunk belongs to the connection, unless it lies in `input`: then the hold of that does. */
  receive(chunk: Buffer, input?: InputBuffer): void {
    if (this.#isFinishing) {
      input?.release();
      return;
    }
    assert(this.#rest === undefined, "the transport is paused");
    this.#rest = chunk;
    // What a handshake keeps of its words is not followed: their buffer never comes back.
    if (this.#parser === undefined) input?.hold();
    this.#input = input;
    this.#transmission?.arrivesIn(input);
    this.#advance();
    // Nothing more is behind a chunk that is not full: its replies go before whatever else this turn has to do.
    if (chunk.length < INPUT_BUFFER_BYTES) this.#writer.flush();
  }

  /** The client has closed its sending side; it may still take replies. */
  endOfInput(): void {
    this.#inputEnded = true;
    this.#advance();
  }

  /** The transport has taken everything that was transmitted. */
  sent(): void {
    this.#writer.sent();
    this.#advance();
  }

  /** The transport is closed: nothing comes in or goes out any more. */
  closed(): void {
    if (this.#transportClosed) return;
    this.#transportClosed = true;
    this.#handshakeTimer.cancel();
    this.#rest = undefined;
    this.#transmission?.clientGone();
    this.#writer.close();
    this.#leaveWhenIdle();
  }

  /** The server closes: requests in flight are finished and answered, no further one is taken. */
  shutDown(): void {
    this.#handshake.shutDown();
    this.#transmission?.stop();
    this.#advance();
  }

  /** Ends the connection now. */
  destroy(): void {
    this.#transport.destroy();
  }

  // ByteBudgetOwner

  granted(): void {
    this.#transmission?.budgetGranted();
  }

  isWaitingForClient(): boolean {
    return this.#writer.isSending;
  }

  evict(): void {
    this.#log.warn(
      { client: this.#clientName, unsentBytes: this.#writer.unsentBytes },
      "NBD client took no replies while others waited for memory",
    );
    this.#transport.destroy();
  }

  /** No more input is taken. */
  get #isFinishing(): boolean {
    return this.#transportClosed || (this.#transmission?.hasEnded ?? this.#handshake.outcome?.kind === "close");
  }

  /** Takes what input can be taken, and moves on in the connection's life. Safe to call at any time. */
  #advance(): void {
    if (this.#transportClosed) {
      this.#leaveWhenIdle();
      return;
    }
    try {
      this.#consume();
      this.#startTls();
      if (this.#inputEnded && this.#rest === undefined) this.#transmission?.inputEnded();
    } catch (thrown) {
      // A bug in this server must not end the agent: the client that met it loses its connection.
      this.#log.error({ client: this.#clientName, err: thrown }, "NBD connection failed unexpectedly");
      this.#transport.destroy();
      return;
    }
    this.#endWhenFinished();
  }

  #consume(): void {
    const chunk = this.#rest;
    if (chunk === undefined) return;
    // Taken out while it is worked on: the calls below may end up in `#advance` again.
    this.#rest = undefined;
    this.#timer?.begin();
    let position = 0;
    while (position < chunk.length && !this.#isFinishing && !this.#handshake.wantsTls) {
      if (this.#isBlocked) {
        this.#rest = position === 0 ? chunk : chunk.subarray(position);
        this.#timer?.end();
        this.#pauseInput();
        return;
      }
      position = this.#consumeSome(chunk, position);
    }
    this.#timer?.end();
    this.#input?.release();
    this.#input = undefined;
    if (this.#handshake.wantsTls) {
      this.#pauseInput();
      if (position === chunk.length) return;
      // Words that came unencrypted must not be taken for what comes encrypted (CVE-2021-3716 and its kin).
      this.#log.info({ client: this.#clientName }, "NBD client sent more behind STARTTLS before TLS began");
      this.#transport.destroy();
      return;
    }
    if (this.#inputIsPaused && !this.#isFinishing) {
      this.#inputIsPaused = false;
      this.#transport.resumeInput();
    }
  }

  /** Begins TLS once the answer to STARTTLS is on its way. */
  #startTls(): void {
    if (!this.#handshake.wantsTls || this.#tlsIsStarting || this.#writer.unsentBytes > 0) return;
    assert(this.#transport.startTls !== undefined, "TLS is offered only where the transport has it");
    this.#tlsIsStarting = true;
    this.#transport.startTls((fault) => {
      this.#tlsIsStarting = false;
      if (this.#transportClosed || fault !== undefined) return;
      this.#handshake.tlsStarted();
      this.#inputIsPaused = false;
      this.#advance();
    });
  }

  #pauseInput(): void {
    if (this.#inputIsPaused) return;
    this.#inputIsPaused = true;
    this.#transport.pauseInput();
  }

  #consumeSome(chunk: Buffer, position: number): number {
    if (this.#parser !== undefined) return this.#parser.consume(chunk, position);
    const next = this.#handshake.consume(chunk, position);
    const { outcome } = this.#handshake;
    if (outcome?.kind === "transmission") this.#enterTransmission(outcome.negotiated);
    if (outcome?.kind === "close" && outcome.fault !== undefined) {
      this.#log.info({ client: this.#clientName, fault: outcome.fault }, "NBD negotiation failed");
    }
    return next;
  }

  get #isBlocked(): boolean {
    return this.#transmission?.isBlocked ?? this.#writer.unsentBytes > NBD_MAX_UNSENT_BYTES_PER_CLIENT;
  }

  #enterTransmission(negotiated: NegotiatedExport): void {
    this.#handshakeTimer.cancel();
    this.#negotiated = negotiated;
    this.#timer = new RequestTimer(this.#clock, negotiated.nbdExport.figures ?? new GuestFigures());
    this.#timer.begin();
    this.#transmission = new Transmission({
      negotiated,
      writer: this.#writer,
      budget: this.#budget,
      timer: this.#timer,
      clock: this.#clock,
      log: this.#log,
      clientName: this.#clientName,
      stalled: () => this.#transport.destroy(),
      progressed: () => this.#advance(),
    });
    this.#transmission.arrivesIn(this.#input);
    this.#parser = new RequestParser(this.#transmission);
    this.#log.info({ client: this.#clientName, export: negotiated.nbdExport.name }, "NBD client opened an export");
  }

  #handshakeTimedOut(): void {
    this.#log.info({ client: this.#clientName }, "NBD client did not finish the negotiation in time");
    this.#transport.destroy();
  }

  #endWhenFinished(): void {
    const takesMoreInput = !this.#isFinishing && !(this.#inputEnded && this.#rest === undefined);
    const isIdle = this.#transmission?.isIdle ?? true;
    if (this.#transportEnded || takesMoreInput || !isIdle || this.#writer.unsentBytes > 0) return;
    this.#transportEnded = true;
    this.#handshakeTimer.cancel();
    this.#rest = undefined;
    this.#transport.end();
  }

  #leaveWhenIdle(): void {
    if (this.#gone || !(this.#transmission?.isIdle ?? true)) return;
    this.#gone = true;
    this.#budget.leave();
    if (this.#negotiated !== undefined) {
      this.#directory.closed(this.#negotiated.nbdExport);
      this.#log.info({ client: this.#clientName, export: this.#negotiated.nbdExport.name }, "NBD client left");
    }
    this.#onGone();
  }
}
