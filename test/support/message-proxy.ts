/**
 * A relay between two agents that understands what they say: it takes whole WebSocket messages, knows their types, and
 * does at one chosen message what a network may do at that moment. Everything else it hands on unchanged: payloads,
 * request headers, subprotocol, close codes.
 *
 * One fault is armed at a time. It acts once, on the connection that the message came on.
 */
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { onTestFinished } from "vitest";
import { WebSocket, WebSocketServer, type RawData } from "ws";
import { decodeMessage, type Message, type MessageType } from "../../proto/replication-messages.ts";

/** Which end of the link has sent a message: the one that dialled, or the one that listens. */
export type Sender = "dialler" | "listener";

/**
 * - `cut-before`: the message never arrives, and the connection ends.
 * - `cut-after`: the message is the last thing that arrives in either direction.
 * - `hold`: the message and everything behind it wait, until `release` or `cut`.
 * - `drop`: the message is left out, and the stream goes on behind it.
 */
export type FaultAct = "cut-before" | "cut-after" | "hold" | "drop";

export interface FaultPoint {
  readonly type: MessageType;
  readonly from: Sender;
  /** The how many-th message of that type since the fault was armed; default: the first. */
  readonly nth?: number;
  readonly act: FaultAct;
}

/** A fault that waits for its message. */
export class Fault {
  readonly point: FaultPoint;
  /** Resolves with the message when the fault has acted. */
  readonly reached: Promise<Message>;
  #reach: (message: Message) => void = () => undefined;
  #relay: Relay | undefined;
  #left: number;

  constructor(point: FaultPoint) {
    this.point = point;
    this.#left = point.nth ?? 1;
    this.reached = new Promise((resolve) => {
      this.#reach = resolve;
    });
  }

  /** Whether this message is the one. */
  isDue(message: Message, from: Sender): boolean {
    if (this.#relay !== undefined || from !== this.point.from || message.type !== this.point.type) return false;
    this.#left -= 1;
    return this.#left === 0;
  }

  acted(relay: Relay, message: Message): void {
    this.#relay = relay;
    this.#reach(message);
  }

  /** Hands on what is held. */
  release(): void {
    this.#relay?.release(this.point.from);
  }

  /** Ends the connection; what is held is lost. */
  cut(): void {
    this.#relay?.cut();
  }
}

export class MessageProxy {
  readonly port: number;
  readonly #relays = new Set<Relay>();
  #fault: Fault | undefined;
  #connections = 0;
  #connected: (() => void)[] = [];

  private constructor(port: number) {
    this.port = port;
  }

  /** Relays connections at `port` to the agent that listens at `targetPort`, until the test has finished. */
  static async start(port: number, targetPort: number): Promise<MessageProxy> {
    const proxy = new MessageProxy(port);
    const server = createServer();
    server.on("upgrade", (request, socket, head) => proxy.#take(request, socket, head, targetPort));
    server.listen({ host: "127.0.0.1", port });
    await once(server, "listening");
    onTestFinished(() => {
      server.close();
      server.closeAllConnections();
      proxy.cut();
    });
    return proxy;
  }

  /** Arms a fault, in the place of one that has not acted. */
  arm(point: FaultPoint): Fault {
    this.#fault = new Fault(point);
    return this.#fault;
  }

  /** Ends every connection; new ones are taken. */
  cut(): void {
    for (const relay of this.#relays) relay.cut();
  }

  /** How many connections have been relayed so far. */
  get connections(): number {
    return this.#connections;
  }

  /** Resolves when there has been one more connection than `before`. */
  async untilConnected(before: number): Promise<void> {
    while (this.#connections <= before) {
      await new Promise<void>((resolve) => {
        this.#connected.push(resolve);
      });
    }
  }

  /** The fault that is due at this message, if one is: it is not armed any more. */
  due(message: Message, from: Sender): Fault | undefined {
    if (this.#fault?.isDue(message, from) !== true) return undefined;
    const fault = this.#fault;
    this.#fault = undefined;
    return fault;
  }

  get isArmed(): boolean {
    return this.#fault !== undefined;
  }

  /** Dials first, so that a target that is not there looks to the dialler as it does without a proxy. */
  #take(request: IncomingMessage, socket: Duplex, head: Buffer, targetPort: number): void {
    socket.on("error", () => socket.destroy());
    const outgoing = new WebSocket(`ws://127.0.0.1:${targetPort}`, protocolsOf(request), {
      perMessageDeflate: false,
      headers: endToEnd(request.headers),
    });
    socket.on("close", () => outgoing.terminate());
    outgoing.on("error", () => socket.destroy());
    outgoing.once("open", () => {
      const accepting = new WebSocketServer({
        noServer: true,
        perMessageDeflate: false,
        handleProtocols: () => (outgoing.protocol === "" ? false : outgoing.protocol),
      });
      accepting.handleUpgrade(request, socket, head, (incoming) => {
        const relay: Relay = new Relay(this, incoming, outgoing, () => this.#relays.delete(relay));
        this.#relays.add(relay);
        this.#connections += 1;
        for (const connected of this.#connected.splice(0)) connected();
      });
    });
  }
}

/** One connection of the dialler, and the one to the listener that belongs to it. */
class Relay {
  readonly #proxy: MessageProxy;
  readonly #sockets: Readonly<Record<Sender, WebSocket>>;
  /** What waits behind a held message, by who has sent it; undefined: nothing is held. */
  readonly #held: Record<Sender, Buffer[] | undefined> = { dialler: undefined, listener: undefined };
  /** The last message is on its way: nothing follows it. */
  #isLast = false;

  constructor(proxy: MessageProxy, dialler: WebSocket, listener: WebSocket, over: () => void) {
    this.#proxy = proxy;
    this.#sockets = { dialler, listener };
    for (const from of ["dialler", "listener"] as const) {
      const socket = this.#sockets[from];
      socket.on("message", (data) => this.#receive(from, data));
      socket.on("error", () => this.cut());
      socket.on("close", (code, reason) => {
        over();
        this.#passClose(from, code, reason);
      });
    }
  }

  cut(): void {
    for (const socket of Object.values(this.#sockets)) socket.terminate();
  }

  release(from: Sender): void {
    const held = this.#held[from] ?? [];
    this.#held[from] = undefined;
    for (const data of held) this.#to(from).send(data, { binary: true });
  }

  #receive(from: Sender, raw: RawData): void {
    if (!Buffer.isBuffer(raw)) throw new Error("binary messages arrive as one buffer");
    const held = this.#held[from];
    if (this.#isLast) return;
    if (held !== undefined) {
      held.push(raw);
      return;
    }
    const message = this.#proxy.isArmed ? decodeMessage(raw) : undefined;
    const fault = message === undefined ? undefined : this.#proxy.due(message, from);
    if (message === undefined || fault === undefined) {
      this.#to(from).send(raw, { binary: true });
      return;
    }
    switch (fault.point.act) {
      case "cut-before":
        this.cut();
        break;
      case "cut-after":
        // Once it is in the kernel, an end of the connection does not overtake it.
        this.#isLast = true;
        this.#to(from).send(raw, { binary: true }, () => this.cut());
        break;
      case "hold":
        this.#held[from] = [raw];
        break;
      case "drop":
        break;
    }
    fault.acted(this, message);
  }

  /** A close frame counts as the last message of who has sent it; without one the connection was lost. */
  #passClose(from: Sender, code: number, reason: Buffer): void {
    const other = this.#to(from);
    const NO_STATUS = 1005;
    const ABNORMAL = 1006;
    if (this.#held[from] !== undefined || code === NO_STATUS || code === ABNORMAL) other.terminate();
    else other.close(code, reason);
  }

  #to(from: Sender): WebSocket {
    return this.#sockets[from === "dialler" ? "listener" : "dialler"];
  }
}

function protocolsOf(request: IncomingMessage): string[] {
  const offered = request.headers["sec-websocket-protocol"];
  return offered === undefined ? [] : offered.split(",").map((name) => name.trim());
}

/** The headers of a request but those that are about its connection. */
function endToEnd(headers: IncomingHttpHeaders): IncomingHttpHeaders {
  return Object.fromEntries(
    Object.entries(headers).filter(
      ([name]) => !name.startsWith("sec-websocket-") && !["connection", "upgrade", "host"].includes(name),
    ),
  );
}
