import assert from "node:assert/strict";
import { asColobusError, ColobusError, isForWantOfSpace } from "../proto/errors.ts";
import { WRITE_PIECE_MAX_BYTES } from "../proto/limits.ts";
import type { PeerStatus } from "../proto/status.ts";
import type { Hello, Notice, OperationKind, Site, SyncPhase } from "../proto/replication-messages.ts";
import type { AckPolicy, EventType, ReplicationState } from "../proto/words.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { ClusterBitmap, type ClusterRun } from "../shared/block/cluster-bitmap.ts";
import { endClusterOf, firstClusterOf, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import { assertMayKnow } from "../shared/replication/lineage.ts";
import { refusalOf } from "../shared/replication/refusal.ts";
import { decideBetween } from "../shared/replication/shared-verdict.ts";
import { Strangers } from "../shared/replication/strangers.ts";
import type { Verdict } from "../shared/replication/verdict.ts";
import { KnownPeer } from "./known-peer.ts";
import type { LineageKeeper } from "./lineage-keeper.ts";
import { Pairing } from "./pairing.ts";
import type { SentRange } from "./send-window.ts";
import type { SourceSession } from "./source-session.ts";

/** Zeroed ranges are sent in operations of at most this length: the secondary may have to save what lies there. */
const ZERO_PIECE_MAX_BYTES = 64 * 1024 * 1024;

export interface ReplicatorOptions {
  /** Whom this side dials first for this secondary; null: it waits for a peer to dial. */
  readonly url: string | null;
  /** Which of the record's peers this is. */
  readonly slot: number;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  readonly tracking: PeerTracking;
  readonly geometries: readonly ClusterGeometry[];
  /** Where this side's images are. */
  readonly site: () => Site;
  readonly lineages: LineageKeeper;
  /** The newest checkpoint that was told to be committed, where this one of several secondaries lacks it. */
  readonly told: () => number | undefined;
  readonly ack: AckPolicy;
  /** Whether a guest's write that finds the window full leaves the stream, instead of waiting. */
  readonly detachesWhenCongested: boolean;
  /** This side has learned from another secondary that it is behind. */
  readonly isOutdated: () => boolean;
  /** Throws the reason for which guests are refused, if they are: then nothing may be acknowledged. */
  readonly assertServing: () => void;
  /** Done when the policy lets writes go on without the secondary, or it is back. */
  readonly frozen: () => Pending;
  /** Done when an arbiter knows that writes go on without the secondary, where there is one, or it is back. */
  readonly mayGoAlone: () => Pending;
  /** Done when a peer may hear of this side's history, by what an arbiter knows of it, where there is one. */
  readonly mayJoin: (peer: Hello) => Pending;
  /** Whose place this is, by the record; undefined: nobody's yet. */
  readonly holder: () => string | undefined;
  /** A peer has proved itself, and this is what the two are to do. `url`: of one that is refused and not the place's own, where it was dialled. */
  readonly judged: (verdict: Verdict, peer: Hello, url?: string | null) => void;
  /** The two are a pair: resolves with the epoch that is open from here on. */
  readonly opened: (peer: Hello) => Promise<number>;
  /** Clusters must be sent: `nextDirty` and `sendSynced` are to be called until nothing is left. */
  readonly syncNeeded: (kind: "full-sync" | "resync") => void;
  /** The secondary has everything, up to this point of the stream. */
  readonly inSync: () => void;
  /** A sync that is under way ends before it is done. */
  readonly syncInterrupted: (reason: ColobusError) => void;
  /** The secondary tells something that needs no answer. */
  readonly notified: (notice: Notice, peer: string) => void;
  /** The secondary takes no writes for now. */
  readonly paused: () => void;
  readonly lost: (reason: ColobusError) => void;
}

/**
 *     connecting ──> opening ──> syncing <──> established
 *         ^             │          │ ^            │
 *         │             v          v │            v
 *         └──────── (session lost) paused (the secondary's overlays are full)
 *                                  detached (guests write faster than the secondary takes it, and do not wait)
 *
 * From `established` a sync that has to wait for the record of a lineage is *due* first: guests' writes go there, and no barrier.
 */
type Phase =
  | { readonly name: "connecting" }
  | { readonly name: "opening"; readonly session: SourceSession; readonly stalledBy: ColobusError | undefined }
  | { readonly name: "syncing" | "established" | "due" | "detached"; readonly session: SourceSession }
  | { readonly name: "paused"; readonly session: SourceSession; readonly reason: ColobusError };

/**
 * Keeps one secondary equal to this primary's disks: forwards every write while a session is in sync or syncing, and
 * remembers as dirty whatever the secondary may lack. A session that a peer opens takes the place of an older one once
 * the peer has proved itself and the two are found to be a pair.
 *
 * Before a write is acknowledged without the secondary, `LineageKeeper` sees to it that the two have parted for everybody,
 * and neither can be taken for the other.
 */
export class Replicator {
  readonly #options: ReplicatorOptions;
  readonly #pairing: Pairing;
  readonly #strangers: Strangers;
  #phase: Phase = { name: "connecting" };
  readonly #peer: KnownPeer;
  #lastError: ColobusError | undefined;
  #lastContactMs: number | undefined;
  /** The last one that was refused, and whose place this is not. */
  #stranger: SourceSession | undefined;
  /** The message of the refusal, or loss, that was told last. */
  #reported: string | undefined;
  #syncTotalBytes = 0;
  #stopping = false;

  constructor(options: ReplicatorOptions) {
    this.#options = options;
    this.#peer = new KnownPeer(options.url);
    this.#pairing = new Pairing(options);
    this.#strangers = new Strangers(options.clock);
  }

  get #sharesDisks(): boolean {
    return this.#options.state.record.mode === "shared";
  }

  get isConnected(): boolean {
    return this.#phase.name !== "connecting" && this.#phase.name !== "opening";
  }

  get isEstablished(): boolean {
    return this.#phase.name === "established";
  }

  /** The session into whose stream guests' writes go. */
  get streamingSession(): SourceSession | undefined {
    const { name } = this.#phase;
    return name === "established" || name === "syncing" || name === "due" ? this.#phase.session : undefined;
  }

  /** The peer of the session that is open, or opening. */
  get peerId(): string | undefined {
    return this.#phase.name === "connecting" ? undefined : this.#phase.session.peer?.agentId;
  }

  /** Whether a session is open, or opening. */
  get isTaken(): boolean {
    return this.#phase.name !== "connecting";
  }

  /** Whom this side dials for it; null: nobody, as far as that is known. */
  get url(): string | null {
    return this.#peer.url;
  }

  /** Where the secondary's images are, as it said last. */
  get peerSite(): Site | undefined {
    return this.#peer.site;
  }

  /** The session in which the secondary lacks nothing and takes everything. */
  get establishedSession(): SourceSession | undefined {
    return this.#phase.name === "established" ? this.#phase.session : undefined;
  }

  /** The open session. Errors: `no-peer` with the reason why there is none. */
  get session(): SourceSession {
    if (this.#phase.name === "connecting" || this.#phase.name === "opening") {
      const why = this.#lastError === undefined ? "" : `: ${this.#lastError.message}`;
      throw new ColobusError(
        "no-peer",
        this.url === null ? `no secondary is connected${why}` : `the secondary at ${this.url} is not connected${why}`,
        this.#lastError?.action ?? "Start the secondary agent, and check --peer.",
      );
    }
    return this.#phase.session;
  }

  /** Why the secondary takes no writes now, if it says so, and how much waits for it. */
  get pausedBy(): ColobusError | undefined {
    if (this.#phase.name !== "paused") return undefined;
    const { reason } = this.#phase;
    return new ColobusError(
      reason.code,
      `${reason.message}; ${this.#options.tracking.bytes} bytes wait to be sent`,
      reason.action,
    );
  }

  get syncProgress(): { readonly doneBytes: number; readonly totalBytes: number } {
    const left = this.#options.tracking.bytes;
    return { doneBytes: Math.max(0, this.#syncTotalBytes - left), totalBytes: this.#syncTotalBytes };
  }

  /** Clusters of the disk that were sent and are not known to be stable on the secondary. */
  inFlight(disk: number): ClusterBitmap {
    const clusters = new ClusterBitmap();
    if (this.#phase.name === "connecting") return clusters;
    for (const sent of this.#phase.session.unstable()) {
      if (sent.disk === disk) clusters.addRange(sent.firstCluster, sent.endCluster);
    }
    return clusters;
  }

  /** Whether this process has met its secondary at `url`. Else another one may be there: the record does not say whose a URL is. */
  get isReached(): boolean {
    return this.#peer.isReached;
  }

  /** Ends the session that is open, or opening: what was agreed on in its handshake holds no more. */
  endSession(reason: ColobusError): void {
    if (this.#phase.name !== "connecting") this.#phase.session.close(reason);
  }

  /** Whatever was known of the secondary is about nobody any more; `url`: whom this side dials from now on. */
  release(url: string | null): void {
    this.endSession(new ColobusError("peer-replaced", "an operator has given this secondary up"));
    this.#peer.forget(url);
    this.#lastError = undefined;
    this.#reported = undefined;
    this.#lastContactMs = undefined;
  }

  /** Whom this side dials at `url` is another secondary. */
  cede(url: string | null): void {
    this.#peer.cede(url);
  }

  /** The session is over. `missing` is what the secondary may not have. */
  closed(session: SourceSession, reason: ColobusError, missing: readonly SentRange[]): void {
    // An original that did not arrive is sent again: what it stands for was not overwritten.
    for (const { disk, firstCluster, endCluster } of this.#sharesDisks ? [] : missing) {
      this.#options.tracking.dirty(disk).addClusters(firstCluster, endCluster);
    }
    this.#lost(session, reason);
  }

  /** A dial failed. */
  dialFailed(reason: ColobusError): void {
    if (this.#phase.name !== "connecting" || this.#peer.standsAlone) return;
    this.#lastError = reason;
    this.#reported = undefined;
  }

  /** Leaves the session, once everything sent is stable on the secondary or `drainTimeout` resolves. */
  async stop(drainTimeout: Promise<void>, reason: ColobusError): Promise<void> {
    if (this.#phase.name === "established") {
      const { session } = this.#phase;
      const drained = session.acknowledged(session.sequence, "stable");
      if (drained !== undefined) await Promise.race([drained, drainTimeout]);
    }
    this.#stopping = true;
    if (this.#phase.name !== "connecting") this.#phase.session.close(reason);
    await this.#pairing.settled();
  }

  /**
   * Forwards an operation that the local child was given, under the range lock. Done when the secondary has
   * acknowledged it as far as the acknowledgement policy has the guest wait. `payload` may be kept as a view until the turn is over.
   */
  forward(kind: OperationKind, disk: number, offset: number, length: number, payload: Buffer | undefined): Pending {
    const dirty = this.#options.tracking.dirty(disk);
    const session = this.#streaming(this.#options.detachesWhenCongested);
    if (session === undefined) {
      dirty.addBytes(offset, length);
      return this.#alone();
    }
    const position = ACK_POSITIONS[this.#options.ack];
    // What is dirty as a whole goes with the sync, which reads it later, unless the guest waits for it.
    if (position === undefined && !dirty.isEmpty && dirty.covers(offset, length)) return undefined;
    const sequence = this.#send(session, kind, disk, offset, length, payload);
    if (position === undefined) return undefined;
    return this.#orAlone(session, session.acknowledged(sequence, position));
  }

  /** Done when the send window has room, or there is no session to send on. */
  room(): Pending {
    const session = this.#streaming(false);
    return session === undefined || this.#options.detachesWhenCongested
      ? undefined
      : this.#orAlone(session, session.room());
  }

  /** Done when everything forwarded so far is stable on the secondary, where the acknowledgement policy covers it. */
  flush(): Pending {
    if (this.#options.ack !== "applied") return undefined;
    const session = this.#streaming(false);
    if (session === undefined) return this.#alone();
    return this.#orAlone(session, session.acknowledged(session.sequence, "stable"));
  }

  /**
   * The secondary may differ in this range, which `PeerTracking.mark` was called for: a write failed locally, or the two
   * were compared. It is sent again.
   */
  sendAgain(disk: number, offset: number, length: number): void {
    this.#options.tracking.dirty(disk).addBytes(offset, length);
    if (this.#phase.name === "established") this.#beginSync(this.#phase.session, "resync");
  }

  dirtyBytes(disk: number): number {
    const { tracking, geometries } = this.#options;
    if (this.#sharesDisks) return 0;
    return tracking.peer === null ? (geometries[disk]?.sizeBytes ?? 0) : tracking.dirty(disk).bytes;
  }

  /** The next clusters of a disk to be sent, from cluster `from` on, or undefined when there are none. */
  nextDirty(disk: number, from: number, maxClusters: number): ClusterRun | undefined {
    return this.#options.tracking.dirty(disk).nextRun(from, maxClusters);
  }

  /**
   * Puts the present content of whole dirty clusters into the stream: zeroes where `content` is a length. The range is
   * locked. Returns the number of the last operation; undefined when the session was lost meanwhile.
   */
  sendSynced(session: SourceSession, disk: number, offset: number, content: Buffer | number): number | undefined {
    if (!this.#isSyncing(session)) return undefined;
    const length = typeof content === "number" ? content : content.length;
    const geometry = this.#geometryOf(disk);
    const dirty = this.#options.tracking.dirty(disk);
    dirty.removeClusters(firstClusterOf(geometry, offset), endClusterOf(geometry, offset, length));
    return typeof content === "number"
      ? this.#send(session, "discard", disk, offset, length, undefined)
      : this.#send(session, "write", disk, offset, length, content);
  }

  /** Done when the secondary has taken an operation of a sync as far as guests' writes wait for it, or the session is lost. */
  syncedThrough(session: SourceSession, sequence: number): Pending {
    return session.acknowledged(sequence, ACK_POSITIONS[this.#options.ack] ?? "received");
  }

  /** The sync is paused, or goes on. */
  tellPaused(session: SourceSession, isPaused: boolean): void {
    if (this.#isSyncing(session)) this.#tellSync(session, isPaused ? "pause" : "begin");
  }

  /** Nothing is dirty any more: from here on the stream alone keeps the secondary equal. False when that is not so. */
  tryFinishSync(session: SourceSession): boolean {
    const { tracking } = this.#options;
    if (!this.#isSyncing(session) || !tracking.isClean) return false;
    this.#tellSync(session, "end");
    this.#phase = { name: "established", session };
    tracking.settleSoon();
    this.#options.emit("sync-finished", this.#peer.eventFields);
    this.#options.inSync();
    return true;
  }

  describe(): Omit<PeerStatus, "host" | "committed" | "mayTakeOver" | "disks"> {
    const session = this.isConnected ? this.session : undefined;
    const { geometries } = this.#options;
    const { url, address, agentId, agentVersion } = this.#peer.describe();
    return {
      url,
      address,
      connection: session !== undefined ? "Connected" : this.#peer.standsAlone ? "StandAlone" : "Connecting",
      replication: REPLICATION_OF_PHASE[this.#phase.name],
      lagBytes: [...geometries.keys()].reduce((sum, disk) => sum + this.dirtyBytes(disk), session?.unstableBytes ?? 0),
      agentId,
      agentVersion,
      lastContactMs: session?.silenceMs ?? this.#sinceLastContactMs(),
      lastError: (this.pausedBy ?? (session === undefined ? this.#lastError : undefined))?.toJSON() ?? null,
    };
  }

  /** A peer has proved itself: either the two are a pair, and its session takes the place of any other, or it is refused. */
  open(session: SourceSession, hello: Hello, peer: Hello, url: string | null): void {
    const options = this.#options;
    if (this.#stopping) throw new ColobusError("shutting-down", "the agent takes no sessions now", "Try again later.");
    if (hello.disks.some(({ sizeBytes }, disk) => sizeBytes !== this.#geometryOf(disk).sizeBytes)) {
      throw new ColobusError("replaced", "a disk has grown during the handshake", "It is tried again.");
    }
    const verdict = decideBetween(hello, peer);
    const isOld = options.lineages.isMinting || hello.lineage !== options.state.record.lineage;
    if (isOld && (verdict.kind !== "sync" || this.#sharesDisks)) {
      // The peer was told of a history that is not this side's any more: the next handshake decides.
      throw new ColobusError(
        "replaced",
        "this side has begun a new lineage during the handshake",
        "It is tried again.",
      );
    }
    const refusal = refusalOf(verdict, hello.agentId);
    if (refusal !== undefined && this.#isStranger(verdict, peer)) {
      this.#stranger = session;
      options.judged(verdict, peer, url);
      throw refusal;
    }
    this.#peer.meet(peer, verdict, session.peerAddress, url);
    options.judged(verdict, peer);
    if (refusal !== undefined) throw refusal;
    assertMayKnow(options.state.record, peer.agentId);
    if (this.#sharesDisks && options.state.record.merge !== null) {
      throw new ColobusError(
        "merge-unfinished",
        "the overlays of the last failover are not merged into the shared disk yet",
        "Nothing: it is tried again by itself.",
      );
    }
    assert(verdict.kind === "sync" && verdict.target === peer.agentId, "of a pair, the Primary is the source");
    if (options.isOutdated() && !hello.outdated) {
      throw new ColobusError("outdated", "this side has just learned that it is behind", "It is tried again.");
    }
    if (this.#phase.name !== "connecting") {
      this.#phase.session.close(
        new ColobusError("replaced", "a newer session with the peer takes the place of this one"),
      );
    }
    this.#phase = { name: "opening", session, stalledBy: undefined };
    this.#pairing
      .begin(session, hello, peer, verdict.extent)
      .catch((error: unknown) => session.close(asColobusError(error)));
  }

  /**
   * Whether a peer that is refused is another one than whose place this is: nothing that it says is about that one. Where that one is
   * away, whom this side is behind, or has parted with, counts as well.
   */
  #isStranger(verdict: Verdict, { agentId }: Hello): boolean {
    const own = this.peerId ?? this.#peer.agentId ?? this.#options.holder();
    if (own === undefined || own === agentId) return false;
    return this.isTaken || verdict.kind === "refused";
  }

  receiveDifferences(session: SourceSession, disk: number, runs: readonly ClusterRun[]): void {
    if (this.#phase.name !== "opening" || this.#phase.session !== session) {
      throw new ColobusError("protocol-error", "the peer tells differences where none are asked for");
    }
    this.#pairing.differ(disk, runs);
  }

  ready(session: SourceSession): void {
    if (this.#phase.name !== "opening" || this.#phase.session !== session) {
      throw new ColobusError("protocol-error", `the peer sent "ready" twice`);
    }
    this.#peer.site = session.site;
    this.#pairing.unite().then(
      () => this.#start(session),
      (error: unknown) => session.close(asColobusError(error)),
    );
  }

  #start(session: SourceSession): void {
    if (this.#phase.name !== "opening" || this.#phase.session !== session) return;
    const options = this.#options;
    const { stalledBy } = this.#phase;
    session.tell({ type: "united" });
    options.emit("peer-connected", { url: this.url, address: session.peerAddress, agentId: session.peer?.agentId });
    this.#lastError = undefined;
    // A secondary of shared disks is told of the history even so, which has to be recorded first.
    const mayPause = !this.#sharesDisks || options.lineages.isKnownBy(peerOf(session));
    if (stalledBy !== undefined && mayPause) this.#pause(session, stalledBy);
    else this.#beginSync(session, session.peer?.lineage === null ? "full-sync" : "resync");
  }

  #beginSync(session: SourceSession, kind: "full-sync" | "resync"): void {
    const { lineages } = this.#options;
    // A lineage that is being minted for a write that went on alone is the one that the secondary has to hear of.
    if (lineages.isMinting || !lineages.isKnownBy(peerOf(session))) {
      // Something is dirty: no barrier goes there before the sync.
      if (this.#phase.name === "established") this.#phase = { name: "due", session };
      this.#share(session, kind);
      return;
    }
    const { tracking, emit, syncNeeded } = this.#options;
    this.#syncTotalBytes = tracking.bytes;
    this.#phase = { name: "syncing", session };
    this.#tellSync(session, "begin");
    if (this.tryFinishSync(session)) return;
    emit("sync-started", { ...this.#peer.eventFields, kind, bytes: this.#syncTotalBytes });
    syncNeeded(kind);
  }

  /**
   * It has to be durable that the secondary may know the lineage before it hears of it: a promotion there supersedes
   * what it has heard, so nothing may be acknowledged under that lineage without it later on.
   */
  #share(session: SourceSession, kind: "full-sync" | "resync"): void {
    const before = this.#phase;
    const begin = (): void => {
      const phase = this.#phase;
      if (phase.name === "connecting" || phase.session !== session) return;
      if (phase.name === "opening" && phase.stalledBy !== undefined) this.#pause(session, phase.stalledBy);
      else if (phase === before || phase.name === "opening") this.#beginSync(session, kind);
    };
    this.#options.lineages
      .share(peerOf(session), begin)
      .catch((error: unknown) => session.close(asColobusError(error)));
  }

  #tellSync(session: SourceSession, phase: SyncPhase): void {
    const { lineage, history } = this.#options.state.record;
    const told = this.#options.told();
    session.tell({
      type: "sync",
      phase,
      totalBytes: this.#syncTotalBytes,
      lineage: lineage ?? "",
      ancestors: history.ancestors,
      ...(told === undefined ? {} : { told }),
    });
  }

  #isSyncing(session: SourceSession): boolean {
    return this.#phase.name === "syncing" && this.#phase.session === session;
  }

  /** The session into whose stream guests' operations go. One that is full is left first, where `detaches` says so. */
  #streaming(detaches: boolean): SourceSession | undefined {
    const session = this.streamingSession;
    if (session === undefined || !detaches || !session.isFull) return session;
    this.#detach(session);
    return undefined;
  }

  /** Guests write faster than the secondary takes it: they go on without it until it has caught up with what was sent. */
  #detach(session: SourceSession): void {
    const { emit, syncInterrupted } = this.#options;
    syncInterrupted(
      new ColobusError(
        "connection-lost",
        "guests write faster than the secondary takes it",
        "Nothing: what is left is sent when the secondary has caught up.",
      ),
    );
    this.#phase = { name: "detached", session };
    this.#tellSync(session, "pause");
    emit("congested", { ...this.#peer.eventFields, windowBytes: session.unstableBytes });
    const resume = (): void => {
      if (this.#phase.name === "detached" && this.#phase.session === session) this.#beginSync(session, "resync");
    };
    const drained = session.acknowledged(session.sequence, "stable");
    if (drained === undefined) resume();
    else drained.then(resume, (error: unknown) => session.close(asColobusError(error)));
  }

  /** Done when a write may be acknowledged that the secondary does not have. Errors: `io-error`. */
  #alone(): Pending {
    const { lineages, assertServing, frozen, mayGoAlone } = this.#options;
    assertServing();
    const waiting = frozen() ?? mayGoAlone();
    if (waiting !== undefined) return waiting.then(() => (this.isConnected ? undefined : this.#alone()));
    return lineages.parted()?.then(() => this.#alone());
  }

  /** What the guest waits for in a session, or, when that is lost first, what lets it go on alone. */
  #orAlone(session: SourceSession, pending: Pending): Pending {
    return pending?.then(() => (session.isClosed ? this.#alone() : undefined));
  }

  /** The secondary's overlays are full, or have room again. Meanwhile writes go on locally, and dirty. */
  stalled(session: SourceSession, reason: ColobusError | undefined): void {
    if (this.#phase.name === "opening") {
      this.#phase = { name: "opening", session, stalledBy: reason };
    } else if (reason !== undefined && this.isConnected) {
      this.#pause(session, reason);
    } else if (reason === undefined && this.#phase.name === "paused") {
      if (isForWantOfSpace(this.#phase.reason)) this.#options.emit("overlay-freed", this.#peer.eventFields);
      this.#beginSync(session, "resync");
    }
  }

  notified(notice: Notice): void {
    this.#options.notified(notice, this.peerId ?? "");
  }

  #pause(session: SourceSession, reason: ColobusError): void {
    if (this.#sharesDisks && this.#phase.name === "opening") {
      // Nothing is missing there: a checkpoint can be taken, which makes room.
      this.#tellSync(session, "begin");
      this.#tellSync(session, "end");
    }
    this.#phase = { name: "paused", session, reason };
    this.#options.emit(isForWantOfSpace(reason) ? "overlay-full" : "disk-error", {
      ...this.#peer.eventFields,
      ...reason.toJSON(),
    });
    this.#options.paused();
  }

  #lost(session: SourceSession, reason: ColobusError): void {
    const { emit, clock, lost } = this.#options;
    if (session.isProbe && reason.code !== "auth-failed") return;
    const wasCurrent = this.#phase.name !== "connecting" && this.#phase.session === session;
    // An older session that was replaced, or a stranger's: the current one goes on.
    if (!wasCurrent && (this.#phase.name !== "connecting" || reason.code === "replaced")) return;
    const wasConnected = wasCurrent && this.isConnected;
    const isNews = wasConnected || reason.message !== this.#reported;
    this.#phase = { name: "connecting" };
    // While the two have parted, what others are refused for says nothing of that.
    if (!this.#peer.standsAlone || (session.isProved && session !== this.#stranger)) this.#lastError = reason;
    this.#reported = reason.message;
    if (wasConnected) this.#lastContactMs = clock.nowMs() - session.silenceMs;
    if (this.#stopping) return;
    // A refused session is tried again for ever: each reason is reported once.
    if (isNews && (session.isProved || this.#strangers.mayTell())) {
      emit(wasConnected ? "peer-disconnected" : "peer-refused", { url: this.url, ...reason.toJSON() });
    }
    if (wasConnected) lost(reason);
  }

  /** Sends in pieces that the protocol and the secondary take well. Returns the number of the last one. */
  #send(
    session: SourceSession,
    kind: OperationKind,
    disk: number,
    offset: number,
    length: number,
    payload: Buffer | undefined,
  ): number {
    const pieceMax = payload === undefined ? ZERO_PIECE_MAX_BYTES : WRITE_PIECE_MAX_BYTES;
    const geometry = this.#geometryOf(disk);
    let sequence = 0;
    for (let at = 0; at < length; at += pieceMax) {
      const pieceLength = Math.min(pieceMax, length - at);
      const range = {
        disk,
        firstCluster: firstClusterOf(geometry, offset + at),
        endCluster: endClusterOf(geometry, offset + at, pieceLength),
      };
      const piece = payload === undefined || pieceLength === length ? payload : payload.subarray(at, at + pieceLength);
      sequence = session.send(kind, range, offset + at, pieceLength, piece);
    }
    return sequence;
  }

  #sinceLastContactMs(): number | null {
    return this.#lastContactMs === undefined ? null : this.#options.clock.nowMs() - this.#lastContactMs;
  }

  #geometryOf(disk: number): ClusterGeometry {
    const geometry = this.#options.geometries[disk];
    if (geometry === undefined) throw new RangeError(`there is no disk ${disk}`);
    return geometry;
  }
}

/** The id of the peer of a session that is open. */
function peerOf({ peer }: SourceSession): string {
  assert(peer !== undefined, "the peer of an open session is known");
  return peer.agentId;
}

const ACK_POSITIONS = { async: undefined, received: "received", applied: "stable" } as const satisfies Record<
  AckPolicy,
  "received" | "stable" | undefined
>;

const REPLICATION_OF_PHASE = {
  connecting: "Off",
  opening: "Off",
  syncing: "SyncSource",
  established: "Established",
  due: "SyncSource",
  paused: "PausedSyncS",
  detached: "PausedSyncS",
} as const satisfies Record<Phase["name"], ReplicationState>;
