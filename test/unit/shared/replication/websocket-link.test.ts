import { once } from "node:events";
import { createServer, connect, type AddressInfo, type Server } from "node:net";
import { WebSocket } from "ws";
import { describe, expect, it, onTestFinished } from "vitest";
import { ColobusError, ERRORS } from "../../../../proto/errors.ts";
import { LINK_CLOSE_TIMEOUT_MS, MESSAGE_MAX_BYTES } from "../../../../proto/limits.ts";
import type { Link } from "../../../../shared/replication/link.ts";
import { WebSocketDialer, WebSocketListener } from "../../../../shared/replication/websocket-link.ts";
import { turn } from "../../../support/memory-storage.ts";
import { pattern } from "../../../support/overlay-bench.ts";
import { present } from "../../../support/present.ts";

/** What one end of a link was told. */
class Ear {
  readonly messages: Buffer[] = [];
  readonly endings: ColobusError[] = [];

  constructor(link: Link) {
    link.start({
      message: (data) => this.messages.push(data),
      closed: (reason) => this.endings.push(reason),
    });
  }

  async hear(count: number): Promise<Buffer[]> {
    await until(() => this.messages.length === count);
    return this.messages;
  }

  async end(): Promise<ColobusError> {
    await until(() => this.endings.length === 1);
    return present(this.endings[0]);
  }
}

/** Resolves when the network has brought about what is waited for; a test that never gets there times out. */
async function until(isReached: () => boolean): Promise<void> {
  while (!isReached()) await turn();
}

interface Listening {
  readonly listener: WebSocketListener;
  readonly port: number;
  readonly accepted: Link[];
}

async function listening(): Promise<Listening> {
  const accepted: Link[] = [];
  const listener = new WebSocketListener((link) => accepted.push(link));
  const port = await listener.listen("127.0.0.1", 0);
  onTestFinished(() => listener.close());
  return { listener, port, accepted };
}

interface Pair extends Listening {
  readonly dialled: Link;
  readonly served: Link;
}

async function linked(): Promise<Pair> {
  const made = await listening();
  const dialled = await new WebSocketDialer(`ws://127.0.0.1:${made.port}`).dial(new AbortController().signal);
  onTestFinished(() => dialled.close(new ColobusError("shutting-down", "the test is over")));
  await expect.poll(() => made.accepted.length, { interval: 1 }).toBe(1);
  const served = present(made.accepted[0]);
  for (const link of [dialled, served]) link.proved?.();
  return { ...made, dialled, served };
}

/** What a server that is no agent answers to a client; resolves when the client is gone. */
async function plainServer(answer: string | undefined): Promise<{ server: Server; url: string }> {
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    if (answer === undefined) socket.destroy();
    else socket.once("data", () => socket.end(answer));
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  onTestFinished(() => void server.close());
  return { server, url: `ws://127.0.0.1:${(server.address() as AddressInfo).port}` };
}

describe("a WebSocket link", () => {
  const MESSAGES: readonly (readonly number[])[] = [
    [0],
    [1],
    [4, 100],
    [4, 65_532], // the largest that is joined
    [4, 65_533], // the smallest that is sent in fragments
    [100, 0, 70_000, 0],
    [50, ...Array.from({ length: 300 }, () => 4096)],
    [MESSAGE_MAX_BYTES],
    [1, MESSAGE_MAX_BYTES - 1],
    [3, 3, 3],
  ];

  it("carries messages of all sizes, in parts or whole, both ways and in order", async () => {
    const { dialled, served } = await linked();
    const ears = [new Ear(dialled), new Ear(served)];
    const sent = MESSAGES.map((sizes, index) => sizes.map((size, part) => pattern(size, index * 1000 + part)));
    for (const parts of sent) {
      served.send(parts);
      dialled.send(parts);
    }
    for (const ear of ears) {
      const heard = await ear.hear(sent.length);
      expect(heard.map(({ length }) => length)).toEqual(sent.map((parts) => Buffer.concat(parts).length));
      expect(heard.every((message, index) => message.equals(Buffer.concat(sent[index] ?? [])))).toBe(true);
    }
  });

  it("keeps what arrives before its owner listens", async () => {
    const { dialled, served } = await linked();
    dialled.send([Buffer.from("early")]);
    await expect.poll(() => dialled.queuedBytes).toBe(0);
    const ear = new Ear(served);
    expect((await ear.hear(1)).map(String)).toEqual(["early"]);
  });

  it("tells both ends once why it was closed", async () => {
    const { dialled, served } = await linked();
    const [near, far] = [new Ear(dialled), new Ear(served)];
    dialled.close(new ColobusError("size-mismatch", "disk vda has another size", "mend it"));
    dialled.close(new ColobusError("internal", "again"));
    dialled.send([Buffer.from("too late")]);
    expect(await near.end()).toMatchObject({ code: "size-mismatch", action: "mend it" });
    expect(await far.end()).toMatchObject({
      code: "size-mismatch",
      message: "the peer ends the link: disk vda has another size",
    });
    expect(far.messages).toEqual([]);
  });

  it.each(["dialled", "served"] as const)(
    "that was %s ends by itself when it is closed, and the other end does not answer",
    async (end) => {
      const link = (await linked())[end]; // the other end is not started: nobody reads there
      const near = new Ear(link);
      link.close(new ColobusError("shutting-down", "the agent is being stopped"));
      expect(await near.end()).toMatchObject({ code: "shutting-down" });
    },
    5 * LINK_CLOSE_TIMEOUT_MS,
  );

  it("tells why it was closed in as many whole letters as fit", async () => {
    const { dialled, served } = await linked();
    const far = new Ear(served);
    dialled.close(new ColobusError("io-error", "ä".repeat(200)));
    expect((await far.end()).message).toBe(`the peer ends the link: ${"ä".repeat(61)}`);
  });

  it("that breaks ends as a lost connection", async () => {
    const { dialled, served, listener } = await linked();
    const [near, far] = [new Ear(dialled), new Ear(served)];
    await listener.close();
    expect((await near.end()).code).toBe("connection-lost");
    expect((await far.end()).code).toBe("connection-lost");
  });

  it("that has ended before it is started says so", async () => {
    const { dialled, served, listener } = await linked();
    await listener.close();
    const near = new Ear(dialled);
    await near.end();
    const far = new Ear(served);
    expect((await far.end()).code).toBe("connection-lost");
  });

  it("counts what the network has not taken yet", async () => {
    const { dialled, served } = await linked();
    const piece = Buffer.alloc(MESSAGE_MAX_BYTES, 1);
    for (let count = 0; count < 16; count += 1) dialled.send([piece]); // nobody reads: the other end is not started
    await expect.poll(() => dialled.queuedBytes).toBeGreaterThan(MESSAGE_MAX_BYTES);
    const ear = new Ear(served);
    await ear.hear(16);
    await expect.poll(() => dialled.queuedBytes).toBe(0);
  });

  it("names the other end", async () => {
    const { dialled, served, port } = await linked();
    expect(dialled.peerAddress).toBe(`ws://127.0.0.1:${port}`);
    expect(served.peerAddress).toMatch(/^127\.0\.0\.1:\d+$/);
  });
});

describe("a dial", () => {
  const signal = (): AbortSignal => new AbortController().signal;

  it.each<readonly [string, string | undefined]>([
    ["closes at once", undefined],
    ["speaks another protocol", "SSH-2.0-OpenSSH_9.6\r\n"],
    ["is a web server", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"],
    ["refuses", "HTTP/1.1 403 Forbidden\r\nconnection: close\r\n\r\n"],
    ["leads elsewhere", "HTTP/1.1 302 Found\r\nlocation: ws://127.0.0.1:1/\r\n\r\n"],
    [
      "accepts with the wrong key",
      "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n",
    ],
  ])("to a server that %s fails with the reason", async (_, answer) => {
    const { url } = await plainServer(answer);
    await expect(new WebSocketDialer(url).dial(signal())).rejects.toMatchObject({
      code: "connection-lost",
      message: expect.stringContaining(url) as string,
    });
  });

  it("to nobody fails with the reason", async () => {
    const { server, url } = await plainServer(undefined);
    await new Promise((resolve) => {
      server.close(resolve);
    });
    await expect(new WebSocketDialer(url).dial(signal())).rejects.toMatchObject({
      code: "connection-lost",
      message: expect.stringMatching(/ECONNREFUSED/) as string,
    });
  });

  it("ends when it is called off, before and during the attempt", async () => {
    const silent = await listeningSilently();
    const before = new AbortController();
    before.abort();
    await expect(new WebSocketDialer(silent).dial(before.signal)).rejects.toMatchObject({ code: "connection-lost" });
    const during = new AbortController();
    const dialling = new WebSocketDialer(silent).dial(during.signal);
    setTimeout(() => during.abort(), 10);
    await expect(dialling).rejects.toMatchObject({ code: "connection-lost" });
  });
});

/** The address of a server that takes connections and says nothing. */
async function listeningSilently(): Promise<string> {
  const sockets = new Set<{ destroy(): void }>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return `ws://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

describe("the listener", () => {
  /** Sends `request` and resolves with everything that comes back until the connection ends. */
  function exchange(port: number, request: string | Buffer): Promise<string> {
    return new Promise((resolve) => {
      let answer = "";
      const socket = connect(port, "127.0.0.1", () => void socket.write(request));
      socket.on("data", (chunk: Buffer) => {
        answer += chunk.toString("latin1");
      });
      socket.on("error", () => undefined);
      socket.on("close", () => resolve(answer));
    });
  }

  const upgrade = (extra = ""): string =>
    "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n" +
    `sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n${extra}\r\n`;

  it.each<readonly [string, string, RegExp]>([
    ["plain HTTP", "GET / HTTP/1.1\r\nhost: x\r\n\r\n", /^HTTP\/1\.1 426 /],
    ["a request from a web page", upgrade("origin: http://evil.example\r\n"), /^HTTP\/1\.1 403 /],
    ["a WebSocket of another version", upgrade().replace("version: 13", "version: 99"), /^HTTP\/1\.1 4/],
    ["a handshake without a key", upgrade().replace(/sec-websocket-key[^\r]*\r\n/, ""), /^HTTP\/1\.1 400 /],
    ["what is no HTTP", "\0\0\0rubbish\r\n\r\n", /^$/],
  ])("refuses %s, and serves on", async (_, request, answer) => {
    const { port, accepted } = await listening();
    expect(await exchange(port, request)).toMatch(answer);
    expect(accepted).toEqual([]);
    const dialled = await new WebSocketDialer(`ws://127.0.0.1:${port}`).dial(new AbortController().signal);
    dialled.close(new ColobusError("shutting-down", "the test is over"));
  });

  it("closes the connection of a web page that does not", async () => {
    const { port } = await listening();
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    onTestFinished(() => void socket.destroy());
    socket.on("error", () => undefined);
    socket.resume().write(upgrade("origin: http://evil.example\r\n"));
    await once(socket, "end");
    // Nothing but words of its own tell it that the other end is gone altogether.
    const timer = setInterval(() => socket.write("?"), 20);
    await new Promise((resolve) => {
      socket.once("close", resolve);
    });
    clearInterval(timer);
  });

  /** A client that can send what a dialer never would. */
  async function rawClient(port: number): Promise<WebSocket> {
    const socket = new WebSocket(`ws://127.0.0.1:${port}`);
    await new Promise((resolve) => {
      socket.once("open", resolve);
    });
    socket.on("error", () => undefined);
    onTestFinished(() => socket.terminate());
    return socket;
  }

  it.each<readonly [string, (socket: WebSocket) => void, string, number]>([
    ["text", (socket) => socket.send("text"), "protocol-error", ERRORS["protocol-error"].close],
    [
      "a message that is too large",
      (socket) => socket.send(Buffer.alloc(MESSAGE_MAX_BYTES + 1)),
      "connection-lost",
      1009,
    ],
    [
      "fragments that are too large together",
      (socket) => {
        for (let count = 0; count < 3; count += 1)
          socket.send(Buffer.alloc(MESSAGE_MAX_BYTES / 2), { fin: count === 2 });
      },
      "connection-lost",
      1009,
    ],
    ["a close without a reason", (socket) => socket.close(), "connection-lost", 1005],
    ["a close with a code of its own", (socket) => socket.close(4999, "?"), "connection-lost", 4999],
  ])("ends a link that carries %s", async (_, misbehave, code, closeCode) => {
    const { port, accepted } = await listening();
    const socket = await rawClient(port);
    const closed = new Promise<number>((resolve) => {
      socket.once("close", resolve);
    });
    await expect.poll(() => accepted.length).toBe(1);
    const ear = new Ear(present(accepted[0]));
    accepted[0]?.proved?.();
    misbehave(socket);
    expect((await ear.end()).code).toBe(code);
    expect(await closed).toBe(closeCode);
    expect(ear.messages).toEqual([]);
  });

  it("says which address is taken", async () => {
    const { port } = await listening();
    const second = new WebSocketListener(() => undefined);
    await expect(second.listen("127.0.0.1", port)).rejects.toMatchObject({
      code: "address-in-use",
      message: expect.stringContaining(`127.0.0.1:${port}`) as string,
    });
  });

  it("ends its links when it is closed, and can be closed while a handshake is under way", async () => {
    const { port, listener, accepted } = await listening();
    const socket = await rawClient(port);
    await expect.poll(() => accepted.length).toBe(1);
    const half = connect(port, "127.0.0.1", () => void half.write("GET / HTTP/1.1\r\n"));
    half.on("error", () => undefined);
    const halfClosed = new Promise((resolve) => {
      half.on("close", resolve);
    });
    const closed = new Promise((resolve) => {
      socket.once("close", resolve);
    });
    await listener.close();
    await Promise.all([closed, halfClosed]);
  });
});
