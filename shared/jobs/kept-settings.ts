import { isDeepStrictEqual } from "node:util";
import type { JobSpeed } from "../../proto/status.ts";
import { asColobusError, type ColobusError } from "../../proto/errors.ts";
import type { OperatorSettings } from "../../proto/state-record.ts";
import type { JobSettings } from "./job.ts";

export interface KeptSettingsOptions<T> {
  /** What is recorded. */
  readonly recorded: T;
  /** Durable when the promise resolves. */
  readonly write: (settings: T) => Promise<unknown>;
  /** They are not recorded: they hold for as long as this process lives. */
  readonly failed: (reason: ColobusError) => void;
}

/** Has what a job is set to recorded, whenever it is another than before: jobs ask at every change of theirs. */
export class KeptSettings<T> {
  readonly #options: KeptSettingsOptions<T>;
  /** What was recorded last, or is being recorded; undefined: that failed. */
  #last: { readonly settings: T; readonly done: Promise<void> } | undefined;

  constructor(options: KeptSettingsOptions<T>) {
    this.#options = options;
    this.#last = { settings: options.recorded, done: Promise.resolve() };
  }

  /** Resolves when a later process would find them. Errors: why it would not. */
  keep(settings: T): Promise<void> {
    const last = this.#last;
    if (last !== undefined && isDeepStrictEqual(last.settings, settings)) return last.done;
    const done = this.#write(settings);
    this.#last = { settings, done };
    return done;
  }

  async #write(settings: T): Promise<void> {
    const { write, failed } = this.#options;
    try {
      await write(settings);
    } catch (error) {
      this.#last = undefined;
      failed(asColobusError(error));
      throw error;
    }
  }
}

/** What an operator has set for a job that has the speed `usual` by itself. A fault that has paused it is met anew. */
export function setByOperator({ speed, isPaused, error }: JobSettings, usual: JobSpeed): OperatorSettings {
  const isHeld = isPaused && error === undefined;
  return speed === usual ? { isPaused: isHeld } : { speed, isPaused: isHeld };
}
