import { statSync } from "node:fs";
import { ColobusError } from "../../proto/errors.ts";
import { TLS_FILES_LOOK_EVERY_MS } from "../../proto/limits.ts";
import type { Clock, Timer } from "./clock.ts";
import type { Log } from "./log.ts";
import { errnoOf } from "./os-error.ts";

export interface WatchedFilesOptions<T> {
  readonly paths: readonly string[];
  /** Reads and checks the files. Errors: `usage`. */
  readonly load: () => T;
  readonly clock: Clock;
  /** undefined: for one use, by a command. */
  readonly log: Log | undefined;
}

/**
 * What was read from an operator's files for TLS, as they are now. They are read again when they change and when `reload` is
 * called (SIGHUP). What cannot be used then is logged, and what was read before stays in force.
 */
export class WatchedFiles<T> {
  readonly #options: WatchedFilesOptions<T>;
  readonly #listeners: ((content: T) => void)[] = [];
  #content: T;
  #stamp: string;
  /** The files that could not be used, so that they are told of once. */
  #refusedStamp: string | undefined;
  #timer: Timer | undefined;

  /** Reads the files. Errors: those of `load`. */
  constructor(options: WatchedFilesOptions<T>) {
    this.#options = options;
    this.#stamp = this.#readStamp();
    this.#content = options.load();
  }

  get content(): T {
    return this.#content;
  }

  /** Calls `listener` with what is in force, whenever that changes. */
  onChange(listener: (content: T) => void): void {
    this.#listeners.push(listener);
  }

  /** Begins to look after the files, until `stop`. */
  watch(): void {
    this.#timer = this.#options.clock.after(TLS_FILES_LOOK_EVERY_MS, () => {
      const stamp = this.#readStamp();
      if (stamp !== this.#stamp && stamp !== this.#refusedStamp) this.reload();
      this.watch();
    });
  }

  stop(): void {
    this.#timer?.cancel();
  }

  /** Reads the files again. What cannot be used is logged and changes nothing. */
  reload(): void {
    const { load, log, paths } = this.#options;
    const stamp = this.#readStamp();
    try {
      this.#content = load();
    } catch (error) {
      if (!(error instanceof ColobusError)) throw error;
      this.#refusedStamp = stamp;
      log?.error({ reason: error }, "the changed TLS files cannot be used: the old ones stay in force");
      return;
    }
    this.#stamp = stamp;
    this.#refusedStamp = undefined;
    log?.info({ paths }, "TLS files were read again");
    for (const listener of this.#listeners) listener(this.#content);
  }

  #readStamp(): string {
    return this.#options.paths.map(stampOf).join(" ");
  }
}

/** Tells a file that was changed, replaced, or cannot be looked at. */
function stampOf(path: string): string {
  try {
    const { ino, size, mtimeMs } = statSync(path);
    return `${ino}:${size}:${mtimeMs}`;
  } catch (error) {
    return String(errnoOf(error));
  }
}
