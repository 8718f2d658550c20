/**
 * The control API's client: what the command line, and everything else beside an agent, asks the agent with. How the
 * answers come, and what is told when none comes, is `ControlExchange`'s.
 */
import type { IncomingMessage } from "node:http";
import type { Readable } from "node:stream";
import { z } from "zod";
import {
  bitmapSchema,
  checkpointAnswerSchema,
  childAnswerSchema,
  commitAnswerSchema,
  discardAnswerSchema,
  connectAnswerSchema,
  measureLinkAnswerSchema,
  type MeasureLinkAnswer,
  type MeasureLinkRequest,
  failoverAnswerSchema,
  forgetAnswerSchema,
  rejoinAnswerSchema,
  startAloneAnswerSchema,
  switchoverAnswerSchema,
  reloadAnswerSchema,
  resizeAnswerSchema,
  resyncAnswerSchema,
  rollbackAnswerSchema,
  waitAnswerSchema,
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
  type JobVerb,
  type MirrorRequest,
  type RejoinAnswer,
  type RejoinRequest,
  type StartAloneAnswer,
  type StartAloneRequest,
  type ReloadAnswer,
  type ResizeAnswer,
  type ForgetAnswer,
  type ForgetRequest,
  type ResizeRequest,
  type ResyncAnswer,
  type ResyncRequest,
  type RollbackAnswer,
  type RollbackRequest,
  type SwitchoverAnswer,
  type StoredVmStateRequest,
  type SwitchoverRequest,
  type VmStateRequest,
  type WaitAnswer,
  type VerifyRequest,
  type WaitRequest,
} from "../../proto/control-api.ts";
import {
  eventSchema,
  jobSchema,
  statusSchema,
  type AgentEvent,
  type JobSpeed,
  type JobStatus,
  type Status,
} from "../../proto/status.ts";
import { ColobusError } from "../../proto/errors.ts";
import { COMMAND_TIMEOUT_DEFAULT_MS, COMMAND_TIMEOUT_GRACE_MS, CONTROL_ANSWER_MAX_BYTES } from "../../proto/limits.ts";
import {
  ControlExchange,
  EVENT_STREAM_TYPE,
  JSON_TYPE,
  VMSTATE_TYPE,
  type ControlAddress,
  type Exchange,
} from "./control-exchange.ts";
import { ServerSentEventParser } from "./server-sent-events.ts";

export interface CallOptions {
  /** How long to wait for the answer. Default 60 s. */
  readonly timeoutMs?: number;
  /** Aborting it ends the call with `outcome-unknown`. */
  readonly signal?: AbortSignal;
}

export class ControlClient {
  readonly address: ControlAddress;
  readonly #exchange: ControlExchange;

  constructor(address: ControlAddress) {
    this.address = address;
    this.#exchange = new ControlExchange(address);
  }

  status(options: CallOptions = {}): Promise<Status> {
    return this.#get("/v1/status", statusSchema, options);
  }

  /** The agent's metrics, as Prometheus reads them. */
  async metrics({ timeoutMs = COMMAND_TIMEOUT_DEFAULT_MS, signal }: CallOptions = {}): Promise<string> {
    return this.#exchange.answerTo({ method: "GET", path: "/metrics", accept: "text/plain", timeoutMs, signal });
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
  async checkpointWithVmState(
    request: VmStateRequest,
    content: Readable,
    signal?: AbortSignal,
  ): Promise<CheckpointAnswer> {
    const path = `/v1/vmstate?prepare=${request.prepare}&timeoutMs=${request.timeoutMs}`;
    const limitMs = request.timeoutMs + COMMAND_TIMEOUT_GRACE_MS;
    const text = await this.#exchange.upload(path, content, limitMs, signal);
    return this.#exchange.understand(checkpointAnswerSchema, text);
  }

  /**
   * A stored VM state; the caller reads `content` to its end, or destroys it. The time limit is for its beginning,
   * and for each time in which nothing moves. What ends before `bytes` bytes is broken.
   */
  async storedVmState(
    request: StoredVmStateRequest,
    options: CallOptions = {},
  ): Promise<{ readonly epoch: number; readonly bytes: number; readonly content: IncomingMessage }> {
    const { timeoutMs = COMMAND_TIMEOUT_DEFAULT_MS, signal } = options;
    const epoch = request.epoch === undefined ? "" : `&epoch=${request.epoch}`;
    const response = await this.#exchange.begin({
      method: "GET",
      path: `/v1/vmstate?force=${request.force}${epoch}`,
      accept: VMSTATE_TYPE,
      timeoutMs,
      signal,
    });
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

  startAlone(request: StartAloneRequest, options: CallOptions = {}): Promise<StartAloneAnswer> {
    return this.#call("POST", "/v1/start-alone", request, startAloneAnswerSchema, options);
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
      response = await this.#exchange.begin({
        method: "GET",
        path: `/v1/events?after=${afterSequence}`,
        accept: EVENT_STREAM_TYPE,
        timeoutMs: options.timeoutMs ?? COMMAND_TIMEOUT_DEFAULT_MS,
        signal,
      });
      for await (const chunk of response as AsyncIterable<Buffer>) {
        for (const data of parser.push(chunk)) yield this.#exchange.understand(eventSchema, data);
      }
    } catch (error) {
      if (signal?.aborted === true) return;
      throw error instanceof ColobusError ? error : this.#exchange.streamEnded(error);
    } finally {
      response?.destroy();
    }
    if (signal?.aborted !== true) throw this.#exchange.streamEnded(undefined);
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

  async #call<T>(
    method: Exchange["method"],
    path: string,
    body: unknown,
    schema: z.ZodType<T>,
    options: CallOptions,
  ): Promise<T> {
    const { timeoutMs = COMMAND_TIMEOUT_DEFAULT_MS, signal } = options;
    const text = await this.#exchange.answerTo({ method, path, body, accept: JSON_TYPE, timeoutMs, signal });
    return this.#exchange.understand(schema, text);
  }
}
