import { ColobusError } from "../proto/errors.ts";
import { WRITE_PIECE_MAX_BYTES } from "../proto/limits.ts";
import type { PeerStatus } from "../proto/control-api.ts";
import type { Hello, Notice, OperationKind } from "../proto/replication-messages.ts";
import type { AckPolicy, EventType, ReplicationState } from "../proto/words.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { ClusterRun } from "../shared/block/cluster-bitmap.ts";
import { endClusterOf, firstClusterOf, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import { Connector } from "../shared/replication/connector.ts";
import type { Dialer, Link } from "../shared/replication/link.ts";
import { DirtyMap } from "./dirty-map.ts";
import { SourceSession } from "./source-session.ts";

/** Zeroed ranges are sent in operations of at most this length: the secondary may have to save what lies there. */
const ZERO_PIECE_MAX_BYTES = 64 * 1024 * 1024;

export interface ReplicatorOptions {
  readonly dialer: Dialer;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly geometries: readonly ClusterGeometry[];
  readonly token: Buffer | undefined;
  readonly ack: AckPolicy;
  readonly peerTimeoutMs: number;
  readonly windowBytes: number;
  /** The agent id of the secondary whose copy is known to be equal; null: nothing is known. */
  readonly inSyncPeer: string | null;
  readonly hello: () => Omit<Hello, "tracks">;
  /** A session is open: the epoch that is open from here on. */
  readonly opened: (peer: Hello) => number;
  /** Clusters must be sent: `syncNext` is to be called until nothing is left. */
  readonly syncNeeded: (kind: "full-sync" | "resync") => void;
  /** The secondary has everything, up to this point of the stream. */
  readonly inSync: () => void;
  /** The secondary tells something that needs no answer. */
  readonly notified: (notice: Notice) => void;
  readonly lost: (reason: ColobusError) => void;
}

/**
 *     connecting ──> opening ──> syncing <──> established
 *         ^             │          │ ^            │
 *         │             v          v │            v
 *         └──────── (session lost) paused (the secondary's overlays are full)
 */
type Phase =
  | { readonly name: "connecting" }
  | { readonly name: "opening"; readonly session: SourceSession; readonly stalledBy: ColobusError | undefined }
  | { readonly name: "syncing" | "established"; readonly session: SourceSession }
  | { readonly name: "paused"; readonly session: SourceSession; readonly reason: ColobusError };

/**
 * Keeps one secondary equal to this primary's disks: forwards every write while a session is in sync or syncing, and
 * remembers as dirty whatever the secondary may lack. The dirty maps count from the copy of one secondary, named by
 * its agent id; for any other they prove nothing, and everything is sent.
 */
export class Replicator {
  readonly #options: ReplicatorOptions;
  readonly #connector: Connector;
  readonly #dirty: readonly DirtyMap[];
  #tracks: string | null;
  #phase: Phase = { name: "connecting" };
  #lastError: ColobusError | undefined;
  #lastContactMs: number | undefined;
  #peerIdentity: { readonly agentId: string; readonly agentVersion: string } | undefined;
  #syncTotalBytes = 0;
  #stopping = false;

  constructor(options: ReplicatorOptions) {
    this.#options = options;
    this.#tracks = options.inSyncPeer;
    this.#dirty = options.geometries.map((geometry) => new DirtyMap(geometry));
    this.#connector = new Connector({
      dialer: options.dialer,
      clock: options.clock,
      random: options.random,
      connected: (link) => this.#connected(link),
      failed: (reason) => {
        this.#lastError = reason;
      },
    });
  }

  get isConnected(): boolean {
    return this.#phase.name === "syncing" || this.#phase.name === "established" || this.#phase.name === "paused";
  }

  get isEstablished(): boolean {
    return this.#phase.name === "established";
  }

  /** The open session. Errors: `no-peer` with the reason why there is none. */
  get session(): SourceSession {
    if (this.#phase.name === "connecting" || this.#phase.name === "opening") {
      const why = this.#lastError === undefined ? "" : `: ${this.#lastError.message}`;
      throw new ColobusError(
        "no-peer",
        `the secondary at ${this.#options.dialer.url} is not connected${why}`,
        this.#lastError?.action ?? "Start the secondary agent, and check --peer.",
      );
    }
    return this.#phase.session;
  }

  /** Why the secondary takes no writes now, if it says so, and how much waits for it. */
  get pausedBy(): ColobusError | undefined {
    if (this.#phase.name !== "paused") return undefined;
    const { reason } = this.#phase;
    const waiting = this.#dirty.reduce((sum, dirty) => sum + dirty.bytes, 0);
    return new ColobusError(reason.code, `${reason.message}; ${waiting} bytes wait to be sent`, reason.action);
  }

  get syncProgress(): { readonly doneBytes: number; readonly totalBytes: number } {
    const left = this.#dirty.reduce((sum, dirty) => sum + dirty.bytes, 0);
    return { doneBytes: Math.max(0, this.#syncTotalBytes - left), totalBytes: this.#syncTotalBytes };
  }

  start(): void {
    this.#connector.start();
  }

  /** Ends the session. Resolves with the secondary's agent id if its copy is surely equal, else null. */
  async stop(drainTimeout: Promise<void>): Promise<string | null> {
    this.#connector.stop();
    if (this.#phase.name === "established") {
      const { session } = this.#phase;
      const drained = session.acknowledged(session.sequence, "stable");
      if (drained !== undefined) await Promise.race([drained, drainTimeout]);
    }
    // What a session that was lost had not made stable is dirty: after it, clean means equal.
    const nothingUnderWay =
      this.#phase.name === "connecting" ||
      (this.#phase.name === "established" && this.#phase.session.unstableBytes === 0);
    const isEqual = nothingUnderWay && this.#isClean();
    this.#stopping = true;
    if (this.#phase.name !== "connecting") {
      this.#phase.session.close(new ColobusError("shutting-down", "the primary agent is being stopped"));
    }
    return isEqual ? this.#tracks : null;
  }

  /**
   * Forwards an operation that the local child was given, under the range lock. Done when the secondary has
   * acknowledged it as far as the acknowledgement policy has the guest wait. `payload` is kept as a view.
   */
  forward(kind: OperationKind, disk: number, offset: number, length: number, payload: Buffer | undefined): Pending {
    const dirty = this.#dirtyOf(disk);
    if (this.#phase.name !== "established" && this.#phase.name !== "syncing") {
      dirty.addBytes(offset, length);
      return undefined;
    }
    // What is dirty as a whole goes with the sync, which reads it later.
    if (!dirty.isEmpty && dirty.covers(offset, length)) return undefined;
    const { session } = this.#phase;
    const sequence = this.#send(session, kind, disk, offset, length, payload);
    const position = ACK_POSITIONS[this.#options.ack];
    return position === undefined ? undefined : session.acknowledged(sequence, position);
  }

  /** Done when the send window has room, or there is no session to send on. */
  room(): Pending {
    return this.#phase.name === "established" || this.#phase.name === "syncing"
      ? this.#phase.session.room()
      : undefined;
  }

  /** Done when everything forwarded so far is stable on the secondary, where the acknowledgement policy covers it. */
  flush(): Pending {
    if (this.#options.ack !== "applied" || !this.isConnected) return undefined;
    const { session } = this;
    return session.acknowledged(session.sequence, "stable");
  }

  /** A write failed locally: what the child holds there is unknown, and so must be sent again. */
  writeFailed(disk: number, offset: number, length: number): void {
    this.#dirtyOf(disk).addBytes(offset, length);
    if (this.#phase.name === "established") this.#beginSync(this.#phase.session, "resync");
  }

  dirtyBytes(disk: number): number {
    const dirty = this.#dirtyOf(disk);
    return this.#tracks === null ? (this.#options.geometries[disk]?.sizeBytes ?? 0) : dirty.bytes;
  }

  /** The next clusters to be sent, or undefined when there are none. */
  nextDirty(maxClusters: (disk: number) => number): { readonly disk: number; readonly run: ClusterRun } | undefined {
    for (const [disk, dirty] of this.#dirty.entries()) {
      const run = dirty.firstRun(maxClusters(disk));
      if (run !== undefined) return { disk, run };
    }
    return undefined;
  }

  /**
   * Puts the present content of whole dirty clusters into the stream: zeroes where `content` is a length. The range is
   * locked. False when the session was lost meanwhile.
   */
  sendSynced(session: SourceSession, disk: number, offset: number, content: Buffer | number): boolean {
    if (this.#phase.name !== "syncing" || this.#phase.session !== session) return false;
    const length = typeof content === "number" ? content : content.length;
    const geometry = this.#geometryOf(disk);
    this.#dirtyOf(disk).removeClusters(firstClusterOf(geometry, offset), endClusterOf(geometry, offset, length));
    if (typeof content === "number") this.#send(session, "discard", disk, offset, length, undefined);
    else this.#send(session, "write", disk, offset, length, content);
    return true;
  }

  /** Nothing is dirty any more: from here on the stream alone keeps the secondary equal. False when that is not so. */
  tryFinishSync(session: SourceSession): boolean {
    if (this.#phase.name !== "syncing" || this.#phase.session !== session || !this.#isClean()) return false;
    session.tell({ type: "sync", phase: "end", totalBytes: this.#syncTotalBytes });
    this.#phase = { name: "established", session };
    this.#options.emit("sync-finished", { peer: this.#options.dialer.url });
    this.#options.inSync();
    return true;
  }

  describe(): PeerStatus {
    const session = this.isConnected ? this.session : undefined;
    return {
      url: this.#options.dialer.url,
      address: this.#options.dialer.url,
      connection: session === undefined ? "Connecting" : "Connected",
      replication: REPLICATION_OF_PHASE[this.#phase.name],
      lagBytes: session?.unstableBytes ?? this.#dirty.reduce((sum, _, disk) => sum + this.dirtyBytes(disk), 0),
      agentId: this.#peerIdentity?.agentId ?? null,
      agentVersion: this.#peerIdentity?.agentVersion ?? null,
      lastContactMs: session?.silenceMs ?? this.#sinceLastContactMs(),
      lastError: (this.pausedBy ?? (session === undefined ? this.#lastError : undefined))?.toJSON() ?? null,
    };
  }

  #connected(link: Link): void {
    const options = this.#options;
    let wasOpen = false;
    const session = new SourceSession({
      link,
      clock: options.clock,
      hello: { ...options.hello(), tracks: this.#tracks },
      token: options.token,
      peerTimeoutMs: options.peerTimeoutMs,
      windowBytes: options.windowBytes,
      opened: (peer, decision) => {
        wasOpen = true;
        if (decision.kind === "full") for (const dirty of this.#dirty) dirty.addAll();
        this.#tracks = peer.agentId;
        this.#peerIdentity = peer;
        const { lineage, disks } = options.hello();
        return {
          lineage: lineage ?? "",
          openEpoch: options.opened(peer),
          diskSizes: disks.map((disk) => disk.sizeBytes ?? 0),
        };
      },
      ready: () => this.#ready(session),
      stalled: (reason) => this.#stalled(session, reason),
      notified: (notice) => options.notified(notice),
      closed: (reason, missing) => {
        for (const { disk, firstCluster, endCluster } of missing) {
          this.#dirtyOf(disk).addClusters(firstCluster, endCluster);
        }
        this.#lost(reason, wasOpen, session.silenceMs);
      },
    });
    this.#phase = { name: "opening", session, stalledBy: undefined };
  }

  #ready(session: SourceSession): void {
    if (this.#phase.name !== "opening" || this.#phase.session !== session) {
      throw new ColobusError("protocol-error", `the peer sent "ready" twice`);
    }
    const options = this.#options;
    const { stalledBy } = this.#phase;
    options.emit("peer-connected", { url: options.dialer.url, agentId: this.#tracks });
    options.log.info({ peer: options.dialer.url }, "the secondary is connected");
    this.#lastError = undefined;
    if (stalledBy !== undefined) this.#pause(session, stalledBy);
    else this.#beginSync(session, session.peer?.lineage === null ? "full-sync" : "resync");
  }

  #beginSync(session: SourceSession, kind: "full-sync" | "resync"): void {
    this.#syncTotalBytes = this.#dirty.reduce((sum, dirty) => sum + dirty.bytes, 0);
    this.#phase = { name: "syncing", session };
    session.tell({ type: "sync", phase: "begin", totalBytes: this.#syncTotalBytes });
    if (this.tryFinishSync(session)) return;
    this.#options.emit("sync-started", { peer: this.#options.dialer.url, kind, bytes: this.#syncTotalBytes });
    this.#options.syncNeeded(kind);
  }

  /** The secondary's overlays are full, or have room again. Meanwhile writes go on locally, and dirty. */
  #stalled(session: SourceSession, reason: ColobusError | undefined): void {
    if (this.#phase.name === "opening") {
      this.#phase = { name: "opening", session, stalledBy: reason };
    } else if (reason !== undefined && this.isConnected) {
      this.#pause(session, reason);
    } else if (reason === undefined && this.#phase.name === "paused") {
      this.#options.emit("overlay-freed", { peer: this.#options.dialer.url });
      this.#beginSync(session, "resync");
    }
  }

  #pause(session: SourceSession, reason: ColobusError): void {
    this.#phase = { name: "paused", session, reason };
    this.#options.emit("overlay-full", { peer: this.#options.dialer.url, ...reason.toJSON() });
    this.#options.log.warn({ reason }, "the secondary takes no writes; they are remembered as dirty");
  }

  #lost(reason: ColobusError, wasOpen: boolean, silenceMs: number): void {
    const wasConnected = this.isConnected;
    const isNews = wasConnected || reason.message !== this.#lastError?.message;
    this.#phase = { name: "connecting" };
    this.#lastError = reason;
    if (wasConnected) this.#lastContactMs = this.#options.clock.nowMs() - silenceMs;
    if (this.#stopping) return;
    // A refused session is tried again for ever: each reason is reported once.
    if (isNews) {
      const type = wasConnected ? "peer-disconnected" : "peer-refused";
      this.#options.emit(type, { url: this.#options.dialer.url, ...reason.toJSON() });
      this.#options.log.warn({ peer: this.#options.dialer.url, reason }, "the session with the secondary ended");
    }
    if (wasConnected) this.#options.lost(reason);
    this.#connector.lost(wasOpen);
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

  #isClean(): boolean {
    return this.#dirty.every((dirty) => dirty.isEmpty);
  }

  #sinceLastContactMs(): number | null {
    return this.#lastContactMs === undefined ? null : this.#options.clock.nowMs() - this.#lastContactMs;
  }

  #dirtyOf(disk: number): DirtyMap {
    const dirty = this.#dirty[disk];
    if (dirty === undefined) throw new RangeError(`there is no disk ${disk}`);
    return dirty;
  }

  #geometryOf(disk: number): ClusterGeometry {
    const geometry = this.#options.geometries[disk];
    if (geometry === undefined) throw new RangeError(`there is no disk ${disk}`);
    return geometry;
  }
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
  paused: "PausedSyncS",
} as const satisfies Record<Phase["name"], ReplicationState>;
