import assert from "node:assert/strict";
import { WHOLE_CLUSTER_MASK, type JournalEntry } from "../proto/cluster-journal-format.ts";
import type { Image } from "../shared/block/image.ts";
import { clusterEndOffset, clustersToBytes } from "../shared/block/cluster-geometry.ts";
import { applyJournalEntry, ClusterBitmap, clusterRuns } from "../shared/block/cluster-bitmap.ts";
import { isZero } from "../shared/block/zeroes.ts";
import { listOverlayEpochs, OverlayFiles, type OverlayContext } from "./overlay-files.ts";

/** Originals are read and saved in pieces of at most this many bytes. */
const SAVE_PIECE_BYTES = 1024 * 1024;

/** The originals of the clusters that one epoch overwrote first. */
export interface Generation {
  readonly epoch: number;
  readonly held: ClusterBitmap;
  readonly files: OverlayFiles;
}

/**
 * Owns the hidden disk of one disk: the originals of what the primary overwrote in the base since the last committed
 * checkpoint, in one generation for each epoch that is not committed.
 *
 * The original of a cluster is its content at the last barrier that can still be committed. So a cluster is saved once
 * for each *group* of generations between two such barriers; withdrawing a barrier joins two groups without moving
 * data, because readers take the oldest generation that has the cluster.
 *
 * Order, on which recovery rests: the data file, then the journal, and only then may the base be overwritten. Under
 * `power` each step is fsynced before the next; one pair of fsyncs carries a whole batch.
 */
export class HiddenDisk {
  readonly #context: OverlayContext;
  /** Oldest first; the last is the open epoch's. */
  readonly #generations: Generation[] = [];
  /** The newest barrier that can be committed: generations above it are the open group. */
  #groupStart: number;
  #version = 0;
  readonly #scratch = Buffer.allocUnsafeSlow(SAVE_PIECE_BYTES);

  private constructor(context: OverlayContext, groupStart: number) {
    this.#context = context;
    this.#groupStart = groupStart;
  }

  /**
   * Reads back the generations on disk. Those of epochs up to `committed` are removed.
   * `newestBarrier` is the newest prepared epoch, or `committed` where none is.
   */
  static recover(
    context: OverlayContext,
    epochs: { readonly committed: number; readonly newestBarrier: number; readonly open: number },
  ): HiddenDisk {
    const disk = new HiddenDisk(context, epochs.newestBarrier);
    for (const epoch of listOverlayEpochs(context.storage, context.directory, "generation")) {
      const files = new OverlayFiles(context, "generation", epoch);
      const held = new ClusterBitmap();
      if (epoch <= epochs.committed) files.removeFiles();
      else if (files.recover((entry) => applyJournalEntry(held, entry))) disk.#generations.push({ epoch, held, files });
    }
    disk.openEpoch(Math.max(epochs.open, disk.#generations.at(-1)?.epoch ?? 0));
    return disk;
  }

  /** Generations that hold anything, oldest first. */
  generations(): readonly Generation[] {
    return this.#generations;
  }

  /** Changes whenever a cluster is saved or a generation is dropped: a reader of the base compares it around its read. */
  get version(): number {
    return this.#version;
  }

  get isEmpty(): boolean {
    return this.#generations.every((generation) => generation.held.isEmpty);
  }

  /** Whether any cluster of [first, end) is held. */
  intersects(first: number, end: number): boolean {
    return this.#generations.some((generation) => generation.held.intersectsWithRange(first, end));
  }

  /** The generation that has the cluster as it was at the committed checkpoint; undefined: the base has. */
  find(cluster: number): Generation | undefined {
    for (const generation of this.#generations) if (generation.held.has(cluster)) return generation;
    return undefined;
  }

  /** Every cluster that any generation holds. The caller owns the bitmap. */
  union(): ClusterBitmap {
    return ClusterBitmap.orMany(this.#generations.map((generation) => generation.held));
  }

  get allocatedBytes(): number {
    return this.#generations.reduce((sum, generation) => sum + generation.files.allocatedBytes, 0);
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
  async save(base: Image, clusters: ClusterBitmap): Promise<void> {
    if (clusters.isEmpty) return;
    const generation = this.#generations.at(-1);
    assert(generation !== undefined && generation.epoch > this.#groupStart, "an epoch is open");
    const { geometry } = this.#context;
    const entries: JournalEntry[] = [];
    for (const run of clusterRuns(clusters)) {
      entries.push({
        firstCluster: run.first,
        clusterCount: run.end - run.first,
        mask: WHOLE_CLUSTER_MASK,
        operation: "held",
      });
      const endOffset = clusterEndOffset(geometry, run.end);
      for (let at = run.first * geometry.clusterBytes; at < endOffset; at += SAVE_PIECE_BYTES) {
        const piece = this.#scratch.subarray(0, Math.min(SAVE_PIECE_BYTES, endOffset - at));
        const reading = base.read(piece, at);
        if (reading !== undefined) await reading;
        this.#saveData(generation, piece, at);
      }
    }
    if (this.#context.durability === "power") await generation.files.syncData();
    generation.files.journal.append(entries);
    if (this.#context.durability === "power") await generation.files.syncJournal();
    generation.held.orInPlace(clusters);
    this.#version += 1;
  }

  /** The newest epoch of which originals are held; 0 while none are. */
  get newestEpoch(): number {
    return this.#generations.findLast((generation) => !generation.held.isEmpty)?.epoch ?? 0;
  }

  /** Removes every generation. The view of the disk is the base then. */
  removeAll(): void {
    for (const generation of this.dropThrough(Infinity)) generation.files.removeFiles();
  }

  /** The barrier of the open epoch is durable: later originals go to a generation of `epoch`. */
  openEpoch(epoch: number): void {
    // A generation that holds nothing need not be kept beside the new one.
    while (this.#generations.at(-1)?.held.isEmpty === true) this.#generations.pop()?.files.removeFiles();
    assert(epoch >= this.newestEpoch, "epochs only grow");
    if (this.#generations.at(-1)?.epoch === epoch) return;
    const files = new OverlayFiles(this.#context, "generation", epoch);
    this.#generations.push({ epoch, held: new ClusterBitmap(), files });
  }

  /** Sets the newest barrier that can still be committed, after it was prepared, or others were withdrawn. */
  setNewestBarrier(epoch: number): void {
    this.#groupStart = epoch;
  }

  /**
   * Takes the generations up to `epoch` out of the view, in constant time, and returns them: the caller frees their
   * files behind the path.
   */
  dropThrough(epoch: number): Generation[] {
    const kept = this.#generations.findIndex((generation) => generation.epoch > epoch);
    this.#version += 1;
    return this.#generations.splice(0, kept < 0 ? this.#generations.length : kept);
  }

  /** What status shows: bytes of originals in each generation that holds any. */
  describeGenerations(): { epoch: number; bytes: number }[] {
    return this.#generations
      .filter((generation) => !generation.held.isEmpty)
      .map(({ epoch, held }) => ({ epoch, bytes: clustersToBytes(this.#context.geometry, held.size) }));
  }

  close(): void {
    for (const generation of this.#generations) generation.files.close();
  }

  #isSaved(cluster: number): boolean {
    for (let index = this.#generations.length - 1; index >= 0; index -= 1) {
      const generation = this.#generations[index];
      if (generation === undefined || generation.epoch <= this.#groupStart) return false;
      if (generation.held.has(cluster)) return true;
    }
    return false;
  }

  /** Writes the clusters of `piece` that are not all zeroes to the data file, adjacent ones together. */
  #saveData(generation: Generation, piece: Buffer, offset: number): void {
    const { clusterBytes } = this.#context.geometry;
    let from = -1;
    for (let at = 0; at <= piece.length; at += clusterBytes) {
      const end = at >= piece.length || isZero(piece.subarray(at, at + clusterBytes));
      if (end && from >= 0) {
        generation.files.data.write(piece.subarray(from, Math.min(at, piece.length)), offset + from);
        from = -1;
      } else if (!end && from < 0) from = at;
    }
    if (from >= 0) generation.files.data.write(piece.subarray(from), offset + from);
  }
}
