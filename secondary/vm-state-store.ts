import assert from "node:assert/strict";
import { crc32 } from "node:zlib";
import { ColobusError } from "../proto/errors.ts";
import { OVERLAY_RESERVE_BYTES, VMSTATE_SYNC_BEHIND_BYTES } from "../proto/limits.ts";
import type { StateRecord, VmStateMark } from "../proto/state-record.ts";
import {
  areSameStates,
  encodeVmStateChunkHead,
  encodeVmStateHead,
  tryDecodeVmStateChunkHead,
  tryDecodeVmStateHead,
  VMSTATE_CHUNK_HEAD_BYTES,
  VMSTATE_HEAD_BYTES,
  VmStateCount,
} from "../proto/vmstate-format.ts";
import type { Durability } from "../proto/words.ts";
import type { Log } from "../shared/host/log.ts";
import type { Storage, StorageFile } from "../shared/host/storage.ts";

export interface VmStateStoreOptions {
  readonly storage: Storage;
  readonly log: Log;
  /** Holds the directory `vmstate` with one file for each state. */
  readonly stateDirectory: string;
  readonly durability: () => Durability;
}

/** The state that is being received. */
interface Incoming {
  readonly epoch: number;
  readonly file: StorageFile;
  readonly count: VmStateCount;
  offset: number;
  unsyncedBytes: number;
  syncing: Promise<void> | undefined;
  fault: ColobusError | undefined;
}

/**
 * Owns the files of VM states, one for each checkpoint that has one, and the one that is being received. A file counts
 * only when the state record names it, which it does after the file is as stable as the pair's durability asks for; it is
 * removed after the record names it no more. So what no record names is nothing, and goes at the next start.
 */
export class VmStateStore {
  readonly #options: VmStateStoreOptions;
  readonly #directory: string;
  /** Epochs of which there is a file. */
  readonly #files = new Set<number>();
  /** Readers of each epoch's file; it stays until the last one has left. */
  readonly #readers = new Map<number, number>();
  #needed: ReadonlySet<number> = new Set();
  #incoming: Incoming | undefined;
  #removing: Promise<void> = Promise.resolve();

  /** Finds what an earlier agent has left. Errors: those of listing the directory. */
  constructor(options: VmStateStoreOptions) {
    this.#options = options;
    this.#directory = `${options.stateDirectory}/vmstate`;
    const { storage } = options;
    if (!storage.exists(this.#directory)) return;
    for (const name of storage.list(this.#directory)) {
      const match = /^(\d+)\.state$/.exec(name);
      if (match?.[1] !== undefined) this.#files.add(Number(match[1]));
    }
  }

  /**
   * Writes the next chunk of the state of `epoch`, from the first on. Another state that is being received is dropped.
   * Errors: `protocol-error` for a chunk that is not the next or fails its CRC; `out-of-space`, `io-error`: what has
   * arrived is gone then.
   */
  append(epoch: number, index: number, crc: number, payload: Buffer): void {
    if (crc32(payload) !== crc) throw new ColobusError("protocol-error", "a chunk of the VM state fails its checksum");
    if (this.#incoming?.epoch !== epoch) {
      // What comes behind a fault belongs to a stream that has ended.
      if (index > 0) throw new ColobusError("vmstate-interrupted", "the beginning of the VM state is not here");
      this.#begin(epoch);
    }
    const incoming = this.#incoming;
    assert(incoming !== undefined);
    if (index !== incoming.count.chunks) {
      throw new ColobusError("protocol-error", `the peer sent chunk ${index} after ${incoming.count.chunks} chunks`);
    }
    try {
      if (incoming.fault !== undefined) throw incoming.fault;
      this.#assertRoom(payload.length);
      const head = encodeVmStateChunkHead(payload.length, crc);
      incoming.file.write(head, incoming.offset);
      incoming.file.write(payload, incoming.offset + head.length);
      incoming.count.add(head, payload.length);
      incoming.offset += head.length + payload.length;
      incoming.unsyncedBytes += payload.length;
    } catch (error) {
      this.abandon();
      throw error;
    }
    this.#syncBehind(incoming);
  }

  /**
   * The state of `epoch` is complete: when the promise resolves it is stable. Errors: `protocol-error` when it is not
   * what `mark` says; `vmstate-interrupted`; `io-error`.
   */
  async seal(epoch: number, mark: VmStateMark): Promise<void> {
    const { storage, stateDirectory, durability } = this.#options;
    const incoming = this.#incoming;
    if (incoming?.epoch !== epoch) {
      throw new ColobusError("vmstate-interrupted", "the VM state has not arrived", "Take a new checkpoint.");
    }
    if (!areSameStates(incoming.count.mark, mark)) {
      this.abandon();
      throw new ColobusError("protocol-error", "the VM state that has arrived is not the one that was sent");
    }
    try {
      if (durability() === "power") {
        await incoming.syncing;
        if (incoming.fault !== undefined) throw incoming.fault;
        await incoming.file.sync();
        await storage.syncDirectory(this.#directory);
        await storage.syncDirectory(stateDirectory);
      }
    } catch (error) {
      if (this.#incoming === incoming) this.abandon();
      throw error;
    }
    if (this.#incoming !== incoming) {
      throw new ColobusError("vmstate-interrupted", "the VM state was given up meanwhile", "Take a new checkpoint.");
    }
    this.#incoming = undefined;
    incoming.file.close();
  }

  /** Drops what has arrived of a state that is not complete. */
  abandon(): void {
    const incoming = this.#incoming;
    if (incoming === undefined) return;
    this.#incoming = undefined;
    incoming.file.close();
    this.#remove(incoming.epoch);
  }

  /** Only these epochs' states are needed, with the one that is being received for one of them. */
  keepOnly(epochs: readonly number[]): void {
    this.#needed = new Set(epochs);
    if (this.#incoming !== undefined && !this.#needed.has(this.#incoming.epoch)) this.abandon();
    for (const epoch of this.#files) if (!this.#needed.has(epoch) && !this.#readers.has(epoch)) this.#remove(epoch);
  }

  /**
   * Makes the states that are needed durable, whatever `durability` promises: for a clean stop, which a later loss of power
   * must not undo. Errors: `io-error`.
   */
  async flush(): Promise<void> {
    const { storage, stateDirectory, durability } = this.#options;
    const stored = [...this.#needed].filter((epoch) => this.#files.has(epoch));
    if (durability() === "power" || stored.length === 0) return; // each was, before the record named it
    for (const epoch of stored) {
      const file = storage.open(this.#pathOf(epoch), { kind: "other", create: "never" });
      try {
        await file.sync();
      } finally {
        file.close();
      }
    }
    await storage.syncDirectory(this.#directory);
    await storage.syncDirectory(stateDirectory);
  }

  /** Resolves when what was dropped is removed. */
  settled(): Promise<void> {
    return this.#removing;
  }

  /**
   * The bytes of a stored state, chunk by chunk. The file stays until the iteration ends.
   * Errors: `state-corrupt` when they are not what `mark` says; `io-error`.
   */
  async *read(epoch: number, mark: VmStateMark): AsyncGenerator<Buffer, void, undefined> {
    this.#readers.set(epoch, (this.#readers.get(epoch) ?? 0) + 1);
    let file: StorageFile | undefined;
    try {
      file = this.#open(epoch);
      const count = new VmStateCount();
      let offset = VMSTATE_HEAD_BYTES;
      while (count.chunks < mark.chunks) {
        const head = await readAt(file, offset, VMSTATE_CHUNK_HEAD_BYTES);
        const chunk = head === undefined ? undefined : tryDecodeVmStateChunkHead(head);
        if (head === undefined || chunk === undefined) throw this.#corrupt(epoch);
        const payload = await readAt(file, offset + head.length, chunk.length);
        if (payload === undefined || crc32(payload) !== chunk.crc) throw this.#corrupt(epoch);
        count.add(head, chunk.length);
        offset += head.length + chunk.length;
        // The last chunk is not given away before it is known that they are the right ones.
        if (count.chunks === mark.chunks && !areSameStates(count.mark, mark)) throw this.#corrupt(epoch);
        yield payload;
      }
    } finally {
      file?.close();
      this.#left(epoch);
    }
  }

  #begin(epoch: number): void {
    this.abandon();
    const { storage } = this.#options;
    if (!storage.exists(this.#directory)) storage.makeDirectory(this.#directory);
    const file = storage.open(this.#pathOf(epoch), { kind: "other", create: "if-missing" });
    this.#files.add(epoch);
    this.#incoming = {
      epoch,
      file,
      count: new VmStateCount(),
      offset: VMSTATE_HEAD_BYTES,
      unsyncedBytes: 0,
      syncing: undefined,
      fault: undefined,
    };
    try {
      if (file.sizeBytes() > 0) file.truncate(0);
      file.write(encodeVmStateHead(epoch), 0);
    } catch (error) {
      this.abandon();
      throw error;
    }
  }

  /** A state must not take the room that the overlays need to keep the checkpoint. */
  #assertRoom(bytes: number): void {
    const freeBytes = this.#options.storage.freeBytes(this.#directory);
    if (freeBytes >= bytes + OVERLAY_RESERVE_BYTES) return;
    throw new ColobusError(
      "out-of-space",
      `the secondary has no room for the VM state: ${freeBytes} bytes are free beside its --state directory, and ` +
        `${OVERLAY_RESERVE_BYTES} are left to the overlays`,
      "Free space there: two states have to fit at a time. The previous checkpoint stands.",
    );
  }

  #syncBehind(incoming: Incoming): void {
    const isDue = incoming.unsyncedBytes >= VMSTATE_SYNC_BEHIND_BYTES && incoming.syncing === undefined;
    if (!isDue || this.#options.durability() !== "power") return;
    incoming.unsyncedBytes = 0;
    incoming.syncing = incoming.file.sync().then(
      () => {
        incoming.syncing = undefined;
      },
      (error: unknown) => {
        incoming.syncing = undefined;
        incoming.fault = asFault(error);
      },
    );
  }

  #open(epoch: number): StorageFile {
    const file = this.#options.storage.open(this.#pathOf(epoch), { kind: "other", create: "never", readOnly: true });
    const head = Buffer.alloc(VMSTATE_HEAD_BYTES);
    try {
      if (file.sizeBytes() < head.length) throw this.#corrupt(epoch);
      file.readNow(head, 0);
      if (tryDecodeVmStateHead(head) !== epoch) throw this.#corrupt(epoch);
      return file;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  #left(epoch: number): void {
    const left = (this.#readers.get(epoch) ?? 1) - 1;
    if (left > 0) this.#readers.set(epoch, left);
    else this.#readers.delete(epoch);
    if (left === 0 && !this.#needed.has(epoch) && this.#incoming?.epoch !== epoch) this.#remove(epoch);
  }

  #remove(epoch: number): void {
    if (!this.#files.delete(epoch)) return;
    const { storage, log } = this.#options;
    const path = this.#pathOf(epoch);
    this.#removing = this.#removing
      .then(async () => {
        if (!this.#files.has(epoch) && storage.exists(path)) await storage.removeBehind(path);
      })
      .catch((error: unknown) => log.warn({ error, path }, "a VM state that is no longer needed was not removed"));
  }

  #pathOf(epoch: number): string {
    return `${this.#directory}/${epoch}.state`;
  }

  #corrupt(epoch: number): ColobusError {
    return new ColobusError(
      "state-corrupt",
      `the VM state of checkpoint ${epoch} in ${this.#pathOf(epoch)} fails its checksums`,
      "Start the VM from its disks instead; look at the host's storage.",
    );
  }
}

/** The epochs of which the record names a VM state, or awaits one. */
export function statesNeeded({ committed, prepared, retained }: StateRecord): number[] {
  const stored = [committed, ...retained].filter(({ vmstate }) => vmstate !== undefined);
  return [...stored, ...prepared].map(({ epoch }) => epoch);
}

async function readAt(file: StorageFile, offset: number, length: number): Promise<Buffer | undefined> {
  if (offset + length > file.sizeBytes()) return undefined;
  const bytes = Buffer.allocUnsafe(length);
  if (!file.tryRead(bytes, offset)) await file.read(bytes, offset);
  return bytes;
}

function asFault(error: unknown): ColobusError {
  return error instanceof ColobusError ? error : new ColobusError("io-error", String(error), "", { cause: error });
}
