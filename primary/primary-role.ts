import {
  notProtected,
  type DiskStatus,
  type JobSpeed,
  type PeerStatus,
  type ResyncAnswer,
  type Status,
} from "../proto/control-api.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import type { Hello, Notice } from "../proto/replication-messages.ts";
import type { BlockDevice, Child } from "../shared/block/block-device.ts";
import { clusterGeometry, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Timer } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import { ownHello } from "../shared/replication/own-hello.ts";
import type { Link } from "../shared/replication/link.ts";
import type { Verdict } from "../shared/replication/verdict.ts";
import { AutomaticCheckpoints } from "./automatic-checkpoints.ts";
import { Changing } from "./changing.ts";
import { DiskCopies } from "./disk-copies.ts";
import { changesOf, originalsOf } from "./disk-forwarding.ts";
import { DiskHealth, type FailedAccess } from "./disk-health.ts";
import { GuestPolicy } from "./guest-policy.ts";
import { handOver } from "./hand-over.ts";
import { Mirroring } from "./mirroring.ts";
import { lostPeer, neverHadPeer } from "./no-peer.ts";
import { Mirrors } from "./mirrors.ts";
import type { NamedBitmaps } from "./named-bitmaps.ts";
import { PermitKeeper } from "./permit-keeper.ts";
import { PermittedDisk } from "./permitted-disk.ts";
import { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import { PrimaryStatus } from "./primary-status.ts";
import { ReplicatedDisk } from "./replicated-disk.ts";
import { Replicator } from "./replicator.ts";
import { Resizes } from "./resizes.ts";
import { SharedDisks } from "./shared-disks.ts";
import type { SourceSession } from "./source-session.ts";
import { SyncJobs } from "./sync-jobs.ts";
import { VerifyJobs } from "./verify-jobs.ts";
import { VmStates } from "./vm-states.ts";
import type { PrimaryOptions } from "./primary-options.ts";

/**
 * The primary's role: serves the disks and keeps the secondary equal. It puts the parts together that own the guests, the
 * session, the epochs and the sync, and tells each what the others have come to.
 */
export class PrimaryRole {
  readonly disks: readonly ReplicatedDisk[];
  readonly checkpoints: PrimaryCheckpoints;
  readonly vmStates: VmStates;
  readonly copies: DiskCopies;
  readonly mirrors: Mirrors;
  readonly verifies: VerifyJobs;
  readonly bitmaps: NamedBitmaps;
  readonly resizes: Resizes;
  readonly #options: PrimaryOptions;
  readonly #geometries: readonly ClusterGeometry[];
  readonly #guests: GuestPolicy;
  readonly #replicator: Replicator;
  readonly #syncs: SyncJobs;
  /** At every change of the replication state. */
  readonly #changing = new Changing();
  readonly #automatic: AutomaticCheckpoints;
  readonly #health: DiskHealth;
  readonly #status: PrimaryStatus;
  /** With an arbiter. */
  readonly #keeper: PermitKeeper | undefined;
  /** In mode `shared`. */
  readonly #shared: SharedDisks | undefined;
  /** In mode `mirror`. */
  readonly #mirroring: Mirroring | undefined;
  /** Epochs that the secondary of the session has prepared, and that are no checkpoints. */
  #unflushed: number[] = [];
  #lastVerdict: { readonly verdict: Verdict; readonly peer: Hello } | undefined;

  constructor(options: PrimaryOptions) {
    this.#options = options;
    this.bitmaps = options.bitmaps;
    const { record } = options.state;
    this.#guests = new GuestPolicy(options);
    this.#syncs = new SyncJobs(options.jobs, options.resyncSpeed);
    const takeCheckpoint = (): Promise<unknown> =>
      this.checkpoints.checkpoint(
        { prepare: false, timeoutMs: options.peerTimeoutMs * 4 },
        new AbortController().signal,
      );
    this.#automatic = new AutomaticCheckpoints({
      clock: options.clock,
      log: options.log,
      get everyMs() {
        return options.checkpointEveryMs;
      },
      isReady: () => this.#takesBarriers,
      take: takeCheckpoint,
    });
    this.#health = new DiskHealth({ clock: options.clock, emit: options.emit, disks: () => this.disks });
    this.#geometries = options.children.map(({ child }) => clusterGeometry(child.sizeBytes, record.clusterBytes));
    this.#shared = record.mode === "shared" ? this.#shareDisks() : undefined;
    this.copies = new DiskCopies({
      context: options.copies,
      sharesDisks: this.#shared !== undefined,
      images: options.children,
      tracking: options.tracking,
      freeze: () => this.#guests.freeze(),
      hasPivoted: (disk) => this.mirrors.hasPivoted(disk),
    });
    this.#keeper = this.#newKeeper();
    const sizes = new Map(options.children.map(({ name, child }) => [name, child.sizeBytes]));
    this.mirrors = new Mirrors({ ...options, targets: options.mirrorTargets, disks: () => this.disks }, sizes);
    this.checkpoints = new PrimaryCheckpoints({
      clock: options.clock,
      state: options.state,
      emit: options.emit,
      session: () => this.#connectedSession(),
      isEstablished: () => this.#takesBarriers,
      untilEstablished: () => this.#untilEstablished(),
      sharedDisks: this.#shared,
      committed: () => {
        this.#keeper?.committed();
        return this.#shared?.protect();
      },
    });
    if (record.mode === "mirror") {
      this.#mirroring = new Mirroring({
        ...options,
        checkpoints: this.checkpoints,
        isEstablished: () => this.isEstablished,
        take: takeCheckpoint,
      });
    }
    this.vmStates = new VmStates({ ...options, checkpoints: this.checkpoints });
    this.disks = options.children.map(({ name, child }, index) => this.#replicatedDisk(name, child, index));
    this.#replicator = this.#newReplicator();
    this.verifies = new VerifyJobs({
      ...options,
      sharesDisks: this.#shared !== undefined,
      disks: this.disks,
      geometries: this.#geometries,
      replicator: this.#replicator,
    });
    this.resizes = new Resizes({
      ...options,
      disks: this.disks,
      geometries: this.#geometries,
      copies: this.copies,
      verifies: this.verifies,
      replicators: () => [this.#replicator],
    });
    this.#status = new PrimaryStatus({
      state: options.state,
      clock: options.clock,
      get maxCheckpointAgeMs() {
        return options.maxCheckpointAgeMs;
      },
      disks: this.disks,
      health: this.#health,
      guests: this.#guests,
      replicator: this.#replicator,
      syncs: this.#syncs,
      verifies: this.verifies,
      checkpoints: this.checkpoints,
      mirroring: this.#mirroring,
      ack: options.ack,
      isPaired: () => this.#isPaired,
      children: (disk) => this.copies.describe(disk),
      verdict: () => this.#lastVerdict?.verdict,
    });
  }

  start(): void {
    const { tracking } = this.#options;
    tracking.start({
      inFlight: (disk) => this.#replicator.inFlight(disk),
      isBusy: (disk, offset, length) => this.disks[disk]?.isBusy(offset, length) ?? false,
      flush: async (disk) => this.disks[disk]?.flushChild(),
    });
    this.bitmaps.start(this.disks, () => this.checkpoints.openEpoch);
    this.copies.start(this.disks);
    this.#automatic.start();
    this.#keeper?.start();
    this.mirrors.start();
    // What an earlier process has lost is to be seen before a guest flushes.
    const lost = this.#options.state.record.lostSyncs.filter(({ active }) => active === null);
    for (const disk of this.disks) {
      if (lost.some(({ disk: name }) => name === disk.name)) void disk.flushChild()?.catch(() => undefined); // status has it
    }
  }

  /** Takes a link to a peer, whoever has dialled. */
  accept(link: Link, ended?: (wasOpen: boolean) => void): void {
    this.#replicator.accept(link, ended);
  }

  dialFailed(reason: ColobusError): void {
    this.#replicator.dialFailed(reason);
  }

  /** What the last handshake with a proved peer came to. */
  get lastVerdict(): { readonly verdict: Verdict; readonly peer: Hello } | undefined {
    return this.#lastVerdict;
  }

  /** Lets the guests go on that wait for the peer. Returns whether any did. Errors: `outdated`, `handed-over`. */
  startAlone(): boolean {
    // Without the mark nobody could tell that the secondary's checkpoint is void.
    this.#shared?.goAlone();
    const waited = this.#guests.startAlone();
    if (this.#keeper?.refusal === undefined) return waited;
    this.#keeper.insist();
    return true;
  }

  /** An operator has forced this side's promotion: whatever an arbiter's record says is overwritten. */
  insist(): void {
    this.#keeper?.insist();
  }

  /**
   * Hands the role to the secondary, which has to be in sync: holds the guests, commits what they have written, and
   * records whom the role goes to before it asks. Resolves when the secondary was asked; the next handshake tells what
   * became of it. Errors: `no-peer`, the secondary's refusal: guests go on then; `timed-out`.
   */
  async handOver(lineage: string, timeoutMs: number, signal: AbortSignal): Promise<void> {
    const { state, tracking } = this.#options;
    const session = this.#connectedSession();
    const deadline = new Deadline(this.#options.clock, timeoutMs, signal);
    try {
      const context = {
        state,
        session,
        guests: this.#guests,
        disks: this.disks,
        deadline,
        arbiter: this.#keeper,
        checkpoint: () => this.checkpoints.checkpoint({ prepare: false, timeoutMs }, signal),
        letGo: async () => {
          if (this.#shared !== undefined) for (const { child } of this.#options.children) await child.letGo?.();
        },
        assertInSync: () => {
          if (!this.isEstablished || session.peer === undefined || !tracking.isClean) throw lostPeer();
        },
      };
      await handOver(context, lineage);
    } finally {
      deadline.end();
    }
  }

  /** The agent is about to stop: nobody waits for the peer any more. */
  leave(): void {
    this.#guests.leave();
    this.#keeper?.leave();
  }

  /** A disk as clients are to see it. */
  exported(disk: ReplicatedDisk): BlockDevice {
    return this.#keeper === undefined ? disk : new PermittedDisk(disk, this.#keeper.permit);
  }

  /** Ends all guests' requests: those that wait, and all later ones. */
  refuseGuests(reason: ColobusError): void {
    this.#guests.gate.refuse(reason);
  }

  get isConnected(): boolean {
    return this.#replicator.isConnected;
  }

  get isEstablished(): boolean {
    return this.#replicator.isEstablished;
  }

  /** Whether a barrier may be placed: where the disks are shared the secondary lacks nothing, even while its overlays are full. */
  get #takesBarriers(): boolean {
    return this.isEstablished || (this.#shared !== undefined && this.#replicator.isConnected);
  }

  /** Lets a paused sync go on. Errors: `no-peer`; why the secondary takes no writes. */
  resync(): ResyncAnswer {
    this.#connectedSession();
    return this.#syncs.resume(this.#replicator);
  }

  describePeers(): PeerStatus[] {
    return this.#status.describePeers();
  }

  describeDisks(): DiskStatus[] {
    return this.#status.describeDisks();
  }

  describeProtection(): Status["protection"] {
    const isPermitted = this.#keeper?.permit.isValid ?? true;
    return isPermitted || this.#guests.isHeld || this.#options.state.record.outdated
      ? this.#status.describeProtection()
      : notProtected("held", this.#keeper?.describe() ?? "");
  }

  describeRecoverable(): Status["recoverable"] {
    return this.#status.describeRecoverable();
  }

  /** Resolves when the secondary has everything. Errors: `no-peer` when the session is lost first. */
  #untilEstablished(): Promise<void> {
    return this.#changing.until(() => {
      if (!this.#takesBarriers && !this.isConnected) throw lostPeer();
      return this.#takesBarriers;
    });
  }

  /**
   * Stops checkpoints and sessions, drains what it can, and flushes the children. The children stay open. Resolves with
   * the reason where something could not be made durable: then nothing may be relied on but what a crash would leave. Who
   * `isDemoted` goes on with the images alone, so that is also the reason why an image lacks something.
   */
  async stop(drainMs: number, { isDemoted } = { isDemoted: false }): Promise<ColobusError | undefined> {
    this.#automatic.stop();
    this.#mirroring?.stop();
    this.#health.stop();
    let timer: Timer | undefined;
    const timeout = new Promise<void>((resolve) => {
      timer = this.#options.clock.after(drainMs, resolve);
    });
    const reason = new ColobusError("shutting-down", "the primary agent is being stopped");
    this.#guests.gate.refuse(reason);
    await this.#replicator.stop(timeout, reason);
    timer?.cancel();
    await this.#keeper?.stop(reason);
    this.#syncs.end(reason);
    this.verifies.end(reason);
    const { state, tracking } = this.#options;
    const { mode, outdated } = state.record;
    let fault: ColobusError | undefined;
    const attempt = async (step: () => Promise<unknown>): Promise<void> => {
      try {
        await step();
      } catch (error) {
        fault ??= asColobusError(error);
      }
    };
    // What this side holds back of a disk that another host writes by now must never get there.
    if (mode !== "shared" || !outdated) {
      await attempt(async () => {
        for (const disk of this.disks) await disk.quiet();
        for (const disk of this.disks) await disk.child.flush();
      });
    }
    await attempt(() => this.copies.leave(reason, isDemoted));
    await attempt(() =>
      this.mirrors.stop(fault ?? new ColobusError("not-primary", "this side is not Primary any more")),
    );
    await attempt(() => this.bitmaps.close());
    await attempt(() => tracking.close()); // what could not be flushed stays dirty
    if (fault !== undefined) return fault;
    await attempt(() =>
      state.update((record) => ({
        ...record,
        committed: { epoch: this.checkpoints.committed, atMs: this.checkpoints.committedAtMs ?? 0 },
        epochReserved: this.checkpoints.openEpoch - 1,
      })),
    );
    return fault;
  }

  #newKeeper(): PermitKeeper | undefined {
    const { lease } = this.#options;
    if (lease === undefined) return undefined;
    return new PermitKeeper({
      ...this.#options,
      lease,
      isConnected: () => this.isConnected,
      isEstablished: () => this.isEstablished,
      committed: () => this.checkpoints.committed,
      vouched: () => this.#guests.vouched({ freezes: this.#options.onPeerLoss === "freeze" }),
    });
  }

  #newReplicator(): Replicator {
    const options = this.#options;
    return new Replicator({
      url: options.peerUrl,
      clock: options.clock,
      random: options.random,
      log: options.log,
      emit: options.emit,
      state: options.state,
      tracking: options.tracking,
      geometries: this.#geometries,
      token: options.token,
      ack: options.ack,
      peerTimeoutMs: options.peerTimeoutMs,
      windowBytes: options.windowBytes,
      detachesWhenCongested: options.onCongestion === "detach",
      hello: () => this.hello(),
      assertServing: () => this.#guests.gate.assertServing(),
      frozen: () => this.#guests.frozen(),
      mayGoAlone: () => this.#keeper?.mayGoAlone(),
      pulse: this.#keeper?.pulse,
      judged: (verdict, peer) => this.#judged(verdict, peer),
      opened: (peer) => this.#opened(peer),
      syncNeeded: (kind) => this.#startSync(kind),
      inSync: () => this.#inSync(),
      syncInterrupted: (reason) => {
        this.#mirroring?.lacks();
        this.#syncs.end(reason);
      },
      notified: (notice) => this.#notified(notice),
      paused: () => this.#paused(),
      lost: (reason) => {
        this.#mirroring?.lacks();
        this.#syncs.end(reason);
        if (options.onPeerLoss === "freeze") this.#guests.freeze();
        this.#notify();
      },
    });
  }

  /** What a handshake means for this side's guests, before anything else follows from it. */
  #judged(verdict: Verdict, peer: Hello): void {
    const { state, emit, handedOver } = this.#options;
    const { agentId } = state.record;
    const isNews = this.#lastVerdict?.verdict.kind !== verdict.kind;
    this.#lastVerdict = { verdict, peer };
    if (verdict.kind === "hand-over" && verdict.from === agentId) handedOver();
    if (verdict.kind === "outdated" && verdict.agent === agentId) this.#guests.becomeOutdated(peer);
    if (verdict.kind === "split-brain" && isNews) {
      const wouldLoseBytes = { here: this.#options.tracking.bytes, there: peer.changedBytes };
      emit("split-brain", { peer: peer.agentId, wouldLoseBytes });
    }
    this.#options.judged();
  }

  #shareDisks(): SharedDisks {
    const { state, children, unflushedThrough } = this.#options;
    return new SharedDisks({
      ...this.#options,
      guests: this.#guests,
      disks: children.map(({ child }) => ({
        child,
        geometry: clusterGeometry(child.sizeBytes, state.record.clusterBytes),
      })),
      session: () => this.#replicator.establishedSession,
      endSession: (reason) => this.#replicator.endSession(reason),
      overwritten: (bytes) => this.checkpoints.countWrite(bytes),
      unflushedThrough,
      mark: this.#options.sharedMark,
      goesAlone: this.#options.onPeerLoss === "continue",
      mayGoAlone: () => this.#keeper?.mayGoAlone(),
      wentAlone: () => this.#keeper?.wentAlone(),
    });
  }

  #replicatedDisk(name: string, child: Child, index: number): ReplicatedDisk {
    const { gate } = this.#guests;
    const failed = (access: FailedAccess, error: unknown): void => this.#health.failed(name, access, error);
    const shared = this.#shared?.children[index];
    const { bitmaps } = this;
    if (shared !== undefined) {
      return new ReplicatedDisk(name, shared, gate, originalsOf(index, { child: shared, bitmaps, gate, failed }));
    }
    const own = this.mirrors.followed(name, this.copies.child(index) ?? child);
    const { tracking } = this.#options;
    const forwarding = changesOf(index, {
      tracking,
      bitmaps,
      checkpoints: this.checkpoints,
      replicator: () => this.#replicator,
      failed,
    });
    return new ReplicatedDisk(name, own, gate, forwarding);
  }

  /** What this side says of itself to a peer. */
  hello(): Hello {
    return {
      ...ownHello(this.#options.state.record, this.#options),
      role: "Primary",
      ack: this.#options.ack,
      disks: this.disks.map(({ name, sizeBytes }) => ({ name, sizeBytes })),
      committed: this.checkpoints.committed,
      prepared: [...this.checkpoints.prepared],
      epochSeen: this.checkpoints.openEpoch - 1,
      assumeInSync: this.#options.assumeInSync,
    };
  }

  /** The two are a pair, and the peer was not promoted meanwhile: guests may go on. */
  async #opened(peer: Hello): Promise<number> {
    const { state } = this.#options;
    if (state.record.handOver !== null) {
      await state.update((record) => ({ ...record, handOver: null }));
      this.#keeper?.resume();
    }
    if (this.#shared !== undefined) return this.#openedShared(this.#shared, peer);
    this.#guests.release();
    return this.checkpoints.learn(peer);
  }

  /** Guests wait until the secondary takes originals. What it has prepared counts when the shared disk has it. */
  async #openedShared(shared: SharedDisks, peer: Hello): Promise<number> {
    // Only what is opened for writing can flush what an earlier process has left in the host's cache.
    for (const { child } of this.#options.children) await child.ready?.();
    await shared.flush();
    const verdict = this.#lastVerdict?.verdict;
    const isKept = verdict?.kind === "sync" && verdict.extent === "keep";
    this.#unflushed = isKept ? shared.unflushedOf(peer.prepared) : [];
    return this.checkpoints.learn(shared.countedOf(peer, isKept));
  }

  #startSync(kind: "full-sync" | "resync"): void {
    this.#mirroring?.lacks();
    this.#syncs.start({
      type: kind,
      replicator: this.#replicator,
      disks: this.disks,
      geometries: this.#geometries,
      windowBytes: this.#options.windowBytes,
    });
    this.#notify();
  }

  /** The secondary has everything. If it has no checkpoint yet, it gets one now: only then is the VM protected. */
  #inSync(): void {
    this.#syncs.done();
    if (this.#shared !== undefined) {
      this.checkpoints.disown(this.#unflushed.splice(0));
      this.#shared.watched();
      this.#guests.release();
    }
    this.#notify();
    if (this.#mirroring !== undefined) this.#mirroring.inSync();
    else if (this.checkpoints.committed === 0) this.#automatic.want();
    else this.#automatic.takeWanted();
  }

  /** Takes up what has changed in the options. */
  settingsChanged({ resyncSpeed }: { readonly resyncSpeed?: JobSpeed }): void {
    if (resyncSpeed !== undefined) this.#syncs.setSpeed(resyncSpeed);
    this.#automatic.restart();
    this.#notify();
  }

  /** The secondary takes no writes. On shared disks a checkpoint helps, if it may be taken without being asked for. */
  #paused(): void {
    this.#mirroring?.lacks();
    this.checkpoints.disown(this.#unflushed.splice(0));
    this.#notify();
    if (this.#shared !== undefined && this.#options.checkpointEveryMs !== undefined) this.#automatic.want();
  }

  #notified(notice: Notice): void {
    if (notice.type === "wanted") {
      const { freeableBytes, limitBytes } = notice;
      this.#options.emit("checkpoint-wanted", { freeableBytes, limitBytes });
      if (this.#options.checkpointEveryMs !== undefined) this.#automatic.want();
      return;
    }
    this.checkpoints.givenUp(notice.throughEpoch);
    if (!this.isEstablished) return;
    if (this.#mirroring !== undefined) this.#mirroring.inSync();
    else this.#automatic.want();
  }

  #notify(): void {
    this.#changing.changed();
    this.#keeper?.connectionChanged();
  }

  /** There is a secondary, or one is to be dialled. */
  get #isPaired(): boolean {
    return this.#options.peerUrl !== null || this.#lastVerdict !== undefined;
  }

  /** The session with the secondary. Errors: `no-peer`. */
  #connectedSession(): SourceSession {
    if (!this.#isPaired) throw neverHadPeer();
    return this.#replicator.session;
  }
}
