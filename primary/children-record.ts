import { asColobusError } from "../proto/errors.ts";
import { STATE_RETRY_MS } from "../proto/limits.ts";
import type { RecordedChild } from "../proto/state-record.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import { sleep } from "../shared/host/sleep.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { RecordedState, StateWords } from "./recorded-state.ts";
import { updateQuorum } from "./recorded-quorum.ts";

/** What the record names a copy by, and keeps of it. */
export type CopyIdentity = Pick<RecordedChild, "name" | "image" | "bitmap" | "replaces">;

export function identityOf({
  name,
  image,
  replaces,
  bitmap,
}: Pick<RecordedChild, "name" | "image"> & {
  readonly replaces?: string | undefined;
  readonly bitmap?: string | undefined;
}): CopyIdentity {
  return {
    name,
    image,
    ...(replaces === undefined ? {} : { replaces }),
    ...(bitmap === undefined || bitmap === name ? {} : { bitmap }),
  };
}

/** One of the copies, as the record is to have it. */
export interface RecordedCopy {
  readonly identity: CopyIdentity;
  readonly recorded: RecordedState;
  /** What the record is to say of it at present. */
  readonly words: () => StateWords;
}

/** What a copy is to be recorded as. */
export interface CopyEntry {
  readonly copy: RecordedCopy;
  readonly identity: CopyIdentity;
  readonly words: StateWords;
}

/** A copy as it is at present. */
export function entryOf(copy: RecordedCopy): CopyEntry {
  return { copy, identity: copy.identity, words: copy.words() };
}

export interface ChildrenRecordOptions {
  readonly disk: string;
  readonly state: StateFile;
  readonly clock: Clock;
  readonly log: Log;
  /** All copies, in the order in which they are recorded. */
  readonly copies: () => readonly RecordedCopy[];
}

/**
 * Owns what the state record says of the copies of one disk: that it follows what is so, and that nobody takes a copy for
 * better than it is before it does. Where a change cannot be recorded it is tried again, with what is so by then.
 */
export class ChildrenRecord {
  readonly #options: ChildrenRecordOptions;
  #isOverstated = false;
  #recording: Promise<void> | undefined;
  #last: Promise<unknown> = Promise.resolve();
  #stopped = false;

  constructor(options: ChildrenRecordOptions) {
    this.#options = options;
  }

  /** Done when no copy is recorded as sound, or its bitmap as whole, that is not. */
  untilTrue(): Pending {
    return this.#isOverstated ? this.follow() : undefined;
  }

  /** Something has changed, and is to be recorded later. */
  look(): void {
    this.#isOverstated = this.#options.copies().some(({ recorded, words }) => recorded.overstates(words()));
  }

  /** Resolves when no copy is recorded as better than it was found. Errors: as `write`. */
  async begin(): Promise<void> {
    if (this.#isOverstated) await this.alone(() => this.writeAll());
  }

  /** Something has changed: resolves when the record says what is. It is tried again for as long as the role lasts. */
  follow(): Promise<void> {
    this.look();
    if (this.#recording === undefined && !this.#isTrue) this.#recording = this.#untilTrue();
    return this.#recording ?? Promise.resolve();
  }

  /**
   * Has `work` done while nothing else changes what is recorded of the copies. Nothing in it is to wait for the range lock,
   * or for `follow`.
   */
  alone<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work);
    this.#last = result.catch(() => undefined); // the caller has the error
    return result;
  }

  /** Records all copies as they are at present. Called in `alone`. Errors: as `write`. */
  writeAll(): Promise<void> {
    return this.write(this.#options.copies().map(entryOf));
  }

  /**
   * Records that the disk has these copies, and not the others that are known here; what is recorded beside them is about to
   * be. Called in `alone`. Errors: `io-error`; it may be recorded nevertheless.
   */
  async write(entries: readonly CopyEntry[]): Promise<void> {
    const { state, disk, copies } = this.#options;
    const known = new Set(copies().map(({ identity }) => identity.image));
    for (const { copy, words } of entries) copy.recorded.attempt(words);
    await updateQuorum(state, disk, (quorum) => ({
      ...quorum,
      children: [
        ...entries.map(({ identity, words }) => ({ ...identity, ...words, cleanMark: null })),
        ...quorum.children.filter(({ image }) => !known.has(image)),
      ],
    }));
    for (const { copy, words } of entries) copy.recorded.written(words);
    this.look();
  }

  /** The role ends: what cannot be recorded is not tried again. Resolves when nothing is. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#recording;
    await this.#last;
  }

  get #isTrue(): boolean {
    return this.#options.copies().every(({ recorded, words }) => recorded.says(words()));
  }

  async #untilTrue(): Promise<void> {
    const { disk, clock, log } = this.#options;
    while (!this.#isTrue) {
      try {
        await this.alone(() => this.writeAll());
      } catch (error) {
        if (this.#stopped) break;
        log.warn({ disk, reason: asColobusError(error) }, "which copies are sound cannot be recorded yet");
        await sleep(clock, STATE_RETRY_MS);
      }
    }
    this.#recording = undefined; // at once: what is not so any more a moment later is to be recorded anew
  }
}
