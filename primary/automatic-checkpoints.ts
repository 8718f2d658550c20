import { asColobusError } from "../proto/errors.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";

export interface AutomaticCheckpointsOptions {
  readonly clock: Clock;
  readonly log: Log;
  /** How often one is taken; undefined: only where something asks for one. `restart` follows a change. */
  readonly everyMs: number | undefined;
  /** Whether one can be taken now, without waiting for a sync. */
  readonly isReady: () => boolean;
  /**
   * Whether a secondary that is in sync lacks one so that it protects nothing. Not where only whoever sends VM states is to take
   * the next one: one of the disks would take the place of the state.
   */
  readonly isLacked: () => boolean;
  readonly take: () => Promise<unknown>;
}

/** Takes checkpoints that nobody commands: every so often, and at the end of a sync where one is wanted. */
export class AutomaticCheckpoints {
  readonly #options: AutomaticCheckpointsOptions;
  #timer: Timer | undefined;
  #isWanted = false;
  #isStarted = false;
  #stopped = false;
  #isTaking = false;

  constructor(options: AutomaticCheckpointsOptions) {
    this.#options = options;
  }

  start(): void {
    const { clock, everyMs, isReady } = this.#options;
    this.#isStarted = true;
    this.#timer?.cancel();
    if (everyMs === undefined || this.#stopped) return;
    this.#timer = clock.after(everyMs, () => {
      const taken = isReady() ? this.#take() : Promise.resolve();
      void taken.then(() => this.start());
    });
  }

  /** Counts anew from now on, as often as it is wanted by now. */
  restart(): void {
    if (this.#isStarted) this.start();
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
  }

  /** Takes one now, or at the end of the sync that is under way. */
  want(): void {
    this.#isWanted = true;
    if (this.#options.isReady()) this.takeWanted();
  }

  /** Takes the one that is wanted, if one is. */
  takeWanted(): void {
    if (!this.#isWanted) return;
    this.#isWanted = false;
    void this.#take();
  }

  /** Takes one where a secondary lacks it; also after the one that is under way, if that has succeeded. */
  takeIfLacked(): void {
    if (!this.#isTaking && !this.#stopped && this.#options.isLacked()) this.want();
  }

  async #take(): Promise<void> {
    this.#isTaking = true;
    try {
      await this.#options.take();
    } catch (error) {
      this.#options.log.warn({ error: asColobusError(error) }, "an automatic checkpoint failed");
      return;
    } finally {
      this.#isTaking = false;
    }
    this.takeIfLacked();
  }
}
