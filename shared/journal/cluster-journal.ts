import assert from "node:assert/strict";
import {
  decodeJournalFrame,
  decodeJournalHeader,
  encodeJournalFrame,
  encodeJournalHeader,
  JOURNAL_ENTRY_BYTES,
  JOURNAL_FRAME_HEAD_BYTES,
  JOURNAL_FRAME_MAX_ENTRIES,
  JOURNAL_HEADER_BYTES,
  journalFrameSeed,
  type JournalEntry,
  type JournalHeader,
} from "../../proto/cluster-journal-format.ts";
import { asColobusError, ColobusError } from "../../proto/errors.ts";
import { SharedSync } from "../host/shared-sync.ts";
import type { Storage, StorageFile } from "../host/storage.ts";
import { laterVersion } from "./later-version.ts";

const MAX_FRAME_BYTES = JOURNAL_FRAME_HEAD_BYTES + JOURNAL_FRAME_MAX_ENTRIES * JOURNAL_ENTRY_BYTES;
const READ_BYTES = 1024 * 1024;

/**
 * Owns one cluster journal file (`proto/cluster-journal-format.ts`): appends frames and reads them back at start.
 *
 * Appends go to the page cache at once and survive kill -9; `sync()` makes them survive the loss of power. A failed
 * append leaves no trace: the next one overwrites its bytes.
 *
 * After a failed sync the kernel forgets what it could not write, and the next sync would succeed without it. So that one
 * first writes everything again that no sync has covered; nothing counts as durable before.
 */
export class ClusterJournal {
  readonly #file: StorageFile;
  readonly #header: JournalHeader;
  readonly #seed: number;
  #tailBytes: number;
  #sequence: number;
  #hasSyncMark: boolean;
  /** The medium surely has the file up to here. */
  #syncedBytes = 0;
  /** The latest failure of a sync, until what it may have lost is written again. */
  #unsynced: ColobusError | undefined;
  readonly #syncs = new SharedSync(() => this.#sync());
  // One buffer serves all journals: appends are synchronous.
  static readonly #scratch = Buffer.allocUnsafeSlow(MAX_FRAME_BYTES);

  private constructor(
    file: StorageFile,
    header: JournalHeader,
    tailBytes: number,
    sequence: number,
    hasSyncMark: boolean,
  ) {
    this.#hasSyncMark = hasSyncMark;
    this.#file = file;
    this.#header = header;
    this.#seed = journalFrameSeed(header.id);
    this.#tailBytes = tailBytes;
    this.#sequence = sequence;
  }

  /** Starts an empty journal at `path`, replacing what a crash may have left there. */
  static create(storage: Storage, path: string, header: JournalHeader): ClusterJournal {
    const file = storage.open(path, { kind: "journal", create: "if-missing" });
    try {
      if (file.sizeBytes() > 0) file.truncate(0);
      file.write(encodeJournalHeader(header), 0);
    } catch (error) {
      file.close();
      throw error;
    }
    return new ClusterJournal(file, header, JOURNAL_HEADER_BYTES, 0, false);
  }

  /**
   * Opens the journal at `path`, calls `apply` for each entry in order, and cuts a torn tail. With `onlySynced`, entries
   * that no sync mark covers are left out, now and for ever. `begun` is called with the header first.
   * Returns undefined when the header is torn or belongs to another disk, kind or epoch than `expected`, or to a larger
   * disk: such a journal never had a synced frame. Errors: `state-corrupt` when it is of another version of the format;
   * those of the storage.
   */
  static open(
    storage: Storage,
    path: string,
    expected: Omit<JournalHeader, "id">,
    apply: (entry: JournalEntry) => void,
    options: { readonly onlySynced?: boolean; readonly begun?: (header: JournalHeader) => void } = {},
  ): ClusterJournal | undefined {
    const file = storage.open(path, { kind: "journal", create: "never" });
    try {
      const size = file.sizeBytes();
      const header = readHeader(file);
      if (
        header === undefined ||
        header.kind !== expected.kind ||
        header.diskSizeBytes > expected.diskSizeBytes || // the disk may have grown since
        header.clusterBytes !== expected.clusterBytes ||
        header.epoch !== expected.epoch
      ) {
        file.close();
        return undefined;
      }
      options.begun?.(header);
      const onlySynced = options.onlySynced ?? false;
      const end = readFrames(file, size, header, apply, onlySynced);
      if (end.tailBytes < size) file.truncate(end.tailBytes);
      const journal = new ClusterJournal(file, header, end.tailBytes, end.sequence, end.hasSyncMark);
      if (onlySynced && end.uncovered) journal.#appendFrame({ type: "void" });
      return journal;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** What no other journal has, not even an earlier one of the same path. */
  get id(): string {
    return this.#header.id.toString("hex");
  }

  get sizeBytes(): number {
    return this.#tailBytes;
  }

  /** Appends entries, in as many frames as it takes. After an error none, or a leading part, has been appended. */
  append(entries: readonly JournalEntry[]): void {
    for (let from = 0; from < entries.length; from += JOURNAL_FRAME_MAX_ENTRIES) {
      const slice =
        entries.length <= JOURNAL_FRAME_MAX_ENTRIES ? entries : entries.slice(from, from + JOURNAL_FRAME_MAX_ENTRIES);
      this.#appendFrame({ type: "entries", entries: slice });
    }
  }

  /** The sequence of the last frame: what a sync mark covers when the data is fsynced after asking. */
  get sequence(): number {
    return this.#sequence;
  }

  /** Whether any sync mark was ever appended. */
  get hasSyncMark(): boolean {
    return this.#hasSyncMark;
  }

  /** Notes that the data of every entry up to frame `coveredSequence` has been fsynced. */
  appendSyncMark(coveredSequence: number): void {
    this.#appendFrame({ type: "sync-mark", coveredSequence });
    this.#hasSyncMark = true;
  }

  /** Makes everything appended so far durable. Errors: those of the file; what is durable then is what was before. */
  sync(): Promise<void> {
    return this.#syncs.run();
  }

  /** An earlier process may have lost any of it, and seen it nevertheless: the next sync writes everything again. */
  distrust(): void {
    this.#syncedBytes = 0;
    this.#unsynced ??= new ColobusError("io-error", `what ${this.#file.path} holds may be in the page cache alone`);
  }

  close(): void {
    this.#file.close();
  }

  async #sync(): Promise<void> {
    if (this.#unsynced !== undefined) this.#writeAgain();
    const tailBytes = this.#tailBytes;
    try {
      await this.#file.sync();
    } catch (error) {
      this.#unsynced = asColobusError(error);
      throw error;
    }
    // It is distrusted since.
    if (this.#unsynced !== undefined) throw this.#unsynced;
    this.#syncedBytes = tailBytes;
  }

  /** Writes again what no sync has covered, as readers see it still. */
  #writeAgain(): void {
    const sound = readFrames(this.#file, this.#tailBytes, this.#header, () => undefined, false);
    if (sound.tailBytes !== this.#tailBytes) {
      throw new ColobusError(
        "io-error",
        `${this.#file.path} has lost what was written to it`,
        "Look for errors of its device in the kernel's log, and restart the agent.",
        { cause: this.#unsynced },
      );
    }
    for (let at = this.#syncedBytes; at < this.#tailBytes; at += READ_BYTES) {
      const piece = Buffer.allocUnsafe(Math.min(READ_BYTES, this.#tailBytes - at));
      this.#file.readNow(piece, at);
      this.#file.write(piece, at);
    }
    this.#unsynced = undefined;
  }

  #appendFrame(frame: Parameters<typeof encodeJournalFrame>[3]): void {
    const scratch = ClusterJournal.#scratch;
    const length = encodeJournalFrame(scratch, this.#seed, this.#sequence + 1, frame);
    this.#file.write(scratch.subarray(0, length), this.#tailBytes);
    this.#tailBytes += length;
    this.#sequence += 1;
  }
}

/** Calls `visit` for each sound frame of a journal file; for `inspect`. Returns the header and where the journal ends. */
export function scanClusterJournal(
  file: StorageFile,
  visit: (entry: JournalEntry) => void,
): { header: JournalHeader; tailBytes: number; frames: number } | undefined {
  const header = readHeader(file);
  if (header === undefined) return undefined;
  const end = readFrames(file, file.sizeBytes(), header, visit, false);
  return { header, tailBytes: end.tailBytes, frames: end.sequence };
}

/** undefined: it is torn. Errors: `state-corrupt` where a release has written it that has another format. */
function readHeader(file: StorageFile): JournalHeader | undefined {
  const bytes = Buffer.alloc(Math.min(file.sizeBytes(), JOURNAL_HEADER_BYTES));
  file.readNow(bytes, 0);
  const header = decodeJournalHeader(bytes);
  if (typeof header === "number") throw laterVersion(file.path, `cluster journal version ${header}`);
  return header;
}

interface JournalEnd {
  readonly tailBytes: number;
  readonly sequence: number;
  /** Entries were found that no sync mark covers. */
  readonly uncovered: boolean;
  readonly hasSyncMark: boolean;
}

function readFrames(
  file: StorageFile,
  sizeBytes: number,
  header: JournalHeader,
  apply: (entry: JournalEntry) => void,
  onlySynced: boolean,
): JournalEnd {
  const seed = journalFrameSeed(header.id);
  let tailBytes = JOURNAL_HEADER_BYTES;
  let sequence = 0;
  let hasSyncMark = false;
  let uncovered: { sequence: number; entries: readonly JournalEntry[] }[] = [];
  const applyUpTo = (covered: number): void => {
    for (const frame of uncovered) if (frame.sequence <= covered) frame.entries.forEach(apply);
    uncovered = uncovered.filter((frame) => frame.sequence > covered);
  };
  // Only an active disk's journal has marks and voids, which decide about entries before them. Others can be long.
  const countsAtOnce = header.kind !== "active" && !onlySynced;
  let windowStart = JOURNAL_HEADER_BYTES;
  let window = Buffer.alloc(0);
  for (;;) {
    if (window.length - (tailBytes - windowStart) < MAX_FRAME_BYTES && windowStart + window.length < sizeBytes) {
      windowStart = tailBytes;
      window = Buffer.alloc(Math.min(READ_BYTES, sizeBytes - windowStart));
      file.readNow(window, windowStart);
    }
    const decoded = decodeJournalFrame(window.subarray(tailBytes - windowStart), seed, sequence + 1);
    if (decoded === undefined) break;
    tailBytes += decoded.length;
    sequence += 1;
    const { frame } = decoded;
    if (frame.type === "sync-mark") {
      hasSyncMark = true;
      applyUpTo(frame.coveredSequence);
    } else if (frame.type === "void") uncovered = [];
    else if (countsAtOnce) frame.entries.forEach(apply);
    else uncovered.push({ sequence, entries: frame.entries });
  }
  assert(tailBytes <= sizeBytes);
  if (!onlySynced) applyUpTo(sequence);
  return { tailBytes, sequence, uncovered: uncovered.length > 0, hasSyncMark };
}
