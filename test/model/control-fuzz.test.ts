/**
 * Damaged HTTP against the control server: recorded sessions with flipped bytes, each on a connection of its own. The
 * agent must only ever be asked what the schemas allow, every connection must end, and the server must go on.
 * COLOBUS_FUZZ_SEED replays a failure; COLOBUS_FUZZ_RUNS sets how many sessions are sent.
 */
import { isDeepStrictEqual } from "node:util";
import { connect } from "node:net";
import { describe, expect, it } from "vitest";
import {
  checkpointRequestSchema,
  commitRequestSchema,
  discardRequestSchema,
  failoverRequestSchema,
  JOB_VERBS,
  setSpeedRequestSchema,
  waitRequestSchema,
} from "../../proto/control-api.ts";
import { ControlClient } from "../../shared/control/api-client.ts";
import { serveFakeAgent } from "../support/control-harness.ts";
import type { RecordedCall } from "../support/fake-agent-control.ts";
import { FUZZ_RUNS, FUZZ_SEED } from "../support/fuzz-runs.ts";
import { mutate, seededRandom } from "../support/mutate.ts";

const CONNECTIONS = 48;
const TIME_LIMIT_MS = 240_000;

const post = (path: string, body: string, method = "POST"): string =>
  `${method} ${path} HTTP/1.1\r\naccept: application/json\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n${body}`;
const get = (path: string, extra = ""): string =>
  `GET ${path} HTTP/1.1\r\naccept: application/json\r\n${extra}Host: localhost\r\n\r\n`;

/** What the command line, curl and browsers send. */
const SESSIONS = [
  get("/v1/status", "Connection: close\r\n"),
  get("/v1/jobs") + get("/v1/status"),
  get("/v1/events?after=3"),
  "GET /v1/events?after=1 HTTP/1.1\r\naccept: text/event-stream\r\nlast-event-id: 2\r\nHost: localhost\r\n\r\n",
  post("/v1/checkpoint", '{"prepare":true,"timeoutMs":60000}'),
  post("/v1/checkpoint", "{}") + post("/v1/commit", '{"epoch":42,"timeoutMs":500}'),
  post("/v1/commit", '{"epoch":42}'),
  post("/v1/discard", '{"epoch":43,"timeoutMs":60000}'),
  post("/v1/failover", '{"force":true,"dryRun":true,"discardActive":false,"timeoutMs":60000}'),
  post("/v1/wait", '{"condition":"committed","timeoutMs":1000}'),
  post("/v1/jobs/full-sync-1/pause", "{}"),
  post("/v1/jobs/full-sync-1/speed", '{"bytesPerSecond":52428800}', "PUT"),
  'POST /v1/checkpoint HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"prepar\r\n8\r\ne":true}\r\n0\r\n\r\n',
  'POST /v1/discard HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"epoch":7}',
  "GET /v1/status HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
  "POST /v1/failover HTTP/1.0\r\n\r\n",
].map((text) => Buffer.from(text));

/** Why a call is not what the schemas allow; undefined when it is. */
function objection({ name, request }: RecordedCall): string | undefined {
  const schemas = {
    checkpoint: checkpointRequestSchema,
    commit: commitRequestSchema,
    discard: discardRequestSchema,
    failover: failoverRequestSchema,
    wait: waitRequestSchema,
  };
  if (Object.hasOwn(schemas, name)) {
    const parsed = schemas[name as keyof typeof schemas].safeParse(request);
    return parsed.success && isDeepStrictEqual(parsed.data, request) ? undefined : "not of the schema";
  }
  const { id, verb, bytesPerSecond } = request as { id: unknown; verb?: unknown; bytesPerSecond?: unknown };
  if (typeof id !== "string" || id === "") return "no id";
  if (name === "job") return JOB_VERBS.some((known) => known === verb) ? undefined : "no verb";
  return setSpeedRequestSchema.safeParse({ bytesPerSecond }).success ? undefined : "no speed";
}

/** Sends `bytes` and says that nothing more comes; resolves when the server has ended the connection. */
function send(socketPath: string, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => {
    const socket = connect({ path: socketPath });
    socket.on("error", () => {});
    socket.once("close", () => resolve());
    socket.resume();
    socket.end(bytes);
  });
}

describe("damaged HTTP", () => {
  it(
    `leaves the server serving and the agent asked only what is allowed (${FUZZ_RUNS} sessions)`,
    async () => {
      const { control, server, socketPath, logLines } = await serveFakeAgent();
      for (let i = 0; i < 5; i++) control.log.emit("merged");
      const objections: string[] = [];
      const seen = new Map<string, number>();
      control.before = (call) => {
        control.calls.length = 0;
        seen.set(call.name, (seen.get(call.name) ?? 0) + 1);
        const reason = objection(call);
        if (reason !== undefined) objections.push(`${reason}: ${call.name} ${JSON.stringify(call.request)}`);
      };
      const events = control.events.bind(control);
      control.events = (after) => {
        if (!Number.isSafeInteger(after) || after < 0) objections.push(`events after ${after}`);
        return events(after);
      };

      const random = seededRandom(FUZZ_SEED);
      let sent = 0;
      const sendInTurn = async (): Promise<void> => {
        while (sent < FUZZ_RUNS) {
          const session = SESSIONS[sent % SESSIONS.length];
          sent += 1;
          if (session !== undefined) await send(socketPath, mutate(session, random));
          logLines.length = 0;
        }
      };
      await Promise.all(Array.from({ length: CONNECTIONS }, sendInTurn));

      expect(objections).toEqual([]);
      // The damage leaves enough alone that every call is made at times: otherwise nothing was tested behind the parser.
      expect([...seen.keys()].sort()).toEqual([
        "checkpoint",
        "commit",
        "discard",
        "failover",
        "job",
        "setJobSpeed",
        "wait",
      ]);
      const client = new ControlClient({ kind: "socket", path: socketPath });
      expect(await client.status()).toEqual(control.currentStatus);
      await server.close();
    },
    TIME_LIMIT_MS,
  );
});
