/**
 * Owns files of one disk's block buffer whose logs are not needed any more, and which the next ones take over: to write to
 * storage that a file has already costs half of what new storage costs, and there is nothing to be freed.
 *
 * How: a file that is put by loses the name of its log, and gets a new one when a log begins in it. What it holds stays
 * there until it is overwritten, and belongs to nobody: a log's records count from its own random id.
 *
 * Invariants: nothing is written to a file before no crash can bring its old name back: an old log with half of its records
 * would be taken for a whole one. So under `power` a file is taken only after a sync of the directory that began when it
 * was put by already. What a crash leaves here is removed, never read.
 */
import { BUFFER_SPARE_BYTES } from "../proto/limits.ts";
import type { OverlayContext } from "./overlay-files.ts";

const SPARE_NAME = /^buffer\.spare\.\d+\.log$/;

interface Spare {
  readonly path: string;
  readonly bytes: number;
  /** Which one it is, of all that were ever put by. */
  readonly ordinal: number;
}

export class SpareLogs {
  readonly #context: OverlayContext;
  /** The one that was put by first is first. */
  readonly #spares: Spare[] = [];
  #nextOrdinal = 0;
  /** The old names of those before it are gone for good. */
  #settledOrdinal: number;

  constructor(context: OverlayContext) {
    this.#context = context;
    this.#settledOrdinal = context.durability === "power" ? 0 : Infinity;
  }

  /** Removes what an earlier process has left. */
  static removeLeft({ storage, directory }: OverlayContext): void {
    for (const name of storage.list(directory)) if (SPARE_NAME.test(name)) storage.remove(`${directory}/${name}`);
  }

  /** Puts by the file at `path`, which is closed and has so many bytes. False: there are enough. Errors: those of a rename. */
  tryPut(path: string, bytes: number): boolean {
    // An operator's limit is to what is held, and leaves no room for what is not.
    if (this.#context.quota !== undefined) return false;
    if (this.#spares.reduce((sum, spare) => sum + spare.bytes, bytes) > BUFFER_SPARE_BYTES) return false;
    const ordinal = this.#nextOrdinal;
    const spare = `${this.#context.directory}/buffer.spare.${ordinal}.log`;
    this.#context.storage.rename(path, spare);
    this.#nextOrdinal += 1;
    this.#spares.push({ path: spare, bytes, ordinal });
    return true;
  }

  /** Gives a file the name `path`. False: there is none that can be written to yet. Errors: those of a rename. */
  tryTake(path: string): boolean {
    const [spare] = this.#spares;
    if (spare === undefined || spare.ordinal >= this.#settledOrdinal) return false;
    this.#context.storage.rename(spare.path, path);
    this.#spares.shift();
    return true;
  }

  /** To be called before a sync of the directory begins. What it returns is to be called when that has succeeded. */
  beginSync(): () => void {
    const settled = this.#nextOrdinal;
    return () => {
      this.#settledOrdinal = Math.max(this.#settledOrdinal, settled);
    };
  }

  /** Removes all. Returns whether there were any. Errors: those of a removal; the rest stays. */
  remove(): boolean {
    const wereAny = this.#spares.length > 0;
    for (let spare = this.#spares[0]; spare !== undefined; spare = this.#spares[0]) {
      this.#context.storage.remove(spare.path);
      this.#spares.shift();
    }
    return wereAny;
  }
}
