import {
  notProtected,
  type CheckpointAnswer,
  type CheckpointRequest,
  type CommitAnswer,
  type DiscardAnswer,
  type DiskStatus,
  type PeerStatus,
  type ResyncAnswer,
  type Status,
} from "../proto/control-api.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { PREPARED_EPOCHS_MAX } from "../proto/limits.ts";
import type { Hello, Notice } from "../proto/replication-messages.ts";
import { AGENT_VERSION, REPLICATION_PROTOCOL_VERSION } from "../proto/versions.ts";
import type { AckPolicy, EventType } from "../proto/words.ts";
import type { Child } from "../shared/block/block-device.ts";
import { clusterGeometry, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import type { Job } from "../shared/jobs/job.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { EpochVolumes } from "../shared/replication/epoch-volumes.ts";
import type { Dialer } from "../shared/replication/link.ts";
import { continueSync } from "./continue-sync.ts";
import { EpochCounter } from "./epoch-counter.ts";
import { ReplicatedDisk } from "./replicated-disk.ts";
import { Replicator } from "./replicator.ts";
import type { SourceSession } from "./source-session.ts";
import { SyncWork } from "./sync-work.ts";

export interface PrimaryOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  readonly jobs: JobList;
  readonly children: readonly { readonly name: string; readonly child: Child }[];
  /** undefined: there is no secondary (after a failover). */
  readonly dialer: Dialer | undefined;
  readonly token: Buffer | undefined;
  readonly ack: AckPolicy;
  readonly peerTimeoutMs: number;
  readonly windowBytes: number;
  /** The secondary whose copy a clean stop left equal; null: nothing is known. */
  readonly inSyncPeer: string | null;
  readonly assumeInSync: boolean;
  /** Takes a checkpoint of the disks by itself every so often; undefined: only when asked. */
  readonly checkpointEveryMs: number | undefined;
  readonly maxCheckpointAgeMs: number | undefined;
}

interface KnownEpochs {
  committed: number;
  committedAtMs: number | undefined;
  prepared: number[];
}

/**
 * The primary's role: serves the disks, keeps the secondary equal, and closes epochs. What is prepared and committed is
 * the secondary's to know; the primary repeats what it was told last.
 */
export class PrimaryRole {
  readonly disks: readonly ReplicatedDisk[];
  readonly #options: PrimaryOptions;
  readonly #geometries: readonly ClusterGeometry[];
  readonly #replicator: Replicator | undefined;
  readonly #epochs: EpochCounter;
  readonly #known: KnownEpochs;
  /** The guest's writes since this agent started, by epoch. */
  readonly #volumes = new EpochVolumes();
  /** Whether the committed epoch was closed under this agent's eyes, so that no later write is uncounted. */
  #volumesComplete = false;
  /** Called at every change of the replication state. */
  readonly #watchers = new Set<() => void>();
  #syncJob: Job | undefined;
  #timer: Timer | undefined;
  /** Asked for by the secondary during a sync: to be taken at its end. */
  #checkpointWanted = false;
  /** The secondary has given up what it had of epochs up to this one. An answer about one may be read after that. */
  #voidThrough = 0;
  #failedDisks = new Map<string, ColobusError>();
  #stopping = false;

  constructor(options: PrimaryOptions) {
    this.#options = options;
    const { record } = options.state;
    this.#epochs = new EpochCounter(options.state);
    this.#known = {
      committed: record.committed.epoch,
      committedAtMs: record.committed.epoch > 0 ? record.committed.atMs : undefined,
      prepared: [],
    };
    this.#geometries = options.children.map(({ child }) => clusterGeometry(child.sizeBytes, record.clusterBytes));
    this.disks = options.children.map(({ name, child }, index) => this.#replicatedDisk(name, child, index));
    this.#replicator = options.dialer === undefined ? undefined : this.#newReplicator(options.dialer);
  }

  start(): void {
    this.#replicator?.start();
    this.#scheduleCheckpoint();
  }

  get openEpoch(): number {
    return this.#epochs.open;
  }

  get epochs(): Status["epoch"] {
    return {
      open: this.#epochs.open,
      prepared: [...this.#known.prepared],
      committed: this.#known.committed,
      retained: [],
    };
  }

  get isConnected(): boolean {
    return this.#replicator?.isConnected ?? false;
  }

  get isEstablished(): boolean {
    return this.#replicator?.isEstablished ?? false;
  }

  /**
   * Closes the open epoch on all disks, waits until the secondary has prepared the checkpoint and, unless only that is
   * asked for, commits it. While the secondary is being synced, waits for the end of that first.
   * Errors: `no-peer` at once without a connected secondary; `timed-out`; `outcome-unknown` when the session is lost
   * during the commit; the secondary's own refusals.
   */
  async checkpoint(request: CheckpointRequest, signal: AbortSignal): Promise<CheckpointAnswer> {
    const deadline = this.#deadline(request.timeoutMs, signal);
    try {
      const replicator = this.#connectedReplicator();
      await deadline.race(this.#untilEstablished(), "the secondary is still being synced");
      // Another checkpoint may have closed the reserved epoch before this one goes on.
      do await deadline.race(this.#epochs.reserve(), "an epoch number could not be reserved");
      while (!this.#epochs.isReserved);
      if (this.#known.prepared.length >= PREPARED_EPOCHS_MAX) {
        throw new ColobusError(
          "too-many-prepared",
          `${PREPARED_EPOCHS_MAX} checkpoints are prepared already`,
          "Commit or discard some of them first.",
        );
      }
      // The sync may have begun anew, or the session been lost, while the number was reserved.
      if (!replicator.isEstablished) throw interrupted();
      const { session } = replicator;
      const startedMs = this.#options.clock.nowMs();
      const epoch = this.#epochs.close();
      await deadline.race(
        this.#barrier(session, epoch),
        `checkpoint ${epoch} was asked for and its outcome is not known yet`,
      );
      const prepareMs = this.#options.clock.nowMs() - startedMs;
      if (request.prepare) return { epoch, state: "prepared", prepareMs, commitMs: null };
      const commitMs = await deadline.race(
        this.#commit(session, epoch),
        `the commit of checkpoint ${epoch} was asked for and its outcome is not known yet`,
      );
      return { epoch, state: "committed", prepareMs, commitMs };
    } finally {
      deadline.end();
    }
  }

  /** Commits a prepared checkpoint, and every earlier one. Succeeds again for what is committed. */
  async commit(epoch: number, timeoutMs: number, signal: AbortSignal): Promise<CommitAnswer> {
    const deadline = this.#deadline(timeoutMs, signal);
    try {
      if (epoch <= this.#known.committed) return { epoch, state: "committed", commitMs: 0 };
      const { session } = this.#connectedReplicator();
      const commitMs = await deadline.race(
        this.#commit(session, epoch),
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
      const { session } = this.#connectedReplicator();
      const epochs = epoch === undefined ? [...this.#known.prepared] : [epoch];
      if (epochs.length === 0) return { discarded: [] };
      await deadline.race(
        session.request((id) => ({ type: "discard", id, epochs })),
        "the discard was asked for and its outcome is not known yet",
      );
      const discarded = this.#known.prepared.filter((prepared) => epochs.includes(prepared));
      this.#known.prepared = this.#known.prepared.filter((prepared) => !epochs.includes(prepared));
      if (discarded.length > 0) this.#options.emit("checkpoint-discarded", { epochs: discarded });
      return { discarded };
    } finally {
      deadline.end();
    }
  }

  /** Lets a paused sync go on. Errors: `no-peer`; why the secondary takes no writes. */
  resync(): ResyncAnswer {
    return continueSync(this.#connectedReplicator(), this.#syncJob);
  }

  describePeers(): PeerStatus[] {
    return this.#replicator === undefined ? [] : [this.#replicator.describe()];
  }

  describeDisks(): DiskStatus[] {
    return this.#options.state.record.disks.map(({ name, image }, index) => {
      const failed = this.#failedDisks.has(name);
      return {
        name,
        sizeBytes: this.disks[index]?.sizeBytes ?? null,
        state: failed ? "Failed" : "UpToDate",
        dirtyBytes: this.#replicator?.dirtyBytes(index) ?? 0,
        hiddenBytes: 0,
        activeBytes: 0,
        bufferBytes: 0,
        image,
        generations: [],
        children: [{ name: "local", kind: "image", path: image, state: failed ? "broken" : "sound" }],
      };
    });
  }

  describeProtection(): Status["protection"] {
    const failed = [...this.#failedDisks][0];
    if (failed !== undefined) return notProtected("disk-failed", `${failed[1].message}: ${failed[1].action}`);
    const replicator = this.#replicator;
    if (replicator === undefined) {
      return notProtected("no-peer", "This side runs alone; set up a new secondary for it.");
    }
    if (!replicator.isConnected) {
      return notProtected("connecting", replicator.describe().lastError?.action ?? "Start the secondary agent.");
    }
    if (replicator.pausedBy !== undefined) return notProtected("overlay-full", replicator.pausedBy.action);
    if (!replicator.isEstablished) {
      const reason = this.#known.committed === 0 ? "initial-sync" : "resync";
      return notProtected(reason, "Wait: `colobus wait synced`; `colobus jobs` shows how far it is.");
    }
    if (this.#known.committed === 0) return notProtected("no-checkpoint", "Take one: `colobus checkpoint`.");
    const { maxCheckpointAgeMs, clock } = this.#options;
    const ageMs = clock.wallMs() - (this.#known.committedAtMs ?? clock.wallMs());
    if (maxCheckpointAgeMs !== undefined && ageMs > maxCheckpointAgeMs) {
      return notProtected("checkpoint-too-old", "Take one: `colobus checkpoint`, or set --checkpoint-every.");
    }
    return { state: "Protected", reason: null, nextAction: "" };
  }

  /** What the secondary would return to if this side died now, as far as this side knows. */
  describeRecoverable(): Status["recoverable"] {
    const { committed, committedAtMs } = this.#known;
    if (committed === 0 || this.#replicator === undefined) return null;
    const nowMs = this.#options.clock.wallMs();
    return {
      epoch: committed,
      ageMs: Math.max(0, nowMs - (committedAtMs ?? nowMs)),
      lastContactMs: this.#replicator.describe().lastContactMs,
      wouldLose: { ...this.#volumes.total(), atLeast: !this.#volumesComplete },
    };
  }

  /** Resolves when the secondary has everything. Errors: `no-peer` when the session is lost first. */
  #untilEstablished(): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = (): void => {
        if (this.isEstablished) resolve();
        else if (!this.isConnected) reject(interrupted());
        else return;
        this.#watchers.delete(check);
      };
      this.#watchers.add(check);
      check();
    });
  }

  /** Stops checkpoints and sessions, drains what it can, and flushes the children. The children stay open. */
  async stop(drainMs: number): Promise<void> {
    this.#stopping = true;
    this.#timer?.cancel();
    let timer: Timer | undefined;
    const timeout = new Promise<void>((resolve) => {
      timer = this.#options.clock.after(drainMs, resolve);
    });
    const inSyncPeer = (await this.#replicator?.stop(timeout)) ?? null;
    timer?.cancel();
    this.#syncJob?.conclude(new ColobusError("shutting-down", "the agent is being stopped"));
    for (const { child } of this.#options.children) await child.flush();
    await this.#options.state.update((record) => ({
      ...record,
      inSyncPeer,
      committed: { epoch: this.#known.committed, atMs: this.#known.committedAtMs ?? 0 },
      epochReserved: this.#epochs.open - 1,
    }));
  }

  #newReplicator(dialer: Dialer): Replicator {
    const options = this.#options;
    return new Replicator({
      dialer,
      clock: options.clock,
      random: options.random,
      log: options.log,
      emit: options.emit,
      geometries: this.#geometries,
      token: options.token,
      ack: options.ack,
      peerTimeoutMs: options.peerTimeoutMs,
      windowBytes: options.windowBytes,
      inSyncPeer: options.inSyncPeer,
      hello: () => this.#hello(),
      opened: (peer) => this.#opened(peer),
      syncNeeded: (kind) => this.#startSync(kind),
      inSync: () => this.#inSync(),
      notified: (notice) => this.#notified(notice),
      lost: (reason) => {
        this.#syncJob?.conclude(reason);
        this.#notify();
      },
    });
  }

  #replicatedDisk(name: string, child: Child, index: number): ReplicatedDisk {
    return new ReplicatedDisk(name, child, {
      forward: (kind, offset, length, payload) => {
        this.#volumes.add(this.#epochs.open, 1, length);
        return this.#replicator?.forward(kind, index, offset, length, payload);
      },
      room: () => this.#replicator?.room(),
      flush: () => this.#replicator?.flush(),
      failed: (offset, length, thrown) => {
        const error = asColobusError(thrown);
        this.#replicator?.writeFailed(index, offset, length);
        this.#options.emit("disk-error", { disk: name, offset, length, ...error.toJSON() });
        // A full file system is the guest's to wait for; the disk itself is sound.
        if (error.code !== "out-of-space") this.#failedDisks.set(name, error);
      },
    });
  }

  #hello(): Omit<Hello, "tracks"> {
    const { record } = this.#options.state;
    return {
      protocol: REPLICATION_PROTOCOL_VERSION,
      agentVersion: AGENT_VERSION,
      agentId: record.agentId,
      vm: record.vm,
      mode: record.mode,
      role: "Primary",
      ack: this.#options.ack,
      clusterBytes: record.clusterBytes,
      windowBytes: this.#options.windowBytes,
      disks: this.disks.map(({ name, sizeBytes }) => ({ name, sizeBytes })),
      nonce: this.#options.random.bytes(16),
      hasToken: this.#options.token !== undefined,
      lineage: record.lineage,
      committed: this.#known.committed,
      prepared: [...this.#known.prepared],
      epochSeen: this.#epochs.open - 1,
      assumeInSync: this.#options.assumeInSync,
    };
  }

  #opened(peer: Hello): number {
    this.#epochs.skipThrough(peer.epochSeen);
    // It was rolled back, or has given its checkpoint up: not every write since its checkpoint was counted.
    if (peer.committed < this.#known.committed) this.#volumesComplete = false;
    this.#known.committed = peer.committed;
    this.#known.prepared = [...peer.prepared];
    return this.#epochs.open;
  }

  #startSync(kind: "full-sync" | "resync"): void {
    const replicator = this.#replicator;
    if (replicator === undefined) return;
    this.#syncJob?.conclude(new ColobusError("connection-lost", "a newer sync took the place of this one"));
    this.#syncJob = this.#options.jobs.start(new SyncWork(kind, replicator, this.disks, this.#geometries));
    this.#notify();
  }

  /** The secondary has everything. If it has no checkpoint yet, it gets one now: only then is the VM protected. */
  #inSync(): void {
    this.#failedDisks.clear();
    this.#notify();
    if (this.#known.committed === 0 || this.#checkpointWanted) this.#checkpointByItself();
    this.#checkpointWanted = false;
  }

  #notified(notice: Notice): void {
    if (notice.type === "wanted") {
      const { freeableBytes, limitBytes } = notice;
      this.#options.emit("checkpoint-wanted", { freeableBytes, limitBytes });
      if (this.#options.checkpointEveryMs === undefined) return;
      if (this.isEstablished) this.#checkpointByItself();
      else this.#checkpointWanted = true;
      return;
    }
    this.#voidThrough = notice.throughEpoch;
    this.#options.emit("checkpoint-given-up", { epoch: this.#known.committed });
    this.#known.committed = 0;
    this.#known.committedAtMs = undefined;
    this.#known.prepared = [];
    if (this.isEstablished) this.#checkpointByItself();
  }

  #notify(): void {
    for (const watcher of this.#watchers) watcher();
  }

  async #barrier(session: SourceSession, epoch: number): Promise<void> {
    try {
      await session.request((id) => ({ type: "barrier", id, epoch }));
    } catch (error) {
      this.#options.emit("checkpoint-failed", { epoch, ...asColobusError(error).toJSON() });
      throw error;
    }
    if (epoch > this.#voidThrough) this.#known.prepared.push(epoch);
    this.#options.emit("checkpoint-prepared", { epoch });
  }

  async #commit(session: SourceSession, epoch: number): Promise<number> {
    const { clock, emit } = this.#options;
    const startedMs = clock.nowMs();
    await session.request((id) => ({ type: "commit", id, epoch }));
    if (epoch > this.#voidThrough) {
      this.#known.committed = Math.max(this.#known.committed, epoch);
      this.#known.committedAtMs = clock.wallMs();
    }
    this.#volumes.dropThrough(epoch);
    this.#volumesComplete = true;
    this.#known.prepared = this.#known.prepared.filter((prepared) => prepared > epoch);
    emit("checkpoint-committed", { epoch });
    return clock.nowMs() - startedMs;
  }

  #scheduleCheckpoint(): void {
    const { checkpointEveryMs, clock } = this.#options;
    if (checkpointEveryMs === undefined || this.#stopping) return;
    this.#timer = clock.after(checkpointEveryMs, () => {
      if (!this.isEstablished) this.#scheduleCheckpoint();
      else this.#checkpointByItself(() => this.#scheduleCheckpoint());
    });
  }

  #checkpointByItself(done: () => void = () => undefined): void {
    const request = { prepare: false, timeoutMs: this.#options.peerTimeoutMs * 4 };
    this.checkpoint(request, new AbortController().signal)
      .catch((error: unknown) => this.#options.log.warn({ error }, "an automatic checkpoint failed"))
      .finally(done);
  }

  #connectedReplicator(): Replicator {
    const replicator = this.#replicator;
    if (replicator === undefined) {
      throw new ColobusError(
        "no-peer",
        "this primary has no secondary",
        "Set one up, and start this agent with --peer.",
      );
    }
    void replicator.session; // throws where none is connected
    return replicator;
  }

  #deadline(timeoutMs: number, signal: AbortSignal): Deadline {
    return new Deadline(this.#options.clock, timeoutMs, signal);
  }
}

function interrupted(): ColobusError {
  return new ColobusError(
    "no-peer",
    "the session with the secondary was lost",
    "It is tried again by itself; see `colobus status`.",
  );
}
