import type { ResyncAnswer } from "../proto/control-api.ts";
import type { PeerStatus } from "../proto/status.ts";
import type { ColobusError } from "../proto/errors.ts";
import type { Hello, Notice } from "../proto/replication-messages.ts";
import type { ReplicationState } from "../proto/words.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import { peerEntryOf } from "../shared/replication/peer-slots.ts";
import { hostNameOf, imageAt } from "../shared/replication/site.ts";
import type { Verdict } from "../shared/replication/verdict.ts";
import type { GuestPolicy } from "./guest-policy.ts";
import type { LineageKeeper } from "./lineage-keeper.ts";
import { Mirroring } from "./mirroring.ts";
import { lostPeer } from "./no-peer.ts";
import type { PermitKeeper } from "./permit-keeper.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import type { PrimaryOptions } from "./primary-options.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import { Replicator } from "./replicator.ts";
import type { SourceSession } from "./source-session.ts";
import { SyncJobs } from "./sync-jobs.ts";
import { VerifyJobs } from "./verify-jobs.ts";

/** What a handshake with a proved peer came to. */
export interface Judged {
  readonly verdict: Verdict;
  readonly peer: Hello;
  /** Of one that is refused, and whose place it is not: where this side has dialled it; null: it has dialled itself. */
  readonly url?: string | null;
}

export interface SecondaryPlaceOptions extends Pick<
  PrimaryOptions,
  | "clock"
  | "random"
  | "log"
  | "emit"
  | "state"
  | "jobs"
  | "site"
  | "ack"
  | "windowBytes"
  | "onCongestion"
  | "resyncSpeed"
> {
  readonly slot: number;
  readonly tracking: PeerTracking;
  /** Whom this side dials first for the place; null: it waits for a peer to dial. */
  readonly url: string | null;
  readonly disks: readonly ReplicatedDisk[];
  readonly geometries: readonly ClusterGeometry[];
  readonly guests: GuestPolicy;
  readonly lineages: LineageKeeper;
  /** With an arbiter. */
  readonly keeper: PermitKeeper | undefined;
  readonly checkpoints: Pick<PrimaryCheckpoints, "openEpoch" | "lackNothingYet">;
  /** The last checkpoint that the secondary of the place is known to have committed. */
  readonly committed: (place: SecondaryPlace) => number;
  /** The newest checkpoint that was told to be committed, where the secondary of the place lacks it. */
  readonly told: (place: SecondaryPlace) => number | undefined;
  /** Takes a checkpoint. */
  readonly take: () => Promise<unknown>;
  readonly judged: (judged: Judged) => void;
  readonly opened: (place: SecondaryPlace, peer: Hello) => Promise<number>;
  /** A sync of this secondary has begun. */
  readonly syncing: () => void;
  readonly inSync: (place: SecondaryPlace) => void;
  readonly notified: (place: SecondaryPlace, notice: Notice, peer: string) => void;
  readonly paused: (place: SecondaryPlace) => void;
  readonly lost: () => void;
}

/**
 * One secondary of a primary, or the place for one: its stream, its syncs and comparisons, and what is known of its copy.
 * It keeps these in step with each other; what they mean for guests and checkpoints is the role's to decide.
 */
export class SecondaryPlace {
  readonly slot: number;
  readonly tracking: PeerTracking;
  readonly replicator: Replicator;
  readonly syncs: SyncJobs;
  readonly verifies: VerifyJobs;
  /** In mode `mirror`. */
  readonly mirroring: Mirroring | undefined;
  readonly #options: SecondaryPlaceOptions;
  #judged: Judged | undefined;

  constructor(options: SecondaryPlaceOptions) {
    this.#options = options;
    this.slot = options.slot;
    this.tracking = options.tracking;
    this.syncs = new SyncJobs(options);
    this.replicator = this.#newReplicator();
    this.verifies = new VerifyJobs({
      ...options,
      sharesDisks: options.state.record.mode === "shared",
      replicator: this.replicator,
    });
    this.mirroring = options.state.record.mode === "mirror" ? this.#newMirroring() : undefined;
  }

  /** What the last handshake with whose place it is came to, or with one that this side is behind or has parted with. */
  get judged(): Judged | undefined {
    return this.#judged;
  }

  /** The secondary that has the place, as far as that is known. */
  get peerId(): string | undefined {
    return this.replicator.peerId ?? this.#recordedPeer;
  }

  get #recordedPeer(): string | undefined {
    const { pairing, tracks } = peerEntryOf(this.#options.state.record, this.slot);
    return pairing?.peer ?? tracks ?? undefined;
  }

  /** Whether a secondary has the place, had it, or is to be dialled for it. */
  get isUsed(): boolean {
    return this.replicator.url !== null || this.#judged !== undefined || this.peerId !== undefined;
  }

  /** In mode `mirror` a sync is over when the secondary has taken it up. */
  get isTakenUp(): boolean {
    return this.mirroring?.isTakenUp !== false;
  }

  start(): void {
    const { disks } = this.#options;
    this.tracking.start({
      inFlight: (disk) => this.replicator.inFlight(disk),
      isBusy: (disk, offset, length) => disks[disk]?.isBusy(offset, length) ?? false,
      flush: async (disk) => disks[disk]?.flushChild(),
    });
  }

  /** Lets a paused sync go on. Errors: why the secondary takes no writes. */
  resync(): ResyncAnswer {
    return this.syncs.resume(this.replicator);
  }

  /** Errors: `no-peer` where the secondary lacks something, or the session with it is another one by now. */
  assertInSync(session: SourceSession): void {
    const { replicator, tracking } = this;
    if (replicator.establishedSession !== session || session.peer === undefined || !tracking.isClean) throw lostPeer();
  }

  describe(): PeerStatus {
    const { site, disks, committed, keeper } = this.#options;
    const peer = this.replicator.describe();
    const { peerId } = this;
    const { peerSite } = this.replicator;
    const epoch = committed(this);
    return {
      ...peer,
      replication: this.#replicationOf(peer),
      agentId: peer.agentId ?? peerId ?? null,
      host: hostNameOf(peerSite, site(), peer.address),
      committed: epoch === 0 ? null : epoch,
      mayTakeOver: keeper === undefined || peerId === undefined ? null : keeper.mayTakeOver(peerId),
      disks: disks.map(({ name }, disk) => ({
        name,
        image: imageAt(peerSite, name),
        dirtyBytes: this.replicator.dirtyBytes(disk),
      })),
    };
  }

  #replicationOf({ replication }: Pick<PeerStatus, "replication">): ReplicationState {
    if (replication === "Established" && !this.isTakenUp) return "SyncSource";
    if (replication === "Established" && this.verifies.isRunning) return "VerifyS";
    return replication === "SyncSource" && this.syncs.isHeld ? "PausedSyncS" : replication;
  }

  /** Its secondary is given up: the place is free, first for the agent at `url`. */
  release(url: string | null): void {
    this.#judged = undefined;
    this.replicator.release(url);
    this.syncs.forget();
  }

  /** Ends the jobs of the place. */
  end(reason: ColobusError): void {
    this.syncs.end(reason);
    this.verifies.end(reason);
  }

  #newMirroring(): Mirroring {
    const { checkpoints, committed } = this.#options;
    const committedHere = (): number => committed(this);
    return new Mirroring({
      ...this.#options,
      checkpoints: {
        get openEpoch() {
          return checkpoints.openEpoch;
        },
        get committed() {
          return committedHere();
        },
        lackNothingYet: () => checkpoints.lackNothingYet(),
      },
      isEstablished: () => this.replicator.isEstablished,
    });
  }

  #newReplicator(): Replicator {
    const options = this.#options;
    const { guests, keeper } = options;
    return new Replicator({
      ...options,
      detachesWhenCongested: options.onCongestion === "detach",
      isOutdated: () => guests.isOutdated,
      assertServing: () => guests.gate.assertServing(),
      frozen: () => guests.frozen(),
      mayGoAlone: () => keeper?.mayGoAlone(),
      mayJoin: (peer) => keeper?.mayJoin(peer),
      holder: () => this.#recordedPeer,
      judged: (verdict, peer, url) => {
        const judged = url === undefined ? { verdict, peer } : { verdict, peer, url };
        if (url === undefined) this.#judged = judged;
        options.judged(judged);
      },
      told: () => options.told(this),
      opened: (peer) => options.opened(this, peer),
      syncNeeded: (type) => {
        this.mirroring?.lacks();
        const { clock, disks, geometries, windowBytes } = options;
        this.syncs.start({ clock, type, replicator: this.replicator, disks, geometries, windowBytes });
        options.syncing();
      },
      inSync: () => {
        this.syncs.done();
        options.inSync(this);
      },
      syncInterrupted: (reason) => {
        this.mirroring?.lacks();
        this.syncs.end(reason);
      },
      notified: (notice, peer) => options.notified(this, notice, peer),
      paused: () => {
        this.mirroring?.lacks();
        options.paused(this);
      },
      lost: (reason) => {
        this.mirroring?.lacks();
        this.syncs.end(reason);
        options.lost();
      },
    });
  }
}
