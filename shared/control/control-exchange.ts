/**
 * Requests to an agent's control API, and their answers, whatever they are about: `api-client.ts` knows that.
 *
 * Keeps three failures apart, since they call for different actions: nobody answers (`agent-unreachable`: nothing
 * was done), the connection ended after the request was sent (`outcome-unknown`: ask again), and no answer came in time
 * (`timed-out`). Every call ends: by its answer, its time limit, or its AbortSignal.
 *
 * Answers are checked against the schemas and returned as received, so that fields of a later agent survive.
 */
import { Agent, request as httpRequest, type ClientRequest, type IncomingMessage } from "node:http";
import { Agent as TlsAgent, request as httpsRequest } from "node:https";
import type { Readable } from "node:stream";
import type { SecureContextOptions } from "node:tls";
import type { z } from "zod";
import { errorAnswerSchema } from "../../proto/control-api.ts";
import { ColobusError, isErrorCode } from "../../proto/errors.ts";
import { CONTROL_ANSWER_MAX_BYTES } from "../../proto/limits.ts";
import { certificateFault } from "../host/peer-certificate.ts";
import { assertUnixSocketPath } from "../host/unix-socket.ts";

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

/** Of a VM state. */
export const VMSTATE_TYPE = "application/octet-stream";
export const EVENT_STREAM_TYPE = "text/event-stream";
export const JSON_TYPE = "application/json";

export interface Exchange {
  readonly method: "GET" | "POST" | "PUT";
  readonly path: string;
  readonly body?: unknown;
  /** Sent as it is, in the place of a body. */
  readonly content?: Readable;
  readonly accept: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

export class ControlExchange {
  readonly #address: ControlAddress;
  /** A connection for each request: the next one finds out anew whether the agent lives. */
  readonly #agent: Agent;
  /** A connection that the server does not close with its answer: it may come before the whole body was sent. */
  readonly #uploadAgent: Agent;

  constructor(address: ControlAddress) {
    if (address.kind === "socket") assertUnixSocketPath(address.path);
    this.#address = address;
    const secure = secureOf(address);
    const agentOf = (keepAlive: boolean): Agent =>
      secure === undefined ? new Agent({ keepAlive }) : new TlsAgent({ ...secure.tls, keepAlive });
    this.#agent = agentOf(false);
    this.#uploadAgent = agentOf(true);
  }

  /** The text of an answer. Errors: the agent's refusal, or why there is no answer. */
  async answerTo(exchange: Exchange): Promise<string> {
    const response = await this.#begin(exchange);
    const text = await this.#readBody(response);
    if (response.statusCode !== 200) throw this.#refusal(text);
    return text;
  }

  /** The same of a request whose body is `content`, which is read to its end, or destroyed. */
  async upload(path: string, content: Readable, timeoutMs: number, signal: AbortSignal | undefined): Promise<string> {
    let response: IncomingMessage | undefined;
    try {
      response = await this.#begin({ method: "PUT", path, content, accept: JSON_TYPE, timeoutMs, signal });
      // An answer before the end is a refusal: nothing more is wanted.
      content.unpipe();
      const text = await this.#readBody(response);
      if (response.statusCode !== 200) throw this.#refusal(text);
      return text;
    } finally {
      response?.destroy();
      content.destroy();
    }
  }

  /** An answer that the caller reads to its end, or destroys. Errors: as `answerTo`. */
  async begin(exchange: Exchange): Promise<IncomingMessage> {
    const response = await this.#begin(exchange);
    if (response.statusCode !== 200) throw this.#refusal(await this.#readBody(response));
    return response;
  }

  /**
   * Sends a request; resolves with the beginning of its answer. The time limit covers everything up to the end of the
   * answer, except of streams: events may come at any time, and a VM state is as long as it is, but must not stand still
   * for that time. After a timeout or an abort the response is destroyed with that error.
   */
  #begin(exchange: Exchange): Promise<IncomingMessage> {
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
        if (exchange.accept === VMSTATE_TYPE) {
          clearTimeout(timer);
          response.socket.setTimeout(timeoutMs, () => stop(this.#stoodStill(timeoutMs)));
        }
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
      headers["content-type"] = JSON_TYPE;
      headers["content-length"] = String(Buffer.byteLength(text));
    }
    if (content !== undefined) headers["content-type"] = VMSTATE_TYPE;
    const secure = secureOf(this.#address);
    if (secure?.token !== undefined) headers["authorization"] = `Bearer ${secure.token}`;
    const shared = { method, headers, agent: content === undefined ? this.#agent : this.#uploadAgent };
    const request =
      this.#address.kind === "socket"
        ? httpRequest({ ...shared, socketPath: this.#address.path, path, host: "localhost" })
        : (secure === undefined ? httpRequest : httpsRequest)(new URL(path, this.#address.url), shared);
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

  /** The document in an answer, as it was received. Errors: `protocol-error` when it does not fit the schema. */
  understand<T>(schema: z.ZodType<T>, text: string): T {
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
    return this.#address.kind === "socket" ? this.#address.path : this.#address.url;
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

  /** What the end of a stream of events is, which nobody has asked for. */
  streamEnded(cause: unknown): ColobusError {
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

  #stoodStill(timeoutMs: number): ColobusError {
    return new ColobusError(
      "timed-out",
      `Nothing of the VM state has come from ${this.#name}, or was taken here, for ${timeoutMs / 1000} s.`,
      "Check that the agent, its disk, and whatever reads the state go on; or say a longer --timeout.",
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
