/**
 * The other end of a replication link, spoken from the documented format and not from the agents' code: what another
 * release, or anybody else, may send. A message is a header length and the number of the message, 4 bytes each, and a
 * msgpack map.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { Packr } from "msgpackr";
import { onTestFinished } from "vitest";
import { WebSocket, WebSocketServer } from "ws";

type Fields = Readonly<Record<string, unknown>>;

const packr = new Packr({ useRecords: false });

export class FakePeer {
  readonly #socket: WebSocket;
  readonly #received: Fields[] = [];
  #wake: (() => void) | undefined;
  #isClosed = false;
  /** The messages as bytes, in order: those of this end, and the agent's. */
  readonly said: Buffer[] = [];
  readonly heard: Buffer[] = [];
  /** The close code of the connection, once it has ended. */
  readonly closed: Promise<number>;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.on("message", (data: Buffer) => {
      assert.equal(data.readUInt32BE(4), this.heard.length, "the number of an agent's message");
      this.heard.push(data);
      this.#received.push(packr.unpack(data.subarray(8, 8 + data.readUInt32BE(0))) as Fields);
      this.#wake?.();
    });
    this.closed = once(socket, "close").then(([code]) => {
      this.#isClosed = true;
      this.#wake?.();
      return code as number;
    });
    onTestFinished(() => socket.terminate());
  }

  /** Connects to a secondary, as a primary does. */
  static async dial(port: number): Promise<FakePeer> {
    const socket = new WebSocket(`ws://127.0.0.1:${port}`);
    const peer = new FakePeer(socket);
    await once(socket, "open");
    return peer;
  }

  /** Takes the connections of a primary, as a secondary does, and hands each to `serve`; ends with what is returned. */
  static async listen(port: number, serve: (peer: FakePeer) => Promise<void>): Promise<() => Promise<void>> {
    const server = new WebSocketServer({ host: "127.0.0.1", port });
    server.on("connection", (socket) => void serve(new FakePeer(socket)));
    await once(server, "listening");
    onTestFinished(() => server.close());
    return () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve());
        for (const socket of server.clients) socket.terminate();
      });
  }

  send(fields: Fields): void {
    const body = packr.pack(fields);
    const head = Buffer.alloc(8);
    head.writeUInt32BE(body.length, 0);
    head.writeUInt32BE(this.said.length, 4);
    const bytes = Buffer.concat([head, body]);
    this.said.push(bytes);
    this.#socket.send(bytes);
  }

  /** Greets and says `hello`, without a token. */
  introduce(hello: Fields): void {
    this.send(fakeGreeting());
    this.send({ type: "proof", mac: Buffer.alloc(0) });
    this.send(hello);
    this.send({ type: "seal", mac: Buffer.alloc(0) });
  }

  /** Everything that has come and was not received yet. */
  take(): Fields[] {
    return this.#received.splice(0);
  }

  sendRaw(bytes: Buffer): void {
    this.#socket.send(bytes);
  }

  /** The next message of this type; others before it are passed over. Rejects at a refusal, and at the end. */
  async receive(type: string): Promise<Fields> {
    for (;;) {
      const next = this.#received.shift();
      if (next?.type === type) return next;
      if (next?.type === "refuse") throw new Error(`refused: ${JSON.stringify(next.error)}`);
      if (next === undefined && this.#isClosed) throw new Error(`the connection ended before "${type}" came`);
      if (next === undefined) {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    }
  }

  close(): void {
    this.#socket.close();
  }
}

/** What is said first to anybody, by who has no token; a test changes what is not to fit. */
export function fakeGreeting(changed: Fields = {}): Fields {
  return { type: "greeting", protocol: 1, nonce: Buffer.alloc(16, 7), hasToken: false, probe: false, ...changed };
}

/** The hello of an agent that fits a pair with one disk vda of `sizeBytes`; a test changes what is not to fit. */
export function fakeHello(role: "Primary" | "Secondary", sizeBytes: number, changed: Fields = {}): Fields {
  return {
    type: "hello",
    agentVersion: "9.9.9",
    agentId: "fake-agent",
    vm: "test",
    mode: "colo",
    role,
    ack: "async",
    clusterBytes: 16_384,
    windowBytes: 67_108_864,
    disks: [{ name: "vda", sizeBytes }],
    lineage: role === "Primary" ? "fake-lineage" : null,
    committed: 0,
    prepared: [],
    epochSeen: 0,
    shared: true,
    ancestors: [],
    heard: [],
    pairing: null,
    tracks: null,
    outdated: false,
    discardsOwn: false,
    handOver: null,
    changedBytes: 0,
    assumeInSync: false,
    ...changed,
  };
}
