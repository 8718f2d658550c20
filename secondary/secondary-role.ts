import assert from "node:assert/strict";
import { ColobusError, isForWantOfSpace } from "../proto/errors.ts";
import { UNAUTHENTICATED_LINKS_MAX } from "../proto/limits.ts";
import type { Hello, SyncPhase } from "../proto/replication-messages.ts";
import type { StateRecord } from "../proto/state-record.ts";
import { AGENT_VERSION, REPLICATION_PROTOCOL_VERSION } from "../proto/versions.ts";
import { notProtected, type DiskStatus, type PeerStatus, type Status } from "../proto/control-api.ts";
import type { EventType, SecondaryExport } from "../proto/words.ts";
import type { ImageSource } from "../shared/block/disk-image.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { historyFieldsOf, promoted } from "../shared/replication/lineage.ts";
import type { Link } from "../shared/replication/link.ts";
import type { PeerTracking, PeerTrackingOptions } from "../shared/replication/peer-tracking.ts";
import { refusalOf } from "../shared/replication/refusal.ts";
import type { Verdict } from "../shared/replication/verdict.ts";
import { Checkpoints } from "./checkpoints.ts";
import { CheckpointOperations } from "./checkpoint-operations.ts";
import { DiskFaults } from "./disk-faults.ts";
import { flushDisks } from "./flush-disks.ts";
import { overlayContext } from "./overlay-files.ts";
import { OverlaySpace } from "./overlay-space.ts";
import { PromotedDisk } from "./promoted-disk.ts";
import { describeReplicaDisk, ReplicaDisk } from "./replica-disk.ts";
import { ReplicaHistory } from "./replica-history.ts";
import { ReplicaSession } from "./replica-session.ts";
import { ViewGate } from "./view-gate.ts";

export interface SecondaryOptions {
  readonly storage: Storage;
  readonly images: ImageSource;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  /** Holds one directory of overlays for each disk, `disks/NAME`. */
  readonly stateDirectory: string;
  readonly access: SecondaryExport;
  /** What this side has changed by itself, as a primary, and no source has taken over yet. */
  readonly tracking: PeerTracking;
  /** Whom this side dials; null: it waits for a peer to dial. */
  readonly peerUrl: string | null;
  /** What new dirty bitmaps are made of; the disks have come into being. */
  readonly trackingOptions: () => PeerTrackingOptions;
  /** The primary hands its role to this side, under that lineage. */
  readonly takeOver: (lineage: string) => void;
  /** A handshake has come to a verdict. */
  readonly judged: () => void;
  readonly token: Buffer | undefined;
  readonly peerTimeoutMs: number;
  /** Bounds what a primary may have sent that is not applied yet. */
  readonly windowBytes: number;
  /** The kernel's boot id: another one than recorded means that unsynced data may be lost. */
  readonly bootId: string;
  /** Committed checkpoints to keep beside the last one. */
  readonly retain: number;
  /** What the overlays of all disks may take; undefined: what their file system has. */
  readonly overlayLimitBytes: number | undefined;
  /** Writes to the images were lost, perhaps, that readers still see: what arrives is written even where it seems equal. */
  readonly mayHaveLostWrites: boolean;
  /** Disks have come into being at the primary's size. */
  readonly disksCreated: () => void;
}

/** What a promotion leaves to the primary's role. */
export interface Promotion extends PromotedDisks {
  /** Where the peer's copy differs; undefined: nothing is known of it. */
  readonly tracking: PeerTracking | undefined;
}

export interface PromotedDisks {
  readonly epoch: number;
  readonly disks: readonly { readonly name: string; readonly disk: PromotedDisk }[];
}

/**
 * The secondary's role: takes a primary's stream, keeps the committed checkpoint, exports it, and can be promoted.
 * At most one session is served; a new one ends the old one first.
 */
export class SecondaryRole {
  readonly checkpoints: Checkpoints;
  readonly operations: CheckpointOperations;
  readonly gate = new ViewGate();
  readonly #options: SecondaryOptions;
  readonly #history: ReplicaHistory;
  #disks: ReplicaDisk[] = [];
  readonly #sessions = new Set<ReplicaSession>();
  /** Sessions that have ended, and still apply what they had begun: nobody else may touch the disks before they are done. */
  readonly #leaving = new Set<Promise<void>>();
  #current: ReplicaSession | undefined;
  #lastContactMs: number | undefined;
  #lastError: ColobusError | undefined;
  readonly #space: OverlaySpace;
  readonly #faults: DiskFaults;
  /** How many reasons there are to take no sessions now. */
  #endings = 0;
  #standsAlone = false;
  #lastVerdict: { readonly verdict: Verdict; readonly peer: Hello } | undefined;

  /**
   * Recovers the overlays of all disks. Errors: those of opening the images (`image-missing` …), `state-corrupt`.
   * On an error every file is closed again.
   */
  constructor(options: SecondaryOptions) {
    this.#options = options;
    this.#history = new ReplicaHistory(options);
    const { record } = options.state;
    this.#space = new OverlaySpace({
      storage: options.storage,
      clock: options.clock,
      log: options.log,
      emit: options.emit,
      state: options.state,
      stateDirectory: options.stateDirectory,
      limitBytes: options.overlayLimitBytes,
      disks: () => this.#disks,
      makeRoom: () => this.checkpoints.makeRoom(),
      wanted: () => this.#tellWanted(),
      freed: () => this.#unstall(),
    });
    this.#faults = new DiskFaults({ ...options, retry: () => this.#unstall() });
    try {
      for (const disk of record.disks) {
        if (disk.sizeBytes !== null) this.#disks.push(this.#openDisk(disk));
      }
    } catch (error) {
      for (const disk of this.#disks) disk.close();
      throw error;
    }
    this.checkpoints = new Checkpoints({
      state: options.state,
      disks: () => this.#disks,
      gate: this.gate,
      clock: options.clock,
      log: options.log,
      retain: options.retain,
      retainedDropped: (epochs, reason) => options.emit("retained-dropped", { epochs, reason }),
      freed: () => this.#space.measure(),
    });
    for (const disk of this.#disks) disk.hidden.setNewestBarrier(this.checkpoints.newestBarrier);
    this.operations = new CheckpointOperations({
      ...options,
      checkpoints: this.checkpoints,
      disks: () => this.#disks,
      session: () => this.#current,
      withoutSessions: (why, work) => this.#withoutSessions(why, work),
      freed: () => this.#space.retry(),
    });
  }

  get disks(): readonly ReplicaDisk[] {
    return this.#disks;
  }

  get isConnected(): boolean {
    return this.#current !== undefined;
  }

  /** What the last handshake with a proved peer came to. */
  get lastVerdict(): { readonly verdict: Verdict; readonly peer: Hello } | undefined {
    return this.#lastVerdict;
  }

  /** A dial failed. */
  dialFailed(reason: ColobusError): void {
    if (this.#current === undefined && !this.#standsAlone) this.#lastError = reason;
  }

  /** Takes a link to a peer, whoever has dialled. `ended` is called when it is over: `wasOpen` tells that it had been a session. */
  accept(link: Link, ended: (wasOpen: boolean) => void = () => undefined): void {
    const unproved = [...this.#sessions].filter((session) => session !== this.#current);
    if (this.#endings > 0 || unproved.length >= UNAUTHENTICATED_LINKS_MAX) {
      link.start({ message: () => undefined, closed: () => ended(false) });
      link.close(new ColobusError("shutting-down", "the agent takes no sessions now", "Try again later."));
      return;
    }
    const options = this.#options;
    const session = new ReplicaSession({
      link,
      clock: options.clock,
      hello: this.#hello(),
      token: options.token,
      peerTimeoutMs: options.peerTimeoutMs,
      windowBytes: options.windowBytes,
      durability: options.state.record.durability,
      checkpoints: this.checkpoints,
      judged: (verdict, peer) => this.#judged(verdict, peer),
      history: this.#history,
      takeOver: (lineage) => this.#takeOver(session, lineage),
      opened: (opened) => this.#opened(opened),
      prepareDisks: (names, sizes) => this.#prepareDisks(names, sizes),
      fullness: () => {
        this.#space.retry();
        return this.#space.full ?? this.#faults.waits;
      },
      ready: () => {
        if (this.#space.quota?.isAboveMark === true) this.#tellWanted();
      },
      failed: (reason, disk) => {
        if (isForWantOfSpace(reason)) this.#space.report(reason);
        else this.#faults.report(reason, disk);
      },
      faults: this.#faults,
      synced: (_, phase) => options.emit(EVENT_OF_SYNC_PHASE[phase], {}),
      prepared: (epoch) => options.emit("checkpoint-prepared", { epoch }),
      committed: (epoch) => {
        options.emit("checkpoint-committed", { epoch });
        this.#space.retry();
      },
      discarded: (epochs) => {
        if (epochs.length > 0) options.emit("checkpoint-discarded", { epochs });
      },
      closed: (closed, reason) => {
        this.#closed(closed, reason);
        ended(closed.peer !== undefined);
      },
    });
    this.#sessions.add(session);
  }

  #judged(verdict: Verdict, peer: Hello): void {
    const { emit, state, tracking } = this.#options;
    const isNews = this.#lastVerdict?.verdict.kind !== verdict.kind;
    this.#lastVerdict = { verdict, peer };
    this.#standsAlone = verdict.kind === "split-brain" || verdict.kind === "outdated";
    if (verdict.kind === "split-brain" && isNews) {
      emit("split-brain", {
        peer: peer.agentId,
        wouldLoseBytes: { here: tracking.bytes, there: peer.changedBytes },
      });
    }
    if (verdict.kind === "outdated" && isNews) emit("outdated", { peer: state.record.agentId, lineage: peer.lineage });
    this.#options.judged();
  }

  #takeOver(session: ReplicaSession, lineage: string): Promise<void> {
    const { writes } = this.checkpoints.volumeSinceCommit();
    const isCommitted = this.checkpoints.committed.epoch > 0 && !this.#options.state.record.outdated;
    if (session !== this.#current || session.replication !== "Established" || !isCommitted || writes > 0) {
      return Promise.reject(
        new ColobusError(
          "no-checkpoint",
          "this secondary has not committed everything that the primary has sent",
          "Try again: a switchover commits what there is.",
        ),
      );
    }
    this.#options.takeOver(lineage);
    return Promise.resolve();
  }

  describePeer(): PeerStatus {
    const session = this.#current;
    const volume = this.checkpoints.volumeSinceCommit();
    return {
      url: this.#options.peerUrl,
      address: session?.peerAddress ?? this.#options.peerUrl,
      connection: session !== undefined ? "Connected" : this.#standsAlone ? "StandAlone" : "Connecting",
      replication: session?.replication ?? "Off",
      lagBytes: volume.bytes,
      agentId: session?.peer?.agentId ?? null,
      agentVersion: session?.peer?.agentVersion ?? null,
      lastContactMs: this.#contactAgeMs(),
      lastError: (this.#space.full ?? this.#faults.latest ?? this.#lastError)?.toJSON() ?? null,
    };
  }

  describeDisks(): DiskStatus[] {
    const committed = this.checkpoints.committed.epoch > 0;
    const state = !committed
      ? "Inconsistent"
      : this.#options.state.record.outdated
        ? "Outdated"
        : this.#current?.replication === "Established"
          ? "UpToDate"
          : "Consistent";
    return this.#options.state.record.disks.map((recorded) => {
      const disk = this.#disks.find(({ name }) => name === recorded.name);
      return describeReplicaDisk(recorded, disk, this.#faults.has(recorded.name) ? "Failed" : state);
    });
  }

  describeProtection(): Status["protection"] {
    const { full } = this.#space;
    if (full !== undefined) return notProtected("overlay-full", full.action);
    const failed = this.#faults.latest;
    if (failed !== undefined) return notProtected("disk-failed", `${failed.message}: ${failed.action}`);
    const { record } = this.#options.state;
    if (this.#standsAlone && this.#lastVerdict !== undefined) {
      const reason = this.#lastVerdict.verdict.kind === "split-brain" ? "split-brain" : "outdated";
      return notProtected(reason, refusalOf(this.#lastVerdict.verdict, record.agentId)?.action ?? "");
    }
    if (this.#current === undefined) {
      return notProtected(
        "connecting",
        "Check the primary agent: its `--peer` must name this agent's `--listen` address.",
      );
    }
    if (this.#current.replication !== "Established") {
      const initial = this.checkpoints.committed.epoch === 0;
      return notProtected(initial ? "initial-sync" : "resync", "Wait: `colobus wait synced`.");
    }
    if (record.outdated) return notProtected("outdated", "Take a checkpoint on the primary.");
    if (this.checkpoints.committed.epoch === 0)
      return notProtected("no-checkpoint", "Take a checkpoint on the primary.");
    return { state: "Protected", reason: null, nextAction: "" };
  }

  describeRecoverable(): Status["recoverable"] {
    const { epoch, atMs } = this.checkpoints.committed;
    if (epoch === 0) return null;
    const { writes, bytes, complete } = this.checkpoints.volumeSinceCommit();
    return {
      epoch,
      ageMs: Math.max(0, this.#options.clock.wallMs() - atMs),
      lastContactMs: this.#contactAgeMs(),
      // What the primary wrote after the last contact is not known here.
      wouldLose: { writes, bytes, atLeast: !complete || this.#current === undefined },
    };
  }

  /** What a promotion would do. Errors: `peer-connected`, `no-checkpoint`, unless forced. */
  assertPromotable(force: boolean): void {
    if (this.#current !== undefined && !force) {
      throw new ColobusError(
        "peer-connected",
        `the primary at ${this.#current.peerAddress} is connected`,
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
        "this side's checkpoint is its own state from when it was Primary, which the peer has gone beyond",
        "Fail over to a side that is up to date, or say --force to go back to this one: the two have diverged then.",
      );
    }
  }

  /**
   * Makes this side Primary, from the last committed checkpoint: ends the session, then writes the one record that says
   * so. The role is over when the promise resolves; the disks are served from their committed views.
   */
  async promote(options: { readonly discardActive: boolean; readonly lineage: string }): Promise<Promotion> {
    await this.#endSessions(new ColobusError("replaced", "this side was promoted: it is Primary now"));
    await this.checkpoints.settled();
    const { state } = this.#options;
    const { epoch } = this.checkpoints.committed;
    const { retained } = this.checkpoints.kept;
    const activeEpoch = options.discardActive ? this.checkpoints.openEpoch : epoch;
    await this.gate.close();
    try {
      const tracking = await this.#history.trackPeer(this.#disks);
      await state.update((record) => ({
        ...promoted(record, options.lineage, epoch > 0 && !record.outdated),
        tracks: tracking?.peer ?? null,
        prepared: [],
        retained: [],
        merge: { activeEpoch },
        epochReserved: Math.max(record.epochReserved, this.checkpoints.openEpoch),
      }));
      this.#faults.end();
      this.checkpoints.forgetKept(retained);
      this.#space.quota?.lift();
      const disks = this.#disks.map((disk) => {
        // Forced without a checkpoint: the originals lead back to nothing, and the base is what there is.
        if (epoch === 0) disk.hidden.removeAll();
        if (options.discardActive) disk.discardActive(activeEpoch);
        // What a failed fsync of the base has lost came after the checkpoint: the overlays have what it stands on.
        disk.base.rewritten();
        const promoted = new PromotedDisk(disk.context, disk.stack, this.gate, epoch);
        disk.view.handOver(promoted);
        return { name: disk.name, disk: promoted };
      });
      return { epoch, disks, tracking };
    } catch (error) {
      this.#welcomeSessions(); // still Secondary
      throw error;
    } finally {
      this.gate.open();
    }
  }

  /** Storage of what a promotion would have to merge, in bytes. */
  get mergeBytes(): number {
    return this.#disks.reduce(
      (sum, { hidden, active }) => sum + hidden.allocatedBytes - hidden.keptBytes + active.allocatedBytes,
      0,
    );
  }

  /** Ends the sessions and closes every file; for a clean stop. */
  async close(): Promise<void> {
    await this.#endSessions(new ColobusError("shutting-down", "the secondary agent is being stopped"));
    this.#faults.end();
    await this.checkpoints.settled();
    const marks = await flushDisks(this.#disks, this.#options.log);
    await this.#options.state.update((record) => ({
      ...record,
      disks: record.disks.map((disk) => ({ ...disk, cleanMark: marks.get(disk.name) ?? null })),
    }));
    await this.#options.tracking.close();
    for (const disk of this.#disks) disk.close();
  }

  /** Does `work` while no session is open, and none can begin. */
  async #withoutSessions<T>(why: string, work: () => Promise<T>): Promise<T> {
    await this.#endSessions(new ColobusError("replaced", `this side takes no stream while ${why}`));
    try {
      return await work();
    } finally {
      this.#welcomeSessions();
    }
  }

  async #endSessions(reason: ColobusError): Promise<void> {
    this.#endings += 1;
    this.#space.end();
    await Promise.all([...[...this.#sessions].map((session) => session.end(reason)), ...this.#leaving]);
  }

  #welcomeSessions(): void {
    this.#endings -= 1;
    if (this.#endings === 0) this.#space.resume();
  }

  #unstall(): void {
    if (this.#space.full === undefined && this.#faults.waits === undefined) this.#current?.unstall();
  }

  #tellWanted(): void {
    this.#current?.notify({ type: "wanted", ...this.#space.describeWanted() });
  }

  #hello(): Hello {
    const { state, tracking } = this.#options;
    const { record } = state;
    return {
      ...historyFieldsOf(record),
      tracks: tracking.peer,
      // Own changes of which the list is lost: no bitmap proves anything then.
      pairing: record.tracks !== null && tracking.peer === null ? null : record.pairing,
      changedBytes: tracking.bytes,
      protocol: REPLICATION_PROTOCOL_VERSION,
      agentVersion: AGENT_VERSION,
      vm: record.vm,
      mode: record.mode,
      role: "Secondary",
      ack: "async",
      clusterBytes: record.clusterBytes,
      windowBytes: this.#options.windowBytes,
      disks: record.disks.map(({ name, sizeBytes }) => ({ name, sizeBytes })),
      nonce: this.#options.random.bytes(16),
      hasToken: this.#options.token !== undefined,
      committed: record.committed.epoch,
      prepared: record.prepared.map(({ epoch }) => epoch),
      epochSeen: this.checkpoints.epochSeen,
      assumeInSync: false,
    };
  }

  async #opened(session: ReplicaSession): Promise<void> {
    const older = [...this.#sessions].filter((other) => other !== session && other.peer !== undefined);
    const reason = new ColobusError("replaced", "a newer session of the primary takes the place of this one");
    await Promise.all([...older.map((other) => other.end(reason)), ...this.#leaving]);
    if (!this.#sessions.has(session)) return;
    this.#current = session;
    this.#lastError = undefined;
    this.#options.emit("peer-connected", { address: session.peerAddress, agentId: session.peer?.agentId ?? null });
    this.#options.log.info({ peer: session.peerAddress }, "the primary is connected");
  }

  #closed(session: ReplicaSession, reason: ColobusError): void {
    this.#sessions.delete(session);
    const left = session.end(reason).finally(() => this.#leaving.delete(left));
    this.#leaving.add(left);
    if (session === this.#current) {
      this.#current = undefined;
      this.#lastContactMs = this.#options.clock.nowMs() - session.silenceMs;
      this.#lastError = reason;
      this.#options.emit("peer-disconnected", { address: session.peerAddress, ...reason.toJSON() });
      this.#options.log.warn({ peer: session.peerAddress, reason }, "the session with the primary ended");
    } else if (this.#endings === 0 && reason.code !== "replaced" && reason.message !== this.#lastError?.message) {
      // A refused primary tries again for ever: each reason is reported once.
      this.#lastError = reason;
      this.#options.emit("peer-refused", { address: session.peerAddress, ...reason.toJSON() });
      this.#options.log.warn({ peer: session.peerAddress, reason }, "a session was refused, or did not begin");
    }
  }

  #contactAgeMs(): number | null {
    if (this.#current !== undefined) return this.#current.silenceMs;
    return this.#lastContactMs === undefined ? null : this.#options.clock.nowMs() - this.#lastContactMs;
  }

  #openDisk(disk: StateRecord["disks"][number]): ReplicaDisk {
    const { storage, random, state, stateDirectory, access, bootId, mayHaveLostWrites } = this.#options;
    const { committed, prepared, retained, epochReserved } = state.record;
    const { quota } = this.#space;
    const base = this.#options.images.open(disk);
    try {
      const epochs = {
        floor: retained[0]?.epoch ?? committed.epoch,
        committed: committed.epoch,
        newestBarrier: prepared.at(-1)?.epoch ?? committed.epoch,
        open: epochReserved + 1,
        afterPowerLoss: state.record.bootId !== bootId,
        mayHaveLostWrites,
      };
      const context = overlayContext(
        { storage, random, stateDirectory, quota },
        state.record,
        disk.name,
        base.sizeBytes,
      );
      return new ReplicaDisk(disk.name, base, context, epochs, {
        gate: this.gate,
        hasCheckpoint: () => this.checkpoints.committed.epoch > 0,
        access,
      });
    } catch (error) {
      base.close();
      throw error;
    }
  }

  /** The disks in the primary's order; images that were to be created are, and the record then names their size. */
  async #prepareDisks(names: readonly string[], sizes: readonly number[]): Promise<readonly ReplicaDisk[]> {
    const { images, state } = this.#options;
    const created = new Map<string, number>();
    for (const [index, name] of names.entries()) {
      const recorded = state.record.disks.find((disk) => disk.name === name);
      const sizeBytes = sizes[index];
      assert(recorded !== undefined && sizeBytes !== undefined, "the handshake has compared the names");
      if (recorded.sizeBytes !== null) continue;
      await images.create(recorded.image, sizeBytes);
      created.set(name, sizeBytes);
      this.#disks.push(this.#openDisk({ ...recorded, sizeBytes }));
    }
    if (created.size > 0) {
      await state.update((record) => ({
        ...record,
        disks: record.disks.map((disk) => ({ ...disk, sizeBytes: created.get(disk.name) ?? disk.sizeBytes })),
      }));
      this.#options.disksCreated();
    }
    return names.map((name) => {
      const disk = this.#disks.find((candidate) => candidate.name === name);
      assert(disk !== undefined);
      return disk;
    });
  }
}

const EVENT_OF_SYNC_PHASE = {
  begin: "sync-started",
  pause: "sync-paused",
  end: "sync-finished",
} as const satisfies Record<SyncPhase, EventType>;
