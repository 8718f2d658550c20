import assert from "node:assert/strict";
import { asColobusError, type ColobusError } from "../../proto/errors.ts";
import { SETTLE_SOON_MS } from "../../proto/limits.ts";
import type { Pending } from "../block/block-device.ts";
import { ClusterBitmap, clusterRuns, type ClusterRun } from "../block/cluster-bitmap.ts";
import { firstClusterOf, growGeometry, type ClusterGeometry } from "../block/cluster-geometry.ts";
import type { Clock } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import type { Random } from "../host/random.ts";
import { RepeatedWork } from "../host/repeated-work.ts";
import type { Storage } from "../host/storage.ts";
import type { StateFile } from "../journal/state-file.ts";
import { DirtyMap } from "./dirty-map.ts";
import { peerEntryOf, withPeerEntry } from "./peer-slots.ts";
import { DirtyTracker, type DirtyTrackerOptions, type SettleSource } from "./dirty-tracker.ts";

export interface TrackedDisk {
  readonly geometry: ClusterGeometry;
  /** Where the disk's bitmap lies. */
  readonly directory: string;
}

export interface PeerTrackingOptions {
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly state: StateFile;
  /** Which of the record's peers this is about. */
  readonly slot: number;
  readonly disks: readonly TrackedDisk[];
  readonly extentBytes: number;
  readonly settleEveryMs: number;
  /** Tells that the bitmaps cannot be made durable, and later that they are again. */
  readonly emit: (type: "state-error" | "state-mended", data: Record<string, unknown>) => void;
  /** From which length on a bitmap's file may be written anew; undefined: DIRTY_FILE_MIN_BYTES. */
  readonly dirtyFileMinBytes?: number | undefined;
}

/** What the write path and the sync need to know of the work that is under way. */
export interface TrackingSource {
  /** Clusters of the disk that were sent to the peer and are not known to be stable there. */
  readonly inFlight: (disk: number) => ClusterBitmap;
  /** Whether a change of any byte of the range is under way on the local image. */
  readonly isBusy: (disk: number, offset: number, length: number) => boolean;
  /** Makes everything written to the local image so far durable. */
  readonly flush: (disk: number) => Promise<void>;
}

/**
 * Owns what is known of the difference between this side's disks and one peer's copy of them: for each disk the clusters
 * that the peer may lack. The state record names that peer (`tracks` of its slot); for any other the bitmaps prove nothing.
 *
 * While no peer is tracked, what is written is remembered in memory only: the first session with a peer sends everything.
 * A bitmap that cannot be made durable is given up for the time being, in the record first, so that no later process
 * believes it; in memory it goes on, and is made durable again when that is possible. So nothing is changed on a disk
 * while the record names a peer for which no bitmap is written.
 */
export class PeerTracking {
  readonly #options: PeerTrackingOptions;
  #disks: readonly TrackedDisk[];
  #sets: DirtyMap[];
  #trackers: readonly DirtyTracker[] | undefined;
  /** The peer that the sets count from, durable or not. */
  #peer: string | null;
  #source: TrackingSource | undefined;
  readonly #settling: RepeatedWork;
  #losing: Promise<void> | undefined;
  /** Whether the sets have everything that was written since they were opened: nothing of it was sent, or forgotten, since. */
  #hasEverything: boolean;
  /** Whether the record may name a peer. */
  #isNamed: boolean;
  #isClosed = false;
  /** The bitmaps, and whom they are about, change once after the other. */
  #changing: Promise<void> = Promise.resolve();

  private constructor(
    options: PeerTrackingOptions,
    peer: string | null,
    trackers: readonly DirtyTracker[] | undefined,
  ) {
    this.#options = options;
    this.#disks = options.disks;
    this.#peer = peer;
    this.#trackers = trackers;
    this.#isNamed = trackers !== undefined || peerEntryOf(options.state.record, options.slot).tracks !== null;
    this.#hasEverything = !this.#isNamed;
    this.#sets = trackers === undefined ? options.disks.map(({ geometry }) => new DirtyMap(geometry)) : [...trackers];
    this.#settling = new RepeatedWork({
      clock: options.clock,
      everyMs: options.settleEveryMs,
      work: () => this.#inTurn(() => this.#settle()),
      failed: (error) => options.log.warn({ reason: asColobusError(error) }, "the dirty bitmap could not be settled"),
    });
  }

  /** What an earlier process has left. A bitmap that cannot be read is none: everything will be sent. */
  static open(options: PeerTrackingOptions): PeerTracking {
    const { tracks } = peerEntryOf(options.state.record, options.slot);
    if (tracks === null) {
      const { storage } = options;
      for (const { directory } of options.disks) DirtyTracker.remove({ storage, directory });
      return new PeerTracking(options, null, undefined);
    }
    const trackers: DirtyTracker[] = [];
    for (const disk of options.disks) {
      const tracker = DirtyTracker.open(trackerOptions(options, disk));
      if (tracker === undefined) {
        options.log.warn({ directory: disk.directory }, "the dirty bitmap cannot be read: everything will be sent");
        for (const opened of trackers) opened.close();
        return new PeerTracking(options, null, undefined);
      }
      trackers.push(tracker);
    }
    return new PeerTracking(options, tracks, trackers);
  }

  /**
   * Bitmaps that count from the copy of `peer`, with `clusters` dirty. They are durable when the promise resolves; the
   * caller then records whom they are about.
   */
  static async create(
    options: PeerTrackingOptions,
    peer: string,
    clusters: readonly ClusterBitmap[],
  ): Promise<PeerTracking> {
    const trackers: DirtyTracker[] = [];
    for (const [index, disk] of options.disks.entries()) {
      trackers.push(await DirtyTracker.create(trackerOptions(options, disk), clusters[index] ?? "clean"));
    }
    return new PeerTracking(options, peer, trackers);
  }

  /** The peer whose copy the bitmaps count from; null: nothing is known of any. */
  get peer(): string | null {
    return this.#peer;
  }

  /**
   * Whether a copy that was equal when this was opened lacks no more than the sets name: until a peer is sent something, or
   * everything, and until it is forgotten.
   */
  get hasEverything(): boolean {
    return this.#hasEverything;
  }

  /** What the peer takes is removed from the sets from here on: it is the only one that they are about. */
  paired(): void {
    this.#hasEverything = false;
  }

  get isClean(): boolean {
    return this.#sets.every((set) => set.isEmpty);
  }

  get bytes(): number {
    return this.#sets.reduce((sum, set) => sum + set.bytes, 0);
  }

  /** The clusters of one disk that the peer may lack. What is added to it lies in a range that `mark` was called for. */
  dirty(disk: number): DirtyMap {
    const set = this.#sets[disk];
    if (set === undefined) throw new RangeError(`there is no disk ${disk}`);
    return set;
  }

  /** Begins to settle what is idle, until `close`. */
  start(source: TrackingSource): void {
    this.#source = source;
    this.#settling.start();
  }

  /**
   * To be awaited before the local image is changed in a range: from then on a crash leaves the range dirty.
   * undefined at once in the steady state. Errors: `io-error` when neither the bitmap nor the record can be written.
   */
  mark(disk: number, offset: number, length: number): Pending {
    const tracker = this.#trackers?.[disk];
    if (tracker === undefined) return this.#isNamed ? this.#markUnnamed(disk, offset, length) : this.#losing;
    let pending: Pending;
    try {
      pending = tracker.mark(offset, length);
    } catch (error) {
      return this.#giveUp(error);
    }
    return pending?.catch((error: unknown) => this.#giveUp(error));
  }

  /**
   * From here on the bitmaps count from the copy of `peer`: with everything dirty (`full`), or with what was written
   * since this was opened (`assumed`), where the sets still have all of that; else with everything as well. Or with these
   * clusters, by disk, beside what is dirty: of another peer nothing is, then. Durable when the promise resolves.
   * Errors: `io-error`, `out-of-space`.
   */
  begin(peer: string, extent: "full" | "assumed" | readonly ClusterBitmap[]): Promise<void> {
    return this.#inTurn(() => this.#begin(peer, extent));
  }

  async #begin(peer: string, extent: "full" | "assumed" | readonly ClusterBitmap[]): Promise<void> {
    await this.#withdraw(); // what an earlier process has left of some disks is not to be believed beside new ones of others
    if (typeof extent !== "string") {
      this.#hasEverything = false;
      if (this.#trackers === undefined) await this.#makeDurable(extent);
      else for (const [disk, clusters] of extent.entries()) await this.#add(disk, [...clusterRuns(clusters)]);
    } else {
      if (this.#trackers === undefined) await this.#makeDurable();
      if (extent === "full" || !this.#hasEverything) {
        this.#hasEverything = false;
        for (const [index, { geometry }] of this.#disks.entries()) {
          await this.#add(index, [{ first: 0, end: geometry.clusterCount }]);
        }
      }
    }
    await this.#record(peer);
    this.#peer = peer;
  }

  /** Adds what the peer knows to differ. Durable when the promise resolves. */
  add(disk: number, runs: readonly ClusterRun[]): Promise<void> {
    return this.#inTurn(() => this.#add(disk, runs));
  }

  async #add(disk: number, runs: readonly ClusterRun[]): Promise<void> {
    const tracker = this.#trackers?.[disk];
    if (tracker !== undefined) await tracker.addRuns(runs);
    else for (const { first, end } of runs) this.dirty(disk).addClusters(first, end);
  }

  /**
   * The disk has `sizeBytes` from now on. What is behind its former end counts as different, for this process and, since the
   * files say for which size they were begun, for every later one.
   */
  grow(disk: number, sizeBytes: number): void {
    const geometry = this.#disks[disk]?.geometry;
    if (geometry === undefined || sizeBytes <= geometry.sizeBytes) return;
    const first = firstClusterOf(geometry, geometry.sizeBytes);
    growGeometry(geometry, sizeBytes);
    const tracker = this.#trackers?.[disk];
    if (tracker !== undefined) tracker.addGrown(first);
    // A secondary that tracks nobody has changed nothing by itself.
    else if (this.#peer !== null || this.#options.state.record.role === "Primary")
      this.dirty(disk).addClusters(first, geometry.clusterCount);
  }

  /** Disks have come into being that it was opened without: these are all. It is about nobody, and none has been written to. */
  made(disks: readonly TrackedDisk[]): void {
    assert(this.#peer === null && this.#trackers === undefined, "whoever was promoted or rolled back has all disks");
    this.#disks = disks;
    this.#sets = disks.map(({ geometry }) => new DirtyMap(geometry));
  }

  /** The bitmaps are about nobody any more: another peer's begin behind that. Errors: `io-error`; nothing is forgotten then. */
  forget(): Promise<void> {
    return this.#inTurn(() => this.#forget());
  }

  async #forget(): Promise<void> {
    const peer = this.#peer;
    this.#peer = null;
    this.#hasEverything = false;
    try {
      await this.#record(null);
    } catch (error) {
      this.#peer = peer;
      throw error;
    }
    const trackers = this.#trackers ?? [];
    this.#trackers = undefined;
    this.#sets = this.#disks.map(({ geometry }) => new DirtyMap(geometry));
    for (const tracker of trackers) {
      await tracker.settled(); // a write may wait for its mark
      await tracker.forget();
    }
  }

  /** Much has become equal: it is settled soon. */
  settleSoon(): void {
    this.#settling.soon(SETTLE_SOON_MS);
  }

  /**
   * For a clean stop, with nothing under way: what is left dirty is exact, and durable. Errors: those of the image and of
   * the storage; the files are closed, and whoever reads them finds more dirty than need be.
   */
  async close(): Promise<void> {
    await this.#settling.stop();
    await this.#inTurn(() => this.#close());
  }

  async #close(): Promise<void> {
    this.#isClosed = true;
    const source = this.#source;
    let fault: ColobusError | undefined;
    for (const [disk, tracker] of (this.#trackers ?? []).entries()) {
      try {
        if (source !== undefined) await tracker.settleAll(settleSource(source, disk));
      } catch (error) {
        fault ??= asColobusError(error);
      }
      // A write that waits for its mark is refused after it: the mark is no less to be made.
      await tracker.settled();
      tracker.close();
    }
    if (fault !== undefined) throw fault;
  }

  /**
   * New bitmaps over everything, and in memory what the sets hold at the moment at which they take their place. Where
   * `known` is given, and nothing is written meanwhile: over that and what the sets hold, and no more.
   */
  async #makeDurable(known?: readonly ClusterBitmap[]): Promise<void> {
    const trackers: DirtyTracker[] = [];
    const setOf = (disk: number): ClusterBitmap => this.dirty(disk).dirtyClusters();
    try {
      for (const [index, disk] of this.#disks.entries()) {
        const begun =
          known === undefined ? "all-dirty" : ClusterBitmap.orMany([setOf(index), ...known.slice(index, index + 1)]);
        trackers.push(await DirtyTracker.create(trackerOptions(this.#options, disk), begun));
      }
    } catch (error) {
      for (const tracker of trackers) tracker.close();
      throw error;
    }
    for (const [index, tracker] of trackers.entries()) {
      if (known === undefined) tracker.removeClusters(0, this.#disks[index]?.geometry.clusterCount ?? 0);
      tracker.addBitmap(setOf(index));
    }
    this.#trackers = trackers;
    this.#sets = [...trackers];
  }

  /** As `mark`, where the record names a peer whose bitmaps could not be read. */
  async #markUnnamed(disk: number, offset: number, length: number): Promise<void> {
    await this.#inTurn(() => this.#withdraw());
    await this.mark(disk, offset, length); // bitmaps may have been made meanwhile
  }

  /** Without bitmaps the record is to name nobody. */
  async #withdraw(): Promise<void> {
    if (this.#trackers === undefined && this.#isNamed) await this.#record(null);
  }

  /** The bitmaps cannot be made durable: no later process may believe them. */
  #giveUp(thrown: unknown): Promise<void> {
    this.#losing ??= this.#inTurn(() => this.#lose(thrown)).finally(() => {
      this.#losing = undefined;
    });
    return this.#losing;
  }

  async #lose(thrown: unknown): Promise<void> {
    const trackers = this.#trackers;
    // They were forgotten meanwhile, or whoever waits for the mark is refused behind it.
    if (trackers === undefined || this.#isClosed) return;
    this.#options.emit("state-error", asColobusError(thrown).toJSON());
    await this.#record(null);
    this.#sets = this.#sets.map((set, index) => {
      const map = new DirtyMap(this.#disks[index]?.geometry ?? missing());
      map.addBitmap(set.dirtyClusters());
      return map;
    });
    this.#trackers = undefined;
    for (const tracker of trackers) {
      await tracker.settled(); // other writes may wait for their marks
      tracker.close();
    }
  }

  async #record(tracks: string | null): Promise<void> {
    const { state, slot } = this.#options;
    if (tracks !== null) this.#isNamed = true;
    await state.update((record) =>
      peerEntryOf(record, slot).tracks === tracks ? record : withPeerEntry(record, slot, { tracks }),
    );
    if (tracks === null) this.#isNamed = false;
  }

  #inTurn(change: () => Promise<void>): Promise<void> {
    const result = this.#changing.then(change);
    this.#changing = result.catch(() => undefined); // the caller has the error
    return result;
  }

  async #settle(): Promise<void> {
    const source = this.#source;
    if (source === undefined) return;
    if (this.#trackers === undefined) {
      if (this.#peer === null) return;
      // They were given up, and may be written again.
      await this.#makeDurable();
      await this.#record(this.#peer);
      this.#options.emit("state-mended", {});
      return;
    }
    for (const [disk, tracker] of this.#trackers.entries()) {
      await tracker.settle(settleSource(source, disk));
    }
  }
}

function trackerOptions(options: PeerTrackingOptions, disk: TrackedDisk): DirtyTrackerOptions {
  const { storage, random, state, extentBytes, dirtyFileMinBytes } = options;
  const { directory, geometry } = disk;
  const { durability } = state.record;
  return { storage, random, directory, geometry, extentBytes, durability, fileMinBytes: dirtyFileMinBytes };
}

function settleSource(source: TrackingSource, disk: number): SettleSource {
  return {
    inFlight: () => source.inFlight(disk),
    isBusy: (offset, length) => source.isBusy(disk, offset, length),
    flush: () => source.flush(disk),
  };
}

function missing(): never {
  throw new RangeError("there is no such disk");
}
