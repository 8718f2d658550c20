import { WHOLE_CLUSTER_MASK, type JournalHeader } from "../proto/cluster-journal-format.ts";
import { ColobusError } from "../proto/errors.ts";
import { MERGE_RESERVE_BYTES, MERGE_RESERVE_STEP_BYTES } from "../proto/limits.ts";
import { applyJournalEntry, type ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import { ClusterJournal } from "../shared/journal/cluster-journal.ts";
import type { OverlayContext } from "./overlay-files.ts";

/**
 * Owns the journal of a merge: the clusters that have been put into the base, about which the overlays say nothing any
 * more. It begins with the first of them.
 *
 * Only a merge frees the overlays of a promoted agent, so it must also go on when they have filled their file system.
 * A secondary sets a little space aside for that (`reserveMergeSpace`), and the journal takes it step by step, as guests'
 * flushes do.
 */
export class MergeJournal {
  readonly #context: OverlayContext;
  readonly #epoch: number;
  #journal: ClusterJournal | undefined;
  #directorySynced = false;

  /** Opens the journal of the merge onto `epoch`, if one was begun, adding to `merged` what it names. */
  constructor(context: OverlayContext, epoch: number, merged: ClusterBitmap) {
    this.#context = context;
    this.#epoch = epoch;
    if (!context.storage.exists(this.#path)) return;
    this.#journal = ClusterJournal.open(context.storage, this.#path, this.#header(), (entry) =>
      applyJournalEntry(merged, entry),
    );
    // It is in the page cache, and from now on the guest's writes to these clusters rely on it.
    this.#journal?.distrust();
  }

  /** Notes that clusters [first, end) are in the base. Errors: `out-of-space`, `io-error`; nothing is noted then. */
  append(first: number, end: number): void {
    const entry = {
      firstCluster: first,
      clusterCount: end - first,
      mask: WHOLE_CLUSTER_MASK,
      operation: "held",
    } as const;
    this.withReserve(() => {
      this.#journal ??= this.#create();
      this.#journal.append([entry]);
    });
  }

  /** Makes everything noted so far durable. */
  async sync(): Promise<void> {
    if (this.#journal === undefined) return;
    await this.#journal.sync();
    if (this.#directorySynced) return;
    await this.#context.storage.syncDirectory(this.#context.directory);
    this.#directorySynced = true;
  }

  close(): void {
    this.#journal?.close();
    this.#journal = undefined;
  }

  #create(): ClusterJournal {
    const { storage, random } = this.#context;
    return ClusterJournal.create(storage, this.#path, { ...this.#header(), id: random.bytes(16) });
  }

  /** Does `work`, where need be with space from the reserve: nothing else of this process can take it in between. Errors: `work`'s. */
  withReserve(work: () => void): void {
    for (;;) {
      try {
        work();
        return;
      } catch (error) {
        if (!(error instanceof ColobusError) || error.code !== "out-of-space" || !this.#releaseReserve()) throw error;
      }
    }
  }

  /** Frees a step of the reserve. False when nothing is left of it. */
  #releaseReserve(): boolean {
    const { storage } = this.#context;
    const path = reservePath(this.#context);
    if (!storage.exists(path)) return false;
    const file = storage.open(path, { kind: "other", create: "never" });
    try {
      const sizeBytes = file.sizeBytes();
      file.truncate(Math.max(0, sizeBytes - MERGE_RESERVE_STEP_BYTES));
      return sizeBytes > 0;
    } finally {
      file.close();
    }
  }

  get #path(): string {
    return `${this.#context.directory}/merge.${this.#epoch}.journal`;
  }

  #header(): Omit<JournalHeader, "id"> {
    const { sizeBytes, clusterBytes } = this.#context.geometry;
    return { kind: "merge", diskSizeBytes: sizeBytes, clusterBytes, epoch: this.#epoch };
  }
}

/** Sets space aside for the journal of a merge to come. Where there is no room for it now, it is tried at the next start. */
export function reserveMergeSpace(context: OverlayContext): void {
  const { storage } = context;
  const file = storage.open(reservePath(context), { kind: "other", create: "if-missing" });
  try {
    if (file.sizeBytes() < MERGE_RESERVE_BYTES) file.allocate(0, MERGE_RESERVE_BYTES);
  } catch (error) {
    if (!(error instanceof ColobusError) || error.code !== "out-of-space") throw error;
  } finally {
    file.close();
  }
}

function reservePath(context: OverlayContext): string {
  return `${context.directory}/merge.reserve`;
}
