import { asColobusError, ColobusError } from "../../proto/errors.ts";
import { STATE_SLOT_BYTES } from "../../proto/limits.ts";
import { decodeStateSlot, encodeStateSlot, type StateRecord } from "../../proto/state-record.ts";
import type { Storage, StorageFile } from "../host/storage.ts";
import { laterVersion } from "./later-version.ts";

/**
 * Owns the state record on disk: two preallocated slots, always fsynced, whatever `durability` says. The file's lock
 * is what keeps two agents out of one state directory.
 *
 * Invariants: `record` is what the newest durable slot holds; updates happen one after the other, each seeing the
 * outcome of the one before; the slot of the newest durable record is never written to. What an earlier process has left
 * is written again in its place first, byte for byte, for it may or may not be durable. After a failed update the
 * outcome on disk is unknown until the next one succeeds, and both outcomes are legal: a caller frees nothing that the
 * old record names before its update has resolved.
 */
export class StateFile {
  /** Whether this process has created the state directory's record. */
  readonly isNew: boolean;
  readonly #file: StorageFile;
  #record: StateRecord;
  #sequence: number;
  /**
   * The slot that was read. It may be in the page cache alone: the other one is not written to before it surely stands. It may
   * be the only durable one, too: written again with any other bytes, and torn, it would be lost.
   */
  #unproved: Buffer | undefined;
  #tail: Promise<void> = Promise.resolve();
  #fault: ColobusError | undefined;
  #watcher: () => void = () => undefined;

  private constructor(file: StorageFile, record: StateRecord, sequence: number, unproved: Buffer | undefined) {
    this.isNew = unproved === undefined;
    this.#unproved = unproved;
    this.#file = file;
    this.#record = record;
    this.#sequence = sequence;
  }

  /**
   * Opens the state of `directory`, or undefined when there is none yet. A creation that did not get as far as its
   * first record counts as none.
   * Errors: `image-busy` (another agent uses it), `state-corrupt`, and those of Storage.
   */
  static open(storage: Storage, directory: string): StateFile | undefined {
    const path = statePath(directory);
    if (!storage.exists(path)) return undefined;
    const file = openLocked(storage, path, "never");
    try {
      if (file.sizeBytes() < 2 * STATE_SLOT_BYTES) {
        file.close();
        return undefined;
      }
      const slots = [0, 1].map((index) => {
        const bytes = Buffer.alloc(STATE_SLOT_BYTES);
        file.readNow(bytes, index * STATE_SLOT_BYTES);
        return { bytes, decoded: decodeStateSlot(bytes) };
      });
      let newest: { record: StateRecord; sequence: number; encoded: Buffer } | undefined;
      for (const { bytes, decoded } of slots) {
        if (decoded.kind === "newer") throw laterVersion(path, `state record version ${decoded.version}`);
        if (decoded.kind === "unknown") throw laterVersion(path, decoded.reason);
        if (decoded.kind !== "valid" || decoded.sequence < (newest?.sequence ?? 0)) continue;
        newest = { ...decoded, encoded: bytes.subarray(0, decoded.encodedBytes) };
      }
      if (newest !== undefined) return new StateFile(file, newest.record, newest.sequence, newest.encoded);
      // A crash during the very first write leaves one torn slot and one empty one: nothing was ever promised.
      if (slots[0]?.decoded.kind === "empty") {
        file.close();
        return undefined;
      }
      throw new ColobusError(
        "state-corrupt",
        `neither slot of ${path} holds a sound state record`,
        "Restore the state directory from a backup, or start with an empty one and a full sync.",
      );
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** Creates the state file of `directory`; durable, with its directory entry, when the promise resolves. */
  static async create(storage: Storage, directory: string, record: StateRecord): Promise<StateFile> {
    const file = openLocked(storage, statePath(directory), "if-missing");
    try {
      file.allocate(0, 2 * STATE_SLOT_BYTES);
      file.write(Buffer.alloc(2 * STATE_SLOT_BYTES), 0);
      await file.sync();
      const state = new StateFile(file, record, 0, undefined);
      await state.update(() => record);
      await storage.syncDirectory(directory);
      return state;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** The newest record that is durable. */
  get record(): StateRecord {
    return this.#record;
  }

  /** Why the last update has failed; undefined: the record on disk is `record`. */
  get fault(): ColobusError | undefined {
    return this.#fault;
  }

  /** Has `watcher` called whenever `fault` has changed. There is one watcher. */
  watch(watcher: () => void): void {
    this.#watcher = watcher;
  }

  /**
   * Replaces the record by `change(record)`, and resolves with the new one when it is durable. Changes queue up; each
   * is given the record that the one before left. Rejects with `io-error`: then the old record stands in memory.
   */
  update(change: (record: StateRecord) => StateRecord): Promise<StateRecord> {
    const result = this.#tail.then(() => this.#write(change(this.#record)));
    this.#tail = result.then(
      () => undefined,
      () => undefined, // the caller has the error; the next update starts from the record that stands
    );
    return result;
  }

  /** Waits for queued updates, then closes the file and drops the lock. */
  async close(): Promise<void> {
    await this.#tail;
    this.#file.close();
  }

  async #write(record: StateRecord): Promise<StateRecord> {
    const sequence = this.#sequence + 1;
    try {
      if (this.#unproved !== undefined) {
        // The process that left it may have died before its fsync, or that may have failed: a plain one would not help.
        await this.#writeSlot(this.#sequence, this.#unproved);
        this.#unproved = undefined;
      }
      await this.#writeSlot(sequence, encodeStateSlot(sequence, record));
    } catch (error) {
      this.#fault = asColobusError(error);
      this.#watcher();
      throw error;
    }
    this.#sequence = sequence;
    this.#record = record;
    if (this.#fault !== undefined) {
      this.#fault = undefined;
      this.#watcher();
    }
    return record;
  }

  async #writeSlot(sequence: number, encoded: Buffer): Promise<void> {
    this.#file.write(encoded, (sequence % 2) * STATE_SLOT_BYTES);
    await this.#file.sync();
  }
}

function statePath(directory: string): string {
  return `${directory}/state`;
}

function openLocked(storage: Storage, path: string, create: "never" | "if-missing"): StorageFile {
  return storage.open(path, { kind: "state", create, lock: true });
}
