import { ColobusError } from "../../proto/errors.ts";
import type { Link, LinkHandlers } from "../../shared/replication/link.ts";
import type { SimProcess } from "./sim-host.ts";
import type { SimNetwork } from "./sim-network.ts";
import type { CrashKind } from "./simulated-crash.ts";
import { sampleHash } from "./trace-log.ts";

/**
 * One connection of the simulated network: two ends, and between them two streams of whole messages in order.
 *
 * A message waits in the sender's queue (`queuedBytes`) until the network has room for it, flies for a while, and is
 * delivered. What was sent is delivered in order or not at all; an end of the link travels behind the messages before
 * it. Every way for a connection to end is there: closed with a reason, closed with the reason lost on the way, cut,
 * half dead (one side never learns), reset by a host that knows nothing of it any more.
 *
 * A buffer that its sender changes after `send` fails the world: the link owns it.
 */

/** How long `close` waits for the peer's answer when none comes, as the WebSocket library does. */
const CLOSE_TIMEOUT_MS = 30_000;

/** What travels: a message, or with `end` the end of the link. */
interface Travelling {
  readonly parts: readonly Uint8Array[];
  readonly bytes: number;
  readonly checksum: number;
  readonly end: ColobusError | undefined;
}

export class SimLink implements Link {
  readonly peerAddress: string;
  readonly process: SimProcess;
  readonly #network: SimNetwork;
  /** Pairs carry one number. */
  readonly pair: number;
  /** This end dialled, the other one accepted. */
  readonly dialled: boolean;
  #peer: SimLink | undefined;
  #handlers: LinkHandlers | undefined;
  /** Arrived, not yet handed over; once the link is started there is one event for each. */
  readonly #inbox: Travelling[] = [];
  #ended: ColobusError | undefined;
  /** `close` was called, or the network took the connection away: nothing more is sent. */
  #mute = false;
  /** Nothing that this end sends from now on arrives anywhere. */
  #severed = false;
  readonly #queue: Travelling[] = [];
  readonly #flying: Travelling[] = [];
  #queuedBytes = 0;
  #flyingBytes = 0;
  /** Sent into a severed connection: the kernel takes some, the rest counts as queued. */
  #wastedBytes = 0;
  #lastArrivalMs = 0;
  /** Arrivals that came due while the way was blocked or the receiver frozen. */
  #stalled = 0;

  constructor(network: SimNetwork, process: SimProcess, peerAddress: string, pair: number, dialled: boolean) {
    this.#network = network;
    this.process = process;
    this.peerAddress = peerAddress;
    this.pair = pair;
    this.dialled = dialled;
  }

  static join(left: SimLink, right: SimLink): void {
    left.#peer = right;
    right.#peer = left;
  }

  get peer(): SimLink {
    if (this.#peer === undefined) throw new RangeError("this end was never joined to another");
    return this.#peer;
  }

  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  /** `closed` has been called, or will be as soon as the link is started. */
  get ended(): boolean {
    return this.#ended !== undefined;
  }

  send(parts: readonly Uint8Array[]): void {
    if (this.#mute || !this.process.alive) return;
    const bytes = parts.reduce((sum, part) => sum + part.length, 0);
    this.#network.world.trace(this.#line("sends"), bytes);
    if (this.#severed) {
      if (this.#wastedBytes < this.#network.profile.bufferBytes) this.#wastedBytes += bytes;
      else this.#queuedBytes += bytes;
      return;
    }
    this.#queue.push({
      parts: parts.length === 1 ? parts.slice() : parts.map((part) => Buffer.from(part)),
      bytes,
      checksum: checksumOf(parts),
      end: undefined,
    });
    this.#queuedBytes += bytes;
    this.#pump();
  }

  start(handlers: LinkHandlers): void {
    if (this.#ended !== undefined) {
      if (this.process.alive) handlers.closed(this.#ended);
      return;
    }
    this.#handlers = handlers;
    for (let index = 0; index < this.#inbox.length; index++) this.#scheduleHandOver();
  }

  close(reason: ColobusError): void {
    if (this.#mute || !this.process.alive) return;
    const { world, random, profile } = this.#network;
    world.trace(`${this.#line("closes:")} ${reason.code}`);
    if (random.chance(profile.closeLostProbability)) {
      this.#drop(random.below(this.#queue.length + 1));
      this.#launchLast(lost("the connection was reset"));
    } else {
      this.#launchLast(new ColobusError(reason.code, reason.message, "See the peer's log for the whole reason."));
    }
    this.#mute = true;
    // The peer's answer to the close ends this end; messages that are on their way may still come before it.
    const answered = !this.#severed && !this.peer.#severed && !this.#network.isBlockedBetween(this);
    const untilAnsweredMs = Math.max(0, this.#lastArrivalMs - world.nowMs) + random.within(profile.latencyMs);
    world.schedule(answered ? untilAnsweredMs : CLOSE_TIMEOUT_MS, () => this.finish(reason), this.process);
  }

  /** The end of this end, now: `closed` is called once. */
  finish(reason: ColobusError): void {
    if (this.#ended !== undefined || !this.process.alive) return;
    this.#ended = reason;
    this.#mute = true;
    this.#inbox.length = 0;
    this.#drop(0);
    this.#network.forget(this);
    this.#network.world.trace(`${this.#line("ends:")} ${reason.code}`);
    const handlers = this.#handlers;
    this.#handlers = undefined;
    handlers?.closed(reason);
  }

  /**
   * The network takes the connection away: of what this end has sent an arbitrary prefix still arrives. With a
   * `reason` the other end hears of it behind that.
   */
  sever(reason: ColobusError | undefined): void {
    if (this.#severed) return;
    this.#drop(0);
    this.#flying.splice(this.#network.random.below(this.#flying.length + 1));
    if (reason !== undefined) this.#launchLast(reason);
    this.#severed = true;
  }

  /** The process of this end is dead. A kernel that lives on delivers what it was given, and ends the connection. */
  processDied(kind: CrashKind): void {
    this.#network.forget(this);
    if (kind === "power") this.sever(undefined);
    else if (!this.#mute) {
      this.#drop(this.#network.random.below(this.#queue.length + 1));
      this.#launchLast(lost("the connection was reset"));
    }
    this.#mute = true;
  }

  /** The way is free again, or the receiver has thawed. */
  release(): void {
    const count = this.#stalled;
    this.#stalled = 0;
    for (let index = 0; index < count; index++) this.#scheduleArrival(0);
  }

  /** Hands queued messages to the network as far as it has room. */
  #pump(): void {
    while (this.#flying.length === 0 || this.#flyingBytes < this.#network.profile.bufferBytes) {
      const item = this.#queue.shift();
      if (item === undefined) return;
      this.#launch(item);
    }
  }

  /** All that is queued, and the end of the link behind it, is out of this end's hands. */
  #launchLast(reason: ColobusError): void {
    if (this.#severed) return;
    for (const item of this.#queue.splice(0)) this.#launch(item);
    this.#launch({ parts: [], bytes: 0, checksum: 0, end: reason });
  }

  #launch(item: Travelling): void {
    if (item.end === undefined) this.#queuedBytes -= item.bytes;
    this.#flyingBytes += item.bytes;
    this.#flying.push(item);
    this.#scheduleArrival(item.bytes);
  }

  #scheduleArrival(bytes: number): void {
    const { world, random, profile } = this.#network;
    const arrivalMs = world.nowMs + random.within(profile.latencyMs) + bytes / profile.bytesPerMs;
    const burst = random.chance(profile.burstProbability) && this.#lastArrivalMs >= world.nowMs;
    if (!burst) this.#lastArrivalMs = Math.max(this.#lastArrivalMs, arrivalMs);
    world.schedule(this.#lastArrivalMs - world.nowMs, () => this.#arrive());
  }

  /** The oldest message in flight is at the other end. */
  #arrive(): void {
    const { process: receiver } = this.peer;
    if (this.#network.isBlocked(this.process.host, receiver.host) || (receiver.alive && receiver.frozen)) {
      this.#stalled++;
      return;
    }
    const item = this.#flying.shift();
    if (item === undefined) return; // it was lost with the connection
    this.#flyingBytes -= item.bytes;
    this.#pump();
    this.peer.#receive(item);
  }

  #receive(item: Travelling): void {
    if (!this.process.alive || this.#ended !== undefined) {
      this.#reset();
    } else if (this.#handlers === undefined) {
      this.#inbox.push(item);
    } else if (this.#inbox.length > 0) {
      this.#inbox.push(item);
      this.#scheduleHandOver();
    } else {
      this.#handOver(item);
    }
  }

  #scheduleHandOver(): void {
    const handOver = (): void => {
      const item = this.#inbox.shift();
      if (item !== undefined) this.#handOver(item);
    };
    this.#network.world.schedule(0, handOver, this.process);
  }

  #handOver(item: Travelling): void {
    const { world } = this.#network;
    if (item.end !== undefined) {
      this.finish(item.end);
      return;
    }
    if (checksumOf(item.parts) !== item.checksum) {
      world.fail("link", new Error(this.peer.#line("changed a buffer that it had sent")));
      return;
    }
    const data = Buffer.concat(item.parts, item.bytes);
    world.trace(this.#line("receives"), item.bytes);
    world.traceBytes(data);
    const fate = this.#network.intercept?.(this, data) ?? "deliver";
    if (fate !== "deliver") world.trace(`${this.#line("is spoiled")} ${fate}`);
    if (fate === "cut") this.#network.cutLink(this);
    else if (fate !== "lose") {
      const again = fate === "repeat" ? Buffer.from(data) : undefined;
      this.#handlers?.message(data);
      if (again !== undefined) this.#handlers?.message(again);
    }
  }

  /** Something came for a connection that this host no longer has: its kernel, if it is on, says so. */
  #reset(): void {
    if (this.process.host.isOff || this.peer.#mute) return;
    const { world, random, profile } = this.#network;
    const hear = (): void => {
      if (!this.#network.isBlockedBetween(this)) this.peer.finish(lost("the connection was reset"));
    };
    world.schedule(random.within(profile.latencyMs), hear, this.peer.process);
  }

  /** Forgets what is queued behind the first `kept` messages. */
  #drop(kept: number): void {
    for (const dropped of this.#queue.splice(kept)) this.#queuedBytes -= dropped.bytes;
  }

  #line(what: string): string {
    return this.process.traceLine(what, this.peerAddress);
  }
}

function checksumOf(parts: readonly Uint8Array[]): number {
  let checksum = 0;
  for (const part of parts) checksum = Math.imul(checksum, 31) + sampleHash(part);
  return checksum;
}

/** The end of a connection that the network is to blame for. */
export function lost(what: string): ColobusError {
  return new ColobusError("connection-lost", what, "The connection is tried again by itself.");
}
