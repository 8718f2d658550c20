import assert from "node:assert/strict";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import type { Hello } from "../proto/replication-messages.ts";
import type { PeerLossPolicy } from "../proto/words.ts";
import type { Child, Pending } from "../shared/block/block-device.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Log } from "../shared/host/log.ts";
import type { SharedMarkRecord } from "../proto/shared-mark-format.ts";
import type { SharedMark } from "../shared/journal/shared-mark.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { knownBy } from "../shared/replication/lineage.ts";
import { peersOf } from "../shared/replication/peer-slots.ts";
import { CopyBeforeWrite } from "./copy-before-write.ts";
import type { GuestPolicy } from "./guest-policy.ts";
import type { LineageKeeper } from "./lineage-keeper.ts";
import { OriginalsGroup } from "./originals-group.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { SecondaryPlace } from "./secondary-place.ts";
import type { SourceSession } from "./source-session.ts";

export interface SharedDisksOptions {
  readonly state: StateFile;
  readonly guests: GuestPolicy;
  readonly children: readonly { readonly child: Child }[];
  readonly geometries: readonly ClusterGeometry[];
  /** One for each secondary that there may be; of several, only with a mark. */
  readonly places: () => readonly SecondaryPlace[];
  readonly lineages: () => Pick<LineageKeeper, "leave">;
  /** The last checkpoint that a peer is known to have committed, and that of all of them; 0: none. */
  readonly committedBy: (peer: string) => number;
  readonly committed: () => number;
  /** Counts a guest's change in the open epoch. */
  readonly overwritten: (bytes: number) => void;
  /**
   * The host has lost its power since an earlier process placed the barriers up to this epoch: what it had not flushed
   * of them is gone. 0: it has not.
   */
  readonly unflushedThrough: number;
  /** The mark that all hosts can reach; undefined: there is no place for one, and nothing goes on without a secondary. */
  readonly sharedMark: SharedMark | undefined;
  /** What guests do when no secondary protects them any more. */
  readonly onPeerLoss: PeerLossPolicy;
  /** With an arbiter: done when it knows that the secondary is to take nothing over. Errors: why this side may not serve. */
  readonly mayGoAlone: () => Pending;
  /** A new lineage was begun for guests who go on alone. */
  readonly wentAlone: () => void;
  readonly log: Log;
}

/**
 * What mode `shared` adds to a primary, for all disks of the VM: the originals that go before each overwrite, the barrier
 * that they all begin anew at, and the flush that makes a checkpoint of what another host can see.
 *
 * A secondary that may know the lineage may hold a checkpoint that its originals lead back to. While one of those takes no
 * originals guests' changes wait: the disk is the only copy, and what is overwritten without an original is overwritten for
 * all sides. It is left behind where the policy, or the operator, lets guests go on without any, and where another one
 * protects them: first the arbiter is told, where there is one, then the mark names those whose checkpoints stand, on the
 * shared storage, then a new lineage is recorded, of which those that stay hear, and only then is anything overwritten.
 */
export class SharedDisks {
  readonly children: readonly CopyBeforeWrite[];
  readonly #options: SharedDisksOptions;
  #placing: Promise<unknown> = Promise.resolve();
  /** The mark says that there is no checkpoint to lead back to, or that this side merges one: nothing overwritten counts. */
  #isMarked: boolean;
  /** Epochs that the secondary of a place has prepared, and that are no checkpoints. */
  readonly #unflushed = new Map<SecondaryPlace, readonly number[]>();
  /** Whose checkpoints stand by what this process has written last into the mark. */
  #standing: readonly string[] | undefined;
  /** Whom the mark may name, as a write that has failed may have left it; undefined: it is of an earlier process, or of another agent. */
  #named: readonly string[] | undefined;
  #leaving: Promise<void> | undefined;
  /** Peers that are being left behind: what they hold counts no more. */
  #parting: readonly string[] = [];
  /** The operator lets guests go on alone, until the next secondary. */
  #mayGoAlone: boolean;
  /** Who takes originals, as it was found last, and what that was found for. */
  #group: OriginalsGroup | undefined;
  #foundFor:
    | { readonly history: unknown; readonly pairing: unknown; readonly sessions: readonly SourceSession[] }
    | undefined;

  constructor(options: SharedDisksOptions) {
    this.#options = options;
    // A promotion has written the mark before the record that says so.
    this.#isMarked = options.state.record.merge !== null;
    this.#mayGoAlone = options.onPeerLoss === "continue";
    const stream = {
      session: () => this.#originalsGroup,
      isUnwatched: () => !options.state.record.history.shared && (options.sharedMark === undefined || this.#isMarked),
      wait: () => this.#wait(),
      overwritten: options.overwritten,
    };
    this.children = options.children.map(({ child }, index) => {
      const geometry = options.geometries[index];
      assert(geometry !== undefined, "each disk has its geometry");
      return new CopyBeforeWrite(index, child, geometry, stream);
    });
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

  /**
   * The secondary of a place opens a session: from here on it can read what was flushed before. Returns its hello with those
   * of its checkpoints that count: none where it is to give them up. Errors: `outdated` where another one was promoted; those
   * of the storage.
   */
  async opened(place: SecondaryPlace, peer: Hello): Promise<Hello> {
    const { children, sharedMark } = this.#options;
    // The peer itself is Secondary, whatever it has written into the mark.
    await sharedMark?.assertNotTaken((mark) => mark.agentId !== peer.agentId && this.#isTaken(mark));
    // Only what is opened for writing can flush what an earlier process has left in the host's cache.
    for (const { child } of children) await child.ready?.();
    await this.flush();
    const verdict = place.judged?.verdict;
    if (verdict?.kind !== "sync" || verdict.extent !== "keep") return { ...peer, committed: 0, prepared: [] };
    const unflushed = this.#unflushedOf(peer.prepared);
    this.#unflushed.set(place, unflushed);
    return { ...peer, prepared: peer.prepared.filter((epoch) => !unflushed.includes(epoch)) };
  }

  /** What the secondary of a place has prepared, and what is no checkpoint: to be withdrawn there. It is told once. */
  takeUnflushed(place: SecondaryPlace): readonly number[] {
    const unflushed = this.#unflushed.get(place) ?? [];
    this.#unflushed.delete(place);
    return unflushed;
  }

  /**
   * Gives the disks back, durable, until the next request. What was asked of an image and is not answered would be asked
   * anew, and open it: it is waited for. Errors: `io-error`.
   */
  async letGo(disks: readonly Pick<ReplicatedDisk, "idle">[]): Promise<void> {
    for (const disk of disks) await disk.idle();
    for (const { child } of this.#options.children) await child.letGo?.();
  }

  /** The prepared epochs of which the disks may lack what was written before the barrier: they are no checkpoints. */
  #unflushedOf(prepared: readonly number[]): number[] {
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

  /** Errors: `not-supported` without a mark. */
  assertMayGoAlone(): void {
    // Where nobody knows this lineage there is no checkpoint to lose.
    if (this.#options.sharedMark === undefined && this.#options.state.record.history.shared) throw cannotGoAlone();
  }

  /** Whether guests' changes go on without the secondary where it is missed. */
  get goesAlone(): boolean {
    return this.#mayGoAlone;
  }

  /** Lets guests' changes go on without the secondary, until there is one again. Errors: as `assertMayGoAlone`. */
  goAlone(): void {
    this.assertMayGoAlone();
    this.#mayGoAlone = true;
  }

  /** The secondary takes originals again. */
  watched(): void {
    this.#mayGoAlone = this.#options.onPeerLoss === "continue";
  }

  /**
   * A checkpoint is committed, or a secondary is there that has told of one: those that have the newest can go back to it from
   * here on, whether they take originals now or not, and nobody is to go back to an older one. Resolves when the mark says so,
   * or cannot.
   */
  async protect(): Promise<void> {
    const { state, sharedMark: mark, guests, log } = this.#options;
    // Whom the role was handed to writes the mark from then on; and a merge's says that it is under way, and nobody is there.
    if (mark === undefined || state.record.handOver !== null || state.record.merge !== null) return;
    if (this.#standing?.join() === this.#holders().join()) return;
    this.#standing = undefined;
    this.#isMarked = false;
    try {
      this.#standing = await this.#stand(mark);
    } catch (error) {
      log.warn({ reason: asColobusError(error) }, "the mark of the shared disk is not written: a failover is refused");
    }
    // Guests who wait for another one are protected by this one now.
    if (guests.gate.state === "frozen" && this.#present.size > 0 && this.#mayLeave(this.#absent)) guests.release();
  }

  /** A secondary is there, which may have told of a checkpoint. While guests are held another one may have been promoted. */
  joined(): void {
    if (!this.#options.guests.isHeld) void this.protect();
  }

  /**
   * As `protect`, for the checkpoint of `epoch`, which is to be told. Errors: `outcome-unknown` while the mark may name one
   * that lacks it, or nobody that has it.
   */
  async mayTell(epoch: number): Promise<void> {
    await this.protect();
    const { state, sharedMark, committedBy } = this.#options;
    if (sharedMark === undefined || state.record.handOver !== null || state.record.merge !== null) return;
    const has = (peer: string): boolean => committedBy(peer) >= epoch;
    const named = this.#named;
    if (named?.every(has) === true && (named.length > 0 || !knownBy(state.record).some(has))) return;
    throw new ColobusError(
      "outcome-unknown",
      `checkpoint ${epoch} is committed, but the mark of the shared disk cannot be written, so that a failover would not find it`,
      `See that the file of --shared-mark can be written, and ask again: \`colobus commit ${epoch}\`.`,
    );
  }

  /** All that may hold a checkpoint, as one; undefined: one of them takes no originals now, or there is none. */
  get #originalsGroup(): OriginalsGroup | undefined {
    const { state, places } = this.#options;
    const { history, pairing } = state.record;
    const before = this.#foundFor;
    let isSame = before?.history === history && before.pairing === pairing;
    let count = 0;
    for (const { replicator } of places()) {
      const session = replicator.establishedSession;
      if (session === undefined) continue;
      if (before?.sessions[count] !== session) isSame = false;
      count += 1;
    }
    if (isSame && before?.sessions.length === count) return this.#group;
    const sessions = [...this.#present.values()];
    this.#foundFor = { history, pairing, sessions };
    const isWhole = sessions.length > 0 && this.#absent.length === 0;
    if (!isWhole) this.#group = undefined;
    else if (this.#group === undefined || !areEqual(this.#group.members, sessions))
      this.#group = new OriginalsGroup(sessions);
    return this.#group;
  }

  /** By the peers' ids, the sessions whose secondaries take originals now. */
  get #present(): ReadonlyMap<string, SourceSession> {
    const present = new Map<string, SourceSession>();
    for (const { replicator } of this.#options.places()) {
      const session = replicator.establishedSession;
      if (session?.peer !== undefined) present.set(session.peer.agentId, session);
    }
    return present;
  }

  /** The peers that may hold a checkpoint, and take no originals. Without a mark nothing can be said of one that has no place. */
  get #absent(): readonly string[] {
    const { state, sharedMark } = this.#options;
    const present = this.#present;
    const absent = knownBy(state.record).filter((peer) => !present.has(peer));
    return sharedMark === undefined && present.size > 0 ? [] : absent;
  }

  /** Whose checkpoints stand, and are the newest. */
  #holders(): string[] {
    const { state, committedBy, committed } = this.#options;
    const newest = committed();
    if (newest === 0) return [];
    return knownBy(state.record)
      .filter((peer) => peer !== "" && !this.#parting.includes(peer) && committedBy(peer) === newest)
      .sort();
  }

  /**
   * Has the mark name those whose checkpoints stand. It is recorded first that this side writes it: whoever has written it
   * then was promoted. Errors: as `SharedMark.stand`.
   */
  async #stand(mark: SharedMark): Promise<readonly string[]> {
    const { state } = this.#options;
    const standing = await mark.stand({
      holders: () => {
        const holders = this.#holders();
        if (this.#named !== undefined) this.#named = [...new Set([...this.#named, ...holders])];
        return holders;
      },
      isTaken: (found) => this.#isTaken(found),
      before: async (found) => {
        if (state.record.markedOver !== undefined) return;
        const markedOver = { agentId: found?.agentId ?? null, sequence: found?.sequence ?? 0 };
        await state.update((record) => ({ ...record, markedOver }));
      },
    });
    this.#named = standing;
    return standing;
  }

  /**
   * Whether the mark is of another agent that was promoted on the disks since this side has written it, or, where it never
   * has, of one that has been its peer, or merges. Who takes originals from here was not, whatever it has tried.
   */
  #isTaken({ agentId, sequence, state }: SharedMarkRecord): boolean {
    const { record } = this.#options.state;
    if (agentId === record.agentId || this.#present.has(agentId)) return false;
    if (state === "merging") return true;
    const { markedOver } = record;
    if (markedOver !== undefined) return agentId !== markedOver.agentId || sequence !== markedOver.sequence;
    return [...peersOf(record), ...knownBy(record), ...(record.replaced ?? [])].includes(agentId);
  }

  /** Whether these may be left behind. One whose place another one has taken, by whomever's word, is not waited for. */
  #mayLeave(absent: readonly string[]): boolean {
    const { state, committedBy, committed } = this.#options;
    const newest = committed();
    const present = [...this.#present.keys()];
    const isProtected = newest > 0 && present.some((peer) => committedBy(peer) === newest);
    if (this.#mayGoAlone || isProtected || absent.length === 0) return true;
    const kept = peersOf(state.record);
    return present.length > 0 && absent.every((peer) => !kept.includes(peer));
  }

  /** Guests' changes wait until they may go on, or there is a secondary again. Errors: why they may not. */
  #wait(): Pending {
    const { guests, sharedMark: mark, log } = this.#options;
    if (mark !== undefined && guests.gate.state === "open" && this.#mayLeave(this.#absent)) {
      this.#leaving ??= this.#leave(mark)
        .catch((error: unknown) => {
          // Who cannot say so does not do it.
          log.warn({ reason: asColobusError(error) }, "guests cannot go on without the secondary");
          if (guests.gate.state === "open") guests.freeze();
        })
        .finally(() => {
          this.#parting = [];
          this.#leaving = undefined;
        });
      return this.#leaving;
    }
    if (guests.gate.state === "open") guests.freeze();
    return guests.gate.admitChange();
  }

  /** Leaves behind who takes no originals: those that do stay, or guests go on alone. Looked at anew after each step. */
  async #leave(mark: SharedMark): Promise<void> {
    const { state, guests, lineages, mayGoAlone, wentAlone } = this.#options;
    // Who merges may have ended its session just now.
    const isMerging = (found: SharedMarkRecord): boolean =>
      found.state === "merging" && found.agentId !== state.record.agentId;
    await mark.assertNotTaken((found) => isMerging(found) || this.#isTaken(found));
    await mayGoAlone();
    for (;;) {
      const absent = this.#absent;
      if (this.#present.size > 0 && absent.length === 0) return; // the next checkpoint says whose stand
      if (!this.#mayLeave(absent)) return;
      this.#parting = absent;
      this.#standing = undefined;
      this.#standing = await this.#stand(mark);
      if (!areEqual(this.#absent, absent)) continue;
      if (absent.length > 0) {
        this.#endOthers();
        if (!(await lineages().leave(absent, (peer) => this.#present.has(peer)))) continue;
        if (!this.#options.state.record.history.shared) wentAlone();
      }
      guests.gate.assertServing();
      if (!this.#options.state.record.history.shared) this.#isMarked = true;
      return;
    }
  }

  /** A session that is opening, or paused, may be about a checkpoint that is void from now on. */
  #endOthers(): void {
    const reason = new ColobusError("replaced", "guests go on without the secondary", "Nothing: it is tried again.");
    for (const { replicator } of this.#options.places()) {
      if (replicator.establishedSession === undefined) replicator.endSession(reason);
    }
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

function areEqual<T>(one: readonly T[], other: readonly T[]): boolean {
  return one.length === other.length && one.every((item, index) => item === other[index]);
}
