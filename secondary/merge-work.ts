import { DISK_RETRY_MS } from "../proto/limits.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { JobWork } from "../shared/jobs/job.ts";
import type { PromotedDisk } from "./promoted-disk.ts";

/**
 * The job that follows a promotion: merges the overlays of all disks into their bases, then records that it is done,
 * then frees the overlays. It can be interrupted anywhere and is started again until the record says so.
 */
export class MergeWork implements JobWork {
  readonly type = "merge";
  readonly disk = null;
  readonly cancellable = false;
  readonly retryMs = DISK_RETRY_MS;
  readonly #disks: readonly PromotedDisk[];
  readonly #state: StateFile;
  readonly #merged: () => void;

  constructor(disks: readonly PromotedDisk[], state: StateFile, merged: () => void) {
    this.#disks = disks;
    this.#state = state;
    this.#merged = merged;
  }

  progress(): { doneBytes: number; totalBytes: number } {
    return {
      doneBytes: this.#disks.reduce((sum, disk) => sum + disk.mergedBytes, 0),
      totalBytes: this.#disks.reduce((sum, disk) => sum + disk.mergeTotalBytes, 0),
    };
  }

  guestRequests(): number {
    return this.#disks.reduce((sum, disk) => sum + disk.requests, 0);
  }

  async step(): Promise<number | undefined> {
    for (const disk of this.#disks) {
      const bytes = await disk.mergeNext();
      if (bytes !== undefined) return bytes;
    }
    for (const disk of this.#disks) await disk.syncBase();
    await this.#state.update((record) => ({ ...record, merge: null }));
    for (const disk of this.#disks) await disk.dropOverlays();
    this.#merged();
    return undefined;
  }
}
