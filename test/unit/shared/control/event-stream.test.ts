import { once } from "node:events";
import { request as httpRequest, type IncomingMessage } from "node:http";
import { describe, expect, it, onTestFinished } from "vitest";
import { EVENTS_KEPT } from "../../../../proto/limits.ts";
import { nextTurn, openRaw, serveFakeAgent } from "../../../support/control-harness.ts";

/** A reader of the stream that takes ids as they come. */
class StreamReader {
  readonly response: IncomingMessage;
  readonly ids: number[] = [];
  #text = "";
  #wake = (): void => {};

  constructor(response: IncomingMessage) {
    this.response = response;
    response.setEncoding("utf8");
    response.on("data", (chunk: string) => {
      const events = (this.#text + chunk).split("\n\n");
      this.#text = events.pop() ?? "";
      this.ids.push(...events.map((event) => Number(/^id: (\d+)$/m.exec(event)?.[1])));
      this.lastEvent = events.at(-1) ?? this.lastEvent;
      this.#wake();
    });
    onTestFinished(() => void response.destroy());
  }

  lastEvent = "";

  async readIds(count: number): Promise<number[]> {
    while (this.ids.length < count) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.ids;
  }
}

async function openStream(
  socketPath: string,
  path: string,
  headers: Record<string, string> = {},
): Promise<StreamReader> {
  const request = httpRequest({ socketPath, path, headers: { accept: "text/event-stream", ...headers } });
  request.end();
  const [response] = (await once(request, "response")) as [IncomingMessage];
  return new StreamReader(response);
}

describe("the stream of events", () => {
  it("begins with the kept events after the given number and goes on with later ones", async () => {
    const { control, socketPath } = await serveFakeAgent();
    for (let i = 0; i < 3; i++) control.log.emit("merged");
    const reader = await openStream(socketPath, "/v1/events?after=1");
    expect(reader.response.headers["content-type"]).toMatch(/^text\/event-stream/);
    expect(await reader.readIds(2)).toEqual([2, 3]);
    control.log.emit("failover", { epoch: 4 });
    expect(await reader.readIds(3)).toEqual([2, 3, 4]);
    expect(reader.lastEvent).toBe(`id: 4\nevent: failover\ndata: ${JSON.stringify(control.log.since(3)[0])}`);
  });

  it("prefers Last-Event-ID, with which clients reconnect", async () => {
    const { control, socketPath } = await serveFakeAgent();
    for (let i = 0; i < 3; i++) control.log.emit("merged");
    const reader = await openStream(socketPath, "/v1/events?after=0", { "last-event-id": "2" });
    expect(await reader.readIds(1)).toEqual([3]);
  });

  it("ends when the server closes", async () => {
    const { control, server, socketPath } = await serveFakeAgent();
    const reader = await openStream(socketPath, "/v1/events");
    control.log.emit("agent-stopping");
    const ended = once(reader.response, "end");
    await server.close();
    await ended;
    expect(reader.ids).toEqual([1]);
  });

  it("stops following when the reader goes away", async () => {
    const { control, server, socketPath } = await serveFakeAgent();
    let followers = 0;
    const follow = control.follow.bind(control);
    const gone = new Promise<void>((resolve) => {
      control.follow = (listener) => {
        followers += 1;
        const stop = follow(listener);
        return () => {
          followers -= 1;
          resolve();
          stop();
        };
      };
    });
    const { response } = await openStream(socketPath, "/v1/events");
    expect(followers).toBe(1);
    response.destroy();
    await gone;
    expect(followers).toBe(0);
    await server.close();
  });

  it("gives a reader that pauses every event, without buffering them", async () => {
    const { control, socketPath } = await serveFakeAgent();
    const reader = await openStream(socketPath, "/v1/events");
    reader.response.pause();
    const filler = "x".repeat(4096);
    for (let i = 0; i < EVENTS_KEPT; i++) control.log.emit("merged", { filler });
    reader.response.resume();
    const ids = await reader.readIds(EVENTS_KEPT);
    expect(ids).toEqual(Array.from({ length: EVENTS_KEPT }, (_, index) => index + 1));
  });

  it("drops a reader that has fallen behind what is kept", async () => {
    const { control, socketPath, logLines } = await serveFakeAgent();
    const raw = openRaw(socketPath);
    raw.socket.pause();
    raw.socket.write("GET /v1/events HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n");
    const filler = "x".repeat(4096);
    const emitSome = async (): Promise<void> => {
      for (let i = 0; i < 64; i++) control.log.emit("merged", { filler });
      await nextTurn();
    };
    for (let i = 0; i < (2 * EVENTS_KEPT) / 64; i++) await emitSome();
    // It is noticed when the socket takes more again.
    raw.socket.resume();
    await raw.received;
    expect(logLines).toContainEqual(
      expect.objectContaining({ level: "warn", message: "event reader dropped: too slow" }),
    );
  });
});
