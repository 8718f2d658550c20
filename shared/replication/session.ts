import { ColobusError } from "../../proto/errors.ts";
import {
  HANDSHAKE_MESSAGE_MAX_BYTES,
  HANDSHAKE_TIMEOUT_MS,
  LINK_MEASURE_MAX_BYTES,
  UNREAD_MAX_BYTES,
  WRONG_TOKEN_PAUSE_MS,
} from "../../proto/limits.ts";
import {
  decodeMessage,
  encodeMessage,
  fromErrorBody,
  toErrorBody,
  type ErrorBody,
  type Greeting,
  type HeaderMessage,
  type Hello,
  type Message,
} from "../../proto/replication-messages.ts";
import type { Clock, Timer } from "../host/clock.ts";
import type { Random } from "../host/random.ts";
import { newGreeting } from "./greeting.ts";
import { findMismatch } from "./mismatch.ts";
import type { Link } from "./link.ts";
import { MessageNumbers } from "./message-numbers.ts";
import type { Pulse } from "./pulse.ts";
import { takesNoSessions } from "./refusal.ts";
import { isSameMac, TokenProofs, type LinkEnd } from "./token-proof.ts";

/** Characters of a stranger's sentence that are told. */
const STRANGERS_WORDS_MAX = 200;
const SAME_TOKEN = "Put the same token into the --token-file of both agents.";

/** Where the handshake is: what is awaited from the peer. */
type Handshake =
  | { readonly step: "greeting" }
  | { readonly step: "proof"; readonly proofs: TokenProofs }
  | { readonly step: "hello"; readonly proofs: TokenProofs }
  | { readonly step: "seal"; readonly peer: Hello; readonly expected: Buffer }
  | { readonly step: "open"; readonly peer: Hello }
  | { readonly step: "asked" }
  | { readonly step: "doubted" }
  | { readonly step: "closed" };

export interface SessionHandlers {
  /** The peer has proved that it holds the token, and the two can form a pair. */
  opened(peer: Hello): void;
  /** A message of the open session, validated. May throw a ColobusError, which ends the session with that reason. */
  message(message: Exclude<Message, HandshakeMessage | { type: "refuse" | "ping" }>): void;
  /** The peer has answered this side's ping `at`, which measures the link, at its time of day `wallMs`. */
  echoed?(at: number, wallMs: number): void;
  /** The session is over; called exactly once, and nothing is called after it. */
  closed(reason: ColobusError): void;
}

export interface SessionOptions {
  readonly link: Link;
  readonly clock: Clock;
  readonly random: Random;
  /** Said to who has proved that it holds the token. */
  readonly hello: Hello;
  readonly token: Buffer | undefined;
  /** This side only asks what the two would do, and closes once the session is open. */
  readonly probe?: boolean;
  readonly peerTimeoutMs: number;
  readonly handlers: SessionHandlers;
  /** What may wait for the network of what this side has sent on its own, beside answers; nothing much unless it is said. */
  readonly sentBytes?: () => number;
  /** What pings carry, where an arbiter decides who serves. */
  readonly pulse?: Pulse | undefined;
}

/**
 * One session with a peer over one link: proofs of the pre-shared token, hellos, then the messages of the roles, with
 * heartbeats. It is the same on both sides, but for who proves first; what the messages mean is the roles' business.
 *
 *     greeting ──> proof ──> hello ──> seal ──> open ───> closed
 *                    │                  │                   ^
 *                    │ wrong            └─────> asked ──────┤  (the peer only asks what the two would do, and knows it now; it may measure)
 *                    └────────────────────────> doubted ────┘  (it has dialled, and is told after a pause)
 *
 * A greeting has a nonce and nothing of the pair. Who has dialled proves first that it holds the token, and the other end
 * says no more before: so nobody who merely reaches a port hears who is there, or gets anything to try tokens against. A
 * hello is said behind the proofs, and sealed, so that no part of it can be altered under way. Nothing else is accepted
 * before the session is open.
 *
 * Every message goes out through `#transmit`, which numbers it, and comes in through `#receive`, which takes none but the
 * next one: what happens behind it sees each message of the peer once and in order, or the session ends.
 */
export class Session {
  readonly #options: SessionOptions;
  readonly #end: LinkEnd;
  readonly #peerEnd: LinkEnd;
  /** This side's greeting as it was sent. */
  readonly #greeting: Buffer;
  readonly #numbers = new MessageNumbers();
  #handshake: Handshake = { step: "greeting" };
  #lastReceivedMs: number;
  #lastSentMs: number;
  #timer: Timer;
  #isProbe = false;
  #isProved = false;
  #measuredBytes = 0;

  constructor(options: SessionOptions) {
    const { link, clock, random, token, probe = false } = options;
    this.#options = options;
    [this.#end, this.#peerEnd] = link.dialled ? ["dialler", "listener"] : ["listener", "dialler"];
    this.#lastReceivedMs = clock.nowMs();
    this.#lastSentMs = clock.nowMs();
    this.#timer = clock.after(HANDSHAKE_TIMEOUT_MS, () => {
      this.#refuse(new ColobusError("peer-timeout", "the peer did not finish the handshake", "Check the peer's log."));
    });
    let constructed = false;
    link.start({
      message: (data) => this.#receive(data),
      closed: (reason) => {
        // A link that is gone already says so at once; the owner must have its session before that ends.
        if (constructed) this.#lost(reason);
        else clock.defer(() => this.#lost(reason));
      },
    });
    this.#greeting = this.#say({ type: "greeting", ...newGreeting(random, { hasToken: token !== undefined, probe }) });
    constructed = true;
  }

  /** Milliseconds since anything came from the peer. */
  get silenceMs(): number {
    return this.#options.clock.nowMs() - this.#lastReceivedMs;
  }

  /** What was sent and the network has not taken yet. */
  get queuedBytes(): number {
    return this.#options.link.queuedBytes;
  }

  /** Whether the peer says that it only asks. Such a session is never `opened`, and its end is no news. */
  get isProbe(): boolean {
    return this.#isProbe;
  }

  /** Whether the other side has proved that it is the peer, as far as the two can: it holds the token, where there is one. */
  get isProved(): boolean {
    return this.#isProved;
  }

  get peerAddress(): string {
    return this.#options.link.peerAddress;
  }

  /** Who the peer is by its certificate; undefined where it has shown none. */
  get peerSubject(): string | undefined {
    return this.#options.link.peerIdentity?.subject;
  }

  send(message: HeaderMessage): void {
    this.sendParts(encodeMessage(message));
  }

  /** Sends an encoded message. The link owns the parts from now on. */
  sendParts(parts: readonly Buffer[]): void {
    if (this.#handshake.step === "closed") return;
    this.#lastSentMs = this.#options.clock.nowMs();
    this.#transmit(parts);
  }

  /** Ends the session, telling the peer why. */
  close(reason: ColobusError): void {
    // What this side is up to is nothing for a stranger.
    this.#refuse(reason, this.#isProved ? reason : takesNoSessions());
  }

  #refuse(reason: ColobusError, told = reason): void {
    if (this.#handshake.step === "closed") return;
    this.#transmit(encodeMessage({ type: "refuse", error: toErrorBody(told) }));
    this.#options.link.close(told);
    this.#finish(reason);
  }

  #transmit(parts: readonly Buffer[]): void {
    this.#numbers.stamp(parts);
    this.#options.link.send(parts);
  }

  /** Sends a message of the handshake, and returns its bytes as the peer sees them. */
  #say(message: HeaderMessage): Buffer {
    const bytes = Buffer.concat(encodeMessage(message));
    this.#transmit([bytes]);
    return Buffer.from(bytes);
  }

  /** The link is gone. Who has guessed at the token keeps its place until its pause is over, whether it stays or not. */
  #lost(reason: ColobusError): void {
    if (this.#handshake.step !== "doubted") this.#finish(reason);
  }

  #finish(reason: ColobusError): void {
    if (this.#handshake.step === "closed") return;
    this.#handshake = { step: "closed" };
    this.#timer.cancel();
    this.#options.handlers.closed(reason);
  }

  #receive(data: Buffer): void {
    if (this.#handshake.step === "closed" || this.#handshake.step === "doubted") return;
    this.#lastReceivedMs = this.#options.clock.nowMs();
    try {
      if (this.#handshake.step !== "open" && data.length > HANDSHAKE_MESSAGE_MAX_BYTES) {
        throw new ColobusError("protocol-error", "the peer sent a large message before the handshake was done");
      }
      // Decoded first: what is no message of this protocol at all, or of another version of it, is told as that.
      const message = decodeMessage(data);
      this.#numbers.check(data);
      this.#assertRead();
      this.#handle(message, data);
    } catch (error) {
      if (error instanceof ColobusError) this.#refuse(error);
      else throw error;
    }
  }

  /** Who goes on sending, and does not read what that is answered by, would have this side keep it all. */
  #assertRead(): void {
    const { sentBytes = () => 0 } = this.#options;
    if (this.queuedBytes > UNREAD_MAX_BYTES + sentBytes()) {
      throw new ColobusError("protocol-error", "the peer goes on sending, and does not read what it is answered");
    }
  }

  #handle(message: Message, data: Buffer): void {
    if (message.type === "refuse") {
      // The peer closes the link itself; its reason is worth more than the close code.
      const reason = this.#isProved ? fromErrorBody(message.error) : this.#strangersReason(message.error);
      this.#options.link.close(reason);
      this.#finish(reason);
    } else if (this.#handshake.step === "open" && !isOfHandshake(message)) {
      if (message.type === "ping") this.#receivePing(message);
      else this.#options.handlers.message(message);
    } else if (this.#handshake.step === "greeting" && message.type === "greeting") {
      this.#receiveGreeting(message, data);
    } else if (this.#handshake.step === "proof" && message.type === "proof") {
      this.#receiveProof(message.mac, this.#handshake.proofs);
    } else if (this.#handshake.step === "hello" && message.type === "hello") {
      this.#receiveHello(message, data, this.#handshake.proofs);
    } else if (this.#handshake.step === "seal" && message.type === "seal") {
      this.#receiveSeal(message.mac, this.#handshake);
    } else if (this.#handshake.step === "asked" && message.type === "ping") {
      this.#echo(message);
    } else {
      throw new ColobusError("protocol-error", `the peer sent "${message.type}" where the handshake does not allow it`);
    }
  }

  /** What somebody says who has not proved to be the peer: nobody is to take it for advice of this agent's. */
  #strangersReason(body: ErrorBody): ColobusError {
    const { code, message } = fromErrorBody(body);
    if (code === "auth-failed" && this.#handshake.step === "proof") {
      return new ColobusError(
        "auth-failed",
        "the other side does not accept this agent's pre-shared token",
        SAME_TOKEN,
      );
    }
    return new ColobusError(
      code,
      `the other side has not proved who it is, and refuses this one: "${message.slice(0, STRANGERS_WORDS_MAX)}"`,
      "See the log of the agent there.",
    );
  }

  #receiveGreeting({ hasToken, probe }: Greeting, data: Buffer): void {
    const { token } = this.#options;
    this.#isProbe = probe;
    if (hasToken !== (token !== undefined)) {
      throw new ColobusError(
        "auth-failed",
        token === undefined
          ? "the peer asks for a pre-shared token, and this agent has none"
          : "the peer holds no pre-shared token, and this agent asks for one",
        "Start both agents with --token-file and the same token, or both without.",
      );
    }
    const [dialler, listener] = this.#end === "dialler" ? [this.#greeting, data] : [data, this.#greeting];
    const proofs = new TokenProofs(token, { dialler, listener });
    this.#handshake = { step: "proof", proofs };
    if (this.#end === "dialler") this.#say({ type: "proof", mac: proofs.proof(this.#end) });
  }

  #receiveProof(mac: Uint8Array, proofs: TokenProofs): void {
    if (!isSameMac(mac, proofs.proof(this.#peerEnd))) {
      if (this.#end === "dialler") throw wrongToken();
      this.#doubt();
      return;
    }
    this.#isProved = true;
    this.#options.link.proved?.();
    this.#handshake = { step: "hello", proofs };
    if (this.#end === "listener") this.#say({ type: "proof", mac: proofs.proof(this.#end) });
    const hello = this.#say({ type: "hello", ...this.#options.hello });
    this.#say({ type: "seal", mac: proofs.seal(this.#end, hello) });
  }

  /** Whoever dials has as many guesses at the token as there are places, in each of these pauses. */
  #doubt(): void {
    this.#handshake = { step: "doubted" };
    this.#timer.cancel();
    this.#timer = this.#options.clock.after(WRONG_TOKEN_PAUSE_MS, () => this.#refuse(wrongToken()));
  }

  #receiveHello(peer: Hello, data: Buffer, proofs: TokenProofs): void {
    this.#handshake = { step: "seal", peer, expected: proofs.seal(this.#peerEnd, data) };
  }

  #receiveSeal(mac: Uint8Array, { peer, expected }: Extract<Handshake, { step: "seal" }>): void {
    if (!isSameMac(mac, expected)) {
      throw new ColobusError(
        "auth-failed",
        "what the peer said of itself was altered on the way",
        "Find out who is between the two agents; with TLS nobody can be.",
      );
    }
    if (this.#isProbe) {
      // It has this side's hello, and compares the two itself. The timer of the handshake ends it if it stays.
      this.#handshake = { step: "asked" };
      return;
    }
    const { hello, handlers } = this.#options;
    if (peer.agentId === hello.agentId) {
      throw new ColobusError(
        "role-conflict",
        "the agent is connected to itself, or to a copy of its own state directory",
        "Check --peer and --listen; never copy a state directory.",
      );
    }
    const mismatch = findMismatch(hello, peer);
    if (mismatch !== undefined) throw mismatch;
    this.#handshake = { step: "open", peer };
    this.#timer.cancel();
    this.#scheduleHeartbeat();
    handlers.opened(peer);
    this.#beat();
  }

  /** Sends a ping that carries what an arbiter's pair needs; false where there is nothing to carry. */
  #beat(): boolean {
    const { pulse } = this.#options;
    if (pulse?.of !== "Primary") return false;
    this.send({ type: "ping", at: pulse.beat() });
    return true;
  }

  /** Answers who measures the link. The timer of the handshake, and the bytes, bound for how long. */
  #echo({ at, padding }: Extract<Message, { type: "ping" }>): void {
    if (at === undefined) return; // a heartbeat
    this.#measuredBytes += padding?.length ?? 0;
    if (this.#measuredBytes > LINK_MEASURE_MAX_BYTES) {
      throw new ColobusError("protocol-error", "the peer sends more than a measurement of the link needs");
    }
    this.send({ type: "ping", heard: at, wallMs: this.#options.clock.wallMs() });
  }

  #receivePing({ at, heard, promiseMs, wallMs }: Extract<Message, { type: "ping" }>): void {
    const { pulse, handlers } = this.#options;
    if (heard !== undefined && wallMs !== undefined) handlers.echoed?.(heard, wallMs);
    if (pulse === undefined) return;
    if (pulse.of === "Primary") {
      if (heard !== undefined && promiseMs !== undefined) pulse.heard(heard, promiseMs);
    } else if (at !== undefined) {
      this.send({ type: "ping", heard: at, promiseMs: pulse.promise() });
    }
  }

  /** Pings a peer that has heard nothing for a while, and gives up one that has said nothing for the peer timeout. */
  #scheduleHeartbeat(): void {
    const { clock, peerTimeoutMs, pulse } = this.#options;
    const everyMs = Math.min(peerTimeoutMs / 4, pulse?.of === "Primary" ? pulse.everyMs : peerTimeoutMs);
    const dueMs = clock.nowMs() + everyMs;
    this.#timer = clock.after(everyMs, () => {
      // A timer that fires late was itself stopped (SIGSTOP, a suspended host): the peer's words may be waiting unread.
      const wasStopped = clock.nowMs() - dueMs > everyMs;
      if (this.silenceMs >= peerTimeoutMs && !wasStopped) {
        this.close(
          new ColobusError(
            "peer-timeout",
            `the peer has been silent for ${Math.round(this.silenceMs)} ms`,
            "Check the peer's host and the network between the two; the session is tried again by itself.",
          ),
        );
        return;
      }
      if (!this.#beat() && clock.nowMs() - this.#lastSentMs >= everyMs / 2) this.send({ type: "ping" });
      this.#scheduleHeartbeat();
    });
  }
}

function wrongToken(): ColobusError {
  return new ColobusError("auth-failed", "the peer does not hold the same pre-shared token", SAME_TOKEN);
}

type HandshakeMessage = Extract<Message, { type: "greeting" | "proof" | "hello" | "seal" }>;

function isOfHandshake(message: Message): message is HandshakeMessage {
  return message.type === "greeting" || message.type === "proof" || message.type === "hello" || message.type === "seal";
}
