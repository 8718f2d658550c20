/**
 * The agent's control API as the page uses it: requests to where the page came from, with the token if there is one. The
 * token goes into a header and nowhere else. Answers are those of the agent that has sent this page with it, so they are
 * of its own schemas.
 */
import type { CheckpointAnswer, FailoverAnswer, FailoverRequest } from "../proto/control-api.ts";
import type { AgentEvent, JobStatus, Status } from "../proto/status.ts";
import { ServerSentEventParser } from "../shared/control/server-sent-events.ts";

/** No answer of the agent's comes later; a failover may wait for another command. */
const ANSWER_TIMEOUT_MS = 70_000;
const STATUS_TIMEOUT_MS = 10_000;
const EVENT_MAX_LENGTH = 1024 * 1024;

/** The agent has refused a request, or nobody has answered it: then there is no code. */
export class AgentFault extends Error {
  readonly code: string | undefined;
  readonly action: string;

  constructor(code: string | undefined, message: string, action: string) {
    super(message);
    this.code = code;
    this.action = action;
  }

  /** The token is missing, or another one. */
  get isForWantOfToken(): boolean {
    return this.code === "auth-failed";
  }
}

export interface Snapshot {
  readonly status: Status;
  /** As Prometheus reads it. */
  readonly metrics: string;
  /** The agent's clock when it answered, at most a second ago; undefined where the answer does not tell. */
  readonly agentMs: number | undefined;
}

export class AgentApi {
  /** undefined: none is sent. */
  token: string | undefined;

  /** Whether the address wants a token. */
  async wantsToken(): Promise<boolean> {
    const answer = await this.#ask("GET", "/page/door", STATUS_TIMEOUT_MS);
    const { wantsToken } = (await answer.json()) as { wantsToken: boolean };
    return wantsToken;
  }

  async snapshot(): Promise<Snapshot> {
    const [status, metrics] = await Promise.all([
      this.#ask("GET", "/v1/status", STATUS_TIMEOUT_MS),
      this.#ask("GET", "/metrics", STATUS_TIMEOUT_MS),
    ]);
    const date = Date.parse(status.headers.get("date") ?? "");
    return {
      status: (await status.json()) as Status,
      metrics: await metrics.text(),
      agentMs: Number.isNaN(date) ? undefined : date,
    };
  }

  async checkpoint(): Promise<CheckpointAnswer> {
    return (await (await this.#ask("POST", "/v1/checkpoint", ANSWER_TIMEOUT_MS, {})).json()) as CheckpointAnswer;
  }

  async failover(request: Partial<FailoverRequest>): Promise<FailoverAnswer> {
    return (await (await this.#ask("POST", "/v1/failover", ANSWER_TIMEOUT_MS, request)).json()) as FailoverAnswer;
  }

  async job(id: string, verb: "pause" | "resume"): Promise<JobStatus> {
    const path = `/v1/jobs/${encodeURIComponent(id)}/${verb}`;
    return (await (await this.#ask("POST", path, ANSWER_TIMEOUT_MS, {})).json()) as JobStatus;
  }

  /** Calls `heard` with each event after `afterSequence`, as they come. Resolves when the stream has ended. */
  async follow(afterSequence: number, heard: (event: AgentEvent) => void): Promise<void> {
    const headers = { ...this.#headers(), "accept": "text/event-stream", "last-event-id": String(afterSequence) };
    const answer = await fetch("/v1/events", { headers, cache: "no-store" });
    if (!answer.ok || answer.body === null) throw await faultOf(answer);
    const parser = new ServerSentEventParser(EVENT_MAX_LENGTH);
    const reader = answer.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      for (const data of parser.push(value)) heard(JSON.parse(data) as AgentEvent);
    }
  }

  async #ask(method: "GET" | "POST", path: string, timeoutMs: number, body?: unknown): Promise<Response> {
    const headers = { ...this.#headers(), ...(body === undefined ? {} : { "content-type": "application/json" }) };
    const sent = body === undefined ? {} : { body: JSON.stringify(body) };
    let answer: Response;
    try {
      answer = await fetch(path, {
        method,
        headers,
        ...sent,
        cache: "no-store",
        signal: AbortSignal.timeout(timeoutMs),
      });
    } catch (error) {
      const reason = error instanceof DOMException && error.name === "TimeoutError" ? "in time" : "at this address";
      throw new AgentFault(
        undefined,
        `The agent does not answer ${reason}.`,
        "Check that it runs, and that this machine reaches it.",
      );
    }
    if (!answer.ok) throw await faultOf(answer);
    return answer;
  }

  #headers(): Readonly<Record<string, string>> {
    return this.token === undefined ? {} : { authorization: `Bearer ${this.token}` };
  }
}

async function faultOf(answer: Response): Promise<AgentFault> {
  const text = await answer.text();
  try {
    const { error } = JSON.parse(text) as { error: { code: string; message: string; action: string } };
    return new AgentFault(error.code, error.message, error.action);
  } catch {
    // Something between here and the agent has answered.
    return new AgentFault(undefined, `The answer is ${answer.status}, and not the agent's.`, "Check the address.");
  }
}

/** Any failure of a request as what is shown. */
export function asAgentFault(error: unknown): AgentFault {
  if (error instanceof AgentFault) return error;
  return new AgentFault(undefined, error instanceof Error ? error.message : String(error), "Load the page again.");
}
