import assert from "node:assert/strict";
import type { StateRecord } from "../proto/state-record.ts";
import type { ColobusError } from "../proto/errors.ts";
import type { SecondaryExport } from "../proto/words.ts";
import { clusterGeometry } from "../shared/block/cluster-geometry.ts";
import { imageUseOf, type DiskImage, type ImageSource } from "../shared/block/disk-image.ts";
import { growRecorded } from "../shared/block/growth.ts";
import { noteLosses } from "../shared/block/lost-writes.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import type { LostSyncs } from "../shared/journal/lost-syncs.ts";
import type { SharedMark } from "../shared/journal/shared-mark.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { BufferHost } from "./block-buffer.ts";
import type { BufferMemory } from "./buffer-memory.ts";
import { overlayContext } from "./overlay-files.ts";
import type { OverlayQuota } from "./overlay-quota.ts";
import { ReplicaDisk } from "./replica-disk.ts";
import type { ViewGate } from "./view-gate.ts";
import { WatchedImage } from "./watched-image.ts";

type RecordedDisk = StateRecord["disks"][number];

export interface ReplicaDisksOptions {
  readonly storage: Storage;
  readonly images: ImageSource;
  /** The mark beside shared disks, where there is a place for it. */
  readonly sharedMark: SharedMark | undefined;
  readonly random: Random;
  readonly state: StateFile;
  readonly stateDirectory: string;
  readonly access: SecondaryExport;
  readonly bootId: string;
  readonly mayHaveLostWrites: boolean;
  readonly gate: ViewGate;
  readonly quota: () => OverlayQuota | undefined;
  readonly lostSyncs: LostSyncs;
  readonly clock: Clock;
  /** Of all block buffers, in mode `mc`. */
  readonly bufferMemory: BufferMemory;
  /** What is committed could not be put into the base of `disk`; it is tried again. */
  readonly applyFailed: (reason: ColobusError, disk: string) => void;
  /** What is committed is in the base of `disk`. */
  readonly applied: (disk: string) => void;
  /** A disk has come into being at the primary's size: the record has it. */
  readonly made: () => void;
  /** Disks have come into being, or have grown: behind `made` or `grown`. */
  readonly disksCreated: () => void;
  /** The disk, by its index in the record, has grown. */
  readonly grown: (disk: number, sizeBytes: number) => void;
}

/** Owns the secondary's disks: opens those whose size is recorded, and makes the others when a primary tells their size. */
export class ReplicaDisks {
  readonly #options: ReplicaDisksOptions;
  #disks: ReplicaDisk[] = [];
  #changing: Promise<unknown> = Promise.resolve();

  constructor(options: ReplicaDisksOptions) {
    this.#options = options;
  }

  /** Those that are there, in the record's order. */
  get all(): readonly ReplicaDisk[] {
    return this.#disks;
  }

  /**
   * Recovers the overlays of all disks. Errors: those of opening the images (`image-missing` …), `state-corrupt`.
   * On an error every file is closed again.
   */
  open(): void {
    try {
      for (const disk of this.#options.state.record.disks) {
        if (disk.sizeBytes !== null) this.#disks.push(this.#openDisk(disk));
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * Makes a disk as long as the primary's is, or is to be, if it is not; one at a time. Durable when the promise resolves.
   * Errors: `usage`, as `clusterGeometry`; `not-supported`; the storage's, after which it is as it was.
   */
  grow(name: string, sizeBytes: number): Promise<void> {
    return this.#change(() => this.#grow(name, sizeBytes));
  }

  #change<T>(change: () => Promise<T>): Promise<T> {
    const changed = this.#changing.then(change);
    this.#changing = changed.catch(() => undefined); // the caller has the error
    return changed;
  }

  async #grow(name: string, sizeBytes: number): Promise<void> {
    const { state, grown, disksCreated } = this.#options;
    const disk = this.#disks.find((candidate) => candidate.name === name);
    assert(disk !== undefined, "the handshake has compared the names");
    const { geometry } = disk.context;
    if (geometry.sizeBytes >= sizeBytes) return;
    clusterGeometry(sizeBytes, geometry.clusterBytes); // a size that is recorded has to be one that a start takes
    await growRecorded(state, name, sizeBytes, { grow: () => disk.lengthen(sizeBytes) });
    disk.grown(sizeBytes);
    grown(
      state.record.disks.findIndex((recorded) => recorded.name === name),
      sizeBytes,
    );
    disksCreated();
  }

  /** Resolves when no disk is being made, or made longer, any more. */
  settled(): Promise<unknown> {
    return this.#changing;
  }

  /** The disks in the primary's order; images that were to be created are, and the record then names their size. */
  prepare(names: readonly string[], sizes: readonly number[]): Promise<readonly ReplicaDisk[]> {
    return this.#change(() => this.#prepare(names, sizes));
  }

  async #prepare(names: readonly string[], sizes: readonly number[]): Promise<readonly ReplicaDisk[]> {
    for (const [index, name] of names.entries()) {
      const recorded = this.#options.state.record.disks.find((disk) => disk.name === name);
      const sizeBytes = sizes[index];
      assert(recorded !== undefined && sizeBytes !== undefined, "the handshake has compared the names");
      if (recorded.sizeBytes === null) await this.#create(recorded, sizeBytes);
      else await this.#grow(name, sizeBytes);
    }
    return names.map((name) => {
      const disk = this.#disks.find((candidate) => candidate.name === name);
      assert(disk !== undefined);
      return disk;
    });
  }

  /** Each is recorded as soon as it is there: that of the next one may fail, and this one is not to be made again then. */
  async #create(recorded: RecordedDisk, sizeBytes: number): Promise<void> {
    const { images, state, made, disksCreated } = this.#options;
    clusterGeometry(sizeBytes, state.record.clusterBytes);
    await images.create(recorded.image, sizeBytes);
    const disk = this.#openDisk({ ...recorded, sizeBytes });
    try {
      await state.update((record) => ({
        ...record,
        disks: record.disks.map((one) => (one.name === recorded.name ? { ...one, sizeBytes } : one)),
      }));
    } catch (error) {
      disk.close();
      throw error;
    }
    // In the record's order, as a start opens them: what counts the disks does so by their place there.
    const order = state.record.disks.map(({ name }) => name);
    this.#disks = [...this.#disks, disk].toSorted((one, other) => order.indexOf(one.name) - order.indexOf(other.name));
    made();
    disksCreated();
  }

  /**
   * Opens shared disks for writing, now that this side is to be their only user; their views go on undisturbed until
   * `take` is called, which no request may be under way for. Errors: those of opening them, after which nothing is open
   * that was not before.
   */
  async openForWriting(): Promise<{ readonly take: () => void; readonly giveUp: () => void }> {
    const { images, state } = this.#options;
    const opened: { disk: ReplicaDisk; image: DiskImage }[] = [];
    const giveUp = (): void => {
      for (const { image } of opened) image.close();
    };
    if (state.record.mode === "shared") {
      try {
        for (const recorded of state.record.disks) {
          const disk = this.#disks.find(({ name }) => name === recorded.name);
          if (disk !== undefined) opened.push({ disk, image: images.open(recorded, imageUseOf(state.record)) });
        }
        for (const { image } of opened) await image.ready?.();
      } catch (error) {
        giveUp();
        throw error;
      }
    }
    return {
      take: () => {
        for (const { disk, image } of opened.splice(0)) disk.replaceBase(image);
      },
      giveUp,
    };
  }

  close(): void {
    for (const disk of this.#disks) disk.close();
  }

  #openBase(disk: RecordedDisk): DiskImage {
    const { images, state, sharedMark, lostSyncs } = this.#options;
    if (state.record.mode !== "shared") {
      const own = images.open(disk);
      // It counts once this side is promoted.
      noteLosses(own, disk, lostSyncs);
      return own;
    }
    const base = images.open(disk, "foreign");
    // Before the first mark is written nothing was overwritten alone.
    return sharedMark === undefined ? base : new WatchedImage(base, () => sharedMark.assertProtected(false));
  }

  #openDisk(disk: RecordedDisk): ReplicaDisk {
    const { storage, random, state, stateDirectory, access, bootId, mayHaveLostWrites, gate, lostSyncs } =
      this.#options;
    const { committed, prepared, retained, epochReserved } = state.record;
    const quota = this.#options.quota();
    const base = this.#openBase(disk);
    try {
      const epochs = {
        floor: retained[0]?.epoch ?? committed.epoch,
        committed: committed.epoch,
        newestBarrier: prepared.at(-1)?.epoch ?? committed.epoch,
        open: epochReserved + 1,
        afterPowerLoss: state.record.bootId !== bootId,
        mayHaveLostWrites,
      };
      const context = overlayContext(
        { storage, random, stateDirectory, quota, lostSyncs },
        state.record,
        disk.name,
        base.sizeBytes,
      );
      return new ReplicaDisk(disk.name, base, context, epochs, {
        gate,
        hasCheckpoint: () => state.record.committed.epoch > 0,
        access,
        buffers: state.record.mode === "mc" ? this.#bufferHost(disk.name) : undefined,
      });
    } catch (error) {
      base.close();
      throw error;
    }
  }

  #bufferHost(disk: string): BufferHost {
    const { bufferMemory, clock, applyFailed, applied } = this.#options;
    return {
      memory: bufferMemory,
      clock,
      failed: (reason) => applyFailed(reason, disk),
      applied: () => applied(disk),
    };
  }
}
