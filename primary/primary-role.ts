import { type ResyncAnswer, type VerifyRequest } from "../proto/control-api.ts";
import type { JobSpeed, Status } from "../proto/status.ts";
import { ColobusError } from "../proto/errors.ts";
import type { Hello, Notice } from "../proto/replication-messages.ts";
import type { BlockDevice, Child } from "../shared/block/block-device.ts";
import { clusterGeometry, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Timer } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import type { Link } from "../shared/replication/link.ts";
import { peersOf } from "../shared/replication/peer-slots.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import type { Job } from "../shared/jobs/job.ts";
import { AutomaticCheckpoints } from "./automatic-checkpoints.ts";
import { Changing } from "./changing.ts";
import { DiskCopies } from "./disk-copies.ts";
import { changesOf, originalsOf } from "./disk-forwarding.ts";
import { EpochSessions } from "./epoch-sessions.ts";
import { DiskHealth } from "./disk-health.ts";
import { giveUp } from "./give-up.ts";
import { GuestPolicy } from "./guest-policy.ts";
import { assertSynced, handOver, untilSynced } from "./hand-over.ts";
import { leaveDisks, type Leaving } from "./leave-disks.ts";
import { LineageKeeper } from "./lineage-keeper.ts";
import { beingHandedOver, handedToAnother, lostPeer, neverHadPeer } from "./no-peer.ts";
import { changedBytesFor, dialledPeers, placeToOrder, resyncAll, splitBrainKnown } from "./place-orders.ts";
import { Mirrors } from "./mirrors.ts";
import type { NamedBitmaps } from "./named-bitmaps.ts";
import { keepPermit } from "./keep-permit.ts";
import type { PermitKeeper } from "./permit-keeper.ts";
import { PermittedDisk } from "./permitted-disk.ts";
import { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import { primaryHello } from "./primary-hello.ts";
import { PrimaryStatus } from "./primary-status.ts";
import { ReplicatedDisk } from "./replicated-disk.ts";
import { Resizes } from "./resizes.ts";
import { Secondaries } from "./secondaries.ts";
import { SecondaryPlace, type Judged } from "./secondary-place.ts";
import type { EpochSession } from "./session-group.ts";
import { SharedDisks } from "./shared-disks.ts";
import { startAlone } from "./start-alone.ts";
import { VmStates } from "./vm-states.ts";
import type { PrimaryOptions } from "./primary-options.ts";

/** What an operator does who hands the role to another secondary than the one that may have taken it. */
const HANDED_BEFORE = "Connect that one, so that it can say so; or, when it is surely not Primary, fail over there.";

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
  readonly bitmaps: NamedBitmaps;
  readonly resizes: Resizes;
  /** The links to the secondaries. */
  readonly secondaries: Secondaries;
  /** One for each secondary that there may be. */
  readonly places: readonly SecondaryPlace[];
  readonly status: PrimaryStatus;
  readonly #options: PrimaryOptions;
  readonly #geometries: readonly ClusterGeometry[];
  readonly #guests: GuestPolicy;
  readonly #lineages: LineageKeeper;
  readonly #epochs: EpochSessions;
  /** Where there are several: those that have not spoken since the start, and may have been promoted meanwhile. */
  readonly #unheard: Set<string>;
  #isHandingOver = false;
  /** At every change of the replication state. */
  readonly #changing = new Changing();
  readonly #automatic: AutomaticCheckpoints;
  readonly #health: DiskHealth;
  /** With an arbiter. */
  readonly #keeper: PermitKeeper | undefined;
  /** In mode `shared`. */
  readonly #shared: SharedDisks | undefined;
  #lastVerdict: Judged | undefined;
  #ownVerdict: Judged | undefined;

  constructor(options: PrimaryOptions) {
    this.#options = options;
    this.bitmaps = options.bitmaps;
    const { record } = options.state;
    this.#guests = new GuestPolicy({ ...options, splitBrain: () => splitBrainKnown(this.places, this.#lastVerdict) });
    this.#epochs = new EpochSessions({
      state: options.state,
      places: () => this.places,
      secondaries: () => this.secondaries,
      lineages: () => this.#lineages,
      keeper: () => this.#keeper,
      checkpoints: () => this.checkpoints,
    });
    this.#unheard = new Set(options.trackings.length > 1 && this.#guests.isHeld ? peersOf(record) : []);
    const takeCheckpoint = (): Promise<unknown> => this.checkpoints.take(options.peerTimeoutMs * 4);
    this.#automatic = new AutomaticCheckpoints({
      clock: options.clock,
      log: options.log,
      get everyMs() {
        return options.checkpointEveryMs;
      },
      isReady: () => this.#takesBarriers,
      isLacked: () => !this.#isBeingHandedOver && this.#epochs.isLacked,
      take: takeCheckpoint,
    });
    this.#health = new DiskHealth({ clock: options.clock, emit: options.emit, disks: () => this.disks });
    this.#geometries = options.children.map(({ child }) => clusterGeometry(child.sizeBytes, record.clusterBytes));
    this.#shared = record.mode === "shared" ? this.#shareDisks() : undefined;
    this.copies = new DiskCopies({
      context: options.copies,
      sharesDisks: this.#shared !== undefined,
      images: options.children,
      trackings: options.trackings,
      freeze: (difference) => this.#guests.freeze(difference),
    });
    this.#keeper = keepPermit({
      ...options,
      epochs: this.#epochs,
      places: () => this.places,
      committed: () => this.checkpoints.committed,
      vouched: () => {
        this.#unheard.clear();
        this.#guests.vouched({ freezes: options.onPeerLoss === "freeze" });
        this.#automatic.takeIfLacked();
      },
      isOutdated: () => this.isOutdated,
    });
    const sizes = new Map(options.children.map(({ name, child }) => [name, child.sizeBytes]));
    const { copies } = this;
    this.mirrors = new Mirrors({ ...options, copies, targets: options.mirrorTargets, disks: () => this.disks }, sizes);
    this.checkpoints = new PrimaryCheckpoints({
      clock: options.clock,
      ages: options.ages,
      state: options.state,
      emit: options.emit,
      session: (epoch) => this.#connectedSession(epoch),
      barrierSession: () => this.#epochs.forBarrier(),
      isEstablished: () => this.#takesBarriers,
      untilEstablished: () => this.#untilEstablished(),
      pausedBy: () => this.places.map(({ replicator }) => replicator.pausedBy).find((reason) => reason !== undefined),
      sharedDisks: this.#shared,
      mayTell: (epoch) => (this.#keeper === undefined ? undefined : this.#epochs.mayTell(epoch)),
      committed: (epoch) => {
        this.#keeper?.committed();
        this.#automatic.takeIfLacked();
        return this.#shared?.mayTell(epoch);
      },
    });
    this.vmStates = new VmStates({ ...options, checkpoints: this.checkpoints });
    this.disks = options.children.map(({ name, child }, index) => this.#replicatedDisk(name, child, index));
    this.#lineages = new LineageKeeper({
      ...options,
      assertServing: () => this.#guests.gate.assertServing(),
      streaming: () => this.secondaries.sessions(({ streamingSession }) => streamingSession),
      keeper: () => this.#keeper,
    });
    this.places = options.trackings.map(({ slot, tracking }, index) =>
      this.#newPlace(slot, tracking, options.peerUrls[index] ?? null, takeCheckpoint),
    );
    this.secondaries = new Secondaries({
      ...options,
      places: this.places,
      hello: () => this.hello(),
      judged: (judged) => this.#judged(judged),
      pulse: (peer) => this.#keeper?.pulse(peer),
    });
    this.resizes = new Resizes({
      ...options,
      disks: this.disks,
      geometries: this.#geometries,
      copies: this.copies,
      places: this.places,
    });
    this.status = new PrimaryStatus({
      state: options.state,
      get maxCheckpointAgeMs() {
        return options.maxCheckpointAgeMs;
      },
      disks: this.disks,
      health: this.#health,
      guests: this.#guests,
      keeper: this.#keeper,
      places: this.places,
      checkpoints: this.checkpoints,
      heldBy: (place) => this.#epochs.heldBy(place),
      lackedBy: (place) => this.#epochs.lackedBy(place),
      ack: options.ack,
      isPaired: () => this.#isPaired,
      children: (disk) => this.copies.describe(disk),
    });
  }

  start(): void {
    for (const place of this.places) place.start();
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
  accept(link: Link, ended?: (wasReady: boolean) => void, url?: string): void {
    this.secondaries.accept(link, ended, url);
  }

  /** What the last handshake with a proved peer came to. */
  get lastVerdict(): Judged | undefined {
    return this.#lastVerdict;
  }

  /** The same, but not of one that was refused beside a secondary which has its place. */
  get ownVerdict(): Judged | undefined {
    return this.#ownVerdict;
  }

  /** As the function of that name. */
  startAlone(force: boolean): Promise<boolean> {
    const isHandingOver = (): boolean => this.#isHandingOver;
    const released = (): void => this.#automatic.takeIfLacked();
    const parts = { guests: this.#guests, keeper: this.#keeper, shared: this.#shared, unheard: this.#unheard };
    return startAlone(force, { ...parts, isHandingOver, released });
  }

  /**
   * Hands the role to the secondary, once that is in sync: holds the guests, commits what they have written, and
   * records whom the role goes to before it asks. Resolves when the secondary was asked; the next handshake tells what
   * became of it. Errors: `no-peer`, also where a sync begins meanwhile, the secondary's refusal: guests go on then; `timed-out`; `handed-over` where it is being
   * handed over already, or another one may have taken it.
   */
  async handOver(lineage: string, timeoutMs: number, signal: AbortSignal, peer?: string): Promise<void> {
    const { state } = this.#options;
    const place = this.#placeToOrder(peer);
    const { session } = place.replicator;
    if (this.#isHandingOver) throw beingHandedOver();
    const { handOver: former } = state.record;
    if (former !== null && former !== session.peer?.agentId) throw handedToAnother(HANDED_BEFORE);
    this.#isHandingOver = true;
    let wereServed = false;
    const deadline = new Deadline(this.#options.clock, timeoutMs, signal);
    try {
      // Shared disks are not synced.
      if (this.#shared === undefined) await untilSynced(place.replicator, session, this.#changing, deadline);
      wereServed = this.#guests.gate.state === "open";
      const context = {
        state,
        session,
        guests: this.#guests,
        disks: this.disks,
        deadline,
        siblings: dialledPeers(this.places.filter((other) => other !== place)).map(({ url }) => url),
        arbiter: this.#keeper,
        assertSynced: () => (this.#shared === undefined ? assertSynced(place.replicator, session) : undefined),
        checkpoint: () => this.checkpoints.checkpoint({ prepare: false, timeoutMs }, signal),
        letGo: async () => this.#shared?.letGo(this.disks),
        assertInSync: () => place.assertInSync(session),
      };
      await handOver(context, lineage);
    } finally {
      this.#isHandingOver = false;
      deadline.end();
      this.#automatic.takeIfLacked();
      // A session that was opened meanwhile may have said that the secondary has not taken it, and takes originals by now.
      if (wereServed && this.#guests.isHeld && (this.#shared === undefined || this.isEstablished))
        this.#releaseUnlessGone();
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
    this.#keeper?.refuseGuests(reason);
  }

  /** This side has learned that it is behind, whatever the record says yet. */
  get isOutdated(): boolean {
    return this.#guests.isOutdated;
  }

  get isConnected(): boolean {
    return this.secondaries.isConnected;
  }

  get isEstablished(): boolean {
    return this.secondaries.isEstablished;
  }

  /** Whether a barrier may be placed: where the disks are shared the secondary lacks nothing, even while its overlays are full. */
  get #takesBarriers(): boolean {
    if (this.#guests.isHeld && this.#unheard.size > 0) return false;
    if (this.#shared === undefined) return this.isEstablished;
    // A flush would open the disks again, which another secondary than those that are connected may have by now.
    return this.isConnected && (this.places.length === 1 || this.#options.state.record.handOver === null);
  }

  /** Lets paused syncs go on. Errors: `no-peer`; why the secondary takes no writes. */
  resync(): ResyncAnswer {
    this.#connectedSession();
    return resyncAll(this.places);
  }

  /** Compares the copy of a secondary, which is named where there are several. Errors: as `VerifyJobs.start`; `usage`. */
  verify(request: VerifyRequest): Job {
    return this.#placeToOrder(request.peer).verifies.start(request);
  }

  /** A secondary is gone for good, and nothing waits for it. `url` and errors: as `giveUp`, and those of the storage: it is given up then. */
  async giveUp(place: SecondaryPlace, url: string | undefined): Promise<void> {
    const context = { ...this.#options, keeper: this.#keeper, epochs: this.#epochs, checkpoints: this.checkpoints };
    const gone = await giveUp({ ...context, isOnly: this.places.length === 1 }, place, url);
    if (gone.agentId !== null) this.#unheard.delete(gone.agentId);
    if (url !== undefined) for (const other of this.places) if (other !== place) other.replicator.cede(url);
    if (this.#shared === undefined && this.#guests.isHeld && this.isConnected) this.#releaseUnlessGone();
    // They may have waited for the next one of the VM, whose state was held there.
    if (this.places.some((other) => this.#epochs.isFirstDue(other))) this.#automatic.want();
    this.#notify();
    this.#options.emit("peer-given-up", gone);
    await place.tracking.forget();
  }

  describeProtection(): Status["protection"] {
    return this.status.describeProtection();
  }

  describeRecoverable(): Status["recoverable"] {
    return this.status.describeRecoverable();
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
  async stop(drainMs: number, { isDemoted, waitsFor }: Leaving): Promise<ColobusError | undefined> {
    this.#automatic.stop();
    for (const { mirroring } of this.places) mirroring?.stop();
    this.#health.stop();
    let timer: Timer | undefined;
    const timeout = new Promise<void>((resolve) => {
      timer = this.#options.clock.after(drainMs, resolve);
    });
    const reason = new ColobusError("shutting-down", "the primary agent is being stopped");
    this.refuseGuests(reason);
    waitsFor("the secondary to have everything");
    await this.secondaries.stop(timeout, reason);
    await this.#lineages.settled();
    timer?.cancel();
    await this.#keeper?.stop(reason);
    for (const place of this.places) place.end(reason);
    return leaveDisks({
      state: this.#options.state,
      disks: this.disks,
      copies: this.copies,
      mirrors: this.mirrors,
      bitmaps: this.bitmaps,
      places: this.places,
      isDemoted,
      isOutdated: this.isOutdated,
      reason,
      waitsFor,
      recorded: (record) => ({
        ...this.#epochs.recorded(record, this.#options.ages),
        epochReserved: this.checkpoints.openEpoch - 1,
      }),
    });
  }

  #newPlace(slot: number, tracking: PeerTracking, url: string | null, take: () => Promise<unknown>): SecondaryPlace {
    const options = this.#options;
    return new SecondaryPlace({
      ...options,
      slot,
      tracking,
      url,
      disks: this.disks,
      geometries: this.#geometries,
      guests: this.#guests,
      lineages: this.#lineages,
      keeper: this.#keeper,
      checkpoints: this.checkpoints,
      committed: (place) => this.#epochs.heldBy(place),
      told: (place) => this.#epochs.tellLackedBy(place),
      take,
      judged: (judged) => this.#judged(judged),
      opened: (place, peer) => this.#opened(place, peer),
      syncing: () => this.#notify(),
      inSync: (place) => this.#inSync(place),
      notified: (place, notice, peer) => this.#notified(place, notice, peer),
      paused: (place) => this.#paused(place),
      lost: () => {
        if (options.onPeerLoss === "freeze" && !this.isConnected) this.#guests.freeze();
        // The last one that had to speak may have done so, and be lost before it took originals.
        if (this.#shared !== undefined && this.#guests.isHeld && this.isEstablished) this.#releaseUnlessGone();
        this.#notify();
      },
    });
  }

  /** What a handshake means for this side's guests, before anything else follows from it. */
  #judged(judged: Judged): void {
    const { state, emit, handedOver } = this.#options;
    const { agentId } = state.record;
    const { verdict, peer } = judged;
    const before = this.#lastVerdict;
    const isNews = before?.verdict.kind !== verdict.kind || before.peer.agentId !== peer.agentId;
    this.#lastVerdict = judged;
    if (judged.url === undefined || !this.places.some(({ replicator }) => replicator.isTaken))
      this.#ownVerdict = judged;
    if (verdict.kind === "hand-over" && verdict.from === agentId) handedOver(verdict.to);
    if (verdict.kind === "outdated" && verdict.agent === agentId) this.#becomeOutdated(peer);
    if (verdict.kind === "split-brain" && isNews) {
      const wouldLoseBytes = { here: changedBytesFor(this.places, peer.agentId), there: peer.changedBytes };
      emit("split-brain", { peer: peer.agentId, wouldLoseBytes });
    }
    this.#options.judged();
  }

  /** Another secondary than the one that has said so may still take this side's stream: it is to follow the newer side. */
  #becomeOutdated(peer: Hello): void {
    this.#guests.becomeOutdated(peer);
    if (this.places.length === 1) return;
    const reason = new ColobusError("outdated", "this side is behind another one's history", "Nothing.");
    for (const { replicator } of this.places) replicator.endSession(reason);
  }

  #shareDisks(): SharedDisks {
    return new SharedDisks({
      ...this.#options,
      guests: this.#guests,
      geometries: this.#geometries,
      places: () => this.places,
      lineages: () => this.#lineages,
      committedBy: (peer) => this.#epochs.committedByPeer(peer),
      committed: () => this.checkpoints.committed,
      overwritten: (bytes) => this.checkpoints.countWrite(bytes),
      mayGoAlone: () => this.#keeper?.mayGoAlone(),
      wentAlone: () => this.#keeper?.wentAlone(),
    });
  }

  #replicatedDisk(name: string, child: Child, index: number): ReplicatedDisk {
    const { gate } = this.#guests;
    const common = { name, bitmaps: this.bitmaps, health: this.#health };
    const shared = this.#shared?.children[index];
    const size = this.#geometries[index] ?? child;
    if (shared !== undefined) {
      return new ReplicatedDisk(name, size, shared, gate, originalsOf(index, { ...common, child: shared, gate }));
    }
    const own = this.mirrors.followed(name, this.copies.child(index) ?? child);
    const secondaries = (): Secondaries => this.secondaries;
    const { checkpoints } = this;
    const forwarding = changesOf(index, { ...this.#options, ...common, checkpoints, secondaries });
    return new ReplicatedDisk(name, size, own, gate, forwarding);
  }

  /** What this side says of itself to a peer. */
  hello(): Hello {
    const { places, checkpoints, disks } = this;
    return primaryHello({ ...this.#options, epochs: this.#epochs, places, checkpoints, disks });
  }

  /** The two are a pair, and the peer was not promoted meanwhile: guests may go on, where nobody else may have been. */
  async #opened(place: SecondaryPlace, peer: Hello): Promise<number> {
    this.#epochs.learnLack(peer);
    if (this.places.length > 1) return this.#openedOneOf(place, peer);
    if (this.#options.state.record.handOver !== null) await this.#keepRole();
    // Of shared disks guests wait until the secondary takes originals.
    if (this.#shared === undefined) this.#guests.release();
    return this.checkpoints.learn((await this.#shared?.opened(place, peer)) ?? peer);
  }

  async #openedOneOf(place: SecondaryPlace, peer: Hello): Promise<number> {
    if (this.#options.state.record.handOver === peer.agentId) await this.#keepRole();
    this.#unheard.delete(peer.agentId);
    if (this.#shared === undefined) this.#releaseUnlessGone();
    else if (this.#isBeingHandedOver) throw handedToAnother();
    const counted = (await this.#shared?.opened(place, peer)) ?? peer;
    const before = this.checkpoints.committed;
    const open = this.checkpoints.learn({ epochSeen: peer.epochSeen, outdated: false, ...this.#epochs.learn(counted) });
    // What is told to be committed by now, no other one that may know the lineage may go behind. An arbiter, which may be
    // away, is not waited for: who asks for the commit again does that.
    const isTold = this.checkpoints.committed > before && this.#guests.gate.state === "open";
    if (isTold && this.#keeper === undefined) await this.#epochs.mayTell(this.checkpoints.committed);
    return open;
  }

  /** The peer that the role was handed to has not taken it. */
  async #keepRole(): Promise<void> {
    await this.#options.state.update((record) => ({ ...record, handOver: null }));
    this.#keeper?.resume();
  }

  get #isBeingHandedOver(): boolean {
    return this.#isHandingOver || this.#options.state.record.handOver !== null;
  }

  /** Of several secondaries, one that has not spoken yet, or that the role goes to, may have been promoted: guests go on waiting for it. */
  #releaseUnlessGone(): void {
    if (!this.#guests.isHeld || !(this.#isBeingHandedOver || this.#unheard.size > 0)) this.#guests.release();
  }

  /** The secondary has everything. If it has no checkpoint yet, it gets one now: only then is the VM protected. */
  #inSync(place: SecondaryPlace): void {
    if (this.#shared !== undefined) {
      this.#disown(place);
      this.#shared.watched();
      this.#releaseUnlessGone();
      this.#shared.joined();
    }
    if (place.mirroring !== undefined) place.mirroring.inSync();
    else if (this.#epochs.isFirstDue(place)) this.#automatic.want();
    else this.#automatic.takeWanted();
    this.#notify();
  }

  #disown(place: SecondaryPlace): void {
    const unflushed = this.#shared?.takeUnflushed(place) ?? [];
    if (unflushed.length > 0) this.checkpoints.disown(this.#epochs.only(place), unflushed);
  }

  /** Takes up what has changed in the options. */
  settingsChanged({ resyncSpeed }: { readonly resyncSpeed?: JobSpeed }): void {
    if (resyncSpeed !== undefined) for (const { syncs } of this.places) syncs.setSpeed(resyncSpeed);
    this.#automatic.restart();
    this.#notify();
  }

  /** The secondary takes no writes. On shared disks a checkpoint helps, if it may be taken without being asked for. */
  #paused(place: SecondaryPlace): void {
    this.#disown(place);
    this.#shared?.joined();
    this.#notify();
    if (this.#shared !== undefined && this.#options.checkpointEveryMs !== undefined) this.#automatic.want();
  }

  #notified(place: SecondaryPlace, notice: Notice, peer: string): void {
    if (notice.type === "wanted") {
      const { freeableBytes, limitBytes } = notice;
      this.#options.emit("checkpoint-wanted", { freeableBytes, limitBytes });
      if (this.#options.checkpointEveryMs !== undefined) this.#automatic.want();
      return;
    }
    const left = this.#epochs.givenUp(peer, notice.throughEpoch);
    if (left !== undefined) this.checkpoints.left(left);
    else this.checkpoints.givenUp(notice.throughEpoch);
    if (!place.replicator.isEstablished) return;
    if (place.mirroring !== undefined) place.mirroring.inSync();
    else if (!this.#epochs.isVmStateHeld) this.#automatic.want();
  }

  #notify(): void {
    this.#changing.changed();
    this.#keeper?.connectionChanged();
    this.#automatic.takeIfLacked();
  }

  /** There is a secondary, or one is to be dialled. */
  get #isPaired(): boolean {
    return this.#options.peerUrls.length > 0 || this.#lastVerdict !== undefined;
  }

  /** The sessions with the secondaries; only with those that have `epoch`, where one is named and any has. Errors: `no-peer`. */
  #connectedSession(epoch?: number): EpochSession {
    if (!this.#isPaired) throw neverHadPeer();
    return this.#epochs.connected(epoch);
  }

  /** Errors: as `placeToOrder`. */
  #placeToOrder(peer: string | undefined): SecondaryPlace {
    if (!this.#isPaired) throw neverHadPeer();
    return placeToOrder(this.places, peer);
  }
}
