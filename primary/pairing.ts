import { ColobusError } from "../proto/errors.ts";
import type { Hello, Site } from "../proto/replication-messages.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { SyncExtent } from "../proto/words.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { ClusterBitmap, clusterRuns, type ClusterRun } from "../shared/block/cluster-bitmap.ts";
import { endClusterOf, firstClusterOf, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import { newId, type Random } from "../shared/host/random.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { confirmed, namingKnown } from "../shared/replication/lineage.ts";
import { peerEntryOf, withPeerEntry } from "../shared/replication/peer-slots.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import type { SourceSession } from "./source-session.ts";

export interface PairingOptions {
  readonly state: StateFile;
  /** Which of the record's peers this is about. */
  readonly slot: number;
  readonly tracking: PeerTracking;
  readonly random: Random;
  readonly geometries: readonly ClusterGeometry[];
  /** Where this side's images are. */
  readonly site: () => Site;
  /** As for the replicator. */
  readonly mayJoin: (peer: Hello) => Pending;
  /** Resolves with the epoch that is open from here on. */
  readonly opened: (peer: Hello) => Promise<number>;
}

/**
 * What a primary records before data flows to a secondary: whom the dirty bitmaps count from, which session the two are
 * in, and what the secondary itself knows to differ.
 */
export class Pairing {
  readonly #options: PairingOptions;
  /** What the secondary of the opening session knows to differ, by disk. */
  #differing: readonly ClusterBitmap[] = [];
  /** The id of the session that was begun last. */
  #session: string | undefined;
  /** Sessions begin one after the other. */
  #beginning: Promise<void> = Promise.resolve();

  constructor(options: PairingOptions) {
    this.#options = options;
  }

  /** Asks the secondary to make itself ready, once what the session stands on is durable. Errors: `io-error` … */
  begin(session: SourceSession, hello: Hello, peer: Hello, extent: SyncExtent): Promise<void> {
    this.#differing = this.#options.geometries.map(() => new ClusterBitmap());
    const begun = this.#beginning.then(() => this.#begin(session, hello, peer, extent));
    this.#beginning = begun.catch(() => undefined); // the caller has the error
    return begun;
  }

  /** Takes what the secondary knows to differ. Errors: `protocol-error`. */
  differ(disk: number, runs: readonly ClusterRun[]): void {
    const clusters = this.#differing[disk];
    const count = this.#options.geometries[disk]?.clusterCount ?? 0;
    for (const { first, end } of runs) {
      if (clusters === undefined || end > count) {
        throw new ColobusError("protocol-error", "the peer tells differences outside of its disks");
      }
      clusters.addRange(first, end);
    }
  }

  /**
   * The secondary has recorded the session: makes durable here what it knows to differ, so that it may forget it there,
   * and forgets earlier sessions, so that a copy of it from before this one is not taken for it. Errors: `io-error` …
   */
  unite(): Promise<void> {
    const differing = this.#differing;
    const session = this.#session;
    const { state, slot } = this.#options;
    const peer = peerEntryOf(state.record, slot).pairing?.peer;
    this.#differing = [];
    this.#options.tracking.paired();
    const united = this.#beginning.then(async () => {
      for (const [disk, clusters] of differing.entries()) {
        if (!clusters.isEmpty) await this.#options.tracking.add(disk, [...clusterRuns(clusters)]);
      }
      await state.update((record) => {
        stillWith(record, peer);
        return session === undefined ? record : confirmed(record, session);
      });
    });
    this.#beginning = united.catch(() => undefined); // the caller has the error
    return united;
  }

  /** Resolves when nothing is being recorded any more. */
  settled(): Promise<void> {
    return this.#beginning;
  }

  /** A disk that is shorter on the secondary lacks what is behind its end there. */
  async #addMissing(hello: Hello, peer: Hello): Promise<void> {
    for (const [disk, { name, sizeBytes }] of hello.disks.entries()) {
      const there = peer.disks.find((one) => one.name === name)?.sizeBytes ?? null;
      const geometry = this.#options.geometries[disk];
      if (geometry === undefined || sizeBytes === null || there === null || there >= sizeBytes) continue;
      await this.#options.tracking.add(disk, [
        { first: firstClusterOf(geometry, there), end: endClusterOf(geometry, 0, sizeBytes) },
      ]);
    }
  }

  async #begin(session: SourceSession, hello: Hello, peer: Hello, extent: SyncExtent): Promise<void> {
    const { state, slot, tracking, random, site, mayJoin, opened } = this.#options;
    if (session.isClosed) return;
    const joining = mayJoin(peer);
    if (joining !== undefined) await joining;
    if (session.isClosed) return;
    // What it lacks was judged by another place's bitmaps, which another peer has taken since.
    if (extent === "delta" && tracking.peer !== peer.agentId) throw greetAnew();
    if (extent === "full" || extent === "assumed") await tracking.begin(peer.agentId, extent);
    else await this.#addMissing(hello, peer);
    if (session.isClosed) return;
    const id = newId(random);
    // A checkpoint that is void stays so until the secondary has recorded this very session, after it has given it up.
    const isKept = extent !== "rearm" && peer.pairing?.peer === state.record.agentId;
    const before = isKept ? peer.pairing?.sessions[0] : undefined;
    const pairing = { peer: peer.agentId, sessions: before === undefined ? [id] : [id, before] };
    const { peerSubject } = session;
    await state.update((record) =>
      withPeerEntry(stillWith(namingKnown(record), peer.agentId), slot, { pairing, peerSubject }),
    );
    this.#session = id;
    const openEpoch = await opened(peer);
    if (session.isClosed) return;
    const diskSizes = hello.disks.map((disk) => disk.sizeBytes ?? 0);
    session.begin({ session: id, extent, lineage: hello.lineage ?? "", openEpoch, diskSizes, site: site() });
  }
}

function greetAnew(): ColobusError {
  return new ColobusError("replaced", "another peer has the place by which this one was judged", "It is tried again.");
}

/** The record, unless an operator has had another agent take the peer's place since the handshake. */
function stillWith(record: StateRecord, peer: string | undefined): StateRecord {
  if (peer !== undefined && record.replaced?.includes(peer) !== true) return record;
  throw new ColobusError("peer-replaced", "an operator had another agent take the peer's place");
}
