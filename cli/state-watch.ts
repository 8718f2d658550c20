import { notProtected, type Status } from "../proto/status.ts";
import { asColobusError } from "../proto/errors.ts";
import { STATE_RETRY_MS } from "../proto/limits.ts";
import type { EventType } from "../proto/words.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { StateFile } from "../shared/journal/state-file.ts";

export interface StateWatchOptions {
  readonly state: StateFile;
  readonly clock: Clock;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
}

/**
 * Tells when the state record cannot be written, and tries again until it can: without it no checkpoint can be prepared
 * or committed, no failover be recorded, and no write acknowledged that parts the two histories. Each try writes the
 * record that stands, so it also settles what the failed update has left on the disk.
 */
export class StateWatch {
  readonly #options: StateWatchOptions;
  #isFailing = false;
  #stopped = false;
  #timer: Timer | undefined;

  constructor(options: StateWatchOptions) {
    this.#options = options;
    options.state.watch(() => this.#changed());
  }

  /** Why the VM is not protected, if the record cannot be written. */
  describeProtection(): Status["protection"] | undefined {
    const { fault } = this.#options.state;
    if (fault === undefined) return undefined;
    return notProtected("disk-failed", `the state record cannot be written: ${fault.message}: ${fault.action}`);
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
  }

  #changed(): void {
    const { state, emit, log } = this.#options;
    const { fault } = state;
    if (this.#stopped) return;
    if (fault === undefined) {
      this.#isFailing = false;
      this.#timer?.cancel();
      this.#timer = undefined;
      emit("state-mended", {});
      return;
    }
    if (!this.#isFailing) {
      this.#isFailing = true;
      emit("state-error", fault.toJSON());
    }
    this.#timer ??= this.#options.clock.after(STATE_RETRY_MS, () => {
      this.#timer = undefined;
      state
        .update((record) => record)
        .catch((error: unknown) =>
          log.debug({ reason: asColobusError(error) }, "the state record cannot be written yet"),
        );
    });
  }
}
