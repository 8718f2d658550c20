import { asColobusError, ColobusError } from "../proto/errors.ts";
import { BUFFER_FRAGMENTS_MAX } from "../proto/limits.ts";
import type { Hello, Site } from "../proto/replication-messages.ts";
import type { DiskStatus, PeerStatus, Status } from "../proto/status.ts";
import type { EventType, SecondaryExport } from "../proto/words.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import { clustersToBytes } from "../shared/block/cluster-geometry.ts";
import type { ImageSource } from "../shared/block/disk-image.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import { tellNobody, type WaitsFor } from "../shared/host/waits-for.ts";
import { withoutFormerSize } from "../shared/block/growth.ts";
import { forgetLosses } from "../shared/block/lost-writes.ts";
import { lostSync, type LostSyncs } from "../shared/journal/lost-syncs.ts";
import type { DiskClaim, SharedMark } from "../shared/journal/shared-mark.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { CheckpointAges } from "../shared/replication/checkpoint-ages.ts";
import { heard, lackedCheckpoint, promoted } from "../shared/replication/lineage.ts";
import type { Link } from "../shared/replication/link.ts";
import type { Pulse } from "../shared/replication/pulse.ts";
import type { PeerTracking, PeerTrackingOptions } from "../shared/replication/peer-tracking.ts";
import { BufferMemory } from "./buffer-memory.ts";
import { Checkpoints } from "./checkpoints.ts";
import { CheckpointOperations } from "./checkpoint-operations.ts";
import type { ViewSuccessor } from "./committed-view.ts";
import { DiskFaults } from "./disk-faults.ts";
import { flushDisks } from "./flush-disks.ts";
import { Following } from "./following.ts";
import { OverlaySpace } from "./overlay-space.ts";
import { PromotedDisk } from "./promoted-disk.ts";
import type { ReplicaDisk } from "./replica-disk.ts";
import { ReplicaDisks } from "./replica-disks.ts";
import { ReplicaHistory, type FollowOrder } from "./replica-history.ts";
import { ReplicaSessions, type Judged } from "./replica-sessions.ts";
import { SecondaryStatus } from "./secondary-status.ts";
import { ViewGate } from "./view-gate.ts";
import type { VmStateStore } from "./vm-state-store.ts";

export interface SecondaryOptions {
  readonly storage: Storage;
  readonly images: ImageSource;
  /** The mark beside shared disks, where there is a place for it. */
  readonly sharedMark: SharedMark | undefined;
  readonly clock: Clock;
  readonly ages: CheckpointAges;
  readonly random: Random;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  /** Holds one directory of overlays for each disk, `disks/NAME`. */
  readonly stateDirectory: string;
  readonly access: SecondaryExport;
  readonly vmStates: VmStateStore;
  /** What this side has changed by itself, as a primary, and no source has taken over yet. */
  readonly tracking: PeerTracking;
  /** Where this side's images are. */
  readonly site: () => Site;
  /** What new dirty bitmaps are made of, with the disks that have come into being. */
  readonly trackingOptions: () => PeerTrackingOptions;
  /** As of `ReplicaSessions`. */
  readonly takeOver: (lineage: string, siblings: readonly string[]) => void;
  /** A handshake has come to a verdict. */
  readonly judged: () => void;
  readonly token: Buffer | undefined;
  readonly peerTimeoutMs: number;
  /** Bounds what a primary may have sent that is not applied yet. */
  readonly windowBytes: number;
  /** What pings carry, where an arbiter decides who serves. */
  readonly pulse?: Pulse | undefined;
  /** The kernel's boot id: another one than recorded means that unsynced data may be lost. */
  readonly bootId: string;
  /** Committed checkpoints to keep beside the last one. */
  readonly retain: number;
  /** Beyond it the committed checkpoint counts as no protection; undefined: however old it is. A reload may change it. */
  readonly maxCheckpointAgeMs: () => number | undefined;
  /** What the overlays of all disks may take; undefined: what their file system has. */
  readonly overlayLimitBytes: number | undefined;
  /** What block buffers hold in memory of their logs, for all disks together (mode `mc`). */
  readonly bufferMemoryBytes: number;
  /** Writes to the images were lost, perhaps, that readers still see: what arrives is written even where it seems equal. */
  readonly mayHaveLostWrites: boolean;
  readonly lostSyncs: LostSyncs;
  /** Disks have come into being at the primary's size, or have grown. */
  readonly disksCreated: () => void;
}

/** What a promotion leaves to the primary's role. */
export interface Promotion extends PromotedDisks {
  /** Where the peer's copy differs, in bitmaps that were made now; undefined: in those that the record tells of, if it does. */
  readonly tracking: PeerTracking | undefined;
  /**
   * Ends the wait of the guests, whose requests go to what is exported of their disk from here on. To be called once, when
   * the primary's role stands behind the exports, or nothing does: what guests write past it would be marked for no peer.
   */
  letGo(exported: readonly (ViewSuccessor & { readonly name: string })[]): void;
}

export interface PromotedDisks {
  readonly epoch: number;
  readonly disks: readonly { readonly name: string; readonly disk: PromotedDisk }[];
}

/**
 * The secondary's role: takes a primary's stream, keeps the committed checkpoint, exports it, and can be promoted. It
 * puts the parts together that own the disks, the sessions and the checkpoints.
 */
export class SecondaryRole {
  readonly checkpoints: Checkpoints;
  readonly operations: CheckpointOperations;
  readonly gate = new ViewGate();
  readonly #options: SecondaryOptions;
  readonly #history: ReplicaHistory;
  readonly #disks: ReplicaDisks;
  readonly #space: OverlaySpace;
  readonly #faults: DiskFaults;
  readonly #sessions: ReplicaSessions;
  readonly #following: Following;
  readonly #status: SecondaryStatus;

  /**
   * Recovers the overlays of all disks. Errors: those of opening the images (`image-missing` …), `state-corrupt`.
   * On an error every file is closed again.
   */
  constructor(options: SecondaryOptions) {
    this.#options = options;
    this.#history = new ReplicaHistory(options);
    const bufferMemory = new BufferMemory({ bytes: options.bufferMemoryBytes, fragments: BUFFER_FRAGMENTS_MAX }, () =>
      this.#space.want(),
    );
    this.#disks = new ReplicaDisks({
      ...options,
      made: () => options.tracking.made(options.trackingOptions().disks),
      grown: (disk, sizeBytes) => options.tracking.grow(disk, sizeBytes),
      gate: this.gate,
      quota: () => this.#space.quota,
      bufferMemory,
      applyFailed: (reason, disk) => {
        options.log.warn({ reason, disk }, "what is committed could not be put into the base; it is tried again");
        this.#faults.applyFailed(reason, disk);
      },
      applied: (disk) => {
        this.#faults.applied(disk);
        this.#space.measure();
        this.#space.retry();
      },
    });
    this.#space = new OverlaySpace({
      storage: options.storage,
      clock: options.clock,
      log: options.log,
      emit: options.emit,
      state: options.state,
      stateDirectory: options.stateDirectory,
      limitBytes: options.overlayLimitBytes,
      bufferMemory,
      disks: () => this.disks,
      makeRoom: () => this.checkpoints.makeRoom(),
      wanted: () => this.#sessions.tellWanted(),
      freed: () => this.#sessions.unstall(),
    });
    this.#faults = new DiskFaults({
      ...options,
      retry: () => this.#sessions.unstall(),
      rewritten: () => forgetLosses(options.state.record, options.lostSyncs),
    });
    this.#sessions = new ReplicaSessions({
      ...options,
      history: this.#history,
      disks: this.#disks,
      space: this.#space,
      faults: this.#faults,
      checkpoints: () => this.checkpoints,
      following: () => this.#following,
    });
    this.#disks.open();
    this.#following = new Following({ ...options, disks: () => this.disks });
    this.checkpoints = new Checkpoints({
      state: options.state,
      disks: () => this.disks,
      gate: this.gate,
      clock: options.clock,
      ages: options.ages,
      log: options.log,
      retain: options.retain,
      retainedDropped: (epochs, reason) => options.emit("retained-dropped", { epochs, reason }),
      freed: () => this.#space.measure(),
      statesNeeded: (epochs) => options.vmStates.keepOnly(epochs),
    });
    for (const { epochs } of this.disks) {
      epochs.setNewestBarrier(this.checkpoints.newestBarrier);
      epochs.release(this.checkpoints.kept.floor);
    }
    this.operations = new CheckpointOperations({
      ...options,
      checkpoints: this.checkpoints,
      disks: () => this.disks,
      session: () => this.#sessions.current,
      withoutSessions: (why, work) => this.#sessions.without(why, work),
      trackRolledBack: (epoch) => this.#history.trackRolledBack(this.disks, epoch),
      freed: () => this.#space.retry(),
    });
    this.#status = new SecondaryStatus({
      ...options,
      checkpoints: this.checkpoints,
      following: this.#following,
      disks: this.#disks,
      sessions: this.#sessions,
      space: this.#space,
      faults: this.#faults,
    });
  }

  get disks(): readonly ReplicaDisk[] {
    return this.#disks.all;
  }

  get isConnected(): boolean {
    return this.#sessions.current !== undefined;
  }

  /** What the last handshake with a proved peer came to. */
  get lastVerdict(): Judged | undefined {
    return this.#sessions.lastVerdict;
  }

  /** As of `ReplicaSessions`. */
  get ownVerdict(): Judged | undefined {
    return this.#sessions.ownVerdict;
  }

  /** Why there is no session. */
  get lastError(): ColobusError | undefined {
    return this.#sessions.lastError;
  }

  /** As of `ReplicaSessions`. */
  isLinkWanted(url: string): boolean {
    return this.#sessions.isLinkWanted(url);
  }

  /** As of `ReplicaSessions`. */
  isFollowing(agentId: string): boolean {
    return this.#sessions.isFollowing(agentId);
  }

  /**
   * From now on a session is for whom the order names, and for nobody else: it takes the place of the one that is open, which
   * goes on until then. Of two orders the later one counts.
   */
  take(order: FollowOrder): void {
    this.#history.order = order;
  }

  /** The order is carried out, or given up. */
  dismiss(order: FollowOrder): void {
    if (this.#history.order === order) this.#history.order = undefined;
  }

  /** What this side says of itself to a peer. */
  hello(): Hello {
    return this.#sessions.hello();
  }

  /** A dial failed. */
  dialFailed(reason: ColobusError): void {
    this.#sessions.dialFailed(reason);
  }

  /** Takes a link to a peer, whoever has dialled. `ended` is called when it is over: `wasReady` tells that there had been a stream. */
  accept(link: Link, ended?: (wasReady: boolean) => void): void {
    this.#sessions.accept(link, ended);
  }

  describePeer(): PeerStatus {
    return this.#status.describePeer();
  }

  describeDisks(): DiskStatus[] {
    return this.#status.describeDisks();
  }

  describeProtection(): Status["protection"] {
    return this.#status.describeProtection();
  }

  describeRecoverable(): Status["recoverable"] {
    return this.#status.describeRecoverable();
  }

  /** What a promotion would do. Errors: `peer-connected`, `no-checkpoint`, `outdated`, unless forced; `image-missing`. */
  assertPromotable(force: boolean): void {
    const { current } = this.#sessions;
    if (current !== undefined && !force) {
      throw new ColobusError(
        "peer-connected",
        `the primary at ${current.peerAddress} is connected`,
        "Stop the primary agent first, or say --force when you are sure that its VM is dead.",
      );
    }
    if (this.checkpoints.committed.epoch === 0 && !force) {
      throw new ColobusError(
        "no-checkpoint",
        "this secondary is Inconsistent: no checkpoint was ever committed, so there is no state to return to",
        "Let the first sync end, or say --force to serve what has arrived, whatever it is.",
      );
    }
    if (this.#options.state.record.outdated && !force) {
      throw new ColobusError(
        "outdated",
        "this side's checkpoint is its own state, from when it was Primary or from before an operator gave it up, and none of its present primary's",
        "Fail over to a side that is up to date, or say --force to go back to this one: the two have diverged then.",
      );
    }
    const lacked = lackedCheckpoint(this.#options.state.record);
    if (lacked !== undefined && !force) {
      throw new ColobusError(
        "outdated",
        `this secondary has checkpoint ${this.checkpoints.committed.epoch}, and checkpoint ${lacked} was told to be committed, which another one has`,
        `Fail over to one whose \`recoverable.epoch\` is ${lacked} or more; or say --force to give that up for this one.`,
      );
    }
    const unmade = this.#options.state.record.disks.find(({ sizeBytes }) => sizeBytes === null);
    if (unmade !== undefined) {
      throw new ColobusError(
        "image-missing",
        `the image of disk ${unmade.name}, ${unmade.image}, was never made: there is nothing to serve`,
        "Let the primary connect: its size is taken then, and the first sync fills it.",
      );
    }
  }

  /**
   * Makes sure that the originals lead from a shared disk back to the checkpoint, or, with `force`, that the disk may be taken
   * without. Errors: `unprotected`, unless forced; `image-busy` and those of the storage, forced or not.
   */
  async assertProtected(force: boolean): Promise<void> {
    await this.#findVoid(force);
  }

  /** As `assertProtected`; a checkpoint that nothing leads back to is given up then: the disk is taken as it is. */
  async secureCheckpoint(force: boolean): Promise<void> {
    const reason = await this.#findVoid(force);
    if (reason === undefined) return;
    this.#options.log.warn({ reason }, "the operator has the shared disk taken as it is");
    await this.operations.giveUp();
  }

  /** Why nothing leads back to the checkpoint, where that is forced; undefined: its originals do. */
  async #findVoid(force: boolean): Promise<ColobusError | undefined> {
    try {
      await this.#options.sharedMark?.assertProtected(this.checkpoints.committed.epoch > 0);
      return undefined;
    } catch (error) {
      const reason = asColobusError(error);
      // What the mark says may be forced, but not that it could not be read, nor that another one merges.
      if (!force || reason.code !== "unprotected") throw reason;
      await this.#assertNobodyElseWrites();
      return reason;
    }
  }

  /** Whom an operator fences is the primary that this side knows: nobody else may be the one that writes. Errors: `image-busy`; the storage's. */
  async #assertNobodyElseWrites(): Promise<void> {
    const { sharedMark, state } = this.#options;
    const { pairing } = state.record;
    if (pairing !== null) await sharedMark?.assertWrittenBy(pairing.peer);
  }

  /** Nobody else is promoted on the shared disk from here on, and nobody was since this side has looked. Errors: `image-busy`, `unprotected`. */
  async #claimDisk(isHandedOver: boolean): Promise<DiskClaim | undefined> {
    const { sharedMark } = this.#options;
    const claim = await sharedMark?.claim();
    if (isHandedOver) return claim;
    try {
      await this.#assertNobodyElseWrites();
      if (this.checkpoints.committed.epoch > 0) await sharedMark?.assertProtected(true);
      return claim;
    } catch (error) {
      await claim?.withdraw();
      throw error;
    }
  }

  /**
   * Makes this side Primary, from the last committed checkpoint: ends the session, then writes the one record that says
   * so. The role is over when the promise resolves; the disks are as their committed views, and guests wait until they are
   * let go. `assertStill` is called when no primary can be heard any more, and may throw why it must not be done.
   */
  async promote(options: {
    readonly discardActive: boolean;
    readonly lineage: string;
    readonly assertStill?: (() => void) | undefined;
    /** Lineages that it supersedes as if it had heard of them. */
    readonly supersedes?: readonly string[] | undefined;
    /** Whom it dials from then on, beside whom it has dialled before. */
    readonly siblings?: readonly string[] | undefined;
    /** The primary has given the role, and the disks, to this side. */
    readonly isHandedOver?: boolean | undefined;
    /** An arbiter could not be told, and is to be told by whoever serves, in this process or a later one. */
    readonly isUntold?: boolean | undefined;
  }): Promise<Promotion> {
    await this.#sessions.end(new ColobusError("replaced", "this side was promoted: it is Primary now"));
    try {
      options.assertStill?.();
    } catch (error) {
      this.#sessions.welcome(); // still Secondary
      throw error;
    }
    await this.#disks.settled();
    await Promise.all(this.disks.map(({ epochs }) => epochs.end()));
    await this.checkpoints.settled();
    const { state, sharedMark, lostSyncs, log } = this.#options;
    // What no flush has covered must not go back any more once guests have read it.
    if (this.#following.isOn) await this.#flushBases();
    const { epoch } = this.checkpoints.committed;
    const { retained } = this.checkpoints.kept;
    // The state of a VM knows nothing of what another VM has written since.
    const discardsActive = options.discardActive || this.checkpoints.committed.vmstate !== undefined;
    const activeEpoch = discardsActive ? this.checkpoints.openEpoch : epoch;
    await this.gate.close();
    let claim: DiskClaim | undefined;
    let forWriting: Awaited<ReturnType<ReplicaDisks["openForWriting"]>> | undefined;
    try {
      claim = await this.#claimDisk(options.isHandedOver === true);
      forWriting = await this.#disks.openForWriting();
      await claim?.merge();
      const tracked = await this.#history.trackPeer(this.disks);
      await state.update((record) => ({
        ...promoted((options.supersedes ?? []).reduce(heard, record), options.lineage, epoch > 0 && !record.outdated),
        peers: [...new Set([...record.peers, ...(options.siblings ?? [])])],
        disks: record.disks.map(withoutFormerSize),
        tracks: tracked?.peer ?? null,
        prepared: [],
        retained: [],
        merge: { epoch, activeEpoch },
        ...(options.isUntold === true ? { arbiterUntold: true } : {}),
        ...(sharedMark === undefined ? {} : { markedOver: { agentId: null, sequence: 0 } }),
        acksUnsynced: false,
        epochReserved: Math.max(record.epochReserved, this.checkpoints.openEpoch),
      }));
      forWriting.take();
      this.#faults.end();
      this.checkpoints.forgetKept(retained);
      this.#space.quota?.lift();
      const disks = this.disks.map((disk) => {
        // Forced without a checkpoint: the overlays lead back to nothing, and the base is what there is.
        disk.epochs.dropUncommitted(epoch === 0);
        if (discardsActive) disk.discardActive(activeEpoch);
        // What a failed fsync of the base has lost came after the checkpoint: the overlays have what it stands on.
        // In mode mirror it may be part of that state, and is noted.
        const lost = lostSyncs.has({ disk: disk.name, active: null });
        if (lost) disk.base.distrust?.(lostSync(`the image of ${disk.name}`));
        else disk.base.rewritten();
        return { name: disk.name, disk: new PromotedDisk(disk.context, disk.stack, this.gate, epoch) };
      });
      return { epoch, disks, tracking: tracked?.tracking, letGo: (exported) => this.#letGo(exported) };
    } catch (error) {
      forWriting?.giveUp();
      await claim
        ?.withdraw()
        .catch((fault: unknown) =>
          log.warn({ reason: asColobusError(fault) }, "the claim beside the mark is not withdrawn"),
        );
      for (const { epochs } of this.disks) epochs.resume();
      this.#sessions.welcome(); // still Secondary
      this.gate.open();
      throw error;
    }
  }

  #letGo(exported: Parameters<Promotion["letGo"]>[0]): void {
    for (const { name, view } of this.disks) {
      const successor = exported.find((one) => one.name === name);
      if (successor !== undefined) view.handOver(successor);
    }
    this.gate.open();
  }

  /** What cannot be flushed is noted, and the promoted side's flushes fail. */
  async #flushBases(): Promise<void> {
    const { state, log } = this.#options;
    if (state.record.durability === "process") return;
    const flushes = await Promise.allSettled(this.disks.map(({ base }) => base.flush()));
    for (const flush of flushes) {
      if (flush.status === "rejected") log.warn({ reason: asColobusError(flush.reason) }, "an image cannot be flushed");
    }
  }

  /** Bytes of the clusters that a promotion would have to merge. */
  mergeBytes({ discardsActive }: { readonly discardsActive: boolean }): number {
    const { epoch } = this.checkpoints.committed;
    return this.disks.reduce((sum, { stack, context }) => {
      const clusters = epoch === 0 ? new ClusterBitmap() : stack.hidden.union();
      if (!discardsActive) clusters.orInPlace(stack.active.clusters());
      return sum + clustersToBytes(context.geometry, clusters.size);
    }, 0);
  }

  /** Ends the sessions and closes every file; for a clean stop. Errors: what kept it from being clean; all is closed then too. */
  async close(waitsFor: WaitsFor = tellNobody): Promise<void> {
    try {
      await this.#leave(waitsFor);
    } finally {
      try {
        await this.#options.tracking.close();
      } finally {
        this.#disks.close();
      }
    }
  }

  /** Closes the disks and nothing else: the role has not begun. */
  abandon(): void {
    this.#disks.close();
  }

  /** Ends what goes on, and records how the disks are left. */
  async #leave(waitsFor: WaitsFor): Promise<void> {
    waitsFor("what the primary has sent");
    await this.#sessions.end(new ColobusError("shutting-down", "the secondary agent is being stopped"));
    this.#faults.end();
    await this.#disks.settled();
    await Promise.all(this.disks.map(({ epochs }) => epochs.end()));
    await this.checkpoints.settled();
    const marks = await flushDisks(this.disks, this.#options.vmStates, this.#options.log, waitsFor);
    const isDurable = marks.size === this.disks.length;
    await this.#options.state.update((record) => ({
      ...record,
      ...(isDurable ? this.#following.leftDurable(record) : {}),
      // These flushes succeed without what an earlier one has lost, so that no later process would look for it any more.
      disks: record.disks.map((disk) => ({
        ...disk,
        cleanMark: this.#faults.mustRewrite ? null : (marks.get(disk.name) ?? null),
      })),
    }));
  }
}
