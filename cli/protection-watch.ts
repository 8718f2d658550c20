import type { Status } from "../proto/status.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";

export interface ProtectionWatchOptions {
  readonly clock: Clock;
  readonly describe: () => Status["protection"];
  /** How old the checkpoint is that a failover returns to; undefined: there is none. */
  readonly checkpointAgeMs: () => number | undefined;
  /** Beyond it a checkpoint counts as no protection; undefined: however old it is. */
  readonly maxCheckpointAgeMs: () => number | undefined;
  readonly changed: (protection: Status["protection"]) => void;
}

/**
 * Tells when the VM's protection has changed: whoever knows of anything that may have changed it has it looked at, and it
 * looks by itself when the checkpoint gets too old, since nothing happens then.
 */
export class ProtectionWatch {
  readonly #options: ProtectionWatchOptions;
  #last = "";
  #timer: Timer | undefined;

  constructor(options: ProtectionWatchOptions) {
    this.#options = options;
  }

  look(): void {
    const protection = this.#options.describe();
    this.#timer?.cancel();
    if (protection.state === "Protected") this.#lookWhenTooOld();
    const line = `${protection.state} ${protection.reason ?? ""}`;
    if (line === this.#last) return;
    this.#last = line;
    this.#options.changed(protection);
  }

  stop(): void {
    this.#timer?.cancel();
  }

  #lookWhenTooOld(): void {
    const { clock, checkpointAgeMs, maxCheckpointAgeMs } = this.#options;
    const ageMs = checkpointAgeMs();
    const maxMs = maxCheckpointAgeMs();
    if (ageMs === undefined || maxMs === undefined) return;
    this.#timer = clock.after(Math.max(1, maxMs - ageMs + 1), () => this.look());
  }
}
