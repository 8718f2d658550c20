import assert from "node:assert/strict";
import { ColobusError } from "../proto/errors.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import { ClusterBitmap, intersectsRange } from "../shared/block/cluster-bitmap.ts";
import { clustersToBytes } from "../shared/block/cluster-geometry.ts";
import type { EpochOverlay, EpochView, Freeing } from "./epoch-overlay.ts";
import { Generation } from "./generation.ts";
import type { ReadOriginal } from "./original-copy.ts";
import { hasRoomForCopy, listOverlayEpochs, type OverlayContext } from "./overlay-files.ts";

/** Originals that the device must be waited for are read and saved in pieces of at most this many bytes. */
const SAVE_PIECE_BYTES = 1024 * 1024;

/**
 * Owns the hidden disk of one disk: the originals of what the primary overwrote in the base since the last committed
 * checkpoint, in one generation for each epoch that is not committed. Behind them lie the *kept* generations, of epochs
 * that are committed: they decide the views of earlier checkpoints, and nothing else.
 *
 * The original of a cluster is its content at the last barrier that can still be committed. So a cluster is saved once
 * for each *group* of generations between two such barriers; withdrawing a barrier joins two groups without moving
 * data, because readers take the oldest generation that has the cluster.
 *
 * Order, on which recovery rests: the data file, then the journal, and only then may the base be overwritten. Under
 * `power` each step is fsynced before the next; one pair of fsyncs carries a whole batch.
 */
export class HiddenDisk implements EpochOverlay {
  readonly #context: OverlayContext;
  /** Of committed epochs, oldest first. */
  #kept: Generation[] = [];
  /** Oldest first; the last is the open epoch's. */
  readonly #generations: Generation[] = [];
  /** The newest barrier that can be committed: generations above it are the open group. */
  #groupStart: number;
  #version = 0;
  /** Generations that an earlier process has left, and that may not have reached the disk: it may have died before its fsync. */
  #undurable: readonly Generation[] = [];
  /** An fsync of these has failed, and may have lost what readers still see. */
  #mustRewrite = false;
  #makingDurable: Promise<void> | undefined;
  readonly #scratch: Buffer;

  private constructor(context: OverlayContext, groupStart: number) {
    this.#context = context;
    this.#groupStart = groupStart;
    const { clusterCount, clusterBytes } = context.geometry;
    this.#scratch = Buffer.allocUnsafeSlow(Math.min(clusterCount * clusterBytes, SAVE_PIECE_BYTES));
  }

  /**
   * Reads back the generations on disk. Those of epochs up to `floor`, the oldest checkpoint that is kept, are removed.
   * `newestBarrier` is the newest prepared epoch, or `committed` where none is.
   */
  static recover(
    context: OverlayContext,
    epochs: {
      readonly floor?: number;
      readonly committed: number;
      readonly newestBarrier: number;
      readonly open: number;
      /** An fsync may have failed in the process that left them. */
      readonly mayHaveLostWrites?: boolean;
    },
  ): HiddenDisk {
    const disk = new HiddenDisk(context, epochs.newestBarrier);
    for (const epoch of listOverlayEpochs(context.storage, context.directory, "generation")) {
      if (epoch <= (epochs.floor ?? epochs.committed)) new Generation(context, epoch).files.removeFiles();
      else {
        const generation = Generation.tryRecover(context, epoch);
        if (generation === undefined) continue;
        if (epoch <= epochs.committed) disk.#kept.push(generation);
        else disk.#generations.push(generation);
      }
    }
    if (context.durability === "power") {
      disk.#undurable = [...disk.#kept, ...disk.#generations];
      disk.#mustRewrite = epochs.mayHaveLostWrites ?? false;
    }
    disk.openEpoch(Math.max(epochs.open, disk.#generations.at(-1)?.epoch ?? 0));
    return disk;
  }

  /**
   * Makes what was recovered durable, under `power`: the base may be overwritten where an original is held, and until
   * now it may be held in the page cache alone. To be awaited before the first write. Errors: `io-error`.
   */
  makeDurable(): Promise<void> {
    // A session that was replaced meanwhile may have begun it: one at a time.
    this.#makingDurable ??= this.#makeDurable().finally(() => {
      this.#makingDurable = undefined;
    });
    return this.#makingDurable;
  }

  async #makeDurable(): Promise<void> {
    for (const generation of this.#undurable) {
      if (!this.#generations.includes(generation) && !this.#kept.includes(generation)) continue;
      // A failed fsync is told once, and the next one succeeds without what that one has lost.
      if (this.#mustRewrite) {
        await generation.rewrite(this.#scratch);
        generation.files.journal.distrust();
      }
      try {
        await generation.files.syncData();
      } catch (error) {
        this.#mustRewrite = true;
        throw error;
      }
      await generation.files.syncJournal();
    }
    this.#undurable = [];
    this.#mustRewrite = false;
  }

  lengthen(sizeBytes: number): void {
    for (const { files } of [...this.#kept, ...this.#generations]) files.lengthen(sizeBytes);
  }

  /** Generations that hold anything, oldest first. */
  generations(): readonly Generation[] {
    return this.#generations;
  }

  get version(): number {
    return this.#version;
  }

  get isEmpty(): boolean {
    return this.#generations.every((generation) => generation.held.isEmpty);
  }

  intersects(first: number, end: number): boolean {
    return this.#generations.some((generation) => intersectsRange(generation.held, first, end));
  }

  find(cluster: number): Generation | undefined {
    for (const generation of this.#generations) if (generation.held.has(cluster)) return generation;
    return undefined;
  }

  union(): ClusterBitmap {
    return ClusterBitmap.orMany(this.#generations.map((generation) => generation.held));
  }

  /** The originals that decide what the disk was at the checkpoint of `epoch`, which is kept. */
  asOf(epoch: number): EpochView {
    return new EarlierOriginals(this, () => this.#newerThan(epoch));
  }

  /** What was overwritten since a checkpoint is what its view has from here. */
  changedSince(epoch: number): ClusterBitmap {
    return ClusterBitmap.orMany(this.#newerThan(epoch).map((generation) => generation.held));
  }

  /** Storage of all generations, and of the kept ones among them, in bytes. */
  get allocatedBytes(): number {
    return allocatedBytes(this.#generations) + this.keptBytes;
  }

  get storage(): { readonly hiddenBytes: number; readonly bufferBytes: number } {
    return { hiddenBytes: this.allocatedBytes, bufferBytes: 0 };
  }

  get keptBytes(): number {
    return allocatedBytes(this.#kept);
  }

  /** Adds to `runs` the clusters of [first, end) whose originals a write of the open epoch must save first. */
  collectUnsaved(first: number, end: number, runs: ClusterBitmap): void {
    if (end - first === 1) {
      if (!this.#isSaved(first)) runs.add(first);
      return;
    }
    const range = ClusterBitmap.fromRange(first, end);
    for (const generation of this.#generations) {
      if (generation.epoch > this.#groupStart) range.andNotInPlace(generation.held);
    }
    runs.orInPlace(range);
  }

  /**
   * Saves the originals of `clusters` into the open generation and names them in its journal. When the promise
   * resolves, the base may be overwritten there. `clusters` must be unsaved, and the base unchanged meanwhile.
   * Errors: `overlay-full` where the overlays' file system has no room; nothing is lost then.
   */
  save(base: DiskImage, clusters: ClusterBitmap): Promise<void> {
    return this.saveFrom((target, offset) => base.read(target, offset), clusters);
  }

  /** As `save`, with the originals from elsewhere. */
  async saveFrom(read: ReadOriginal, clusters: ClusterBitmap): Promise<void> {
    if (clusters.isEmpty) return;
    const generation = this.#generations.at(-1);
    assert(generation !== undefined && generation.epoch > this.#groupStart, "an epoch is open");
    await generation.save(clusters, read, this.#scratch);
    this.#version += 1;
  }

  /** The newest epoch of which originals are held; 0 while none are. */
  get newestEpoch(): number {
    return this.#generations.findLast((generation) => !generation.held.isEmpty)?.epoch ?? 0;
  }

  /** Originals that no barrier stands below belong to no checkpoint: a first sync that never came to its end left them. */
  beginWithoutBarrier(): undefined {
    this.#removeAll();
  }

  /** Frees the storage of the kept generations up to `floor`, which it takes out at once. */
  release(floor: number): Freeing {
    return freeing(this.#dropKept(floor));
  }

  /** The base has everything already. */
  giveUp(): Freeing {
    return freeing(this.#dropAll());
  }

  /** Removes every generation. The view of the disk is the base then. */
  #removeAll(): void {
    for (const generation of this.#dropAll()) generation.files.removeFiles();
  }

  /** Takes every generation out, and returns them, as `#dropKept` does. */
  #dropAll(): Generation[] {
    return [...this.#dropKept(Infinity), ...this.#generations.splice(0)];
  }

  /** The barrier of the open epoch is durable: later originals go to a generation of `epoch`. */
  openEpoch(epoch: number): void {
    assert(epoch >= this.newestEpoch, "epochs only grow");
    // A generation that holds nothing need not be kept beside the new one.
    while (this.#generations.at(-1)?.held.isEmpty === true) removeIfPossible(this.#generations.pop());
    if (this.#generations.at(-1)?.epoch === epoch) return;
    this.#generations.push(new Generation(this.#context, epoch));
  }

  /** Sets the newest barrier that can still be committed, after it was prepared, or others were withdrawn. */
  setNewestBarrier(epoch: number): void {
    this.#groupStart = epoch;
  }

  /** `epoch` is committed: the generations up to it decide the views of earlier checkpoints only. */
  keepThrough(epoch: number): void {
    const open = this.#generations.findIndex((generation) => generation.epoch > epoch);
    this.#version += 1;
    this.#kept.push(...this.#generations.splice(0, open < 0 ? this.#generations.length : open));
  }

  /**
   * Takes the kept generations up to `floor` out, in constant time, and returns them: the caller frees their files
   * behind the path.
   */
  #dropKept(floor: number): Generation[] {
    const needed = this.#kept.findIndex((generation) => generation.epoch > floor);
    this.#version += 1;
    return this.#kept.splice(0, needed < 0 ? this.#kept.length : needed);
  }

  /** The kept checkpoint `epoch` is the committed one again: what was overwritten since decides its view. */
  rollBack(epoch: number): Freeing {
    this.#generations.unshift(...this.#kept.filter((generation) => generation.epoch > epoch));
    this.#kept = this.#kept.filter((generation) => generation.epoch <= epoch);
    this.#groupStart = epoch;
    this.#version += 1;
    return freeing([]);
  }

  async join(
    needed: () => readonly number[],
    atMost: number,
    exclusively: (change: () => boolean) => Promise<boolean>,
  ): Promise<void> {
    for (;;) {
      const pair = this.#findJoinable(needed(), atMost);
      if (pair === undefined || !hasRoomForCopy(this.#context, pair.newer.files.allocatedBytes)) return;
      await this.#copyOriginals(pair);
      // Readers of the view may be in the generation that goes: they are let out first.
      if (await exclusively(() => this.#tryTakeOut(pair))) await pair.newer.files.removeBehind();
    }
  }

  /** Nothing is moved behind the path. */
  end(): Promise<void> {
    return Promise.resolve();
  }

  resume(): void {
    // As `end`.
  }

  /** What is not committed lies in the base, and the originals lead back from there. */
  dropUncommitted(isBaseAll: boolean): void {
    if (isBaseAll) this.#removeAll();
  }

  async removeBehind(): Promise<void> {
    await freeing(this.#dropAll())();
  }

  /**
   * Two neighbouring closed generations with no barrier of `needed` between them, while there are more than `atMost`
   * generations: withdrawn checkpoints, and old ones that clients have open, would pile them up. undefined when nothing
   * is to be joined.
   */
  #findJoinable(needed: readonly number[], atMost: number): { older: Generation; newer: Generation } | undefined {
    if (this.#kept.length + this.#generations.length <= atMost) return undefined;
    const closed = [...this.#kept, ...this.#generations.slice(0, -1)];
    for (const [index, newer] of closed.entries()) {
      const older = closed[index - 1];
      if (older !== undefined && !needed.some((epoch) => older.epoch <= epoch && epoch < newer.epoch)) {
        return { older, newer };
      }
    }
    return undefined;
  }

  /** Copies into `older` the originals that only `newer` has. Both stay readable, and say the same, throughout. */
  async #copyOriginals({ older, newer }: { older: Generation; newer: Generation }): Promise<void> {
    const missing = newer.held.clone();
    missing.andNotInPlace(older.held);
    const { data } = newer.files;
    await older.save(
      missing,
      (target, offset) => (data.tryRead(target, offset) ? undefined : data.read(target, offset)),
      Buffer.allocUnsafeSlow(SAVE_PIECE_BYTES),
    );
  }

  /** Takes `newer` out, all of whose originals `older` has. False when a commit has dropped either meanwhile. */
  #tryTakeOut({ older, newer }: { older: Generation; newer: Generation }): boolean {
    const list = this.#kept.includes(newer) ? this.#kept : this.#generations;
    const at = list.indexOf(newer);
    if (at < 0 || !list.includes(older)) return false;
    list.splice(at, 1);
    this.#version += 1;
    return true;
  }

  /** What status shows: bytes of originals in each generation that holds any. */
  describeGenerations(): { epoch: number; bytes: number }[] {
    return [...this.#kept, ...this.#generations]
      .filter((generation) => !generation.held.isEmpty)
      .map(({ epoch, held }) => ({ epoch, bytes: clustersToBytes(this.#context.geometry, held.size) }));
  }

  /** Makes everything saved so far durable, whatever `durability` promises: for a clean stop. */
  async flush(): Promise<void> {
    for (const { files } of [...this.#kept, ...this.#generations]) {
      if (!files.exists) continue;
      await files.syncData();
      await files.syncJournal();
    }
  }

  close(): void {
    for (const generation of [...this.#kept, ...this.#generations]) generation.files.close();
  }

  #newerThan(epoch: number): Generation[] {
    return [...this.#kept.filter((generation) => generation.epoch > epoch), ...this.#generations];
  }

  #isSaved(cluster: number): boolean {
    for (let index = this.#generations.length - 1; index >= 0; index -= 1) {
      const generation = this.#generations[index];
      if (generation === undefined || generation.epoch <= this.#groupStart) return false;
      if (generation.held.has(cluster)) return true;
    }
    return false;
  }
}

/** A view of an earlier checkpoint: the generations above it, in a list that is made anew when any has changed. */
class EarlierOriginals implements EpochView {
  readonly #hidden: HiddenDisk;
  readonly #select: () => Generation[];
  #generations: Generation[] = [];
  #selectedAt = -1;

  constructor(hidden: HiddenDisk, select: () => Generation[]) {
    this.#hidden = hidden;
    this.#select = select;
  }

  get version(): number {
    return this.#hidden.version;
  }

  intersects(first: number, end: number): boolean {
    return this.#present().some((generation) => intersectsRange(generation.held, first, end));
  }

  find(cluster: number): Generation | undefined {
    for (const generation of this.#present()) if (generation.held.has(cluster)) return generation;
    return undefined;
  }

  union(): ClusterBitmap {
    return ClusterBitmap.orMany(this.#present().map((generation) => generation.held));
  }

  #present(): readonly Generation[] {
    if (this.#selectedAt !== this.#hidden.version) {
      this.#generations = this.#select();
      this.#selectedAt = this.#hidden.version;
    }
    return this.#generations;
  }
}

function freeing(dropped: readonly Generation[]): Freeing {
  return async () => {
    for (const { files } of dropped) await files.removeBehind();
  };
}

function allocatedBytes(generations: readonly Generation[]): number {
  return generations.reduce((sum, { files }) => sum + files.allocatedBytes, 0);
}

/**
 * Removes the files of a generation that holds nothing. Where that fails they stay, and do no harm: should a later
 * process find originals in them after all, they are those of the epoch. The barrier that opens an epoch must not fail.
 */
function removeIfPossible(generation: Generation | undefined): void {
  try {
    generation?.files.removeFiles();
  } catch (error) {
    if (!(error instanceof ColobusError)) throw error;
  }
}
