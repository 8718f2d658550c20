/**
 * The control API's client: what the command line, and everything else beside an agent, asks the agent with.
 *
 * It keeps three failures apart, since they call for different actions: nobody answers (`agent-unreachable`: nothing
 * was done), the connection ended after the request was sent (`outcome-unknown`: ask again), and no answer came in time
 * (`timed-out`). Every call ends: by its answer, its time limit, or its AbortSignal.
 *
 * Answers are checked against the schemas and returned as received, so that fields of a later agent survive.
 */
import { Agent, request as httpRequest, type ClientRequest, type IncomingMessage } from "node:http";
import { Agent as TlsAgent, request as httpsRequest } from "node:https";
import type { Readable } from "node:stream";
import type { SecureContextOptions } from "node:tls";
import { z } from "zod";
import {
  bitmapSchema,
  checkpointAnswerSchema,
  childAnswerSchema,
  commitAnswerSchema,
  discardAnswerSchema,
  errorAnswerSchema,
  eventSchema,
  connectAnswerSchema,
  measureLinkAnswerSchema,
  type MeasureLinkAnswer,
  type MeasureLinkRequest,
  failoverAnswerSchema,
  forgetAnswerSchema,
  jobSchema,
  rejoinAnswerSchema,
  startAloneAnswerSchema,
  switchoverAnswerSchema,
  reloadAnswerSchema,
  resizeAnswerSchema,
  resyncAnswerSchema,
  rollbackAnswerSchema,
  statusSchema,
  waitAnswerSchema,
  type AgentEvent,
  type BitmapRequest,
  type BitmapStatus,
  type BITMAP_VERBS,
  type CheckpointAnswer,
  type CheckpointRequest,
  type ChildAnswer,
  type ChildRequest,
  type CommitAnswer,
  type CommitRequest,
  type ConnectAnswer,
  type ConnectRequest,
  type DiscardAnswer,
  type DiscardRequest,
  type FailoverAnswer,
  type FailoverRequest,
  type JobRequest,
  type JobSpeed,
  type JobStatus,
  type JobVerb,
  type MirrorRequest,
  type RejoinAnswer,
  type RejoinRequest,
  type StartAloneAnswer,
  type ReloadAnswer,
  type ResizeAnswer,
  type ForgetAnswer,
  type ForgetRequest,
  type ResizeRequest,
  type ResyncAnswer,
  type ResyncRequest,
  type RollbackAnswer,
  type RollbackRequest,
  type Status,
  type SwitchoverAnswer,
  type StoredVmStateRequest,
  type SwitchoverRequest,
  type VmStateRequest,
  type WaitAnswer,
  type VerifyRequest,
  type WaitRequest,
} from "../../proto/control-api.ts";
import { ColobusError, isErrorCode } from "../../proto/errors.ts";
import { COMMAND_TIMEOUT_DEFAULT_MS, COMMAND_TIMEOUT_GRACE_MS, CONTROL_ANSWER_MAX_BYTES } from "../../proto/limits.ts";
import { certificateFault } from "../host/peer-certificate.ts";
import { assertUnixSocketPath } from "../host/unix-socket.ts";
import { ServerSentEventParser } from "./server-sent-events.ts";

/** Where an agent's control API is. */
export type ControlAddress =
  | { readonly kind: "socket"; readonly path: string }
  | {
      readonly kind: "url";
      /** `https:`, or `http:` where nobody else can listen. */
      readonly url: string;
      /** Sent over `https:` only. */
      readonly token?: string | undefined;
      readonly tls?: SecureContextOptions | undefined;
    };

export interface CallOptions {
  /** How long to wait for the answer. Default 60 s. */
  readonly timeoutMs?: number;
  /** Aborting it ends the call with `outcome-unknown`. */
  readonly signal?: AbortSignal;
}

/** Of a VM state. */
const VMSTATE_TYPE = "application/octet-stream";
const EVENT_STREAM_TYPE = "text/event-stream";

interface Exchange {
  readonly method: "GET" | "POST" | "PUT";
  readonly path: string;
  readonly body?: unknown;
  /** Sent as it is, in the place of a body. */
  readonly content?: Readable;
  readonly accept: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

export class ControlClient {
  readonly address: ControlAddress;
  /** A connection for each request: the next one finds out anew whether the agent lives. */
  readonly #agent: Agent;
  /** A connection that the server does not close with its answer: it may come before the whole body was sent. */
  readonly #uploadAgent: Agent;

  constructor(address: ControlAddress) {
    if (address.kind === "socket") assertUnixSocketPath(address.path);
    this.address = address;
    const secure = secureOf(address);
    const agentOf = (keepAlive: boolean): Agent =>
      secure === undefined ? new Agent({ keepAlive }) : new TlsAgent({ ...secure.tls, keepAlive });
    this.#agent = agentOf(false);
    this.#uploadAgent = agentOf(true);
  }

  status(options: CallOptions = {}): Promise<Status> {
    return this.#get("/v1/status", statusSchema, options);
  }

  /** The agent's metrics, as Prometheus reads them. */
  async metrics({ timeoutMs = COMMAND_TIMEOUT_DEFAULT_MS, signal }: CallOptions = {}): Promise<string> {
    return this.#answerTo({ method: "GET", path: "/metrics", accept: "text/plain", timeoutMs, signal });
  }

  jobs(options: CallOptions = {}): Promise<JobStatus[]> {
    return this.#get("/v1/jobs", z.array(jobSchema), options);
  }

  /** Events after `afterSequence` that the agent still keeps, oldest first. */
  events(afterSequence: number, options: CallOptions = {}): Promise<AgentEvent[]> {
    return this.#get(`/v1/events?after=${afterSequence}`, z.array(eventSchema), options);
  }

  /** Has the agent read its configuration file anew. */
  reload(options: CallOptions = {}): Promise<ReloadAnswer> {
    return this.#call("POST", "/v1/reload", {}, reloadAnswerSchema, options);
  }

  job(id: string, verb: JobVerb, options: CallOptions & Partial<JobRequest> = {}): Promise<JobStatus> {
    const { force = false, ...call } = options;
    const body = force ? { force } : {};
    return this.#call("POST", `/v1/jobs/${encodeURIComponent(id)}/${verb}`, body, jobSchema, call);
  }

  /** `speed` 0 is no limit. */
  setJobSpeed(id: string, speed: JobSpeed, options: CallOptions = {}): Promise<JobStatus> {
    return this.#call("PUT", `/v1/jobs/${encodeURIComponent(id)}/speed`, { bytesPerSecond: speed }, jobSchema, options);
  }

  mirror(request: MirrorRequest, signal?: AbortSignal): Promise<JobStatus> {
    return this.#wait("/v1/mirror", request, jobSchema, signal);
  }

  checkpoint(request: CheckpointRequest, signal?: AbortSignal): Promise<CheckpointAnswer> {
    return this.#wait("/v1/checkpoint", request, checkpointAnswerSchema, signal);
  }

  /**
   * Takes a checkpoint with the VM state that `content` has. The time limit is the agent's, from when it has begun to read.
   */
  checkpointWithVmState(request: VmStateRequest, content: Readable, signal?: AbortSignal): Promise<CheckpointAnswer> {
    const path = `/v1/vmstate?prepare=${request.prepare}&timeoutMs=${request.timeoutMs}`;
    return this.#upload(path, request.timeoutMs, content, checkpointAnswerSchema, signal);
  }

  /**
   * A stored VM state; the caller reads `content` to its end, or destroys it. The time limit is for its beginning. What
   * ends before `bytes` bytes is broken.
   */
  async storedVmState(
    request: StoredVmStateRequest,
    options: CallOptions = {},
  ): Promise<{ readonly epoch: number; readonly bytes: number; readonly content: IncomingMessage }> {
    const { timeoutMs = COMMAND_TIMEOUT_DEFAULT_MS, signal } = options;
    const epoch = request.epoch === undefined ? "" : `&epoch=${request.epoch}`;
    const response = await this.#exchange({
      method: "GET",
      path: `/v1/vmstate?force=${request.force}${epoch}`,
      accept: VMSTATE_TYPE,
      timeoutMs,
      signal,
    });
    if (response.statusCode !== 200) throw this.#refusal(await this.#readBody(response));
    return {
      epoch: Number(response.headers["colobus-epoch"]),
      bytes: Number(response.headers["content-length"]),
      content: response,
    };
  }

  commit(request: CommitRequest, signal?: AbortSignal): Promise<CommitAnswer> {
    return this.#wait("/v1/commit", request, commitAnswerSchema, signal);
  }

  discard(request: DiscardRequest, signal?: AbortSignal): Promise<DiscardAnswer> {
    return this.#wait("/v1/discard", request, discardAnswerSchema, signal);
  }

  rejoin(request: RejoinRequest, signal?: AbortSignal): Promise<RejoinAnswer> {
    return this.#wait("/v1/rejoin", request, rejoinAnswerSchema, signal);
  }

  connect(request: ConnectRequest, signal?: AbortSignal): Promise<ConnectAnswer> {
    return this.#wait("/v1/connect", request, connectAnswerSchema, signal);
  }

  measureLink(request: MeasureLinkRequest, signal?: AbortSignal): Promise<MeasureLinkAnswer> {
    return this.#wait("/v1/measure-link", request, measureLinkAnswerSchema, signal);
  }

  startAlone(options: CallOptions = {}): Promise<StartAloneAnswer> {
    return this.#call("POST", "/v1/start-alone", {}, startAloneAnswerSchema, options);
  }

  switchover(request: SwitchoverRequest, signal?: AbortSignal): Promise<SwitchoverAnswer> {
    return this.#wait("/v1/switchover", request, switchoverAnswerSchema, signal);
  }

  failover(request: FailoverRequest, signal?: AbortSignal): Promise<FailoverAnswer> {
    return this.#wait("/v1/failover", request, failoverAnswerSchema, signal);
  }

  resync(request: ResyncRequest, signal?: AbortSignal): Promise<ResyncAnswer> {
    return this.#wait("/v1/resync", request, resyncAnswerSchema, signal);
  }

  rollback(request: RollbackRequest, signal?: AbortSignal): Promise<RollbackAnswer> {
    return this.#wait("/v1/rollback", request, rollbackAnswerSchema, signal);
  }

  verify(request: VerifyRequest, signal?: AbortSignal): Promise<JobStatus> {
    return this.#wait("/v1/verify", request, jobSchema, signal);
  }

  resize(request: ResizeRequest, signal?: AbortSignal): Promise<ResizeAnswer> {
    return this.#wait("/v1/resize", request, resizeAnswerSchema, signal);
  }

  forget(request: ForgetRequest, signal?: AbortSignal): Promise<ForgetAnswer> {
    return this.#wait("/v1/forget", request, forgetAnswerSchema, signal);
  }

  changeChild(request: ChildRequest, signal?: AbortSignal): Promise<ChildAnswer> {
    return this.#wait("/v1/children", request, childAnswerSchema, signal);
  }

  bitmaps(options: CallOptions = {}): Promise<BitmapStatus[]> {
    return this.#call("GET", "/v1/bitmaps", undefined, z.array(bitmapSchema), options);
  }

  bitmap(verb: (typeof BITMAP_VERBS)[number], request: BitmapRequest, signal?: AbortSignal): Promise<BitmapStatus> {
    return this.#wait(`/v1/bitmaps/${verb}`, request, bitmapSchema, signal);
  }

  wait(request: WaitRequest, signal?: AbortSignal): Promise<WaitAnswer> {
    return this.#wait("/v1/wait", request, waitAnswerSchema, signal);
  }

  /**
   * Events after `afterSequence`, and then every later one, until the caller stops or `signal` aborts (the iteration
   * ends). It does not connect again: when the agent ends the stream, it throws `agent-unreachable`.
   * The time limit is for the beginning of the stream only.
   */
  async *follow(afterSequence: number, options: CallOptions = {}): AsyncGenerator<AgentEvent, void, undefined> {
    const { signal } = options;
    const parser = new ServerSentEventParser(CONTROL_ANSWER_MAX_BYTES);
    let response: IncomingMessage | undefined;
    try {
      response = await this.#exchange({
        method: "GET",
        path: `/v1/events?after=${afterSequence}`,
        accept: EVENT_STREAM_TYPE,
        timeoutMs: options.timeoutMs ?? COMMAND_TIMEOUT_DEFAULT_MS,
        signal,
      });
      if (response.statusCode !== 200) throw this.#refusal(await this.#readBody(response));
      for await (const chunk of response as AsyncIterable<Buffer>) {
        for (const data of parser.push(chunk)) yield this.#understand(eventSchema, data);
      }
    } catch (error) {
      if (signal?.aborted === true) return;
      throw error instanceof ColobusError ? error : this.#streamEnded(error);
    } finally {
      response?.destroy();
    }
    if (signal?.aborted !== true) throw this.#streamEnded(undefined);
  }

  #get<T>(path: string, schema: z.ZodType<T>, options: CallOptions): Promise<T> {
    return this.#call("GET", path, undefined, schema, options);
  }

  /** A call whose time limit the agent keeps itself: its own answer, which says more, should come first. */
  #wait<T>(
    path: string,
    body: { timeoutMs: number },
    schema: z.ZodType<T>,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    const timeoutMs = body.timeoutMs + COMMAND_TIMEOUT_GRACE_MS;
    return this.#call("POST", path, body, schema, signal === undefined ? { timeoutMs } : { timeoutMs, signal });
  }

  async #upload<T>(
    path: string,
    timeoutMs: number,
    content: Readable,
    schema: z.ZodType<T>,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    const limitMs = timeoutMs + COMMAND_TIMEOUT_GRACE_MS;
    const accept = "application/json";
    let response: IncomingMessage | undefined;
    try {
      response = await this.#exchange({ method: "PUT", path, content, accept, timeoutMs: limitMs, signal });
      // An answer before the end is a refusal: nothing more is wanted.
      content.unpipe();
      const text = await this.#readBody(response);
      if (response.statusCode !== 200) throw this.#refusal(text);
      return this.#understand(schema, text);
    } finally {
      response?.destroy();
      content.destroy();
    }
  }

  async #call<T>(
    method: Exchange["method"],
    path: string,
    body: unknown,
    schema: z.ZodType<T>,
    options: CallOptions,
  ): Promise<T> {
    const { timeoutMs = COMMAND_TIMEOUT_DEFAULT_MS, signal } = options;
    const text = await this.#answerTo({ method, path, body, accept: "application/json", timeoutMs, signal });
    return this.#understand(schema, text);
  }

  async #answerTo(exchange: Exchange): Promise<string> {
    const response = await this.#exchange(exchange);
    const text = await this.#readBody(response);
    if (response.statusCode !== 200) throw this.#refusal(text);
    return text;
  }

  /**
   * Sends a request; resolves with the beginning of its answer. The time limit covers everything up to the end of the
   * answer, except of an event stream's. After a timeout or an abort the response is destroyed with that error.
   */
  #exchange(exchange: Exchange): Promise<IncomingMessage> {
    const { signal, timeoutMs } = exchange;
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(this.#interrupted());
        return;
      }
      const request = this.#open(exchange);
      let received: IncomingMessage | undefined;
      const stop = (error: ColobusError): void => {
        // Destroying the request alone would give a response that is being read a plain "aborted".
        if (received === undefined) request.destroy(error);
        else received.destroy(error);
      };
      const timer = setTimeout(() => stop(this.#timedOut(timeoutMs)), timeoutMs);
      const abort = (): void => stop(this.#interrupted());
      signal?.addEventListener("abort", abort, { once: true });
      request.once("response", (response) => {
        received = response;
        if (exchange.accept === EVENT_STREAM_TYPE) clearTimeout(timer);
        resolve(response);
      });
      request.on("error", (error) => reject(this.#connectionError(error, request)));
      request.once("close", () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
      });
    });
  }

  #open({ method, path, body, content, accept }: Exchange): ClientRequest {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const headers: Record<string, string> = { accept };
    if (text !== undefined) {
      headers["content-type"] = "application/json";
      headers["content-length"] = String(Buffer.byteLength(text));
    }
    if (content !== undefined) headers["content-type"] = VMSTATE_TYPE;
    const secure = secureOf(this.address);
    if (secure?.token !== undefined) headers["authorization"] = `Bearer ${secure.token}`;
    const shared = { method, headers, agent: content === undefined ? this.#agent : this.#uploadAgent };
    const request =
      this.address.kind === "socket"
        ? httpRequest({ ...shared, socketPath: this.address.path, path, host: "localhost" })
        : (secure === undefined ? httpRequest : httpsRequest)(new URL(path, this.address.url), shared);
    if (content === undefined) request.end(text);
    else {
      // A body that breaks off is told from a complete one: the connection ends without the last chunk.
      content.once("error", (error) => request.destroy(this.#unreadable(error)));
      content.pipe(request);
    }
    return request;
  }

  async #readBody(response: IncomingMessage): Promise<string> {
    const chunks: Buffer[] = [];
    let length = 0;
    try {
      for await (const chunk of response as AsyncIterable<Buffer>) {
        length += chunk.length;
        if (length > CONTROL_ANSWER_MAX_BYTES)
          throw this.#notUnderstood(`it is larger than ${CONTROL_ANSWER_MAX_BYTES} bytes`);
        chunks.push(chunk);
      }
    } catch (error) {
      if (error instanceof ColobusError) throw error;
      throw this.#lost(error);
    }
    return Buffer.concat(chunks).toString();
  }

  #understand<T>(schema: z.ZodType<T>, text: string): T {
    const value = parseJson(text);
    const result = schema.safeParse(value);
    if (result.success) return value as T;
    const [issue] = result.error.issues;
    throw this.#notUnderstood(`${issue?.path.join(".") || "the document"}: ${issue?.message ?? "not as expected"}`);
  }

  /** The error that an answer other than 200 carries. */
  #refusal(text: string): ColobusError {
    const result = errorAnswerSchema.safeParse(parseJson(text));
    if (!result.success) return this.#notUnderstood("it is neither a result nor an error");
    const { code, message, action } = result.data.error;
    if (isErrorCode(code)) return new ColobusError(code, message, action);
    return new ColobusError("protocol-error", `The agent refused (${code}): ${message}`, action);
  }

  #connectionError(error: NodeJS.ErrnoException, request: ClientRequest): ColobusError {
    if (error instanceof ColobusError) return error;
    // Of Node's HTTP parser.
    if (error.code?.startsWith("HPE_") === true) return this.#notUnderstood("it is not HTTP");
    const fault = certificateFault(error.code);
    if (fault !== undefined) {
      return new ColobusError(
        "agent-unreachable",
        `The certificate of ${this.#name} ${fault}.`,
        "Check --tls-ca here, and the agent's --tls-cert: it must name the host as the URL does.",
        { cause: error },
      );
    }
    switch (error.code) {
      case "ENOENT":
      case "ECONNREFUSED":
      case "ENOTFOUND":
      case "EHOSTUNREACH":
      case "ENETUNREACH":
        return this.#unreachable(error);
      case "EACCES":
      case "EPERM":
        return new ColobusError(
          "permission-denied",
          `Access to ${this.#name} is denied.`,
          "Run the command as the user that runs the agent.",
          { cause: error },
        );
      default:
        return request.socket?.connecting === false ? this.#lost(error) : this.#unreachable(error);
    }
  }

  get #name(): string {
    return this.address.kind === "socket" ? this.address.path : this.address.url;
  }

  #unreachable(cause: NodeJS.ErrnoException): ColobusError {
    const what =
      cause.code === "ENOENT"
        ? "there is no such socket"
        : cause.code === "ECONNREFUSED"
          ? "nobody listens"
          : cause.message;
    return new ColobusError(
      "agent-unreachable",
      `No agent answers at ${this.#name}: ${what}.`,
      "Check that the agent runs, and that --run (or COLOBUS_RUN) names its run directory; colobus list shows the agents there.",
      { cause },
    );
  }

  #unreadable(cause: Error): ColobusError {
    return new ColobusError(
      "vmstate-interrupted",
      `The VM state cannot be read to its end: ${cause.message}.`,
      "The previous checkpoint stands; take a new one.",
      { cause },
    );
  }

  #streamEnded(cause: unknown): ColobusError {
    return new ColobusError(
      "agent-unreachable",
      `The agent at ${this.#name} ended the stream of events.`,
      "Check with colobus status whether the agent still runs, and start the command again.",
      { cause },
    );
  }

  #lost(cause: unknown): ColobusError {
    return new ColobusError(
      "outcome-unknown",
      `The connection to ${this.#name} was lost before the answer came; the request may have been carried out.`,
      "Check with colobus status, and ask again.",
      { cause },
    );
  }

  #interrupted(): ColobusError {
    return new ColobusError(
      "outcome-unknown",
      "Interrupted before the answer came; the request may have been carried out.",
      "Check with colobus status, and ask again.",
    );
  }

  #timedOut(timeoutMs: number): ColobusError {
    return new ColobusError(
      "timed-out",
      `The agent at ${this.#name} has not answered within ${timeoutMs / 1000} s; the request may have been carried out.`,
      "Check with colobus status, and ask again with a longer --timeout.",
    );
  }

  #notUnderstood(reason: string): ColobusError {
    return new ColobusError(
      "protocol-error",
      `The answer of ${this.#name} is not understood: ${reason}.`,
      "Check that the address is that of a Colobus agent, and that the command is of the agent's version.",
    );
  }
}

type TlsAddress = Extract<ControlAddress, { kind: "url" }>;

/** The address, if TLS is spoken there. */
function secureOf(address: ControlAddress): TlsAddress | undefined {
  return address.kind === "url" && address.url.startsWith("https:") ? address : undefined;
}

/** The document in `text`; undefined when it is not JSON. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    // Not JSON is one of many ways in which an answer can differ from the schema, which reports it.
    return undefined;
  }
}
