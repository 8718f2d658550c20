import type { z } from "zod";
import { ColobusError } from "../../proto/errors.ts";
import { ARBITER_ANSWER_MAX_BYTES } from "../../proto/limits.ts";
import type { Clock } from "../host/clock.ts";

/**
 * The JSON gateway of an etcd cluster: one HTTP request for each call, to the endpoint that answered last, and to the
 * others in turn when that fails. No connection is waited for longer than the timeout, and no answer is believed that is
 * not of the expected form.
 */
export class EtcdGateway {
  readonly #endpoints: readonly string[];
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  #preferred = 0;

  /** `timeoutMs` bounds a whole call, however many endpoints it asks. */
  constructor(endpoints: readonly string[], clock: Clock, timeoutMs: number) {
    this.#endpoints = endpoints;
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
  }

  /** Errors: `arbiter-unreachable`; the call may have been done all the same, by any of the endpoints. */
  async call<T>(path: string, body: object, answer: z.ZodType<T>): Promise<T> {
    let failure = "";
    for (let tried = 0; tried < this.#endpoints.length; tried += 1) {
      const index = (this.#preferred + tried) % this.#endpoints.length;
      const endpoint = this.#endpoints[index] ?? "";
      try {
        const parsed = answer.safeParse(await this.#post(endpoint, path, body));
        if (parsed.success) {
          this.#preferred = index;
          return parsed.data;
        }
        failure = `${endpoint} answers in another form than etcd`;
      } catch (error) {
        failure = `${endpoint}: ${describe(error)}`;
      }
    }
    throw new ColobusError(
      "arbiter-unreachable",
      `the arbiter cannot be used: ${failure}`,
      "Check --arbiter, and that etcd runs there; it is tried again by itself.",
    );
  }

  async #post(endpoint: string, path: string, body: object): Promise<unknown> {
    const given = new AbortController();
    const timer = this.#clock.after(this.#timeoutMs / this.#endpoints.length, () => given.abort());
    try {
      const response = await fetch(new URL(path, endpoint), {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
        signal: given.signal,
        redirect: "error",
      });
      const text = await readText(response);
      if (!response.ok) throw new Error(`it refuses: ${response.status} ${text.slice(0, 200).trim()}`);
      return JSON.parse(text) as unknown;
    } finally {
      timer.cancel();
    }
  }
}

/** The body as text, unless it is longer than any answer that is expected. */
async function readText(response: Response): Promise<string> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  if (response.body === null) return "";
  for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
    length += chunk.length;
    if (length > ARBITER_ANSWER_MAX_BYTES) throw new Error("its answer is too long");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === "AbortError") return "it has not answered in time";
  const { cause } = error;
  const why = cause instanceof Error && cause.message !== "" ? cause.message : error.message;
  return why.replaceAll(/\p{Cc}+/gu, " ");
}
