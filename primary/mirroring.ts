import { asColobusError } from "../proto/errors.ts";
import { STATE_RETRY_MS } from "../proto/limits.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import { sleep } from "../shared/host/sleep.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";

export interface MirroringOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly checkpoints: Pick<PrimaryCheckpoints, "openEpoch" | "committed" | "lackNothingYet">;
  /** Whether everything was sent, and the stream alone keeps the secondary equal. */
  readonly isEstablished: () => boolean;
  readonly take: () => Promise<unknown>;
}

/**
 * Mode `mirror`, on the primary: owns whether a failover returns every acknowledged write. That begins with the one
 * checkpoint that ends each sync, which this takes, again until it is committed: the secondary drops its originals then,
 * and from there on its images as they are. It ends with the stream.
 */
export class Mirroring {
  readonly #options: MirroringOptions;
  /** A commit of this epoch, or a later one, ends the sync; Infinity while the secondary lacks anything. */
  #endsWith = Infinity;
  #stopped = false;

  constructor(options: MirroringOptions) {
    this.#options = options;
  }

  /** Whether the secondary has taken up what it has as the state that a failover returns. */
  get isTakenUp(): boolean {
    return this.#options.checkpoints.committed >= this.#endsWith;
  }

  /** The secondary has everything: whatever barrier is placed from here on ends the sync. */
  inSync(): void {
    this.#endsWith = this.#options.checkpoints.openEpoch;
    void this.#endSync(this.#endsWith);
  }

  /** The stream has ended, or what it brings is not all. */
  lacks(): void {
    if (this.isTakenUp) this.#options.checkpoints.lackNothingYet();
    this.#endsWith = Infinity;
  }

  stop(): void {
    this.#stopped = true;
  }

  async #endSync(epoch: number): Promise<void> {
    const { clock, log, isEstablished, take } = this.#options;
    const isDue = (): boolean => !this.#stopped && this.#endsWith === epoch && isEstablished() && !this.isTakenUp;
    while (isDue()) {
      try {
        await take();
        return;
      } catch (error) {
        log.warn({ error: asColobusError(error) }, "the end of the sync is not recorded yet; it is tried again");
      }
      await sleep(clock, STATE_RETRY_MS);
    }
  }
}
