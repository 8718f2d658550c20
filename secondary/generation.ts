import { WHOLE_CLUSTER_MASK, type JournalEntry } from "../proto/cluster-journal-format.ts";
import { applyJournalEntry, ClusterBitmap, clusterRuns } from "../shared/block/cluster-bitmap.ts";
import { clusterEndOffset } from "../shared/block/cluster-geometry.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { isZero } from "../shared/block/zeroes.ts";
import type { OverlaySource } from "./epoch-overlay.ts";
import { OriginalCopy, type ReadOriginal } from "./original-copy.ts";
import type { OverlayQuota } from "./overlay-quota.ts";
import { OverlayFiles, type OverlayContext } from "./overlay-files.ts";

/** The originals of the clusters that one epoch overwrote first. */
export class Generation implements OverlaySource {
  readonly epoch: number;
  readonly held = new ClusterBitmap();
  readonly files: OverlayFiles;
  readonly #context: OverlayContext;

  constructor(context: OverlayContext, epoch: number) {
    this.#context = context;
    this.epoch = epoch;
    this.files = new OverlayFiles(context, "generation", epoch);
  }

  /** Reads back what an earlier agent left of the generation of `epoch`; undefined when that is nothing. */
  static tryRecover(context: OverlayContext, epoch: number): Generation | undefined {
    const generation = new Generation(context, epoch);
    return generation.files.recover((entry) => applyJournalEntry(generation.held, entry)) ? generation : undefined;
  }

  /**
   * Saves `clusters`, which it does not hold yet: data first, then the journal that names them; under `power` each is
   * fsynced before the next step. When the promise resolves, what `read` read from may be overwritten.
   * `scratch` is overwritten, a piece of its length at a time, until then.
   * Errors: those of the files (`out-of-space`, `io-error`), `overlay-full`; it holds then what it held before.
   */
  async save(clusters: ClusterBitmap, read: ReadOriginal, scratch: Buffer): Promise<void> {
    const { geometry, durability } = this.#context;
    const entries: JournalEntry[] = [];
    const copy = new OriginalCopy(scratch, read, (bytes, offset) => this.#write(bytes, offset, this.#context.quota));
    for (const { first, end } of clusterRuns(clusters)) {
      entries.push({ firstCluster: first, clusterCount: end - first, mask: WHOLE_CLUSTER_MASK, operation: "held" });
      const endOffset = clusterEndOffset(geometry, end);
      for (let at = first * geometry.clusterBytes; at < endOffset;) {
        if (copy.isFull) await copy.finish();
        at += copy.begin(at, endOffset - at);
      }
    }
    const reading = copy.finish();
    if (reading !== undefined) await reading;
    if (durability === "power") await this.files.syncData();
    this.files.journal.append(entries);
    if (durability === "power") await this.files.syncJournal();
    this.held.orInPlace(clusters);
    this.#context.quota?.settle();
  }

  /** Fills `target`, which lies within clusters that it holds whole. */
  read(target: Uint8Array, offset: number): Pending {
    const { data } = this.files;
    return data.tryRead(target, offset) ? undefined : data.read(target, offset);
  }

  /** Writes everything that it holds again, as readers see it. `scratch` is overwritten meanwhile. */
  async rewrite(scratch: Buffer): Promise<void> {
    const { geometry } = this.#context;
    const { data } = this.files;
    for (const { first, end } of clusterRuns(this.held)) {
      const endOffset = clusterEndOffset(geometry, end);
      for (let at = first * geometry.clusterBytes; at < endOffset; at += scratch.length) {
        const piece = scratch.subarray(0, Math.min(scratch.length, endOffset - at));
        await data.read(piece, at);
        this.#write(piece, at, undefined);
      }
    }
  }

  /** Writes the clusters of `piece` that are not all zeroes to the data file, adjacent ones together. */
  #write(piece: Buffer, offset: number, quota: OverlayQuota | undefined): void {
    const { clusterBytes } = this.#context.geometry;
    const writeRun = (from: number, end: number): void => {
      quota?.take(end - from);
      this.files.data.write(piece.subarray(from, end), offset + from);
    };
    let from = -1;
    for (let at = 0; at < piece.length; at += clusterBytes) {
      const zero = isZero(piece.subarray(at, at + clusterBytes));
      if (!zero && from < 0) from = at;
      if (zero && from >= 0) {
        writeRun(from, at);
        from = -1;
      }
    }
    if (from >= 0) writeRun(from, piece.length);
  }
}
