import { asColobusError, ColobusError } from "../../proto/errors.ts";
import { STATE_RETRY_MS } from "../../proto/limits.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Clock } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import type { StateFile } from "./state-file.ts";

/** A file of which an fsync has failed: the image of `disk`, or its active disk of that id. */
export type LostSync = StateRecord["lostSyncs"][number];

export interface LostSyncsOptions {
  readonly state: StateFile;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * Owns the durable note of fsyncs that have failed. The kernel tells of a failure once, and has forgotten then which
 * writes it lost; readers still see them in the page cache, and the next fsync succeeds. In the process that was told,
 * every later flush of the file fails as well. The note makes it so in later processes, until the host boots anew: from
 * then on readers see what the device has.
 *
 * Only what a client relies on is noted: the active disk, and the image of a primary. What a primary's stream has brought
 * a secondary is sent and written again after any end that was not clean.
 */
export class LostSyncs {
  readonly #options: LostSyncsOptions;
  #stopped = false;

  constructor(options: LostSyncsOptions) {
    this.#options = options;
  }

  /** Whether an earlier process was told of it. */
  has(file: LostSync): boolean {
    return this.#options.state.record.lostSyncs.some((noted) => isSame(noted, file));
  }

  /**
   * An fsync of the file has just failed. Resolves when that is noted, or cannot be for now: then it is tried again until
   * it can. Whoever is told of the failure is told after that.
   */
  async note(file: LostSync): Promise<void> {
    const { state, log } = this.#options;
    try {
      await state.update((record) => withLost(record, file));
    } catch (error) {
      log.warn({ ...file, reason: asColobusError(error) }, "it cannot be noted yet that an fsync has failed");
      this.#options.clock.after(STATE_RETRY_MS, () => {
        if (!this.#stopped) void this.note(file);
      });
    }
  }

  /** The agent is about to stop: nothing is tried again. */
  stop(): void {
    this.#stopped = true;
  }
}

/** What a flush of a file fails with whose fsync has failed in an earlier process. */
export function lostSync(path: string): ColobusError {
  return new ColobusError(
    "io-error",
    `an fsync of ${path} has failed in an earlier process: what was written before may be in the page cache alone`,
    "Look for errors of its device in the kernel's log. On a primary: `colobus switchover`.",
  );
}

function withLost(record: StateRecord, file: LostSync): StateRecord {
  if (file.active === null && record.role !== "Primary") return record;
  if (record.lostSyncs.some((noted) => isSame(noted, file))) return record;
  // Of earlier active disks of the same disk nothing is left.
  const others = record.lostSyncs.filter(
    ({ disk, active }) => disk !== file.disk || (active === null) !== (file.active === null),
  );
  return { ...record, lostSyncs: [...others, file] };
}

function isSame(one: LostSync, other: LostSync): boolean {
  return one.disk === other.disk && one.active === other.active;
}
