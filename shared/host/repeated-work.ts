import type { Clock, Timer } from "./clock.ts";

export interface RepeatedWorkOptions {
  readonly clock: Pick<Clock, "after">;
  /** From the end of one time to the beginning of the next. */
  readonly everyMs: number;
  readonly work: () => Promise<void>;
  /** Is told why it has failed once; the next time comes all the same. */
  readonly failed: (error: unknown) => void;
}

/** Does something again and again, one time after the other, from `start` until `stop`. */
export class RepeatedWork {
  readonly #options: RepeatedWorkOptions;
  #timer: Timer | undefined;
  #underWay: Promise<void> = Promise.resolve();
  #isStopped = false;
  /** The next time comes after that, and not after `everyMs`. */
  #soonMs: number | undefined;

  constructor(options: RepeatedWorkOptions) {
    this.#options = options;
  }

  /** What is awaited already begins anew. */
  start(): void {
    this.#schedule();
  }

  /** The next time comes after `ms`, or, where it is being done, that long after its end. */
  soon(ms: number): void {
    this.#soonMs = ms;
    if (this.#timer !== undefined) this.#schedule();
  }

  /** Nothing begins any more. Resolves when what is being done is done, however it ends. */
  stop(): Promise<void> {
    this.#isStopped = true;
    this.#timer?.cancel();
    return this.#underWay;
  }

  #schedule(): void {
    if (this.#isStopped) return;
    this.#timer?.cancel();
    const { clock, everyMs, work, failed } = this.#options;
    const afterMs = this.#soonMs ?? everyMs;
    this.#soonMs = undefined;
    this.#timer = clock.after(afterMs, () => {
      this.#timer = undefined;
      this.#underWay = work()
        .catch(failed)
        .finally(() => this.#schedule());
    });
  }
}
