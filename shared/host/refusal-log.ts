import type { Clock } from "./clock.ts";
import type { Log } from "./log.ts";
import { REFUSAL_REASONS_MAX, REFUSAL_TOLD_EVERY_MS } from "../../proto/limits.ts";

interface Told {
  atMs: number;
  /** Refusals since then. */
  silent: number;
}

/**
 * Which refusals are told: each reason once, and again when it goes on for long, and no more reasons than can be read.
 * Whoever knocks a million times fills neither the log nor the events.
 */
export class ToldRefusals {
  readonly #clock: Clock;
  readonly #told = new Map<string, Told>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Somebody was refused. What to tell of it: the reason, and how often it came untold before; undefined: nothing. */
  next(reason: string): { readonly reason: string; readonly before: number } | undefined {
    const nowMs = this.#clock.nowMs();
    const key = this.#told.has(reason) || this.#told.size < REFUSAL_REASONS_MAX ? reason : "another reason";
    const told = this.#told.get(key);
    if (told !== undefined && nowMs - told.atMs < REFUSAL_TOLD_EVERY_MS) {
      told.silent += 1;
      return undefined;
    }
    this.#told.set(key, { atMs: nowMs, silent: 0 });
    return { reason: key, before: told?.silent ?? 0 };
  }
}

/** Logs why connections are refused. */
export class RefusalLog {
  readonly #told: ToldRefusals;
  readonly #log: Log;
  readonly #port: string;

  /** `port` says what was knocked at. */
  constructor(options: { readonly clock: Clock; readonly log: Log; readonly port: string }) {
    this.#told = new ToldRefusals(options.clock);
    this.#log = options.log;
    this.#port = options.port;
  }

  /** A connection from `client` was refused. `reason` must not say anything of the particular client. */
  refused(reason: string, client: string | undefined): void {
    const told = this.#told.next(reason);
    if (told !== undefined) this.#log.warn({ port: this.#port, client, ...told }, "a connection was refused");
  }
}
