import assert from "node:assert/strict";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { NBD_MAX_IN_FLIGHT_BYTES, READY_TIMEOUT_MS } from "../proto/limits.ts";
import {
  fromErrorBody,
  type Hello,
  type Message,
  type Notice,
  type OperationKind,
  type Site,
} from "../proto/replication-messages.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { ClusterRun } from "../shared/block/cluster-bitmap.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { Random } from "../shared/host/random.ts";
import { runsOf } from "../shared/replication/differing-runs.ts";
import type { Link } from "../shared/replication/link.ts";
import type { Pulse } from "../shared/replication/pulse.ts";
import { Session, type SessionHandlers } from "../shared/replication/session.ts";
import { ContentRequests } from "./content-requests.ts";
import { OutgoingBatch } from "./outgoing-batch.ts";
import { SendWindow, type SentRange } from "./send-window.ts";
import { VmStateStream } from "./vm-state-stream.ts";

type SessionMessage = Parameters<SessionHandlers["message"]>[0];

type Answer = Extract<Message, { type: "answer" }>;

type RequestMessage = Extract<
  Message,
  { type: "lineage" | "told" | "barrier" | "vmstate-end" | "commit" | "discard" | "takeover" | "resize" | "checksum" }
>;

interface Request {
  readonly resolve: (answer: Answer) => void;
  readonly reject: (reason: ColobusError) => void;
}

export interface SourceSessionOptions {
  readonly link: Link;
  readonly clock: Clock;
  readonly random: Random;
  readonly hello: Hello;
  readonly token: Buffer | undefined;
  readonly peerTimeoutMs: number;
  readonly windowBytes: number;
  /** What pings carry, where an arbiter decides who serves. */
  readonly pulse?: Pulse | undefined;
  /** The peer has proved itself. May throw the reason for which the two form no pair; else `begin` is to follow. */
  readonly opened: (peer: Hello) => void;
  /** What the secondary knows to differ, before it is ready. */
  readonly differs: (disk: number, runs: readonly ClusterRun[]) => void;
  /** The secondary is ready for the stream. */
  readonly ready: () => void;
  /** The secondary cannot take writes for a reason, or can again (undefined). */
  readonly stalled: (reason: ColobusError | undefined) => void;
  /** The secondary tells something that needs no answer. */
  readonly notified: (notice: Notice) => void;
  /** The session is over. `missing` names what the secondary may not have. */
  readonly closed: (reason: ColobusError, missing: readonly SentRange[]) => void;
}

/**
 * The primary's end of one session with a secondary: one ordered stream of operations and requests, the window of what
 * is not stable yet, and the watch over the secondary's progress.
 */
export class SourceSession {
  readonly #options: SourceSessionOptions;
  readonly #session: Session;
  readonly #window: SendWindow;
  readonly #batch: OutgoingBatch;
  readonly #requests = new Map<number, Request>();
  readonly #contents = new ContentRequests();
  #requestsMade = 0;
  #peer: Hello | undefined;
  #site: Site | undefined;
  #closed = false;
  #lastProgressMs: number;
  #lastStableMs: number;
  #progressTimer: Timer;
  #readyTimer: Timer | undefined;
  /** Messages with what the secondary knows to differ. */
  #differs = 0;
  #vmState: VmStateStream | undefined;

  constructor(options: SourceSessionOptions) {
    this.#options = options;
    this.#window = new SendWindow(options.windowBytes);
    this.#lastProgressMs = options.clock.nowMs();
    this.#lastStableMs = this.#lastProgressMs;
    this.#session = new Session({
      link: options.link,
      clock: options.clock,
      random: options.random,
      hello: options.hello,
      token: options.token,
      peerTimeoutMs: options.peerTimeoutMs,
      pulse: options.pulse,
      // What gathers while one write to the network is under way is the next one, and waits as a whole until all of it has
      // gone, though much of it may have been acknowledged: two writes, with as much in each as guests and syncs may send.
      sentBytes: () => 2 * (options.windowBytes + NBD_MAX_IN_FLIGHT_BYTES),
      handlers: {
        opened: (peer) => this.#opened(peer),
        message: (message) => this.#receive(message),
        closed: (reason) => this.#end(reason),
      },
    });
    this.#batch = new OutgoingBatch(options.clock, (parts) => this.#session.sendParts(parts));
    this.#progressTimer = this.#watchProgress();
  }

  get peer(): Hello | undefined {
    return this.#peer;
  }

  /** Where the peer's images are, once it is ready. */
  get site(): Site | undefined {
    return this.#site;
  }

  /** Whether the peer says that it only asks what the two would do: the end of the session is no news then. */
  get isProbe(): boolean {
    return this.#session.isProbe;
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  /** Whether the other side has proved that it is the peer. */
  get isProved(): boolean {
    return this.#session.isProved;
  }

  get peerAddress(): string {
    return this.#session.peerAddress;
  }

  /** Who the peer is by its certificate; undefined where it has shown none. */
  get peerSubject(): string | undefined {
    return this.#session.peerSubject;
  }

  get silenceMs(): number {
    return this.#session.silenceMs;
  }

  /** Bytes handed over and not yet stable on the secondary. */
  get unstableBytes(): number {
    return this.#window.unstableBytes;
  }

  /** How long ago the secondary last said that it had come further, or the session began. */
  get stableAgeMs(): number {
    return this.#options.clock.nowMs() - this.#lastStableMs;
  }

  /** The number of the last operation sent. */
  get sequence(): number {
    return this.#window.sequence;
  }

  /** Puts an operation into the stream and returns its number. `payload` is kept as a view until the turn is over. */
  send(kind: OperationKind, range: SentRange, offset: number, length: number, payload: Buffer | undefined): number {
    if (this.#isQuiet()) this.#lastProgressMs = this.#options.clock.nowMs();
    const sequence = this.#window.add(range, payload?.length ?? 0);
    this.#batch.add(kind, range.disk, offset, length, payload);
    return sequence;
  }

  /** Whether another operation has to wait for room. */
  get isFull(): boolean {
    return this.#window.isFull;
  }

  /** Done when there is room for another operation, or the session is lost. */
  room(): Pending {
    return this.#window.room();
  }

  /** Done when the operation is acknowledged as far as asked, or the session is lost. */
  acknowledged(sequence: number, position: "received" | "stable"): Pending {
    return this.#window.acknowledged(sequence, position);
  }

  /** Ranges that were sent and are not known to be stable on the secondary. */
  unstable(): readonly SentRange[] {
    return this.#window.unstable();
  }

  /** Asks the secondary to make itself ready. */
  begin(message: Omit<Extract<Message, { type: "begin" }>, "type">): void {
    this.#session.send({ type: "begin", ...message });
    this.#readyTimer = this.#options.clock.after(READY_TIMEOUT_MS, () => {
      this.close(
        new ColobusError(
          "peer-timeout",
          `the secondary has not made itself ready in ${READY_TIMEOUT_MS / 1000} s`,
          "Check the load, the disk and the log of the secondary's host; the session is tried again by itself.",
        ),
      );
    });
  }

  /** Puts a message behind everything sent so far. */
  tell(message: Extract<Message, { type: "sync" | "united" | "verify" }>): void {
    this.#batch.flush();
    this.#session.send(message);
  }

  /**
   * Puts a request behind everything sent so far, and resolves when the secondary has done it, with the milliseconds that
   * it took there once everything before was stable. Errors: the secondary's own; `outcome-unknown` when the session is lost
   * before the answer.
   */
  async request(make: (id: number) => Exclude<RequestMessage, { type: "checksum" }>): Promise<number> {
    return (await this.#ask(make)).tookMs;
  }

  /**
   * The checksum of what the secondary holds in a range once everything sent so far is applied: as `checksumOf` makes it. Errors:
   * as for `request`.
   */
  async checksum(disk: number, offset: number, length: number): Promise<Uint8Array> {
    const { checksum } = await this.#ask((id) => ({ type: "checksum", id, disk, offset, length }));
    if (checksum !== undefined) return checksum;
    const reason = new ColobusError("protocol-error", "the peer answered without the checksum that it was asked for");
    this.close(reason);
    throw reason;
  }

  /**
   * What the secondary holds in a range, of CONTENT_MAX_BYTES at most, once everything sent so far is applied; no more than
   * CONTENT_REQUESTS_MAX at a time. The buffer is the caller's. Errors: as for `request`.
   */
  content(disk: number, offset: number, length: number): Promise<Buffer> {
    if (this.#closed) return Promise.reject(outcomeUnknown());
    const id = this.#nextId();
    const content = this.#contents.add(id, length);
    this.#batch.flush();
    this.#session.send({ type: "read", id, disk, offset, length });
    return content;
  }

  #ask(make: (id: number) => RequestMessage): Promise<Answer> {
    if (this.#closed) return Promise.reject(outcomeUnknown());
    const id = this.#nextId();
    return new Promise((resolve, reject) => {
      this.#requests.set(id, { resolve, reject });
      this.#batch.flush();
      this.#session.send(make(id));
    });
  }

  /** Of a request that is about to be made. */
  #nextId(): number {
    if (this.#isQuiet()) this.#lastProgressMs = this.#options.clock.nowMs();
    this.#requestsMade += 1;
    return this.#requestsMade;
  }

  /** The way for the VM state of the prepared checkpoint `epoch`; one at a time. It fails when the session is lost. */
  openVmState(epoch: number): VmStateStream {
    assert(this.#vmState === undefined, "one VM state is sent at a time");
    const stream = new VmStateStream(epoch, (parts) => {
      if (this.#isQuiet()) this.#lastProgressMs = this.#options.clock.nowMs();
      this.#session.sendParts(parts);
    });
    if (this.#closed) stream.fail(interrupted());
    else this.#vmState = stream;
    return stream;
  }

  /** Nothing more of it is sent; what the secondary still says of it means nothing. */
  closeVmState(stream: VmStateStream): void {
    if (this.#vmState === stream) this.#vmState = undefined;
  }

  close(reason: ColobusError): void {
    this.#session.close(reason);
  }

  #opened(peer: Hello): void {
    this.#options.opened(peer);
    this.#peer = peer;
    this.#window.limit(peer.windowBytes);
  }

  #receive(message: SessionMessage): void {
    switch (message.type) {
      case "differs":
        this.#differs += 1;
        this.#options.differs(message.disk, runsOf(message));
        break;
      case "ready":
        this.#site = message.site;
        this.#receiveReady(message.differs);
        break;
      case "ack":
        if (this.#window.acknowledge(message.received, message.stable)) {
          this.#lastProgressMs = this.#options.clock.nowMs();
          this.#lastStableMs = this.#lastProgressMs;
        }
        break;
      case "answer":
        this.#receiveAnswer(message);
        break;
      case "content":
        this.#contents.receive(message);
        this.#lastProgressMs = this.#options.clock.nowMs();
        break;
      case "vmstate-ack":
        this.#receiveVmStateAck(message);
        break;
      case "stall":
        this.#options.stalled(fromErrorBody(message.error));
        break;
      case "unstall":
        this.#options.stalled(undefined);
        break;
      case "wanted":
      case "given-up":
        this.#options.notified(message);
        break;
      case "vmstate":
      case "vmstate-end":
      case "begin":
      case "united":
      case "takeover":
      case "resize":
      case "verify":
      case "checksum":
      case "read":
      case "data":
      case "sync":
      case "lineage":
      case "told":
      case "barrier":
      case "commit":
      case "discard":
        throw new ColobusError("protocol-error", `a secondary does not send "${message.type}"`);
    }
  }

  #receiveReady(differs: number): void {
    this.#readyTimer?.cancel();
    if (differs !== this.#differs) {
      throw new ColobusError(
        "protocol-error",
        `the peer sent ${differs} "differs", of which ${this.#differs} have come`,
      );
    }
    this.#options.ready();
  }

  #receiveAnswer(message: Extract<Message, { type: "answer" }>): void {
    const request = this.#requests.get(message.id);
    if (request === undefined) this.#contents.refused(message);
    this.#requests.delete(message.id);
    this.#lastProgressMs = this.#options.clock.nowMs();
    if (message.error === null) request?.resolve(message);
    else request?.reject(fromErrorBody(message.error));
  }

  #receiveVmStateAck({ epoch, chunks, error }: Extract<Message, { type: "vmstate-ack" }>): void {
    this.#lastProgressMs = this.#options.clock.nowMs();
    // A stream that was given up may still be answered for.
    if (this.#vmState?.epoch !== epoch) return;
    this.#vmState.acknowledge(chunks, error === null ? undefined : fromErrorBody(error));
  }

  #end(reason: ColobusError): void {
    this.#closed = true;
    this.#progressTimer?.cancel();
    this.#readyTimer?.cancel();
    this.#batch?.discard();
    this.#options.closed(asColobusError(reason), this.#window.abandon());
    for (const request of this.#requests.values()) request.reject(outcomeUnknown());
    this.#requests.clear();
    this.#contents.end(outcomeUnknown());
    this.#vmState?.fail(interrupted());
    this.#vmState = undefined;
  }

  #isQuiet(): boolean {
    return (
      this.#window.isEmpty && this.#requests.size === 0 && this.#contents.isEmpty && this.#vmState?.isQuiet !== false
    );
  }

  /** Gives up a secondary that answers heartbeats but acknowledges nothing. */
  #watchProgress(): Timer {
    const { clock, peerTimeoutMs } = this.#options;
    return clock.after(peerTimeoutMs / 4, () => {
      const idleMs = clock.nowMs() - this.#lastProgressMs;
      if (!this.#isQuiet() && idleMs >= peerTimeoutMs) {
        this.close(
          new ColobusError(
            "peer-timeout",
            `the secondary has acknowledged nothing for ${Math.round(idleMs)} ms`,
            "Check the load, the disk and the log of the secondary's host; the session is tried again by itself.",
          ),
        );
        return;
      }
      this.#progressTimer = this.#watchProgress();
    });
  }
}

function interrupted(): ColobusError {
  return new ColobusError(
    "vmstate-interrupted",
    "the session with the secondary was lost before the VM state was complete",
    "The previous checkpoint stands; take a new one when the secondary is connected again.",
  );
}

function outcomeUnknown(): ColobusError {
  return new ColobusError(
    "outcome-unknown",
    "the session with the secondary was lost before it answered",
    "When it is connected again, see `colobus status`, or ask again: a commit of a committed checkpoint succeeds.",
  );
}
