import type { Clock } from "./clock.ts";
import type { Log } from "./log.ts";
import { REFUSAL_REASONS_MAX, REFUSAL_TOLD_EVERY_MS } from "../../proto/limits.ts";

interface Told {
  atMs: number;
  /** Refusals since then. */
  silent: number;
}

/**
 * Logs why connections are refused, each reason once, and again with the number of refusals when it goes on for long:
 * whoever knocks a million times does not fill the log.
 */
export class RefusalLog {
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #port: string;
  readonly #told = new Map<string, Told>();

  /** `port` says what was knocked at. */
  constructor(options: { readonly clock: Clock; readonly log: Log; readonly port: string }) {
    this.#clock = options.clock;
    this.#log = options.log;
    this.#port = options.port;
  }

  /** A connection from `client` was refused. `reason` must not say anything of the particular client. */
  refused(reason: string, client: string | undefined): void {
    const nowMs = this.#clock.nowMs();
    const key = this.#told.has(reason) || this.#told.size < REFUSAL_REASONS_MAX ? reason : "another reason";
    const told = this.#told.get(key);
    if (told !== undefined && nowMs - told.atMs < REFUSAL_TOLD_EVERY_MS) {
      told.silent += 1;
      return;
    }
    this.#log.warn({ port: this.#port, reason: key, client, before: told?.silent ?? 0 }, "a connection was refused");
    this.#told.set(key, { atMs: nowMs, silent: 0 });
  }
}
