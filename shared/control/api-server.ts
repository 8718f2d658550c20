/**
 * The control API's server: HTTP and JSON on the agent's unix socket, and over TLS with a token, every request checked against the schemas of
 * `proto/control-api.ts` before the agent sees it.
 *
 * Bad input is answered with an error, or its connection is closed, and never reaches the agent. What a client can make
 * the server hold is bounded: body size, connections, requests outstanding on a connection, time to send a request.
 * When a client goes away, the AbortSignal of its call aborts.
 *
 * It decides nothing about the pair: AgentControl does, and keeps the requests' time limits.
 */
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import { Readable } from "node:stream";
import { TLSSocket } from "node:tls";
import { z } from "zod";
import {
  awaitedVmStateRequestSchema,
  checkpointRequestSchema,
  childRequestSchema,
  commitRequestSchema,
  discardRequestSchema,
  connectRequestSchema,
  measureLinkRequestSchema,
  failoverRequestSchema,
  forgetRequestSchema,
  rejoinRequestSchema,
  startAloneRequestSchema,
  switchoverRequestSchema,
  JOB_VERBS,
  reloadRequestSchema,
  jobRequestSchema,
  mirrorRequestSchema,
  resizeRequestSchema,
  resyncRequestSchema,
  bitmapRequestSchema,
  BITMAP_VERBS,
  rollbackRequestSchema,
  verifyRequestSchema,
  setSpeedRequestSchema,
  storedVmStateRequestSchema,
  vmStateRequestSchema,
  waitRequestSchema,
  type AgentControl,
} from "../../proto/control-api.ts";
import { asColobusError, ColobusError } from "../../proto/errors.ts";
import {
  CONTROL_BODY_MAX_BYTES,
  CONTROL_CLOSE_GRACE_MS,
  CONTROL_CONNECTIONS_MAX,
  CONTROL_REQUEST_TIMEOUT_MS,
  CONTROL_REQUESTS_PER_CONNECTION_MAX,
  NAME_MAX_BYTES,
} from "../../proto/limits.ts";
import type { Log } from "../host/log.ts";
import { listenOnUnixSocket } from "../host/unix-socket.ts";
import { EventStream } from "./event-stream.ts";
import { EXPOSITION_TYPE } from "./exposition.ts";
import { DOOR_PATH, isForPage, PAGE_PATHS, type StatusPage } from "./status-page.ts";
import { ControlTlsListener, type ControlTlsListenerOptions } from "./tls-listener.ts";
import { forwardedPageRefusal } from "./web-page-requests.ts";

export interface ControlServerOptions {
  readonly control: AgentControl;
  readonly log: Log;
  /** Served at `/`; undefined: nothing is there. */
  readonly page?: StatusPage | undefined;
}

type Method = "GET" | "POST" | "PUT";
type Handler = (request: FastifyRequest, reply: FastifyReply, signal: AbortSignal) => unknown;

/** What the server remembers of one connection. */
interface Connection {
  /** Requests received and not yet answered. */
  outstanding: number;
  readonly calls: Set<AbortController>;
}

/** Of the body that is a VM state. */
const VMSTATE_TYPE = "application/octet-stream";

const METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"] as const;

const API_REFERENCE = "See docs/control-api.md.";

const jobPathSchema = z.object({ id: z.string().min(1).max(NAME_MAX_BYTES) });
const jobVerbPathSchema = jobPathSchema.extend({ verb: z.enum(JOB_VERBS) });
const epochPathSchema = z.object({ epoch: z.coerce.number().pipe(z.int().positive()) });
const emptyRequestSchema = z.strictObject({});
const eventNumberSchema = z
  .string()
  .regex(/^\d{1,15}$/, "expected the number of an event")
  .transform(Number);
const eventsQuerySchema = z.strictObject({ after: eventNumberSchema.optional() });
const eventsHeadersSchema = z.object({ "last-event-id": eventNumberSchema.optional() });

export class ControlServer {
  readonly #control: AgentControl;
  readonly #log: Log;
  readonly #app: FastifyInstance;
  readonly #connections = new Map<Socket, Connection>();
  readonly #streams = new Set<EventStream>();
  #network: ControlTlsListener | undefined;
  #answering = 0;
  #answered: (() => void) | undefined;
  #closing: Promise<void> | undefined;

  constructor(options: ControlServerOptions) {
    this.#control = options.control;
    this.#log = options.log;
    this.#app = fastify({
      logger: false,
      bodyLimit: CONTROL_BODY_MAX_BYTES,
      // A VM state may take long: `#accept` watches over all other bodies.
      requestTimeout: 0,
      exposeHeadRoutes: false,
      routerOptions: { maxParamLength: NAME_MAX_BYTES },
      clientErrorHandler: (error, socket) => this.#refuseMalformed(error, socket),
      frameworkErrors: (error, _request, reply) => this.#answerError(error, reply),
    });
    this.#app.server.maxConnections = CONTROL_CONNECTIONS_MAX;
    this.#app.server.headersTimeout = CONTROL_REQUEST_TIMEOUT_MS;
    this.#installParser();
    this.#app.addHook("onRequest", (request, reply, done) => this.#accept(request, reply, done));
    this.#installRoutes();
    if (options.page !== undefined) this.#installPage(options.page);
    this.#app.setErrorHandler((error, _request, reply) => this.#answerError(error, reply));
    this.#app.setNotFoundHandler((request, reply) =>
      this.#answerError(
        new ColobusError("not-found", `The control API has no ${pathOf(request)}.`, API_REFERENCE),
        reply,
      ),
    );
  }

  /**
   * Starts to serve at `path`, replacing a socket that a killed agent left, or on the one that is `inherited`, as a
   * descriptor. The socket has mode 0600.
   * Errors: `address-in-use`, `permission-denied`, `not-found` (no such directory), `usage` (path too long).
   */
  async listenUnix(path: string, inherited?: number): Promise<void> {
    await this.#app.ready();
    await listenOnUnixSocket(this.#app.server, path, inherited);
    this.#log.info({ path }, "control API listens");
  }

  /** Serves clients at a TCP address too, with TLS and a token; resolves with the port. Errors: as the listener's. */
  async listenTls(
    host: string,
    port: number,
    options: Pick<ControlTlsListenerOptions, "files" | "token" | "refusals">,
  ): Promise<number> {
    await this.#app.ready();
    this.#network = new ControlTlsListener({
      ...options,
      answer: (request, response) => this.#app.routing(request, response),
      malformed: (error, socket) => this.#refuseMalformed(error, socket),
    });
    const bound = await this.#network.listen(host, port);
    this.#log.info({ host, port: bound }, "control API listens with TLS");
    return bound;
  }

  /** Accepts no more, aborts the calls in progress, sends their answers, and closes every connection. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    if (this.#app.server.listening) this.#app.server.close();
    this.#network?.stop();
    for (const { calls } of this.#connections.values()) for (const call of calls) call.abort(shuttingDown());
    for (const stream of this.#streams) stream.end();
    if (this.#answering > 0) await this.#lastAnswer();
    this.#app.server.closeAllConnections();
    this.#network?.closeConnections();
    await this.#app.close();
  }

  /** Resolves when nothing is being answered any more; a client that does not read its answer cannot prevent that. */
  #lastAnswer(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, CONTROL_CLOSE_GRACE_MS);
      this.#answered = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** JSON, where an empty body is an empty object; and VM states, which are read as they come. */
  #installParser(): void {
    this.#app.removeAllContentTypeParsers();
    this.#app.addContentTypeParser(VMSTATE_TYPE, (request, _payload, done) => {
      if (takesVmState(request)) done(null);
      else done(new ColobusError("usage", "Only a VM state is sent so.", "Send a JSON object."));
    });
    this.#app.addContentTypeParser("application/json", { parseAs: "string" }, (_request, body, done) => {
      if (body.length === 0) {
        done(null, {});
        return;
      }
      try {
        done(null, JSON.parse(body.toString()));
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        done(new ColobusError("usage", `The request's body is not JSON: ${message}.`, "Send a JSON object."));
      }
    });
  }

  #installRoutes(): void {
    const control = this.#control;
    this.#installVmStateRoutes();
    this.#route("GET", "/v1/status", () => control.status());
    this.#route("GET", "/metrics", (_request, reply) => {
      reply.header("content-type", EXPOSITION_TYPE);
      return control.metrics();
    });
    this.#route("GET", "/v1/events", (request, reply) => this.#events(request, reply));
    this.#route("GET", "/v1/jobs", () => control.jobs());
    this.#route("POST", "/v1/jobs/:id/:verb", (request) => {
      const { id, verb } = parseFields(jobVerbPathSchema, request.params);
      // Only a cancel can be forced.
      const asked = parseFields(verb === "cancel" ? jobRequestSchema : emptyRequestSchema, request.body ?? {});
      return control.job(id, verb, { force: "force" in asked && asked.force });
    });
    this.#route("PUT", "/v1/jobs/:id/speed", (request) => {
      const { id } = parseFields(jobPathSchema, request.params);
      return control.setJobSpeed(id, parseFields(setSpeedRequestSchema, request.body ?? {}).bytesPerSecond);
    });
    this.#route("POST", "/v1/checkpoint", (request, _reply, signal) =>
      control.checkpoint(parseFields(checkpointRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/commit", (request, _reply, signal) =>
      control.commit(parseFields(commitRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/discard", (request, _reply, signal) =>
      control.discard(parseFields(discardRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/rejoin", (request, _reply, signal) =>
      control.rejoin(parseFields(rejoinRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/connect", (request, _reply, signal) =>
      control.connect(parseFields(connectRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/measure-link", (request, _reply, signal) =>
      control.measureLink(parseFields(measureLinkRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/start-alone", (request) =>
      control.startAlone(parseFields(startAloneRequestSchema, request.body ?? {})),
    );
    this.#route("POST", "/v1/switchover", (request, _reply, signal) =>
      control.switchover(parseFields(switchoverRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/failover", (request, _reply, signal) =>
      control.failover(parseFields(failoverRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/reload", (request) => {
      parseFields(reloadRequestSchema, request.body ?? {});
      return control.reload();
    });
    this.#route("POST", "/v1/resync", (request, _reply, signal) =>
      control.resync(parseFields(resyncRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/mirror", (request, _reply, signal) =>
      control.mirror(parseFields(mirrorRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/rollback", (request, _reply, signal) =>
      control.rollback(parseFields(rollbackRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/verify", (request, _reply, signal) =>
      control.verify(parseFields(verifyRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/resize", (request, _reply, signal) =>
      control.resize(parseFields(resizeRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/forget", (request, _reply, signal) =>
      control.forget(parseFields(forgetRequestSchema, request.body ?? {}), signal),
    );
    this.#route("POST", "/v1/children", (request, _reply, signal) =>
      control.changeChild(parseFields(childRequestSchema, request.body ?? {}), signal),
    );
    this.#route("GET", "/v1/bitmaps", () => control.bitmaps());
    for (const verb of BITMAP_VERBS) {
      this.#route("POST", `/v1/bitmaps/${verb}`, (request, _reply, signal) =>
        control.bitmap(verb, parseFields(bitmapRequestSchema, request.body ?? {}), signal),
      );
    }
    this.#route("POST", "/v1/wait", (request, _reply, signal) =>
      control.wait(parseFields(waitRequestSchema, request.body ?? {}), signal),
    );
  }

  #installPage(page: StatusPage): void {
    for (const path of PAGE_PATHS) this.#route("GET", path, (_request, reply) => page.send(path, reply));
    this.#route("GET", DOOR_PATH, ({ raw }) => ({ wantsToken: raw.socket instanceof TLSSocket }));
  }

  #installVmStateRoutes(): void {
    const control = this.#control;
    this.#serve("/v1/vmstate", {
      GET: (request, reply) => {
        const { epoch, bytes, content } = control.storedVmState(parseFields(storedVmStateRequestSchema, request.query));
        reply.header("content-type", VMSTATE_TYPE);
        reply.header("content-length", bytes);
        reply.header("colobus-epoch", epoch);
        return Readable.from(content, { objectMode: false });
      },
      PUT: (request, _reply, signal) =>
        withContent(request, (content) =>
          control.checkpointWithVmState(parseFields(vmStateRequestSchema, request.query), content, signal),
        ),
    });
    this.#serve("/v1/vmstate/:epoch", {
      PUT: (request, _reply, signal) => {
        const awaited = {
          ...parseFields(awaitedVmStateRequestSchema, request.query),
          ...parseFields(epochPathSchema, request.params),
        };
        return withContent(request, (content) => control.receiveVmState(awaited, content, signal));
      },
    });
  }

  /** Serves `method` at `url`; every other method there is answered with 405. */
  #route(method: Method, url: string, handle: Handler): void {
    this.#serve(url, { [method]: handle });
  }

  /** The same for several methods. */
  #serve(url: string, handlers: Readonly<Partial<Record<Method, Handler>>>): void {
    for (const [method, handle] of Object.entries(handlers)) {
      this.#app.route({ method, url, handler: (request, reply) => this.#call(request, reply, handle) });
    }
    const served = Object.keys(handlers);
    this.#app.route({
      method: METHODS.filter((other) => !served.includes(other)),
      url,
      handler: (request, reply) => {
        const error = new ColobusError(
          "usage",
          `${pathOf(request)} takes ${served.join(" or ")}, not ${request.method}.`,
          API_REFERENCE,
        );
        reply.header("allow", served.join(", "));
        this.#answerError(error, reply, 405);
      },
    });
  }

  async #call(request: FastifyRequest, reply: FastifyReply, handle: Handler): Promise<unknown> {
    const calls = this.#connections.get(request.raw.socket)?.calls;
    const call = new AbortController();
    calls?.add(call);
    // The body may have taken its time: the connection may be gone, or the agent be stopping, by now.
    if (calls === undefined) call.abort(clientGone());
    if (this.#closing !== undefined) call.abort(shuttingDown());
    try {
      call.signal.throwIfAborted();
      return await handle(request, reply, call.signal);
    } finally {
      calls?.delete(call);
    }
  }

  #events(request: FastifyRequest, reply: FastifyReply): unknown {
    const { after } = parseFields(eventsQuerySchema, request.query);
    if (!accepts(request.headers.accept, "text/event-stream")) return this.#control.events(after ?? 0);
    const lastSeen = parseFields(eventsHeadersSchema, request.headers)["last-event-id"];
    reply.hijack();
    const stream = new EventStream(this.#control, reply.raw, lastSeen ?? after ?? 0, (lastSequence) =>
      this.#log.warn({ lastSequence }, "event reader dropped: too slow"),
    );
    this.#streams.add(stream);
    reply.raw.once("close", () => this.#streams.delete(stream));
    return reply;
  }

  /** Accounts for a request that has begun, and refuses one too many. */
  #accept(request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void): void {
    const { socket } = request.raw;
    const connection = this.#connections.get(socket) ?? this.#addConnection(socket);
    if (connection.outstanding >= CONTROL_REQUESTS_PER_CONNECTION_MAX) {
      this.#log.warn({ outstanding: connection.outstanding }, "control connection closed: too many requests at once");
      socket.destroy();
      return;
    }
    connection.outstanding += 1;
    this.#answering += 1;
    if (!takesVmState(request)) destroyUnlessComplete(request);
    reply.raw.once("close", () => this.#settle(connection, Math.min(1, connection.outstanding)));
    if (this.#closing === undefined) {
      done(refusalOf(request));
    } else {
      reply.header("connection", "close");
      done(shuttingDown());
    }
  }

  #addConnection(socket: Socket): Connection {
    const connection: Connection = { outstanding: 0, calls: new Set() };
    this.#connections.set(socket, connection);
    // Of several requests outstanding on a connection only the first one's response hears of its end.
    socket.once("close", () => {
      this.#connections.delete(socket);
      for (const call of connection.calls) call.abort(clientGone());
      this.#settle(connection, connection.outstanding);
    });
    return connection;
  }

  #settle(connection: Connection, requests: number): void {
    connection.outstanding -= requests;
    this.#answering -= requests;
    if (this.#answering === 0) this.#answered?.();
  }

  /** Answers with the table's form of `thrown`, and with its HTTP status unless `httpStatus` is more precise. */
  #answerError(thrown: unknown, reply: FastifyReply, httpStatus?: number): void {
    const refusal = httpRefusal(thrown);
    const error = refusal?.error ?? asColobusError(thrown);
    if (error.code === "internal") this.#log.error({ err: thrown }, "control request failed by a bug");
    else this.#log.debug({ code: error.code, reason: error.message }, "control request refused");
    void reply.code(httpStatus ?? refusal?.httpStatus ?? error.row.http).send({ error: error.toJSON() });
  }

  /** Answers what Node's HTTP parser refused, if the connection is at a point where an answer is legal, and closes it. */
  #refuseMalformed(error: NodeJS.ErrnoException, socket: Socket): void {
    if (error.code === "ECONNRESET" || socket.destroyed) return;
    this.#log.debug({ code: error.code, reason: error.message }, "malformed request on the control socket");
    if (!socket.writable || (this.#connections.get(socket)?.outstanding ?? 0) > 0) {
      socket.destroy();
      return;
    }
    const late = error.code === "ERR_HTTP_REQUEST_TIMEOUT";
    const large = error.code === "HPE_HEADER_OVERFLOW";
    const status = late ? 408 : large ? 431 : 400;
    const message = late
      ? `The request was not complete after ${CONTROL_REQUEST_TIMEOUT_MS / 1000} s.`
      : large
        ? "The request's header is too large."
        : "What was sent is not an HTTP/1.1 request.";
    const body = JSON.stringify({ error: new ColobusError("usage", message, API_REFERENCE).toJSON() });
    // A client that does not close its side must not keep its place.
    const timer = setTimeout(() => socket.destroy(), CONTROL_CLOSE_GRACE_MS);
    socket.once("close", () => clearTimeout(timer));
    socket.end(
      `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nconnection: close\r\ncontent-type: application/json\r\n` +
        `content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
    );
  }
}

/** Over TLS the listener has looked at it already. */
function refusalOf({ raw }: FastifyRequest): ColobusError | undefined {
  if (raw.socket instanceof TLSSocket || isForPage(raw.method, raw.url)) return undefined;
  return forwardedPageRefusal(raw.headers);
}

/** `value` as `schema` wants it. Throws `usage`, naming the first field that is not. */
function parseFields<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const field = issue === undefined || issue.path.length === 0 ? "The request" : `Field "${issue.path.join(".")}"`;
  throw new ColobusError("usage", `${field} is not acceptable: ${issue?.message ?? "unknown reason"}.`, API_REFERENCE);
}

/** What fastify refused before a handler saw the request (its errors carry a 4xx status), in the table's form. */
function httpRefusal(thrown: unknown): { error: ColobusError; httpStatus: number } | undefined {
  if (!(thrown instanceof Error) || !("statusCode" in thrown) || typeof thrown.statusCode !== "number")
    return undefined;
  if (thrown.statusCode < 400 || thrown.statusCode > 499) return undefined;
  const action = thrown.statusCode === 415 ? "Send a JSON object, with content-type: application/json." : API_REFERENCE;
  return {
    error: new ColobusError("usage", `${thrown.message}.`, action, { cause: thrown }),
    httpStatus: thrown.statusCode,
  };
}

function takesVmState({ method, url }: FastifyRequest): boolean {
  return method === "PUT" && url.startsWith("/v1/vmstate");
}

/**
 * Has `use` read the bytes that the client sends. What it leaves of them is read and dropped for a while, so that the
 * client hears the answer instead of a broken connection.
 */
async function withContent<T>(
  request: FastifyRequest,
  use: (content: AsyncIterator<Uint8Array, unknown>) => Promise<T>,
): Promise<T> {
  const { raw } = request;
  if (request.headers["content-type"] !== VMSTATE_TYPE) {
    throw new ColobusError("usage", "A VM state is sent as it is.", `Send it with content-type: ${VMSTATE_TYPE}.`);
  }
  const content = raw.iterator({ destroyOnReturn: false }) as AsyncIterator<Uint8Array, unknown>;
  try {
    return await use(content);
  } catch (error) {
    const timer = setTimeout(() => raw.socket.destroy(), CONTROL_CLOSE_GRACE_MS);
    raw.once("close", () => clearTimeout(timer));
    const drop = (): unknown => raw.resume();
    content.return?.().then(drop, drop);
    throw error;
  }
}

/** A body that does not come takes its connection with it. Whether there is one is not known yet when the headers are. */
function destroyUnlessComplete({ raw }: FastifyRequest): void {
  const timer = setTimeout(() => void (raw.complete || raw.socket.destroy()), CONTROL_REQUEST_TIMEOUT_MS);
  for (const end of ["end", "close"]) raw.once(end, () => clearTimeout(timer));
}

function accepts(header: string | undefined, mediaType: string): boolean {
  return (header ?? "").split(",").some((part) => part.split(";", 1)[0]?.trim().toLowerCase() === mediaType);
}

function pathOf(request: FastifyRequest): string {
  return request.url.split("?", 1)[0] ?? request.url;
}

function shuttingDown(): ColobusError {
  return new ColobusError("shutting-down", "The agent is being stopped.", "Ask again when it has been started again.");
}

function clientGone(): ColobusError {
  return new ColobusError("outcome-unknown", "The client closed its connection.", "Ask again.");
}
