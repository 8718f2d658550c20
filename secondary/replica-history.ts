import { ColobusError } from "../proto/errors.ts";
import type { Hello, Message } from "../proto/replication-messages.ts";
import type { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import { sizesAgreed } from "../shared/block/growth.ts";
import type { Log } from "../shared/host/log.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { adopted, givenUpForNoOther, heard, lackingStill, toldOf } from "../shared/replication/lineage.ts";
import { PeerTracking, type PeerTrackingOptions } from "../shared/replication/peer-tracking.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

export type BeginMessage = Extract<Message, { type: "begin" }>;

/** The history that a source's disks belong to. */
export type HistoryOfSource = Pick<Extract<Message, { type: "sync" }>, "lineage" | "ancestors">;

/** The same of a source of which everything has arrived. */
export interface SourceHistory extends HistoryOfSource {
  /** What it has begun to send since: a sync of that is under way. */
  readonly later: readonly string[];
}

/** An operator's word on whom this side is to follow: nothing of it is recorded before that one's session begins. */
export interface FollowOrder {
  /** The primary's agent id. */
  readonly primary: string;
  /** Where this side is to dial it; undefined: it dials this side, or is whom the record has dialled already. */
  readonly url: string | undefined;
  /** What the record says of it from then on. */
  readonly change: (record: StateRecord) => StateRecord;
}

/** Whom the dirty bitmaps count from, and these where they were made now; else they are the ones that this side has. */
export interface TrackedPeer {
  readonly peer: string;
  readonly tracking: PeerTracking | undefined;
}

export interface ReplicaHistoryOptions {
  readonly state: StateFile;
  readonly log: Log;
  /** What this side has changed by itself, as a primary, and no source has taken over yet. */
  readonly tracking: PeerTracking;
  /** What new dirty bitmaps are made of; the disks have come into being. */
  readonly trackingOptions: () => PeerTrackingOptions;
}

/** Keeps the secondary's record of whose copy it is: its sessions, the histories that it hears of and adopts, and its own changes. */
export class ReplicaHistory {
  readonly #options: ReplicaHistoryOptions;
  /** The order that is being carried out. */
  order: FollowOrder | undefined;

  constructor(options: ReplicaHistoryOptions) {
    this.#options = options;
  }

  /** The record as it is to be once the order is carried out. */
  get ordered(): StateRecord {
    const { record } = this.#options.state;
    return this.order?.change(record) ?? record;
  }

  /** The order, where it is that peer which it names. */
  orderFor(peer: Hello): FollowOrder | undefined {
    return this.order?.primary === peer.agentId ? this.order : undefined;
  }

  /**
   * Both sides know of the session before data flows, and then of no earlier one: at the next handshake neither can be
   * taken for an older copy. With an `order` this is the record that has it.
   */
  async paired(
    peer: Hello,
    {
      begin,
      peerSubject,
      order,
    }: {
      readonly begin: BeginMessage;
      readonly peerSubject: string | undefined;
      readonly order: FollowOrder | undefined;
    },
  ): Promise<void> {
    const { agentId } = peer;
    await this.#options.state.update((before) => {
      const record = order === undefined ? before : order.change(before);
      return {
        ...lackingStill(sizesAgreed(givenUpForNoOther(record, agentId), peer.disks), agentId),
        pairing: { peer: agentId, sessions: [begin.session] },
        ...(peerSubject === undefined ? {} : { peerSubject }),
      };
    });
    // A source that sends everything needs no list of what differs.
    if (begin.extent !== "delta") await this.forgetOwnChanges();
  }

  /** What this side has changed by itself, in the order of the peer's disks; undefined: nothing. */
  ownChanges(peer: Hello | undefined): readonly ClusterBitmap[] | undefined {
    const { tracking, state } = this.#options;
    if (tracking.peer === null || peer === undefined) return undefined;
    return peer.disks.map(({ name, sizeBytes }) => {
      const index = state.record.disks.findIndex((disk) => disk.name === name);
      const clusters = tracking.dirty(index).dirtyClusters();
      // What lies behind the end of the peer's disk is no part of it.
      clusters.removeRange(Math.ceil((sizeBytes ?? 0) / state.record.clusterBytes), clusters.maximum() + 1);
      return clusters;
    });
  }

  async forgetOwnChanges(): Promise<void> {
    if (this.#options.state.record.tracks !== null) await this.#options.tracking.forget();
  }

  /** A source begins to send. `told`: a checkpoint that this side lacks, and that was told to be committed. */
  async hear(lineage: string, told?: number): Promise<void> {
    await this.#change((record) => toldOf(heard(record, lineage), told));
  }

  /** That checkpoint is told to be committed, and this side lacks it. */
  async hearTold(epoch: number): Promise<void> {
    await this.#change((record) => toldOf(record, epoch));
  }

  async #change(change: (record: StateRecord) => StateRecord): Promise<void> {
    const { state } = this.#options;
    if (change(state.record) !== state.record) await state.update(change);
  }

  /** Where there is a checkpoint to return to, the source's history is this side's as soon as everything has arrived. */
  async adopt(source: SourceHistory): Promise<void> {
    const { state } = this.#options;
    const { committed, outdated, lineage, history } = state.record;
    if (committed.epoch === 0 || outdated) return;
    if (lineage === source.lineage && history.heard.length === 0) return;
    await state.update((record) => adopted(record, source));
  }

  /**
   * For a promotion: the peer's copy is this side's checkpoint, but for what came after it, and what the secondary's VM
   * has written. That is dirty, durably, when the promise resolves. undefined: nothing is known of the peer's copy.
   */
  async trackPeer(disks: readonly ReplicaDisk[]): Promise<TrackedPeer | undefined> {
    const { state, tracking, trackingOptions } = this.#options;
    const peer = this.#peerOfCopy;
    if (peer === undefined) return undefined;
    const clusters = disks.map(({ epochs, active }) => {
      const differing = epochs.changedSince(state.record.committed.epoch);
      differing.orInPlace(active.clusters());
      return differing;
    });
    return this.#written(async () => {
      if (state.record.tracks === null) {
        return { peer, tracking: await PeerTracking.create(trackingOptions(), peer, clusters) };
      }
      await tracking.begin(peer, clusters);
      return { peer, tracking: undefined };
    });
  }

  /**
   * For a rollback to the checkpoint of `epoch`: what came after it is dirty, durably, when the promise resolves. False:
   * nothing is known of the peer's copy.
   */
  async trackRolledBack(disks: readonly ReplicaDisk[], epoch: number): Promise<boolean> {
    const peer = this.#peerOfCopy;
    if (peer === undefined) return false;
    const clusters = disks.map(({ epochs }) => epochs.changedSince(epoch));
    return (await this.#written(() => this.#options.tracking.begin(peer, clusters).then(() => true))) ?? false;
  }

  /** Whose copy is this side's checkpoint but for what it knows; undefined: nobody's, as far as is known. */
  get #peerOfCopy(): string | undefined {
    const { state, tracking } = this.#options;
    const { pairing, outdated, committed, tracks, mode } = state.record;
    if (mode === "shared") return undefined; // the peer has no copy
    if (pairing === null || outdated || committed.epoch === 0) return undefined;
    if (tracks === null) return pairing.peer;
    return tracks === pairing.peer && tracking.peer === tracks ? tracks : undefined;
  }

  /** undefined where the list cannot be written: a full file system must keep no failover off. */
  async #written<T>(write: () => Promise<T>): Promise<T | undefined> {
    try {
      return await write();
    } catch (error) {
      if (!(error instanceof ColobusError)) throw error;
      this.#options.log.warn(
        { reason: error },
        "what the peer's copy lacks cannot be written down: it will get everything",
      );
      return undefined;
    }
  }
}
