import type { JobSpeed } from "../proto/status.ts";
import { DISK_RETRY_MS } from "../proto/limits.ts";
import type { OperatorSettings } from "../proto/state-record.ts";
import type { Log } from "../shared/host/log.ts";
import type { JobSettings, JobWork } from "../shared/jobs/job.ts";
import { KeptSettings, setByOperator } from "../shared/jobs/kept-settings.ts";
import { NOTHING_SET, withMergeSettings } from "../shared/journal/operator-settings.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { PromotedDisk } from "./promoted-disk.ts";

export interface MergeWorkOptions {
  readonly disks: readonly PromotedDisk[];
  readonly state: StateFile;
  readonly log: Log;
  /** The speed of a merge for which no other is set. */
  readonly speed: JobSpeed;
  readonly merged: () => void;
}

/**
 * The job that follows a promotion: merges the overlays of all disks into their bases, then records that it is done,
 * then frees the overlays. It can be interrupted anywhere and is started again until the record says so, at the speed, and
 * paused, as it was set.
 */
export class MergeWork implements JobWork {
  readonly type = "merge";
  readonly disk = null;
  readonly cancellable = false;
  readonly retryMs = DISK_RETRY_MS;
  /** How the job is to begin. */
  readonly begins: { readonly speed: JobSpeed; readonly held: boolean };
  readonly #options: MergeWorkOptions;
  readonly #kept: KeptSettings<OperatorSettings>;

  constructor(options: MergeWorkOptions) {
    const { state, log, speed } = options;
    this.#options = options;
    const recorded = state.record.merge?.settings ?? NOTHING_SET;
    this.begins = { speed: recorded.speed ?? speed, held: recorded.isPaused };
    this.#kept = new KeptSettings({
      recorded,
      write: (settings) => state.update((record) => withMergeSettings(record, settings)),
      failed: (reason) => log.warn({ reason }, "how the merge is set is not recorded"),
    });
  }

  progress(): { doneBytes: number; totalBytes: number } {
    const { disks } = this.#options;
    return {
      doneBytes: disks.reduce((sum, disk) => sum + disk.mergedBytes, 0),
      totalBytes: disks.reduce((sum, disk) => sum + disk.mergeTotalBytes, 0),
    };
  }

  guestRequests(): number {
    return this.#options.disks.reduce((sum, disk) => sum + disk.requests, 0);
  }

  keep(settings: JobSettings): Promise<void> {
    return this.#kept.keep(setByOperator(settings, this.#options.speed));
  }

  async step(): Promise<number | undefined> {
    const { disks, state, merged } = this.#options;
    for (const disk of disks) {
      const bytes = await disk.mergeNext();
      if (bytes !== undefined) return bytes;
    }
    for (const disk of disks) await disk.syncBase();
    await state.update((record) => ({ ...record, merge: null }));
    for (const disk of disks) await disk.dropOverlays();
    merged();
    return undefined;
  }
}
