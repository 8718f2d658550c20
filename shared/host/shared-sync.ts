/**
 * Shares fsyncs of one file: one runs at a time, and those who ask meanwhile, whose writes it may have passed by already,
 * wait for one more, together. Of two at a time the kernel tells only one that something was lost, and the other succeeds.
 */
export class SharedSync {
  readonly #sync: () => Promise<void>;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  constructor(sync: () => Promise<void>) {
    this.#sync = sync;
  }

  /** The one that runs; undefined: none does. */
  get running(): Promise<void> | undefined {
    return this.#running;
  }

  /** Resolves when one that began after the call has ended. Errors: those of that one. */
  run(): Promise<void> {
    if (this.#running === undefined) {
      this.#running = this.#sync().finally(() => {
        this.#running = undefined;
      });
      return this.#running;
    }
    this.#next ??= this.#running
      .catch(() => undefined) // who waits for that one has the error
      .then(() => {
        this.#next = undefined;
        return this.run();
      });
    return this.#next;
  }

  /** Resolves when none is waited for any more, whatever has become of it: who waits has the error. */
  async settled(): Promise<void> {
    for (let last = this.#last; last !== undefined; last = this.#last) await last.catch(() => undefined);
  }

  get #last(): Promise<void> | undefined {
    return this.#next ?? this.#running;
  }
}
