import { linkSync, statSync, writeFileSync } from "node:fs";
import { request as httpRequest } from "node:http";
import { createServer } from "node:net";
import { join } from "node:path";
import { once } from "node:events";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import {
  CONTROL_BODY_MAX_BYTES,
  CONTROL_REQUEST_TIMEOUT_MS,
  CONTROL_REQUESTS_PER_CONNECTION_MAX,
} from "../../../../proto/limits.ts";
import { ControlServer } from "../../../../shared/control/api-server.ts";
import { nextTurn, openRaw, recordingLog, serveFakeAgent } from "../../../support/control-harness.ts";
import { FakeAgentControl, untilAborted } from "../../../support/fake-agent-control.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly body: unknown;
}

/** One request; `body` that is not a string is sent as JSON. */
function ask(
  socketPath: string,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
    const type =
      text === undefined ? {} : { "content-type": "application/json", "content-length": Buffer.byteLength(text) };
    const request = httpRequest(
      { socketPath, method, path, headers: { ...type, ...headers }, agent: false },
      (response) => {
        let received = "";
        response.setEncoding("utf8");
        response.on("data", (chunk: string) => (received += chunk));
        response.on("error", reject);
        response.on("end", () =>
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            body: received === "" ? null : JSON.parse(received),
          }),
        );
      },
    );
    request.on("error", reject);
    request.end(text);
  });
}

const usage = (message: RegExp) => ({
  error: { code: "usage", message: expect.stringMatching(message), action: expect.any(String) },
});

describe("requests", () => {
  it("answers status, jobs and events with the agent's documents", async () => {
    const { control, socketPath } = await serveFakeAgent();
    control.log.emit("agent-started");
    control.log.emit("peer-connected", { address: "b" });
    expect(await ask(socketPath, "GET", "/v1/status")).toMatchObject({ status: 200, body: control.currentStatus });
    expect(await ask(socketPath, "GET", "/v1/jobs")).toMatchObject({ status: 200, body: control.currentStatus.jobs });
    expect(await ask(socketPath, "GET", "/v1/events?after=1")).toMatchObject({
      status: 200,
      body: [control.log.since(1)[0]],
    });
  });

  it("answers /metrics as text, under the type that Prometheus asks for", async () => {
    const { control, socketPath } = await serveFakeAgent();
    const raw = openRaw(socketPath);
    raw.socket.write("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    const received = await raw.received;
    expect(received).toMatch(/^HTTP\/1\.1 200 /);
    expect(received).toMatch(/^content-type: text\/plain; version=0\.0\.4; charset=utf-8\r$/m);
    expect(received.slice(received.indexOf("\r\n\r\n") + 4)).toBe(control.metrics());
    expect(await ask(socketPath, "POST", "/metrics")).toMatchObject({ status: 405 });
  });

  it("fills in defaults: an empty body is an empty request", async () => {
    const { control, socketPath } = await serveFakeAgent();
    expect((await ask(socketPath, "POST", "/v1/checkpoint")).status).toBe(200);
    expect((await ask(socketPath, "POST", "/v1/failover", "")).status).toBe(200);
    expect(control.calls.map(({ name, request }) => ({ name, request }))).toEqual([
      { name: "checkpoint", request: { prepare: false, timeoutMs: 60_000 } },
      { name: "failover", request: { force: false, dryRun: false, discardActive: false, timeoutMs: 60_000 } },
    ]);
  });

  it("hands on what was asked, unchanged", async () => {
    const { control, socketPath } = await serveFakeAgent();
    await ask(socketPath, "POST", "/v1/commit", { epoch: 7, timeoutMs: 5 });
    await ask(socketPath, "POST", "/v1/discard", { epoch: 8 });
    await ask(socketPath, "POST", "/v1/wait", { condition: "merged", timeoutMs: 100 });
    await ask(socketPath, "POST", "/v1/jobs/full-sync-1/pause");
    await ask(socketPath, "PUT", "/v1/jobs/full-sync-1/speed", { bytesPerSecond: 1024 });
    expect(control.calls.map(({ request }) => request)).toEqual([
      { epoch: 7, timeoutMs: 5 },
      { epoch: 8, timeoutMs: 60_000 },
      { condition: "merged", timeoutMs: 100 },
      { id: "full-sync-1", verb: "pause" },
      { id: "full-sync-1", bytesPerSecond: 1024 },
    ]);
  });

  it("answers an error of the agent with the table's status and its words", async () => {
    const { control, socketPath } = await serveFakeAgent();
    control.before = () => {
      throw new ColobusError("no-peer", "No secondary is connected.", "Start it.");
    };
    expect(await ask(socketPath, "POST", "/v1/checkpoint")).toMatchObject({
      status: 409,
      body: { error: { code: "no-peer", message: "No secondary is connected.", action: "Start it." } },
    });
  });

  it("answers a bug of the agent with 500, logs it, and goes on", async () => {
    const { control, socketPath, logLines } = await serveFakeAgent();
    control.before = () => {
      throw new TypeError("x is undefined");
    };
    expect(await ask(socketPath, "POST", "/v1/checkpoint")).toMatchObject({
      status: 500,
      body: { error: { code: "internal" } },
    });
    expect(logLines.filter(({ level }) => level === "error")).toHaveLength(1);
    expect((await ask(socketPath, "GET", "/v1/status")).status).toBe(200);
  });
});

describe("requests that are not of the documented form", () => {
  it.each([
    ["POST", "/v1/commit", {}, /"epoch"/],
    ["POST", "/v1/commit", { epoch: 0 }, /"epoch"/],
    ["POST", "/v1/commit", { epoch: 1.5 }, /"epoch"/],
    ["POST", "/v1/commit", { epoch: "1" }, /"epoch"/],
    ["POST", "/v1/checkpoint", { timeoutMs: -1 }, /"timeoutMs"/],
    ["POST", "/v1/checkpoint", '{"timeoutMs":1e999}', /"timeoutMs"/],
    ["POST", "/v1/checkpoint", { prepair: true }, /prepair/],
    ["POST", "/v1/checkpoint", [], /The request/],
    ["POST", "/v1/checkpoint", '{"__proto__":{"prepare":true}}', /__proto__/],
    ["POST", "/v1/checkpoint", "{", /not JSON/],
    ["POST", "/v1/wait", { condition: "tea" }, /"condition"/],
    ["POST", "/v1/jobs/j/stop", undefined, /"verb"/],
    ["POST", "/v1/jobs/j/pause", { now: true }, /now/],
    ["PUT", "/v1/jobs/j/speed", { bytesPerSecond: -1 }, /"bytesPerSecond"/],
    ["GET", "/v1/events?after=-1", undefined, /"after"/],
    ["GET", "/v1/events?before=1", undefined, /before/],
  ])("refuses %s %s %j, naming the field", async (method, path, body, message) => {
    const { control, socketPath } = await serveFakeAgent();
    const answer = await ask(socketPath, method, path, body);
    expect(answer).toMatchObject({ status: 400, body: usage(message) });
    expect(control.calls).toEqual([]);
  });

  it("answers 404 for a path that is not there", async () => {
    const { socketPath } = await serveFakeAgent();
    expect(await ask(socketPath, "GET", "/v2/status")).toMatchObject({
      status: 404,
      body: { error: { code: "not-found", message: "The control API has no /v2/status." } },
    });
  });

  it("answers 405, and what is allowed, for another method", async () => {
    const { control, socketPath } = await serveFakeAgent();
    const answer = await ask(socketPath, "GET", "/v1/failover");
    expect(answer).toMatchObject({ status: 405, body: usage(/takes POST, not GET/) });
    expect(answer.headers.allow).toBe("POST");
    expect((await ask(socketPath, "DELETE", "/v1/jobs/a/speed")).headers.allow).toBe("PUT");
    expect(control.calls).toEqual([]);
  });

  it("answers 413 for a body above the limit, and 415 for one that is not JSON", async () => {
    const { control, socketPath } = await serveFakeAgent();
    const large = JSON.stringify({ filler: "x".repeat(CONTROL_BODY_MAX_BYTES) });
    expect(await ask(socketPath, "POST", "/v1/checkpoint", large)).toMatchObject({ status: 413, body: usage(/./) });
    expect(
      await ask(socketPath, "POST", "/v1/checkpoint", "prepare=true", { "content-type": "text/plain" }),
    ).toMatchObject({
      status: 415,
      body: { error: { code: "usage", action: "Send a JSON object, with content-type: application/json." } },
    });
    expect(control.calls).toEqual([]);
  });

  it("answers what is not HTTP in JSON, and closes", async () => {
    const { socketPath } = await serveFakeAgent();
    const raw = openRaw(socketPath);
    raw.socket.write("NBDMAGIC\0\0\0\0IHAVEOPT\r\n\r\n");
    const received = await raw.received;
    expect(received).toMatch(/^HTTP\/1\.1 400 /);
    expect(JSON.parse(received.slice(received.indexOf("\r\n\r\n")))).toMatchObject(usage(/not an HTTP/));
    expect((await ask(socketPath, "GET", "/v1/status")).status).toBe(200);
  });

  it("closes a connection with too many requests outstanding, and aborts their calls", async () => {
    const { control, socketPath } = await serveFakeAgent();
    control.before = untilAborted;
    const raw = openRaw(socketPath);
    const request =
      "POST /v1/wait HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 25\r\n\r\n" +
      '{"condition":"connected"}';
    raw.socket.write(request.repeat(CONTROL_REQUESTS_PER_CONNECTION_MAX + 1));
    expect(await raw.received).toBe("");
    expect(control.calls.length).toBeLessThanOrEqual(CONTROL_REQUESTS_PER_CONNECTION_MAX);
    expect(control.calls.every(({ signal }) => signal?.aborted)).toBe(true);
  });
});

/** To be called before the request, and what it returns when its time is over. */
function requestTimeout(): () => void {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  onTestFinished(() => void vi.useRealTimers());
  return () => void vi.advanceTimersByTime(CONTROL_REQUEST_TIMEOUT_MS);
}

describe("the time within which a request must have arrived", () => {
  it.each([
    ["a stream of events", "/v1/events"],
    ["a stored VM state", "/v1/vmstate?force=false"],
  ])("does not end an answer that takes longer: %s", async (_, path) => {
    const { control, socketPath } = await serveFakeAgent();
    const pieces = ["the beginning", "the end"] as const;
    let goOn = (): void => undefined;
    const content = async function* (): AsyncGenerator<Uint8Array> {
      yield Buffer.from(pieces[0]);
      await new Promise<void>((resolve) => {
        goOn = resolve;
      });
      yield Buffer.from(pieces[1]);
    };
    control.stored = { epoch: 41, bytes: pieces.join("").length, content: content() };
    control.log.emit("merged", { text: pieces[0] });
    const pass = requestTimeout();
    const { socket } = openRaw(socketPath);
    let received = "";
    socket.on("data", (chunk: Buffer) => (received += chunk.toString()));
    socket.write(`GET ${path} HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n`);
    while (!received.includes(pieces[0])) await nextTurn();
    pass();
    goOn();
    control.log.emit("merged", { text: pieces[1] });
    while (!received.includes(pieces[1]) && !socket.destroyed) await nextTurn();
    expect(received).toContain(pieces[1]);
  });

  it("ends the connection of one whose body does not come", async () => {
    const { socketPath } = await serveFakeAgent();
    const pass = requestTimeout();
    const raw = openRaw(socketPath);
    raw.socket.write(
      "POST /v1/checkpoint HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\ncontent-type: application/json\r\n\r\n{",
    );
    while (vi.getTimerCount() === 0) await nextTurn();
    pass();
    expect(await raw.received).toBe("");
  });
});

describe("the life of a call", () => {
  it("aborts the call when the client goes away", async () => {
    const { control, socketPath } = await serveFakeAgent();
    const aborted = new Promise<unknown>((resolve) => {
      control.before = (call) =>
        untilAborted(call).catch((error: unknown) => {
          resolve(error);
          throw error;
        });
    });
    const client = httpRequest({ socketPath, method: "POST", path: "/v1/checkpoint" });
    client.on("error", () => {});
    client.end();
    while (control.calls.length === 0) await nextTurn();
    client.destroy();
    expect(await aborted).toMatchObject({ code: "outcome-unknown" });
  });

  it("does not abort a call that is answered", async () => {
    const { control, socketPath } = await serveFakeAgent();
    await ask(socketPath, "POST", "/v1/checkpoint");
    await ask(socketPath, "GET", "/v1/status");
    expect(control.calls[0]?.signal?.aborted).toBe(false);
  });

  it("answers calls in progress when the server closes, and then refuses connections", async () => {
    const { control, server, socketPath } = await serveFakeAgent();
    control.before = untilAborted;
    const answer = ask(socketPath, "POST", "/v1/checkpoint");
    while (control.calls.length === 0) await nextTurn();
    await server.close();
    expect(await answer).toMatchObject({ status: 503, body: { error: { code: "shutting-down" } } });
    await expect(ask(socketPath, "GET", "/v1/status")).rejects.toMatchObject({ code: "ENOENT" });
  });

  it("closes though a client keeps its connection open, or has sent half a request", async () => {
    const { server, socketPath } = await serveFakeAgent();
    const idle = openRaw(socketPath);
    const half = openRaw(socketPath);
    half.socket.write(
      "POST /v1/checkpoint HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\ncontent-type: application/json\r\n\r\n{",
    );
    await Promise.all([once(idle.socket, "connect"), once(half.socket, "connect")]);
    await server.close();
    expect(await Promise.all([idle.received, half.received])).toEqual(["", ""]);
  });

  it("can be closed before it listens, and twice", async () => {
    const server = new ControlServer({ control: new FakeAgentControl(), log: recordingLog([]) });
    await server.close();
    await server.close();
  });
});

describe("the socket", () => {
  it("is the owner's alone", async () => {
    const { socketPath } = await serveFakeAgent();
    expect(statSync(socketPath).mode & 0o777).toBe(0o600);
  });

  it("replaces one that a killed agent left", async () => {
    const run = scratchDirectory();
    const path = join(run, "control.sock");
    const killed = createServer();
    // Closing a listening socket of Node's removes its file; a killed process does not.
    killed.listen({ path: `${path}.old` });
    await once(killed, "listening");
    linkSync(`${path}.old`, path);
    killed.close();
    await once(killed, "close");
    expect(statSync(path).isSocket()).toBe(true);
    const { socketPath } = await serveFakeAgent(run);
    expect((await ask(socketPath, "GET", "/v1/status")).status).toBe(200);
  });

  it("is refused where another agent answers, which goes on", async () => {
    const { run, socketPath } = await serveFakeAgent();
    await expect(serveFakeAgent(run)).rejects.toMatchObject({ code: "address-in-use" });
    expect((await ask(socketPath, "GET", "/v1/status")).status).toBe(200);
  });

  it("is refused where there is a file, no directory, or too long a path", async () => {
    const run = scratchDirectory();
    writeFileSync(join(run, "control.sock"), "precious");
    await expect(serveFakeAgent(run)).rejects.toMatchObject({ code: "address-in-use" });
    const server = new ControlServer({ control: new FakeAgentControl(), log: recordingLog([]) });
    await expect(server.listenUnix(join(run, "absent", "control.sock"))).rejects.toMatchObject({ code: "not-found" });
    await expect(server.listenUnix(join(run, "x".repeat(108)))).rejects.toMatchObject({ code: "usage" });
    await server.close();
  });
});
