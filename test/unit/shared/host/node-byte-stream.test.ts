import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import type { ByteStream } from "../../../../shared/host/byte-stream.ts";
import { dialAddress } from "../../../../shared/host/node-byte-stream.ts";

/** More than the kernel keeps for a connection whose other end does not read. */
const MUCH = 64 * 1024 * 1024;

interface Connection {
  readonly port: number;
  readonly stream: ByteStream;
  /** The server's end. */
  readonly accepted: Socket;
  /** Resolves when `stream` has told its end. */
  readonly closed: Promise<void>;
}

/** A connection to a server that reads nothing yet. */
async function connected(): Promise<Connection> {
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }).listen(0, "127.0.0.1");
  onTestFinished(() => void server.close());
  await once(server, "listening");
  const accepting = once(server, "connection") as Promise<[Socket]>;
  const { port } = server.address() as AddressInfo;
  const stream = await dialAddress({ kind: "tcp", host: "127.0.0.1", port }, new AbortController().signal);
  const closed = new Promise<void>((resolve) => {
    stream.start({ data: () => undefined, closed: () => resolve() });
  });
  const [accepted] = await accepting;
  onTestFinished(() => void accepted.destroy());
  return { port, stream, accepted, closed };
}

/** Fills what lies between the two ends, so that most of what was sent has not arrived. */
async function fill({ port, stream, accepted }: Connection): Promise<void> {
  stream.send([Buffer.alloc(MUCH, 1)]);
  await once(accepted, "readable"); // the sender's kernel has taken what it takes
  expect(underWay(port)).toBeGreaterThan(0);
}

/** What the kernel still has to deliver to this port of this machine; undefined: it knows of no connection to it. */
function underWay(port: number): number | undefined {
  const hexPort = port.toString(16).toUpperCase().padStart(4, "0");
  const fields = readFileSync("/proc/net/tcp", "utf8")
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .find(([, , remote]) => remote?.endsWith(`:${hexPort}`) === true);
  return fields?.[4] === undefined ? undefined : Number.parseInt(fields[4], 16); // tx_queue:rx_queue
}

/** Reads on to the end: how much comes. */
async function drain(accepted: Socket): Promise<number> {
  let bytes = 0;
  accepted.on("data", (chunk: Buffer) => (bytes += chunk.length));
  accepted.resume();
  await once(accepted, "end");
  return bytes;
}

describe("a stream over TCP", () => {
  it.each<[string, (stream: ByteStream) => void]>([
    ["is given up", (stream) => stream.abort()],
    ["is closed, which the other end does not answer in time,", (stream) => stream.close()],
  ])("that %s is reset: nothing that has not arrived is sent any more", async (_, end) => {
    const connection = await connected();
    await fill(connection);
    end(connection.stream);
    await connection.closed;
    expect(underWay(connection.port)).toBeUndefined();
  });

  it("that is closed with nothing under way ends in order, behind all that was sent", async () => {
    const { stream, accepted, closed } = await connected();
    stream.send([Buffer.alloc(100_000, 1)]);
    stream.close();
    expect(await drain(accepted)).toBe(100_000);
    accepted.end();
    await closed;
  });
});
