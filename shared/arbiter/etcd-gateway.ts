import { z } from "zod";
import { ColobusError, oneLine } from "../../proto/errors.ts";
import { ARBITER_ANSWER_MAX_BYTES } from "../../proto/limits.ts";
import type { Clock } from "../host/clock.ts";
import { postJson, type PostAnswer } from "../host/post-json.ts";
import type { TlsFiles } from "../host/tls-files.ts";
import type { Login } from "../host/token-file.ts";

/** How an etcd is spoken to that does not take everybody. */
export interface EtcdAccess {
  readonly login?: Login | undefined;
  /** Of `https://` endpoints: what this side believes, and shows. Default: the authorities that Node knows, and nothing. */
  readonly tls?: Pick<TlsFiles, "options"> | undefined;
}

const authenticateAnswer = z.object({ token: z.string().min(1) });

/**
 * The JSON gateway of an etcd cluster: one HTTP request for each call, to the endpoint that answered last, and to the
 * others in turn when that fails. No connection is waited for longer than the timeout, and no answer is believed that is
 * not of the expected form. Where etcd knows users, a call brings the token that it has given for name and password, and a
 * call that is refused with one is made once more with a new one: etcd forgets tokens.
 */
export class EtcdGateway {
  readonly #endpoints: readonly string[];
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  readonly #access: EtcdAccess;
  #token: string | undefined;
  #preferred = 0;

  /** `timeoutMs` bounds a whole call, however many endpoints it asks. */
  constructor(endpoints: readonly string[], clock: Clock, timeoutMs: number, access: EtcdAccess = {}) {
    this.#endpoints = endpoints;
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
    this.#access = access;
  }

  /** Errors: `arbiter-unreachable`; the call may have been done all the same, by any of the endpoints. */
  async call<T>(path: string, body: object, answer: z.ZodType<T>): Promise<T> {
    let failure = "";
    for (let tried = 0; tried < this.#endpoints.length; tried += 1) {
      const index = (this.#preferred + tried) % this.#endpoints.length;
      const endpoint = this.#endpoints[index] ?? "";
      try {
        const parsed = answer.safeParse(await this.#ask(endpoint, path, body));
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

  async #ask(endpoint: string, path: string, body: object): Promise<unknown> {
    const given = new AbortController();
    const timer = this.#clock.after(this.#timeoutMs / this.#endpoints.length, () => given.abort());
    const { login, tls } = this.#access;
    const post = (to: string, what: object, token?: string): Promise<PostAnswer> =>
      postJson(new URL(to, endpoint), what, {
        authorization: token,
        tls: tls?.options,
        signal: given.signal,
        answerMaxBytes: ARBITER_ANSWER_MAX_BYTES,
      });
    try {
      if (login === undefined) return contentOf(await post(path, body));
      const known = this.#token;
      if (known !== undefined) {
        const answer = await post(path, body, known);
        if (!isRefusal(answer)) return contentOf(answer);
        if (this.#token === known) this.#token = undefined;
      }
      this.#token ??= authenticateAnswer.parse(contentOf(await post("/v3/auth/authenticate", login))).token;
      return contentOf(await post(path, body, this.#token));
    } finally {
      timer.cancel();
    }
  }
}

function isRefusal({ status }: PostAnswer): boolean {
  return status >= 400 && status < 500;
}

function contentOf({ status, text }: PostAnswer): unknown {
  if (status < 200 || status > 299) throw new Error(`it refuses: ${status} ${text.slice(0, 200).trim()}`);
  return JSON.parse(text) as unknown;
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === "AbortError") return "it has not answered in time";
  const { cause } = error;
  const why = cause instanceof Error && cause.message !== "" ? cause.message : error.message;
  return oneLine(why);
}
