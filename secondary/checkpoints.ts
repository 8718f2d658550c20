import { ColobusError } from "../proto/errors.ts";
import { GENERATIONS_MAX, PREPARED_EPOCHS_MAX } from "../proto/limits.ts";
import type { Hello } from "../proto/replication-messages.ts";
import type { StateRecord, VmStateMark } from "../proto/state-record.ts";
import type { Clock } from "../shared/host/clock.ts";
import { letOthersRun } from "../shared/host/sleep.ts";
import type { Log } from "../shared/host/log.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { CheckpointAges } from "../shared/replication/checkpoint-ages.ts";
import { EpochVolumes } from "../shared/replication/epoch-volumes.ts";
import { adopted, givenUpForNobody } from "../shared/replication/lineage.ts";
import { findFarEpoch } from "../shared/replication/mismatch.ts";
import { KeptCheckpoints } from "./kept-checkpoints.ts";
import type { ReplicaDisk } from "./replica-disk.ts";
import type { SourceHistory } from "./replica-history.ts";
import { rolledBackRecord } from "./rolled-back-record.ts";
import type { ViewGate } from "./view-gate.ts";
import { statesNeeded } from "./vm-state-store.ts";

export interface CheckpointsOptions {
  readonly state: StateFile;
  readonly disks: () => readonly ReplicaDisk[];
  readonly gate: ViewGate;
  readonly clock: Clock;
  readonly ages: CheckpointAges;
  readonly log: Log;
  /** Committed checkpoints to keep beside the last one. */
  readonly retain: number;
  /** Retained checkpoints had to go. */
  readonly retainedDropped: (epochs: readonly number[], reason: "overlay-full" | "failover") => void;
  /** Overlays were dropped; their storage may still be on its way back to the file system. */
  readonly freed: () => void;
  /** The record has come to name other VM states than before: no more than these are needed. */
  readonly statesNeeded: (epochs: readonly number[]) => void;
}

/** Asked when the decision is made: a sync may begin, or come to its end, while readers are waited for. */
type SourceOf = () => SourceHistory | undefined;

/** The prepared checkpoints. What awaits its VM state is none yet. */
export function preparedIn({ prepared }: StateRecord): number[] {
  return prepared.filter(({ awaitsState }) => awaitsState !== true).map(({ epoch }) => epoch);
}

/** The committed checkpoint and the prepared ones, as far as they have a VM state. */
export function havingVmState({ committed, prepared }: StateRecord): number[] {
  return [committed, ...prepared].filter(({ vmstate }) => vmstate !== undefined).map(({ epoch }) => epoch);
}

/** The prepared checkpoints of a hello that its peer may commit: what another primary has prepared is none of that one's history. */
export function listedFor(peer: Hello, { pairing, prepared }: Hello): readonly number[] {
  return pairing?.peer === peer.agentId ? prepared : [];
}

/**
 * Owns the secondary's epochs: which one is open, which checkpoints are prepared, and which one is committed.
 *
 * A decision is one durable state record for all disks of the VM; only then do the disks follow, in memory, and only
 * after that is storage freed. Decisions run one after the other.
 */
export class Checkpoints {
  readonly kept: KeptCheckpoints;
  readonly #options: CheckpointsOptions;
  readonly #volumes = new EpochVolumes();
  #openEpoch: number;
  #volumesComplete: boolean;
  #tail: Promise<unknown> = Promise.resolve();
  #freeing: Promise<void> = Promise.resolve();

  constructor(options: CheckpointsOptions) {
    this.#options = options;
    this.kept = new KeptCheckpoints(
      options.retain,
      () => this.#record,
      () => void this.#serialize(() => Promise.resolve(this.#dropUnneeded())),
    );
    this.#openEpoch = options.state.record.epochReserved + 1;
    this.#volumesComplete = options.disks().every((disk) => disk.epochs.isEmpty);
  }

  get committed(): StateRecord["committed"] {
    return this.#record.committed;
  }

  /** How long ago its barrier arrived, and everything before it was stable. */
  get committedAgeMs(): number {
    return this.#options.ages.ageMs(this.committed.epoch);
  }

  get prepared(): readonly number[] {
    return preparedIn(this.#record);
  }

  /** Barriers that await their VM state: no checkpoints yet. */
  get awaiting(): readonly number[] {
    return this.#record.prepared.filter(({ awaitsState }) => awaitsState === true).map(({ epoch }) => epoch);
  }

  get openEpoch(): number {
    return this.#openEpoch;
  }

  /** The highest epoch before which no primary may open one: numbers are never used twice. */
  get epochSeen(): number {
    const open = Math.max(this.#openEpoch, ...this.#options.disks().map((disk) => disk.epochs.newestEpoch));
    return Math.max(this.#record.epochReserved, this.committed.epoch, open - 1);
  }

  /** The newest barrier that a commit can still name; 0 while there is none. */
  get newestBarrier(): number {
    return this.#record.prepared.at(-1)?.epoch ?? this.committed.epoch;
  }

  /**
   * The writes to come belong to `epoch`: the primary says so when a session begins. They may come when the promise
   * resolves. Errors: `protocol-error`, `io-error`.
   */
  async openAt(epoch: number): Promise<void> {
    const disks = this.#options.disks();
    if (this.newestBarrier === 0) {
      for (const disk of disks) {
        const beginning = disk.epochs.beginWithoutBarrier();
        if (beginning !== undefined) await beginning;
      }
    }
    if (epoch <= this.newestBarrier || disks.some((disk) => epoch < disk.epochs.newestEpoch)) {
      throw new ColobusError("protocol-error", `the peer opens epoch ${epoch}, which was open or closed before`);
    }
    const far = findFarEpoch(this.epochSeen, epoch);
    if (far !== undefined) throw far;
    this.#openEpoch = epoch;
    for (const disk of disks) disk.epochs.openEpoch(epoch);
    for (const disk of disks) await disk.epochs.makeDurable();
  }

  countApplied(writes: number, bytes: number): void {
    this.#volumes.add(this.#openEpoch, writes, bytes);
  }

  /** What is here of later epochs than the committed one; `complete` is false when this agent has not seen all of it. */
  volumeSinceCommit(): { readonly writes: number; readonly bytes: number; readonly complete: boolean } {
    return { ...this.#volumes.total(this.committed.epoch), complete: this.#volumesComplete };
  }

  /**
   * Records the barrier of `epoch`: everything of it is stable on all disks, which the caller has seen to. The next
   * epoch is open when the promise resolves. Errors: `protocol-error`, `too-many-prepared`, `io-error`.
   */
  prepare(epoch: number, awaitsState = false): Promise<void> {
    return this.#serialize(async () => {
      if (this.#record.prepared.length >= PREPARED_EPOCHS_MAX) {
        throw new ColobusError(
          "too-many-prepared",
          `${PREPARED_EPOCHS_MAX} checkpoints are prepared already`,
          "Commit or discard some of them first.",
        );
      }
      await this.#close(epoch, (closed) => closed, awaitsState);
    });
  }

  /**
   * The VM state of `epoch` is stored, as stable as the overlays are: it is part of the checkpoint, which can be committed
   * from now on. Errors: `epoch-unknown` when no barrier awaits it any more; `io-error`.
   */
  addState(epoch: number, vmstate: VmStateMark): Promise<void> {
    return this.#serialize(async () => {
      if (!this.awaiting.includes(epoch)) throw unknownEpoch(epoch);
      await this.#options.state.update((record) => ({
        ...record,
        prepared: record.prepared.map((prepared) =>
          prepared.epoch === epoch ? { epoch, atMs: prepared.atMs, vmstate } : prepared,
        ),
      }));
    });
  }

  /**
   * A primary has been told that these are prepared: what else there is came too late for the session that it belonged to,
   * or still awaits a VM state from there, and is withdrawn. Errors: `io-error`.
   */
  async withdrawUnlisted(listed: readonly number[]): Promise<void> {
    const unlisted = this.#record.prepared.map(({ epoch }) => epoch).filter((epoch) => !listed.includes(epoch));
    if (unlisted.length > 0) await this.discard(unlisted);
  }

  /**
   * Does what `prepare` and `commit` do, with one record: nobody asks for a decision in between. Errors: `protocol-error`,
   * `io-error` (the old checkpoint stands then).
   */
  prepareAndCommit(epoch: number, source: SourceOf): Promise<void> {
    return this.#serialize(() =>
      this.#switchTo(epoch, () => this.#close(epoch, (closed) => this.#committing(closed, epoch, source))),
    );
  }

  /**
   * Makes the prepared checkpoint `epoch`, and every earlier one, the state to return to, on all disks at once.
   * `source` gives the history of a primary of which everything has arrived by then: it is adopted with it. Succeeds again for what
   * is committed already.
   * Errors: `epoch-unknown`, `io-error` (the old checkpoint stands then).
   */
  commit(epoch: number, source: SourceOf): Promise<void> {
    return this.#serialize(async () => {
      if (epoch <= this.committed.epoch) return;
      if (this.awaiting.includes(epoch)) {
        throw new ColobusError(
          "vmstate-awaited",
          `the VM state of checkpoint ${epoch} is not complete`,
          "Send it, or withdraw the checkpoint: `colobus discard`.",
        );
      }
      if (!this.prepared.includes(epoch)) throw unknownEpoch(epoch);
      await this.#switchTo(epoch, () =>
        this.#options.state.update((record) => this.#committing(record, epoch, source)),
      );
    });
  }

  /**
   * Drops the oldest checkpoint that is kept beside the committed one. False: there is none. When the promise resolves
   * its storage is free. Errors: `io-error` (it is kept then).
   */
  async makeRoom(): Promise<boolean> {
    const wasKept = await this.#serialize(async () => {
      const { state, gate, retainedDropped } = this.#options;
      const oldest = this.kept.floor;
      if (oldest >= this.committed.epoch) return false;
      await gate.close();
      try {
        if (this.kept.retained.includes(oldest)) {
          await state.update((record) => ({
            ...record,
            retained: record.retained.filter(({ epoch }) => epoch !== oldest),
          }));
        }
        this.kept.dropHolds((epoch) => epoch <= oldest);
        this.#dropUnneeded();
        this.#tellStatesNeeded();
      } finally {
        gate.open();
      }
      retainedDropped([oldest], "overlay-full");
      return true;
    });
    if (wasKept) await this.#freeing;
    return wasKept;
  }

  /**
   * Gives the committed checkpoint up, and every other with it: the secondary is Inconsistent until the next commit,
   * and saves no originals until the next barrier. No stream may be applied meanwhile. Returns the epoch that was given
   * up, 0 where there was none. When the promise resolves the storage of all overlays is free. Errors: `io-error`.
   */
  async giveUp(): Promise<number> {
    const givenUp = await this.#serialize(async () => {
      const { state, gate, disks } = this.#options;
      const { epoch } = this.committed;
      if (this.newestBarrier === 0) return 0;
      await gate.close();
      try {
        await state.update((record) => ({
          ...record,
          committed: { epoch: 0, atMs: 0 },
          prepared: [],
          retained: [],
        }));
        this.#volumes.dropThrough(epoch);
        this.kept.dropHolds(() => true);
        this.#tellStatesNeeded();
        this.#free(disks().map((disk) => disk.dropOverlays()));
        for (const disk of disks()) disk.epochs.setNewestBarrier(0);
      } finally {
        gate.open();
      }
      return epoch;
    });
    await this.#freeing;
    return givenUp;
  }

  /**
   * Makes the retained checkpoint `epoch` the committed one, under a new lineage, once `trackRolledBack` says that what came
   * after it is dirty, or that nothing is known of the primary's copy. No session may be open. Succeeds again for the
   * committed one. Errors: `epoch-unknown`; `io-error` (the old checkpoint stands then).
   */
  async rollBack(
    epoch: number,
    { lineage, trackRolledBack }: { lineage: string; trackRolledBack: (epoch: number) => Promise<boolean> },
  ): Promise<void> {
    await this.settled(); // what a commit has dropped of this epoch's own active disk is gone then
    await this.#serialize(async () => {
      const { state, gate, disks } = this.#options;
      if (epoch === this.committed.epoch) return;
      if (!this.kept.retained.includes(epoch)) {
        const kept = this.kept.retained.length === 0 ? "none is" : `${this.kept.retained.join(", ")} are`;
        throw new ColobusError(
          "epoch-unknown",
          `checkpoint ${epoch} is not retained (${kept})`,
          "See `colobus status`; the secondary's --retain says how many are kept.",
        );
      }
      const isPeerTracked = await trackRolledBack(epoch);
      await gate.close();
      try {
        for (const disk of disks()) await disk.removeStaleActive(epoch);
        await state.update((record) => rolledBackRecord(record, { epoch, lineage, isPeerTracked }));
        this.kept.dropHolds((held) => held > epoch);
        this.#tellStatesNeeded();
        this.#free(disks().map((disk) => disk.rollBack(epoch)));
        this.#volumesComplete = false;
      } finally {
        gate.open();
      }
    });
  }

  /** The state record names no checkpoint beside the committed one any more. The gate is closed. */
  forgetKept(retained: readonly number[]): void {
    this.kept.dropHolds(() => true);
    this.#tellStatesNeeded();
    this.#dropUnneeded();
    if (retained.length > 0) this.#options.retainedDropped(retained, "failover");
  }

  /**
   * Withdraws prepared checkpoints; their writes become part of the next one. Epochs that are withdrawn already are
   * passed over. Returns what was withdrawn now. Errors: `epoch-committed`, `epoch-unknown`, `io-error`.
   */
  discard(epochs: readonly number[]): Promise<number[]> {
    return this.#serialize(async () => {
      for (const epoch of epochs) {
        if (epoch <= this.committed.epoch) {
          throw new ColobusError(
            "epoch-committed",
            `checkpoint ${epoch} is committed (the last one is ${this.committed.epoch}) and cannot be withdrawn`,
            "Only prepared checkpoints can be discarded: see `colobus status`.",
          );
        }
        if (epoch >= this.#openEpoch) throw unknownEpoch(epoch);
      }
      const withdrawn = this.#record.prepared.map(({ epoch }) => epoch).filter((epoch) => epochs.includes(epoch));
      if (withdrawn.length === 0) return [];
      await this.#options.state.update((record) => ({
        ...record,
        prepared: record.prepared.filter(({ epoch }) => !withdrawn.includes(epoch)),
      }));
      this.#tellStatesNeeded();
      for (const disk of this.#options.disks()) disk.epochs.setNewestBarrier(this.newestBarrier);
      this.#joinBehind();
      return withdrawn;
    });
  }

  /** Resolves when no decision is under way, and the storage of dropped overlays is freed. */
  async settled(): Promise<void> {
    await this.#tail;
    await this.#freeing;
  }

  /** Records that `epoch` is closed, and what `andThen` makes of that; the next epoch is open then. */
  async #close(epoch: number, andThen: (closed: StateRecord) => StateRecord, awaitsState = false): Promise<void> {
    const { state, ages, disks } = this.#options;
    if (epoch < this.#openEpoch) {
      throw new ColobusError("protocol-error", `the peer closes epoch ${epoch}, which is closed already`);
    }
    const far = findFarEpoch(this.#openEpoch, epoch);
    if (far !== undefined) throw far;
    const checkpoint = ages.take(epoch, this.kept.needed);
    try {
      await state.update((record) =>
        andThen({
          ...record,
          epochReserved: Math.max(record.epochReserved, epoch),
          prepared: [...record.prepared, { ...checkpoint, ...(awaitsState ? { awaitsState } : {}) }],
        }),
      );
    } finally {
      // After an error the record may be on the disk all the same: then a later process finds the epoch prepared, and
      // what is overwritten from here on must be kept apart from it.
      this.#openEpoch = epoch + 1;
      for (const disk of disks()) {
        disk.epochs.setNewestBarrier(epoch);
        disk.epochs.openEpoch(epoch + 1);
      }
    }
  }

  /** The record in which the prepared checkpoint `epoch` is committed. */
  #committing(record: StateRecord, epoch: number, sourceOf: SourceOf): StateRecord {
    const source = sourceOf();
    const committed = record.prepared.find((candidate) => candidate.epoch === epoch);
    if (committed === undefined) throw unknownEpoch(epoch);
    return {
      // Until the source's history is adopted, only that its data was given up tells that the two have not diverged.
      ...(source === undefined ? record : adopted(givenUpForNobody(record), source, source.later)),
      outdated: false,
      retained: this.kept.retainedAfterCommit(record, epoch),
      committed,
      prepared: record.prepared.filter((candidate) => candidate.epoch > epoch),
    };
  }

  /** Has `decide` record that `epoch` is committed, and all disks show it then. */
  async #switchTo(epoch: number, decide: () => Promise<unknown>): Promise<void> {
    const { clock, gate, disks } = this.#options;
    // Readers finish against the old view; from here on new ones wait for the decision.
    await gate.close();
    const freeing: (() => Promise<void>)[] = [];
    try {
      await decide();
      for (const disk of disks()) {
        freeing.push(disk.switchView(epoch, this.kept.floor));
        // What the overlays have told so far is read from the base now, as its other user has flushed it.
        disk.base.invalidate?.();
        disk.epochs.setNewestBarrier(this.newestBarrier);
      }
      this.#tellStatesNeeded();
      this.#volumes.dropThrough(this.kept.retained[0] ?? epoch); // what came after it is lost by a rollback
      if (disks().every((disk) => disk.epochs.isEmpty)) this.#volumesComplete = true;
    } finally {
      gate.open();
    }
    this.#freeing = this.#freeing.then(() => letOthersRun(clock)); // the answer goes out first
    this.#free(freeing);
    this.#joinBehind();
  }

  /** Drops the generations that serve no checkpoint any more, in memory, and frees their storage behind the path. */
  #dropUnneeded(): void {
    this.#free(this.#options.disks().map((disk) => disk.epochs.release(this.kept.floor)));
  }

  /** After each record that may name fewer of them than the one before. */
  #tellStatesNeeded(): void {
    this.#options.statesNeeded(statesNeeded(this.#record));
  }

  get #record(): StateRecord {
    return this.#options.state.record;
  }

  #serialize<T>(decision: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(decision);
    this.#tail = result.catch(() => undefined); // the caller has the error
    return result;
  }

  /**
   * Joins generations that withdrawn checkpoints, and old ones held open, have left, behind the path, so that their number stays bounded. The
   * storage of generations that a commit drops meanwhile is freed after this, so what is read here stays open.
   */
  #joinBehind(): void {
    this.#freeing = this.#freeing.then(async () => {
      for (const disk of this.#options.disks()) {
        try {
          await disk.epochs.join(
            () => this.kept.needed,
            GENERATIONS_MAX,
            (change) => this.#serialize(() => this.#withoutReaders(change)),
          );
        } catch (error) {
          this.#options.log.warn({ error, disk: disk.name }, "generations that nobody tells apart could not be joined");
        }
      }
    });
  }

  async #withoutReaders(change: () => boolean): Promise<boolean> {
    await this.#options.gate.close();
    try {
      return change();
    } finally {
      this.#options.gate.open();
    }
  }

  /** Frees storage behind the path. What cannot be removed now is removed at the next start. */
  #free(freeing: readonly (() => Promise<void>)[]): void {
    this.#options.freed();
    this.#freeing = this.#freeing.then(async () => {
      for (const free of freeing) {
        try {
          await free();
        } catch (error) {
          this.#options.log.warn({ error }, "an overlay that is no longer needed could not be removed");
        }
      }
    });
  }
}

function unknownEpoch(epoch: number): ColobusError {
  return new ColobusError("epoch-unknown", `there is no prepared checkpoint ${epoch}`, "See `colobus status`.");
}
