import { ColobusError } from "../../proto/errors.ts";
import type { Clock, Timer } from "./clock.ts";

/** Ends waiting after a time, or when the one who asked has gone. What was begun goes on by itself. */
export class Deadline {
  readonly #timeoutMs: number;
  readonly #signal: AbortSignal;
  readonly #timer: Timer;
  readonly #passed: Promise<"timeout" | "abort">;
  #abort: () => void = () => undefined;

  constructor(clock: Clock, timeoutMs: number, signal: AbortSignal) {
    this.#timeoutMs = timeoutMs;
    this.#signal = signal;
    let pass: (why: "timeout" | "abort") => void = () => undefined;
    this.#passed = new Promise((resolve) => {
      pass = resolve;
    });
    this.#timer = clock.after(timeoutMs, () => pass("timeout"));
    this.#abort = () => pass("abort");
    signal.addEventListener("abort", this.#abort, { once: true });
  }

  /** `what` says what was being done, as it is when the time has passed. */
  async race<T>(work: Promise<T>, what: string | (() => string)): Promise<T> {
    const outcome = await Promise.race([work.then((value) => ({ value })), this.#passed]);
    if (typeof outcome === "object") return outcome.value;
    work.catch(() => undefined); // its events and the log tell; nobody waits for it any more
    const why = outcome === "timeout" ? `${this.#timeoutMs} ms have passed` : "the caller has gone";
    const done = typeof what === "string" ? what : what();
    throw new ColobusError("timed-out", `${why}: ${done}`, "See `colobus status`; ask again, with a longer --timeout.");
  }

  end(): void {
    this.#timer.cancel();
    this.#signal.removeEventListener("abort", this.#abort);
  }
}
