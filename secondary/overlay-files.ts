import type { JournalEntry, JournalKind } from "../proto/cluster-journal-format.ts";
import { OVERLAY_RESERVE_BYTES } from "../proto/limits.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { Durability } from "../proto/words.ts";
import { clusterGeometry, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Random } from "../shared/host/random.ts";
import type { FileKind, Storage, StorageFile } from "../shared/host/storage.ts";
import { ClusterJournal } from "../shared/journal/cluster-journal.ts";
import type { LostSyncs } from "../shared/journal/lost-syncs.ts";
import type { OverlayQuota } from "./overlay-quota.ts";

/** What every overlay of one disk is made with. */
export interface OverlayContext {
  readonly storage: Storage;
  readonly random: Random;
  /** Holds the overlays of this disk and nothing else. */
  readonly directory: string;
  readonly geometry: ClusterGeometry;
  readonly durability: Durability;
  /** Is asked before storage is taken; undefined: the file system alone is the limit. */
  readonly quota?: OverlayQuota | undefined;
  /** Of the active disk's fsyncs that have failed, or, where there is none, the image's; undefined: nobody keeps a note of them. */
  readonly lost?: {
    readonly has: (active: string) => boolean;
    readonly note: (active: string | null) => Promise<void>;
  };
}

/** The context of the overlays of disk `name`, whose directory exists. */
export function overlayContext(
  host: {
    readonly storage: Storage;
    readonly random: Random;
    readonly stateDirectory: string;
    readonly quota?: OverlayQuota | undefined;
    readonly lostSyncs: LostSyncs;
  },
  record: StateRecord,
  name: string,
  sizeBytes: number,
): OverlayContext {
  return {
    storage: host.storage,
    random: host.random,
    directory: overlayDirectory(host.stateDirectory, name),
    geometry: clusterGeometry(sizeBytes, record.clusterBytes),
    durability: record.durability,
    quota: host.quota,
    lost: {
      has: (active) => host.lostSyncs.has({ disk: name, active }),
      note: (active) => host.lostSyncs.note({ disk: name, active }),
    },
  };
}

/**
 * Whether there is room for `bytes` more, of a copy that takes the place of overlays only when it is whole: it is to leave
 * others what they need. Errors: those of the storage.
 */
export function hasRoomForCopy({ storage, directory, quota }: OverlayContext, bytes: number): boolean {
  if (quota?.hasRoomFor(bytes) === false) return false;
  return storage.freeBytes(directory) >= bytes + OVERLAY_RESERVE_BYTES;
}

export function overlayDirectory(stateDirectory: string, name: string): string {
  return `${stateDirectory}/disks/${name}`;
}

/**
 * Owns the two files of an overlay: a sparse data file, each cluster at its own offset, and a journal that names the
 * clusters which the data file holds. Both come into being together, at the first write, and go together.
 *
 * A cluster that the journal names and the data file has no storage for reads as zeroes: zeroes need no copy.
 */
export class OverlayFiles {
  readonly #context: OverlayContext;
  readonly #kind: JournalKind;
  readonly #dataKind: FileKind;
  readonly epoch: number;
  #open: { readonly data: StorageFile; readonly journal: ClusterJournal } | undefined;
  #directorySynced = true;

  constructor(context: OverlayContext, kind: "generation" | "active", epoch: number) {
    this.#context = context;
    this.#kind = kind;
    this.#dataKind = kind === "generation" ? "generation-data" : "active-data";
    this.epoch = epoch;
  }

  /**
   * Opens what an earlier agent left, calling `apply` for each journal entry. False when there is nothing that was ever
   * relied on; its files, if any, are removed.
   */
  recover(apply: (entry: JournalEntry) => void, options: { readonly onlySynced?: boolean } = {}): boolean {
    const { storage, geometry } = this.#context;
    const { dataPath, journalPath } = this.#paths();
    if (!storage.exists(dataPath) || !storage.exists(journalPath)) {
      this.removeFiles();
      return false;
    }
    const expected = {
      kind: this.#kind,
      diskSizeBytes: geometry.sizeBytes,
      clusterBytes: geometry.clusterBytes,
      epoch: this.epoch,
    };
    const journal = ClusterJournal.open(storage, journalPath, expected, apply, options);
    if (journal === undefined) {
      this.removeFiles();
      return false;
    }
    const data = storage.open(dataPath, { kind: this.#dataKind, create: "never" });
    // The size is set before the journal's first entry, but a loss of power may have kept the entries of an unsynced one.
    if (data.sizeBytes() < geometry.sizeBytes) data.truncate(geometry.sizeBytes);
    this.#open = { data, journal };
    this.#directorySynced = false;
    return true;
  }

  /** The disk is to have `sizeBytes`: the data file reads as zeroes behind what it holds. Errors: the storage's. */
  lengthen(sizeBytes: number): void {
    const data = this.#open?.data;
    if (data !== undefined && data.sizeBytes() < sizeBytes) data.truncate(sizeBytes);
  }

  get exists(): boolean {
    return this.#open !== undefined;
  }

  /** The data file, created with its journal if need be. */
  get data(): StorageFile {
    return this.#opened().data;
  }

  get journal(): ClusterJournal {
    return this.#opened().journal;
  }

  /** Storage that both files occupy, in bytes. */
  get allocatedBytes(): number {
    return this.#open === undefined ? 0 : this.#open.data.allocatedBytes() + this.#open.journal.sizeBytes;
  }

  /** Makes the content of the data file, and the files' names, durable. Creates them if need be: a journal of zeroes has no data. */
  async syncData(): Promise<void> {
    const { data, journal } = this.#opened();
    await data.sync();
    if (!this.#directorySynced) {
      await journal.sync(); // the header, before a name leads to it
      await this.#context.storage.syncDirectory(this.#context.directory);
      this.#directorySynced = true;
    }
  }

  async syncJournal(): Promise<void> {
    await this.#open?.journal.sync();
  }

  close(): void {
    this.#open?.data.close();
    this.#open?.journal.close();
    this.#open = undefined;
  }

  /** Closes and removes both files. The journal goes first: data without a journal is nothing. */
  removeFiles(): void {
    this.close();
    const { storage } = this.#context;
    const { dataPath, journalPath } = this.#paths();
    if (storage.exists(journalPath)) storage.remove(journalPath);
    if (storage.exists(dataPath)) storage.remove(dataPath);
  }

  /** As `removeFiles`, but frees the storage off the event loop. */
  async removeBehind(): Promise<void> {
    this.close();
    const { storage } = this.#context;
    const { dataPath, journalPath } = this.#paths();
    if (storage.exists(journalPath)) await storage.removeBehind(journalPath);
    if (storage.exists(dataPath)) await storage.removeBehind(dataPath);
  }

  #opened(): { readonly data: StorageFile; readonly journal: ClusterJournal } {
    if (this.#open !== undefined) return this.#open;
    const { storage, random, geometry } = this.#context;
    const { dataPath, journalPath } = this.#paths();
    const data = storage.open(dataPath, { kind: this.#dataKind, create: "if-missing" });
    try {
      // A file that was cut to nothing is written out when it is closed (ext4, xfs), for as long as that takes: so only
      // what a crash has left is cut.
      if (data.sizeBytes() > 0) data.truncate(0);
      data.truncate(geometry.sizeBytes);
      const journal = ClusterJournal.create(storage, journalPath, {
        kind: this.#kind,
        diskSizeBytes: geometry.sizeBytes,
        clusterBytes: geometry.clusterBytes,
        epoch: this.epoch,
        id: random.bytes(16),
      });
      this.#open = { data, journal };
      this.#directorySynced = false;
      return this.#open;
    } catch (error) {
      data.close();
      throw error;
    }
  }

  #paths(): { dataPath: string; journalPath: string } {
    const stem = `${this.#context.directory}/${this.#kind === "generation" ? "hidden" : "active"}.${this.epoch}`;
    return { dataPath: `${stem}.data`, journalPath: `${stem}.journal` };
  }
}

/** The epochs of which `directory` has overlay files of the kind, ascending. */
export function listOverlayEpochs(storage: Storage, directory: string, kind: "generation" | "active"): number[] {
  const pattern = kind === "generation" ? /^hidden\.(\d+)\.(?:data|journal)$/ : /^active\.(\d+)\.(?:data|journal)$/;
  const epochs = new Set<number>();
  for (const name of storage.list(directory)) {
    const match = pattern.exec(name);
    if (match?.[1] !== undefined) epochs.add(Number(match[1]));
  }
  return [...epochs].sort((left, right) => left - right);
}

/** Removes what overlays have left in `directory`: the record says that none is in use. */
export function removeOverlayFiles(storage: Storage, directory: string): void {
  if (!storage.exists(directory)) return;
  for (const name of storage.list(directory)) {
    if (
      /^(?:(?:hidden|active|merge)\.\d+\.(?:data|journal)|buffer\.(?:spare|\d+)\.\d+\.log|merge\.reserve)$/.test(name)
    )
      storage.remove(`${directory}/${name}`);
  }
}
