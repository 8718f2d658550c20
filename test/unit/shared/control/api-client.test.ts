import { createServer, type Server, type Socket } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { ControlClient } from "../../../../shared/control/api-client.ts";
import { serveFakeAgent } from "../../../support/control-harness.ts";
import { untilAborted } from "../../../support/fake-agent-control.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const clientAt = (path: string): ControlClient => new ControlClient({ kind: "socket", path });

/** Something that listens where an agent should, and does with each connection what the test says. */
async function listenRaw(onConnection: (socket: Socket) => void): Promise<string> {
  const path = join(scratchDirectory(), "control.sock");
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    onConnection(socket);
  });
  server.listen({ path });
  await once(server, "listening");
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return path;
}

const respondWith =
  (body: string, status = "200 OK") =>
  (socket: Socket): void => {
    socket.on("data", () =>
      socket.end(
        `HTTP/1.1 ${status}\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
      ),
    );
  };

describe("a call", () => {
  it("returns the agent's answer, with fields that this version does not know", async () => {
    const { control, socketPath } = await serveFakeAgent();
    const later = { ...control.currentStatus, moonPhase: "full" };
    control.currentStatus = later;
    expect(await clientAt(socketPath).status()).toEqual(later);
  });

  it("throws the agent's error with its words", async () => {
    const { socketPath } = await serveFakeAgent();
    await expect(clientAt(socketPath).commit({ epoch: 9, timeoutMs: 1000 })).rejects.toMatchObject({
      name: "ColobusError",
      code: "epoch-unknown",
      message: "Epoch 9 is not prepared.",
      action: "colobus status lists the prepared ones.",
    });
  });

  it("escapes what it puts into a path", async () => {
    const { socketPath } = await serveFakeAgent();
    await expect(clientAt(socketPath).job("../../v1/failover", "pause")).rejects.toMatchObject({ code: "job-unknown" });
  });

  it("reaches an agent by URL", async () => {
    const { control } = await serveFakeAgent();
    const body = JSON.stringify(control.currentStatus);
    const server = createServer(respondWith(body));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    onTestFinished(() => void server.close());
    const address = server.address();
    if (address === null || typeof address === "string") throw new Error("no port");
    const client = new ControlClient({ kind: "url", url: `http://127.0.0.1:${address.port}` });
    expect(await client.status()).toEqual(control.currentStatus);
  });
});

describe("a call that is not answered", () => {
  it("is agent-unreachable where there is no socket, naming it", async () => {
    const path = join(scratchDirectory(), "control.sock");
    await expect(clientAt(path).status()).rejects.toMatchObject({
      code: "agent-unreachable",
      message: expect.stringContaining(path),
    });
  });

  it("is agent-unreachable where nobody listens at a URL", async () => {
    const server = createServer();
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const address = server.address();
    if (address === null || typeof address === "string") throw new Error("no port");
    server.close();
    await once(server, "close");
    const client = new ControlClient({ kind: "url", url: `http://127.0.0.1:${address.port}` });
    await expect(client.status()).rejects.toMatchObject({ code: "agent-unreachable" });
  });

  it("is outcome-unknown when the agent dies after it was sent", async () => {
    const path = await listenRaw((socket) => socket.on("data", () => socket.destroy()));
    await expect(clientAt(path).checkpoint({ prepare: false, timeoutMs: 5000 })).rejects.toMatchObject({
      code: "outcome-unknown",
    });
  });

  it("is outcome-unknown when the agent dies within its answer", async () => {
    const path = await listenRaw((socket) =>
      socket.on("data", () => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"epoch":')),
    );
    await expect(clientAt(path).checkpoint({ prepare: false, timeoutMs: 5000 })).rejects.toMatchObject({
      code: "outcome-unknown",
    });
  });

  it("is timed-out when the agent hangs, before or within its answer", async () => {
    const silent = await listenRaw(() => {});
    await expect(clientAt(silent).status({ timeoutMs: 20 })).rejects.toMatchObject({ code: "timed-out" });
    const slow = await listenRaw((socket) =>
      socket.on("data", () => socket.write('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"')),
    );
    await expect(clientAt(slow).status({ timeoutMs: 20 })).rejects.toMatchObject({ code: "timed-out" });
  });

  it("reads a VM state for as long as it comes, and gives up one that stands still", async () => {
    const timeoutMs = 1_000;
    const pieces = 24;
    const path = await listenRaw((socket) =>
      socket.once("data", () => {
        socket.write(`HTTP/1.1 200 OK\r\ncolobus-epoch: 41\r\ncontent-length: ${pieces + 1}\r\n\r\n`);
        let left = pieces;
        const sending = setInterval(() => {
          socket.write("x");
          left -= 1;
          if (left === 0) clearInterval(sending);
        }, timeoutMs / 16);
      }),
    );
    const { bytes, content } = await clientAt(path).storedVmState({ force: false }, { timeoutMs });
    let received = 0;
    const read = async (): Promise<void> => {
      for await (const chunk of content as AsyncIterable<Buffer>) received += chunk.length;
    };
    await expect(read()).rejects.toMatchObject({
      code: "timed-out",
      message: expect.stringContaining("Nothing of the VM state has come"),
    });
    expect([received, bytes]).toEqual([pieces, pieces + 1]);
  });

  it("is outcome-unknown, at once, when it is interrupted", async () => {
    const { control, socketPath } = await serveFakeAgent();
    const interrupt = new AbortController();
    control.before = (call) => {
      interrupt.abort();
      return untilAborted(call);
    };
    const call = clientAt(socketPath).checkpoint({ prepare: false, timeoutMs: 60_000 }, interrupt.signal);
    await expect(call).rejects.toMatchObject({
      code: "outcome-unknown",
      message: expect.stringContaining("Interrupted"),
    });
  });

  it("is not sent when it was interrupted before", async () => {
    const { control, socketPath } = await serveFakeAgent();
    const call = clientAt(socketPath).checkpoint({ prepare: false, timeoutMs: 60_000 }, AbortSignal.abort());
    await expect(call).rejects.toMatchObject({ code: "outcome-unknown" });
    expect(control.calls).toEqual([]);
  });

  it.each([
    ["not JSON", "<html>", "200 OK"],
    ["another document", '{"role":"King"}', "200 OK"],
    ["an error without its words", "{}", "500 Oops"],
  ])("is a protocol-error when the answer is %s", async (_what, body, status) => {
    const path = await listenRaw(respondWith(body, status));
    await expect(clientAt(path).status()).rejects.toMatchObject({ code: "protocol-error" });
  });

  it("keeps the words of an error that a later agent has and this version does not know", async () => {
    const error = { code: "moon-full", message: "The moon is full.", action: "Wait." };
    const path = await listenRaw(respondWith(JSON.stringify({ error }), "409 Conflict"));
    await expect(clientAt(path).status()).rejects.toMatchObject({
      code: "protocol-error",
      message: "The agent refused (moon-full): The moon is full.",
      action: "Wait.",
    });
  });

  it("is a protocol-error when what answers does not speak HTTP", async () => {
    const path = await listenRaw((socket) => socket.on("data", () => socket.end("NBDMAGICIHAVEOPT")));
    await expect(clientAt(path).status()).rejects.toMatchObject({ code: "protocol-error" });
  });
});

describe("following events", () => {
  it("yields kept and later events, in order, across any split of the stream", async () => {
    const { control, socketPath } = await serveFakeAgent();
    control.log.emit("agent-started", { note: "grün\n\ndata: no event" });
    const seen: unknown[] = [];
    for await (const event of clientAt(socketPath).follow(0)) {
      seen.push(event);
      if (seen.length === 3) break;
      control.log.emit("merged", { count: seen.length });
    }
    expect(seen).toEqual(control.log.since(0));
  });

  it("throws agent-unreachable when the agent goes away", async () => {
    const { control, server, socketPath } = await serveFakeAgent();
    control.log.emit("agent-stopping");
    const follow = async (): Promise<void> => {
      for await (const _event of clientAt(socketPath).follow(0)) void server.close();
    };
    await expect(follow()).rejects.toMatchObject({ code: "agent-unreachable" });
  });

  it("ends quietly when it is interrupted", async () => {
    const { control, socketPath } = await serveFakeAgent();
    control.log.emit("merged");
    const interrupt = new AbortController();
    let seen = 0;
    for await (const _event of clientAt(socketPath).follow(0, { signal: interrupt.signal })) {
      seen += 1;
      interrupt.abort();
    }
    expect(seen).toBe(1);
  });

  it("throws timed-out when the stream does not begin, and waits for events without limit when it has", async () => {
    const silent = await listenRaw(() => {});
    const follow = async (path: string): Promise<void> => {
      for await (const _event of clientAt(path).follow(0, { timeoutMs: 20 })) return;
    };
    await expect(follow(silent)).rejects.toMatchObject({ code: "timed-out" });
    const late = await listenRaw((socket) => {
      socket.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n");
      setTimeout(() => socket.write('data: {"sequence":1,"at":"","type":"merged","data":{}}\n\n'), 60);
    });
    await follow(late);
  });
});
