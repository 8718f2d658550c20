import { asColobusError, ColobusError } from "../proto/errors.ts";
import type { Hello } from "../proto/replication-messages.ts";
import type { EventType } from "../proto/words.ts";
import type { Child, Pending } from "../shared/block/block-device.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Log } from "../shared/host/log.ts";
import { newId, type Random } from "../shared/host/random.ts";
import type { SharedMark } from "../shared/journal/shared-mark.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { goneAlone } from "../shared/replication/lineage.ts";
import { CopyBeforeWrite } from "./copy-before-write.ts";
import type { GuestPolicy } from "./guest-policy.ts";
import type { SourceSession } from "./source-session.ts";

export interface SharedDisksOptions {
  readonly state: StateFile;
  readonly guests: GuestPolicy;
  readonly disks: readonly { readonly child: Child; readonly geometry: ClusterGeometry }[];
  /** The session whose secondary takes originals now; undefined: there is none. */
  readonly session: () => SourceSession | undefined;
  /** Ends the session that is open, or opening, whatever it is at. */
  readonly endSession: (reason: ColobusError) => void;
  /** Counts a guest's change in the open epoch. */
  readonly overwritten: (bytes: number) => void;
  /**
   * The host has lost its power since an earlier process placed the barriers up to this epoch: what it had not flushed
   * of them is gone. 0: it has not.
   */
  readonly unflushedThrough: number;
  /** The mark that both hosts can reach; undefined: there is no place for one, and nothing goes on without a secondary. */
  readonly mark: SharedMark | undefined;
  /** Whether guests go on by themselves when the secondary is lost. */
  readonly goesAlone: boolean;
  /** With an arbiter: done when it knows that the secondary is to take nothing over. Errors: why this side may not serve. */
  readonly mayGoAlone: () => Pending;
  /** A new lineage was begun for guests who go on alone. */
  readonly wentAlone: () => void;
  readonly random: Random;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
}

/**
 * What mode `shared` adds to a primary, for all disks of the VM: the originals that go before each overwrite, the barrier
 * that they all begin anew at, and the flush that makes a checkpoint of what another host can see.
 *
 * Without a secondary guests' changes wait: the disk is the only copy, and what is overwritten without an original is
 * overwritten for both sides. Only a history that no secondary can have a checkpoint of needs none. Such a one is begun
 * where the policy, or the operator, lets guests go on alone: first the arbiter is told, where there is one, then the mark
 * says *unprotected*, on the shared storage, then the new lineage is recorded, and only then is anything overwritten.
 */
export class SharedDisks {
  readonly children: readonly CopyBeforeWrite[];
  readonly #options: SharedDisksOptions;
  #placing: Promise<unknown> = Promise.resolve();
  /** The mark says that there is no checkpoint to lead back to, or that this side merges one: nothing overwritten counts. */
  #isMarked: boolean;
  /** This process has written that the checkpoint stands, and nothing else since. */
  #isProtected = false;
  #going: Promise<void> | undefined;
  /** The operator lets guests go on alone, until the next secondary. */
  #mayGoAlone: boolean;

  constructor(options: SharedDisksOptions) {
    this.#options = options;
    // A promotion has written the mark before the record that says so.
    this.#isMarked = options.state.record.merge !== null;
    this.#mayGoAlone = options.goesAlone;
    const stream = {
      session: options.session,
      isUnwatched: () => !options.state.record.history.shared && (options.mark === undefined || this.#isMarked),
      wait: () => this.#wait(),
      overwritten: options.overwritten,
    };
    this.children = options.disks.map(
      ({ child, geometry }, index) => new CopyBeforeWrite(index, child, geometry, stream),
    );
  }

  /**
   * Places a barrier: runs `place` while no change is under way on any disk, after all earlier ones, and before any later
   * one has begun. From then on every change needs its original again. Rejects with what `place` throws.
   */
  atBarrier<T>(place: () => T): Promise<T> {
    const placed = this.#placing.then(async () => {
      try {
        for (const changing of this.children.map((child) => child.holdChanges())) {
          if (changing !== undefined) await changing;
        }
        return place();
      } finally {
        for (const child of this.children) child.beginEpoch();
      }
    });
    this.#placing = placed.catch(() => undefined); // the caller has the error
    return placed;
  }

  /** Everything written so far is on the shared disk, where the other host can read it. Errors: `io-error`. */
  async flush(): Promise<void> {
    await Promise.all(this.children.map(async (child) => child.flush()));
  }

  /** What a secondary's hello says of its checkpoints, as far as it counts: nothing where it is to give them up. */
  countedOf(peer: Hello, isKept: boolean): Hello {
    if (!isKept) return { ...peer, committed: 0, prepared: [] };
    const unflushed = this.unflushedOf(peer.prepared);
    return { ...peer, prepared: peer.prepared.filter((epoch) => !unflushed.includes(epoch)) };
  }

  /** The prepared epochs of which the disks may lack what was written before the barrier: they are no checkpoints. */
  unflushedOf(prepared: readonly number[]): number[] {
    const through = Math.max(this.#options.unflushedThrough, this.#options.state.record.unflushedThrough);
    return prepared.filter((epoch) => epoch <= through);
  }

  /** The disks could not be flushed for the barrier of `epoch`: no later process may take it for a checkpoint. */
  async noteUnflushed(epoch: number): Promise<void> {
    await this.#options.state.update((record) => ({
      ...record,
      unflushedThrough: Math.max(record.unflushedThrough, epoch),
    }));
  }

  /** Lets guests' changes go on without the secondary, until there is one again. Errors: `not-supported` without a mark. */
  goAlone(): void {
    // Where nobody knows this lineage there is no checkpoint to lose.
    if (this.#options.mark === undefined && this.#options.state.record.history.shared) throw cannotGoAlone();
    this.#mayGoAlone = true;
  }

  /** The secondary takes originals again. */
  watched(): void {
    this.#mayGoAlone = this.#options.goesAlone;
  }

  /**
   * A checkpoint is committed, in the session that is open: from here on its originals lead back to it. Resolves when the
   * mark says so, or cannot.
   */
  async protect(): Promise<void> {
    const { mark, session, log } = this.#options;
    if (mark === undefined || this.#isProtected || session() === undefined) return;
    this.#isMarked = false;
    try {
      await mark.write("protected");
      this.#isProtected = !this.#isMarked;
    } catch (error) {
      log.warn({ reason: asColobusError(error) }, "the mark of the shared disk is not written: a failover is refused");
    }
  }

  /** Guests' changes wait until they may go on, or there is a secondary again. Errors: why they may not. */
  #wait(): Pending {
    const { guests, state, mark, log } = this.#options;
    const isFree = this.#mayGoAlone || !state.record.history.shared;
    if (mark !== undefined && isFree && guests.gate.state === "open") {
      this.#going ??= this.#beginAlone(mark)
        .catch((error: unknown) => {
          // Who cannot say so does not do it.
          log.warn({ reason: asColobusError(error) }, "guests cannot go on without the secondary");
          if (guests.gate.state === "open") guests.freeze();
        })
        .finally(() => {
          this.#going = undefined;
        });
      return this.#going;
    }
    if (guests.gate.state === "open") guests.freeze();
    return guests.gate.admitChange();
  }

  async #beginAlone(mark: SharedMark): Promise<void> {
    const { guests, state, random, session, endSession, mayGoAlone, wentAlone, emit, log } = this.#options;
    await mark.assertNobodyMerges(log);
    await mark.assertNotTakenBy(state.record.pairing?.peer, log);
    await mayGoAlone();
    if (session() !== undefined) return;
    this.#isProtected = false;
    await mark.write("unprotected");
    if (session() !== undefined) return; // the next checkpoint says that it is protected again
    if (state.record.history.shared) {
      const { lineage } = await state.update((record) =>
        record.history.shared ? goneAlone(record, newId(random)) : record,
      );
      wentAlone();
      // A session that is opening, or paused, is about a checkpoint that will be void.
      endSession(new ColobusError("replaced", "guests go on without the secondary", "Nothing: it is tried again."));
      emit("lineage-changed", { lineage, origin: "alone" });
    }
    guests.gate.assertServing();
    this.#isMarked = true;
  }
}

/** Why a shared disk's primary cannot go on without the secondary. */
function cannotGoAlone(): ColobusError {
  return new ColobusError(
    "not-supported",
    "the secondary's checkpoint would be lost with the first write, and in mode shared there is no place to say so",
    "Bring the secondary back; or give both agents a --shared-mark, and try again. When it is gone for good, start this agent with an empty --state directory, and the secondary too.",
  );
}
