import { asColobusError, ColobusError } from "../../proto/errors.ts";
import { STATE_RETRY_MS } from "../../proto/limits.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Clock } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import type { StateFile } from "./state-file.ts";

/** A file of which an fsync has failed: the image of `disk`, or its active disk of that id. */
export type LostSync = StateRecord["lostSyncs"][number];

export interface LostSyncsOptions {
  readonly state: StateFile;
  readonly clock: Clock;
  readonly log: Log;
}

type Change = (record: StateRecord) => StateRecord;

/**
 * Owns the durable note of fsyncs that have failed. The kernel tells of a failure once, and has forgotten then which
 * writes it lost; readers still see them in the page cache, and the next fsync succeeds. In the process that was told,
 * every later flush of the file fails as well. The note makes it so in later processes, until the host boots anew: from
 * then on readers see what the device has. An image behind a server writes again what the failed flush covered, and ends
 * the note with the next flush that succeeds.
 *
 * Only what a client relies on is noted: the active disk, and the image of a primary, or, in mode `mirror`, of a secondary.
 * What a primary's stream has brought a secondary is sent and written again after any end that was not clean.
 *
 * It also owns the note of images whose server has died, and may have lost what it had answered, while nobody has told
 * the next one. A process that ends meanwhile leaves an image that nobody can rely on who never flushes: with durability
 * `power`, what no flush has covered is known to be dirty anyway.
 */
export class LostSyncs {
  readonly #options: LostSyncsOptions;
  /** What is not in the record yet, by what it is about. */
  readonly #due = new Map<string, Change>();
  #stopped = false;

  constructor(options: LostSyncsOptions) {
    this.#options = options;
  }

  /** Whether an earlier process was told of it. */
  has(file: LostSync): boolean {
    return this.#options.state.record.lostSyncs.some((noted) => isSame(noted, file));
  }

  /**
   * An fsync of the file has just failed. Resolves when that is noted, or cannot be for now: then it is tried again until
   * it can. Whoever is told of the failure is told after that.
   */
  note(file: LostSync): Promise<void> {
    return this.#put(syncKey(file), (record) => withLost(record, file));
  }

  /** Nothing is lost of that file any more. Resolves, as the others, when that is noted, or cannot be for now. */
  mended(file: LostSync): Promise<void> {
    return this.#put(syncKey(file), (record) => ({
      ...record,
      lostSyncs: record.lostSyncs.filter((noted) => !isSame(noted, file)),
    }));
  }

  /** The server of the disk's image may have lost what it had answered. */
  replayOwed(disk: string): Promise<void> {
    return this.#putReplay(disk, true);
  }

  /** Its next server has all of that. */
  replayed(disk: string): Promise<void> {
    return this.#putReplay(disk, false);
  }

  /** The agent is about to stop: nothing is tried again. */
  stop(): void {
    this.#stopped = true;
  }

  async #putReplay(disk: string, isOwed: boolean): Promise<void> {
    if (this.#options.state.record.durability === "power") return;
    await this.#put(`replay ${disk}`, (record) => {
      const others = record.replaysOwed.filter((owed) => owed !== disk);
      return { ...record, replaysOwed: isOwed ? [...others, disk] : others };
    });
  }

  async #put(what: string, change: Change): Promise<void> {
    const { state, log, clock } = this.#options;
    this.#due.set(what, change);
    const isDue = (): boolean => this.#due.get(what) === change;
    try {
      await state.update(change);
      if (isDue()) this.#due.delete(what);
    } catch (error) {
      log.warn({ what, reason: asColobusError(error) }, "what an image has lost cannot be noted yet");
      clock.after(STATE_RETRY_MS, () => {
        if (!this.#stopped && isDue()) void this.#put(what, change);
      });
    }
  }
}

function syncKey({ disk, active }: LostSync): string {
  return `sync ${disk} ${active ?? ""}`;
}

/** What a flush of a file fails with whose fsync has failed in an earlier process. */
export function lostSync(path: string): ColobusError {
  return new ColobusError(
    "io-error",
    `an fsync of ${path} has failed in an earlier process: what was written before may be in the page cache alone`,
    "Look for errors of its device in the kernel's log. On a primary: `colobus switchover`.",
  );
}

function withLost(record: StateRecord, file: LostSync): StateRecord {
  if (file.active === null && record.role !== "Primary" && record.mode !== "mirror") return record;
  if (record.lostSyncs.some((noted) => isSame(noted, file))) return record;
  // Of earlier active disks of the same disk nothing is left.
  const others = record.lostSyncs.filter(
    ({ disk, active }) => disk !== file.disk || (active === null) !== (file.active === null),
  );
  return { ...record, lostSyncs: [...others, file] };
}

function isSame(one: LostSync, other: LostSync): boolean {
  return one.disk === other.disk && one.active === other.active;
}
