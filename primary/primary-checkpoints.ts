import type { CheckpointAnswer, CheckpointRequest, CommitAnswer, DiscardAnswer } from "../proto/control-api.ts";
import type { Status } from "../proto/status.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { PREPARED_EPOCHS_MAX } from "../proto/limits.ts";
import type { Hello } from "../proto/replication-messages.ts";
import type { EventType } from "../proto/words.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { Clock } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { CheckpointAges } from "../shared/replication/checkpoint-ages.ts";
import { EpochVolumes } from "../shared/replication/epoch-volumes.ts";
import { committedByPeer } from "../shared/replication/peer-slots.ts";
import { EpochCounter } from "./epoch-counter.ts";
import { learnEpochs, type KnownEpochs } from "./known-epochs.ts";
import { lostPeer, stillSyncing } from "./no-peer.ts";
import type { EpochSession } from "./session-group.ts";

/** Disks that have to be held, and flushed, for a barrier: as `SharedDisks` says. */
interface BarrierDisks {
  readonly atBarrier: <T>(place: () => T) => Promise<T>;
  readonly flush: () => Promise<void>;
  readonly noteUnflushed: (epoch: number) => Promise<void>;
}

export interface PrimaryCheckpointsOptions {
  readonly clock: Clock;
  readonly ages: CheckpointAges;
  readonly state: StateFile;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  /** The open session with the secondary; of several, those that have the epoch. Errors: `no-peer`. */
  readonly session: (epoch?: number) => EpochSession;
  /** Whom a barrier goes to now. Errors: `no-peer`. */
  readonly barrierSession: () => EpochSession;
  /** Whether the secondary has everything, so that a barrier may be placed. */
  readonly isEstablished: () => boolean;
  /** Resolves when the secondary has everything. Errors: `no-peer` when the session is lost first. */
  readonly untilEstablished: () => Promise<void>;
  /** Why a secondary takes no writes for now. */
  readonly pausedBy: () => ColobusError | undefined;
  /** In mode `shared`: what a barrier has to do with the disks. */
  readonly sharedDisks: BarrierDisks | undefined;
  /** Done when the checkpoint may be told to be committed, which the secondaries that were asked have done. Errors: why it may not. */
  readonly mayTell: (epoch: number) => Pending;
  /**
   * The secondary has committed a checkpoint, in the session that is open; done when a failover may rely on that. Errors:
   * `outcome-unknown` where it may not.
   */
  readonly committed: (epoch: number) => Pending;
}

/**
 * A barrier that has its place in the stream of `session`. `done` resolves when the secondary has done what it asks for,
 * with the milliseconds of that which the commit took, 0 where none is asked for.
 */
interface Placed {
  readonly session: EpochSession;
  readonly epoch: number;
  readonly done: Promise<number>;
}

/**
 * Owns the primary's epochs: which one is open, how much was written in each, and what this side was told last of the
 * secondary's checkpoints. Closes epochs, and asks for commits and discards; what is prepared and committed is the
 * secondary's to know.
 */
export class PrimaryCheckpoints {
  readonly #options: PrimaryCheckpointsOptions;
  readonly #epochs: EpochCounter;
  readonly #known: KnownEpochs;
  /** The guest's writes since this agent started, by epoch. */
  readonly #volumes = new EpochVolumes();
  /** Whether the committed epoch was closed under this agent's eyes, so that no later write is uncounted. */
  #volumesComplete = false;
  /** The secondary has given up what it had of epochs up to this one. An answer about one may be read after that. */
  #voidThrough = 0;
  /** Barriers that are answered and await their VM state, and the session that this has to come in. Ascending. */
  readonly #awaiting = new Map<number, EpochSession>();
  #hasCountedWrites = false;
  /** Checkpoints that have a VM state, as far as this side knows. */
  readonly #vmStates: Set<number>;

  constructor(options: PrimaryCheckpointsOptions) {
    this.#options = options;
    const { record } = options.state;
    this.#epochs = new EpochCounter(options.state);
    this.#vmStates = new Set(record.vmStateEpoch === undefined ? [] : [record.vmStateEpoch]);
    this.#known = {
      committed: committedByPeer(record),
      prepared: [],
      asked: new Set(),
    };
  }

  get openEpoch(): number {
    return this.#epochs.open;
  }

  /** The epoch that the secondary has committed, as it said last; 0: none. */
  get committed(): number {
    return this.#known.committed;
  }

  /** Whether a checkpoint has a VM state, as far as this side knows. */
  hasVmState(epoch: number): boolean {
    return this.#vmStates.has(epoch);
  }

  /** How long ago its barrier was placed. */
  get committedAgeMs(): number {
    return this.#options.ages.ageMs(this.committed);
  }

  get prepared(): readonly number[] {
    return this.#known.prepared;
  }

  /** What the guest has written since the committed checkpoint, as far as this process has seen it. */
  volumeSinceCommit(): { readonly writes: number; readonly bytes: number; readonly complete: boolean } {
    return { ...this.#volumes.total(), complete: this.#volumesComplete };
  }

  /** Whether a guest has written since this agent took up the role. */
  get hasCountedWrites(): boolean {
    return this.#hasCountedWrites;
  }

  /** The checkpoint that awaits its VM state: the newest where no epoch is named. Errors: `epoch-unknown`. */
  awaiting(epoch: number | undefined): { readonly epoch: number; readonly session: EpochSession } {
    const wanted = epoch ?? [...this.#awaiting.keys()].at(-1) ?? 0;
    const session = this.#awaiting.get(wanted);
    if (session !== undefined) return { epoch: wanted, session };
    throw new ColobusError(
      "epoch-unknown",
      epoch === undefined ? "no checkpoint awaits a VM state" : `checkpoint ${epoch} awaits no VM state`,
      "Place a barrier first: `colobus checkpoint --prepare --await-vmstate`.",
    );
  }

  /**
   * The VM state of `epoch` has arrived in `session` and is stored, after `vmstateMs`. Errors: `epoch-unknown` when it
   * came too late.
   */
  stored(epoch: number, session: EpochSession, vmstateMs: number): void {
    if (this.awaiting(epoch).session !== session) throw lostPeer();
    this.#awaiting.delete(epoch);
    for (const older of this.#vmStates) if (older < this.committed) this.#vmStates.delete(older);
    this.#vmStates.add(epoch);
    if (epoch > this.#voidThrough)
      this.#known.prepared = [...this.#known.prepared, epoch].sort((left, right) => left - right);
    this.#options.emit("checkpoint-prepared", { epoch, vmstateMs });
  }

  describe(): Status["epoch"] {
    return { open: this.openEpoch, prepared: [...this.prepared], committed: this.committed, retained: [] };
  }

  /** A guest has written to the open epoch. */
  countWrite(bytes: number): void {
    this.#hasCountedWrites = true;
    this.#volumes.add(this.#epochs.open, 1, bytes);
  }

  /**
   * Closes the open epoch on all disks, waits until the secondary has prepared the checkpoint and, unless only that is
   * asked for, commits it: with the same record, where the disks are not shared. While the secondary is being synced,
   * waits for the end of that first, unless it is not to.
   * Errors: `no-peer` at once without a connected secondary; `not-in-sync` instead of waiting; `timed-out`;
   * `outcome-unknown` when the session is lost during the commit; the secondary's own refusals.
   */
  async checkpoint(request: CheckpointRequest, signal: AbortSignal): Promise<CheckpointAnswer> {
    const { clock, session: connectedSession, isEstablished, untilEstablished, pausedBy } = this.#options;
    const deadline = this.#deadline(request.timeoutMs, signal);
    try {
      connectedSession();
      if (request.wait === false && !isEstablished()) throw notToWait();
      await deadline.race(untilEstablished(), () => stillSyncing(pausedBy()));
      await this.#untilReserved(deadline);
      if (this.#known.prepared.length + this.#awaiting.size >= PREPARED_EPOCHS_MAX) {
        throw new ColobusError(
          "too-many-prepared",
          `${PREPARED_EPOCHS_MAX} checkpoints are prepared already`,
          "Commit or discard some of them first.",
        );
      }
      const startedMs = clock.nowMs();
      const { sharedDisks } = this.#options;
      const isOneRecord = !request.prepare && sharedDisks === undefined;
      const barrier = { commit: isOneRecord, vmstate: request.vmstate === true };
      const { session, epoch, done } =
        sharedDisks === undefined ? this.#place(barrier) : await this.#placeOnShared(sharedDisks, barrier, deadline);
      const atOnceMs = await deadline.race(done, `checkpoint ${epoch} was asked for and its outcome is not known yet`);
      const prepareMs = Math.max(0, clock.nowMs() - startedMs - atOnceMs);
      if (request.prepare) return { epoch, state: "prepared", prepareMs, commitMs: null };
      if (isOneRecord) return { epoch, state: "committed", prepareMs, commitMs: atOnceMs };
      const commitMs = await deadline.race(
        this.#commit(session, epoch),
        `the commit of checkpoint ${epoch} was asked for and its outcome is not known yet`,
      );
      return { epoch, state: "committed", prepareMs, commitMs };
    } finally {
      deadline.end();
    }
  }

  /** As `checkpoint`, by nobody's order: of the disks, and committed. */
  async take(timeoutMs: number): Promise<void> {
    await this.checkpoint({ prepare: false, timeoutMs }, new AbortController().signal);
  }

  /** Commits a prepared checkpoint, and every earlier one. Succeeds again for what is committed. */
  async commit(epoch: number, timeoutMs: number, signal: AbortSignal): Promise<CommitAnswer> {
    const deadline = this.#deadline(timeoutMs, signal);
    try {
      if (epoch <= this.#known.committed) {
        for (const told of [this.#options.mayTell, this.#options.committed]) {
          const telling = told(epoch);
          if (telling !== undefined) await deadline.race(telling, `checkpoint ${epoch} is not known to be safe yet`);
        }
        return { epoch, state: "committed", commitMs: 0 };
      }
      if (this.#awaiting.has(epoch)) throw vmStateAwaited(epoch);
      this.#assertOnDisk(epoch);
      const commitMs = await deadline.race(
        this.#commit(this.#options.session(epoch), epoch),
        `the commit of checkpoint ${epoch} was asked for and its outcome is not known yet`,
      );
      return { epoch, state: "committed", commitMs };
    } finally {
      deadline.end();
    }
  }

  /** Withdraws one prepared checkpoint, or all of them. */
  async discard(epoch: number | undefined, timeoutMs: number, signal: AbortSignal): Promise<DiscardAnswer> {
    const deadline = this.#deadline(timeoutMs, signal);
    try {
      const session = this.#options.session();
      const open = [...this.#known.prepared, ...this.#awaiting.keys()];
      const epochs = epoch === undefined ? open : [epoch];
      if (epochs.length === 0) return { discarded: [] };
      await deadline.race(
        session.request((id) => ({ type: "discard", id, epochs })),
        "the discard was asked for and its outcome is not known yet",
      );
      const discarded = open.filter((prepared) => epochs.includes(prepared));
      for (const discardedEpoch of discarded) this.#awaiting.delete(discardedEpoch);
      this.#known.prepared = this.#known.prepared.filter((prepared) => !epochs.includes(prepared));
      if (discarded.length > 0) this.#options.emit("checkpoint-discarded", { epochs: discarded });
      return { discarded };
    } finally {
      deadline.end();
    }
  }

  /**
   * A secondary opens a session, and says what it has; where there are several, what all of them have. Returns the epoch
   * that is open from here on.
   */
  learn(peer: Pick<Hello, "epochSeen" | "committed" | "prepared" | "outdated" | "vmstates">): number {
    this.#epochs.skipThrough(peer.epochSeen);
    if (!peer.outdated) for (const epoch of peer.vmstates ?? []) this.#vmStates.add(epoch);
    for (const [epoch, session] of this.#awaiting) if (session.isClosed) this.#awaiting.delete(epoch);
    // It was rolled back, or has given its checkpoint up: not every write since its checkpoint was counted.
    if (peer.committed < this.#known.committed) this.#volumesComplete = false;
    const news = learnEpochs(this.#known, peer);
    if (news !== undefined) this.#volumes.dropThrough(this.#known.committed);
    // What an earlier process had asked for is no event of this one.
    if (news === "asked") this.#committed(this.#known.committed);
    return this.#epochs.open;
  }

  /** The secondary of `session` takes part again, and has prepared these, which are no checkpoints: it is told before anything else. */
  disown(session: EpochSession, epochs: readonly number[]): void {
    if (epochs.length > 0) void this.#withdraw(session, epochs);
  }

  /** Mode `mirror`: the secondary had everything that was written before, or nearly; later writes count. */
  lackNothingYet(): void {
    this.#volumes.dropThrough(this.#epochs.open);
    this.#volumesComplete = false;
  }

  /** Another secondary has given up what it had, and this is what the others have. */
  left({ committed, prepared }: { readonly committed: number; readonly prepared: number[] }): void {
    // What was written between the two checkpoints is not counted.
    if (committed < this.#known.committed) this.#volumesComplete = false;
    this.#known.committed = committed;
    this.#known.prepared = prepared;
  }

  /** The secondary has given up everything that it had of epochs up to `throughEpoch`. */
  givenUp(throughEpoch: number): void {
    this.#voidThrough = throughEpoch;
    this.#options.emit("checkpoint-given-up", { epoch: this.#known.committed });
    this.#known.committed = 0;
    this.#known.prepared = [];
    this.#awaiting.clear();
  }

  /** Closes the open epoch, which is reserved, and puts its barrier into the stream. Errors: `no-peer`. */
  #place({ commit, vmstate }: { readonly commit: boolean; readonly vmstate: boolean }): Placed {
    // The sync may have begun anew, or the session been lost, while the number was reserved.
    if (!this.#options.isEstablished()) throw lostPeer();
    const session = this.#options.barrierSession();
    const epoch = this.#epochs.close();
    this.#options.ages.take(epoch, [this.committed, ...this.prepared, ...this.#awaiting.keys()]);
    const done = commit ? this.#barrierAndCommit(session, epoch) : this.#barrier(session, epoch, vmstate);
    done.catch(() => undefined); // whoever asked for the checkpoint has the error, unless the deadline came first
    return { session, epoch, done };
  }

  async #placeOnShared(
    disks: Pick<BarrierDisks, "atBarrier">,
    barrier: { readonly vmstate: boolean },
    deadline: Deadline,
  ): Promise<Placed> {
    const ofShared = { commit: false, vmstate: barrier.vmstate };
    for (;;) {
      const placing = disks.atBarrier(() => (this.#epochs.isReserved ? this.#place(ofShared) : undefined));
      const placed = await deadline.race(placing, "guests' writes are not done yet");
      if (placed !== undefined) return placed;
      await this.#untilReserved(deadline);
    }
  }

  async #untilReserved(deadline: Deadline): Promise<void> {
    // Another checkpoint may have closed the reserved epoch before this one goes on.
    do await deadline.race(this.#epochs.reserve(), "an epoch number could not be reserved");
    while (!this.#epochs.isReserved);
  }

  /** A secondary can have prepared what the shared disk has not got yet: then it is no checkpoint. Errors: `epoch-unknown`. */
  #assertOnDisk(epoch: number): void {
    if (this.#options.sharedDisks === undefined || this.#known.prepared.includes(epoch)) return;
    throw new ColobusError(
      "epoch-unknown",
      `checkpoint ${epoch} is not prepared, or the shared disk could not be flushed for it`,
      "See `colobus status`, and take another one.",
    );
  }

  async #barrier(session: EpochSession, epoch: number, vmstate: boolean): Promise<number> {
    const { clock } = this.#options;
    const startedMs = clock.nowMs();
    try {
      const closing = session.request((id) => ({
        type: "barrier",
        id,
        epoch,
        commit: false,
        ...(vmstate ? { vmstate } : {}),
      }));
      const { sharedDisks } = this.#options;
      await (sharedDisks === undefined ? closing : this.#flushed(sharedDisks, closing, session, epoch));
    } catch (error) {
      this.#options.emit("checkpoint-failed", { epoch, ...asColobusError(error).toJSON() });
      throw error;
    }
    if (vmstate) {
      if (epoch > this.#voidThrough) this.#awaiting.set(epoch, session);
      return 0;
    }
    if (epoch > this.#voidThrough) this.#known.prepared.push(epoch);
    this.#options.emit("checkpoint-prepared", { epoch, prepareMs: clock.nowMs() - startedMs });
    return 0;
  }

  /** A checkpoint of shared disks is what the other host can read of them: the secondary's answer alone makes none. */
  async #flushed(
    disks: Pick<BarrierDisks, "flush" | "noteUnflushed">,
    closing: Promise<number>,
    session: EpochSession,
    epoch: number,
  ): Promise<void> {
    const [closed, flushed] = await Promise.allSettled([closing, disks.flush()]);
    if (flushed.status === "rejected") {
      await disks.noteUnflushed(epoch);
      if (closed.status === "fulfilled") await this.#withdraw(session, [epoch]);
      throw flushed.reason;
    }
    if (closed.status === "rejected") throw closed.reason;
  }

  /** Has the secondary forget what are no checkpoints. Where it cannot be told, the next session's hello names them again. */
  async #withdraw(session: EpochSession, epochs: readonly number[]): Promise<void> {
    try {
      await session.request((id) => ({ type: "discard", id, epochs: [...epochs] }));
    } catch (error) {
      this.#options.emit("checkpoint-failed", { epoch: epochs[0], ...asColobusError(error).toJSON() });
      return;
    }
    this.#options.emit("checkpoint-discarded", { epochs });
  }

  #barrierAndCommit(session: EpochSession, epoch: number): Promise<number> {
    const { clock } = this.#options;
    return this.#committing(epoch, async () => {
      const startedMs = clock.nowMs();
      const tookMs = await session.request((id) => ({ type: "barrier", id, epoch, commit: true }));
      const prepareMs = Math.max(0, clock.nowMs() - startedMs - tookMs);
      this.#options.emit("checkpoint-prepared", { epoch, prepareMs });
      return tookMs;
    });
  }

  /** Resolves with the milliseconds that it took. */
  async #commit(session: EpochSession, epoch: number): Promise<number> {
    const { clock } = this.#options;
    const startedMs = clock.nowMs();
    await this.#committing(epoch, async () => {
      await session.request((id) => ({ type: "commit", id, epoch }));
      return clock.nowMs() - startedMs;
    });
    return clock.nowMs() - startedMs;
  }

  /** Has the secondary asked to commit `epoch`, and takes note of its answer: how long it took. */
  async #committing(epoch: number, ask: () => Promise<number>): Promise<number> {
    const { emit } = this.#options;
    this.#known.asked.add(epoch);
    let tookMs: number;
    try {
      tookMs = await ask();
      const telling = this.#options.mayTell(epoch);
      if (telling !== undefined) await telling;
    } catch (error) {
      const reason = asColobusError(error);
      if (reason.code !== "outcome-unknown") this.#known.asked.delete(epoch);
      emit("checkpoint-failed", { epoch, ...reason.toJSON() });
      throw error;
    }
    this.#known.asked.delete(epoch);
    if (epoch > this.#voidThrough) this.#known.committed = Math.max(this.#known.committed, epoch);
    this.#volumes.dropThrough(epoch);
    this.#known.prepared = this.#known.prepared.filter((prepared) => prepared > epoch);
    for (const awaiting of this.#awaiting.keys()) if (awaiting <= epoch) this.#awaiting.delete(awaiting);
    this.#committed(epoch, tookMs);
    const marking = this.#options.committed(epoch);
    if (marking !== undefined) await marking;
    return tookMs;
  }

  /** The secondary has told that it has done a commit that this agent had asked for. */
  #committed(epoch: number, commitMs?: number): void {
    this.#volumesComplete = true;
    this.#options.emit("checkpoint-committed", commitMs === undefined ? { epoch } : { epoch, commitMs });
  }

  #deadline(timeoutMs: number, signal: AbortSignal): Deadline {
    return new Deadline(this.#options.clock, timeoutMs, signal);
  }
}

function notToWait(): ColobusError {
  return new ColobusError(
    "not-in-sync",
    "no barrier may be placed yet, and this checkpoint is not to wait",
    "See `colobus status`, and try again.",
  );
}

function vmStateAwaited(epoch: number): ColobusError {
  return new ColobusError(
    "vmstate-awaited",
    `the VM state of checkpoint ${epoch} has not come yet`,
    "Send it, or withdraw the checkpoint: `colobus discard`.",
  );
}
