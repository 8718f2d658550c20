import type { Pending } from "../shared/block/block-device.ts";
import type { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";

/** Reads what lies below an overlay. */
export type ReadBelow = (target: Uint8Array, offset: number) => Pending;

/** Holds what a view shows of clusters that are not as the base has them. */
export interface OverlaySource {
  /**
   * Fills `target`, which lies within clusters of this source. What the source has not of them, `readBelow` has. Done, or
   * failed, only when nothing touches `target` any more.
   */
  read(target: Uint8Array, offset: number, readBelow: ReadBelow): Pending;
}

/** What decides one view of a disk, beside its base. */
export interface EpochView {
  /** Changes whenever the base may come to differ from the view somewhere else: a reader of the base compares it around its read. */
  readonly version: number;
  /** What has the cluster as the view shows it; undefined: the base has. */
  find(cluster: number): OverlaySource | undefined;
  /** Whether any cluster of [first, end) is held. */
  intersects(first: number, end: number): boolean;
  /** Every cluster that is held. The caller owns the bitmap. */
  union(): ClusterBitmap;
}

/** What frees storage that nobody reads any more; settles when it is free. */
export type Freeing = () => Promise<void>;

/**
 * What keeps the epochs of one disk apart from each other and from its base, seen as the committed checkpoint: the
 * hidden disk, which keeps originals (modes `colo` and `shared`), or the block buffer, which keeps new data (`mc`).
 */
export interface EpochOverlay extends EpochView {
  /** Whether nothing is held of any epoch that is not committed. */
  readonly isEmpty: boolean;
  /** The newest epoch that is not committed and of which anything is held; 0 while there is none. */
  readonly newestEpoch: number;
  /** Storage in bytes: all of it; what no commit frees, as it belongs to committed epochs or goes by itself. */
  readonly allocatedBytes: number;
  readonly keptBytes: number;
  /** The same storage under the names of `colobus status`. */
  readonly storage: { readonly hiddenBytes: number; readonly bufferBytes: number };
  /** What decides the checkpoint of `epoch`, which is kept. */
  asOf(epoch: number): EpochView;
  /** Where the primary's copy differs from the checkpoint of `epoch`, which is kept or committed. The caller owns the bitmap. */
  changedSince(epoch: number): ClusterBitmap;

  /** A session begins, and there is no barrier that anything here was kept for. Errors: those of the base. */
  beginWithoutBarrier(): Promise<void> | undefined;
  /** Makes what an earlier process or session has left durable. To be awaited before the first write. Errors: `io-error`. */
  makeDurable(): Promise<void>;
  /** The barrier before `epoch` is durable: what comes belongs to `epoch`. */
  openEpoch(epoch: number): void;
  /** The newest barrier that can still be committed has changed. */
  setNewestBarrier(epoch: number): void;
  /** `epoch` is committed: the view shows it. No reader may be under way. */
  keepThrough(epoch: number): void;
  /** No checkpoint before `floor` is kept any more: frees what only those need. */
  release(floor: number): Freeing;
  /** The kept checkpoint `epoch` is the committed one again. No reader may be under way. */
  rollBack(epoch: number): Freeing;
  /** There is no checkpoint any more: the base is to hold everything that has come, and the overlay nothing. */
  giveUp(): Freeing;
  /**
   * Joins epochs with no barrier of `needed` between them, while there are more than `atMost`, and room for a copy.
   * `exclusively` runs what changes the view's parts while nobody reads or decides. Errors: those of the storage, `overlay-full`.
   */
  join(
    needed: () => readonly number[],
    atMost: number,
    exclusively: (change: () => boolean) => Promise<boolean>,
  ): Promise<void>;

  /** This side is promoted, so nothing is moved any more but by the merge. Resolves when nothing is under way. */
  end(): Promise<void>;
  /** The promotion failed. */
  resume(): void;
  /** The promotion is recorded: what is not committed serves nobody. `isBaseAll`: there is no checkpoint, the base is the disk. */
  dropUncommitted(isBaseAll: boolean): void;
  /** Everything is merged: frees everything, off the event loop. */
  removeBehind(): Promise<void>;
  /** The disk is to have `sizeBytes`. Errors: the storage's. */
  lengthen(sizeBytes: number): void;
  /** What status shows: bytes in each epoch that holds any. */
  describeGenerations(): { epoch: number; bytes: number }[];
  /** Makes everything durable, whatever `durability` promises: for a clean stop. Errors: `io-error`. */
  flush(): Promise<void>;
  close(): void;
}
