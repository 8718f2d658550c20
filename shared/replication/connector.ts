import { asColobusError, ColobusError } from "../../proto/errors.ts";
import { RECONNECT_MAX_MS, RECONNECT_MIN_MS } from "../../proto/limits.ts";
import type { Clock, Timer } from "../host/clock.ts";
import type { Random } from "../host/random.ts";
import type { Dialer, Link } from "./link.ts";

export interface ConnectorOptions {
  readonly dialer: Dialer;
  readonly clock: Clock;
  readonly random: Random;
  /** Whether a link is wanted now: the peer may have dialled as well, and one session is enough. */
  readonly isWanted: () => boolean;
  /** A link is there. Its owner calls `lost` when it is done with it. */
  readonly connected: (link: Link) => void;
  /** A dial failed; the next one follows by itself. */
  readonly failed: (reason: ColobusError) => void;
}

/** Keeps one link to a peer: dials for ever, with growing and jittered pauses between failures. */
export class Connector {
  readonly #options: ConnectorOptions;
  readonly #abort = new AbortController();
  #pauseMs = RECONNECT_MIN_MS;
  #timer: Timer | undefined;

  constructor(options: ConnectorOptions) {
    this.#options = options;
  }

  start(): void {
    void this.#dial();
  }

  /** The link is gone. `wasGood`: it had carried a stream, so the next dial follows soon. */
  lost(wasGood: boolean): void {
    if (wasGood) this.#pauseMs = RECONNECT_MIN_MS;
    this.#schedule();
  }

  stop(): void {
    this.#abort.abort();
    this.#timer?.cancel();
  }

  #schedule(): void {
    if (this.#abort.signal.aborted) return;
    const { clock, random } = this.#options;
    const pauseMs = this.#pauseMs * (0.5 + random.fraction());
    this.#pauseMs = Math.min(this.#pauseMs * 2, RECONNECT_MAX_MS);
    this.#timer = clock.after(pauseMs, () => void this.#dial());
  }

  async #dial(): Promise<void> {
    const { dialer, isWanted, connected, failed } = this.#options;
    if (!isWanted()) {
      this.#schedule();
      return;
    }
    let link: Link;
    try {
      link = await dialer.dial(this.#abort.signal);
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      failed(asColobusError(error));
      this.#schedule();
      return;
    }
    if (this.#abort.signal.aborted) link.close(new ColobusError("shutting-down", "the agent is being stopped"));
    else connected(link);
  }
}
