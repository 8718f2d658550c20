import type { Hello } from "../proto/replication-messages.ts";
import type { StateRecord } from "../proto/state-record.ts";
import { peerEntryOf, slotsOf } from "../shared/replication/peer-slots.ts";

/** What one secondary has, as it said last. */
interface Known {
  committed: number;
  prepared: Set<number>;
  /** It has given up what it had of epochs up to this one. An answer about one may be read after that. */
  voidThrough: number;
}

/** The checkpoints of each of a primary's secondaries, by its id: what this side was told last. */
export class PeerEpochs {
  readonly #peers = new Map<string, Known>();

  constructor(record: StateRecord) {
    for (const slot of slotsOf(record)) {
      const { pairing, committed } = peerEntryOf(record, slot);
      if (pairing !== null) this.#of(pairing.peer).committed = committed;
    }
  }

  /** The epoch that the peer has committed, 0: none, or nothing is known. */
  committedBy(peer: string): number {
    return this.#peers.get(peer)?.committed ?? 0;
  }

  isPreparedBy(peer: string, epoch: number): boolean {
    return this.#peers.get(peer)?.prepared.has(epoch) === true;
  }

  /** It opens a session, and says what it has. */
  learn(peer: Hello): void {
    // A former primary's own last state, or what was given up, is no checkpoint of this side's.
    const committed = peer.outdated ? 0 : peer.committed;
    this.#peers.set(peer.agentId, { committed, prepared: new Set(peer.prepared), voidThrough: 0 });
  }

  prepared(peer: string, epoch: number): void {
    const known = this.#of(peer);
    if (epoch > known.voidThrough) known.prepared.add(epoch);
  }

  committed(peer: string, epoch: number): void {
    const known = this.#of(peer);
    if (epoch > known.voidThrough) known.committed = Math.max(known.committed, epoch);
    for (const prepared of known.prepared) if (prepared <= epoch) known.prepared.delete(prepared);
  }

  discarded(peer: string, epochs: readonly number[]): void {
    for (const epoch of epochs) this.#of(peer).prepared.delete(epoch);
  }

  givenUp(peer: string, throughEpoch: number): void {
    this.#peers.set(peer, { committed: 0, prepared: new Set(), voidThrough: throughEpoch });
  }

  /** It is no secondary any more. */
  forget(peer: string): void {
    this.#peers.delete(peer);
  }

  /** The newest checkpoint that any of them has committed, and those that one of `connected` has prepared after it, ascending. */
  summary(connected: readonly string[]): { readonly committed: number; readonly prepared: number[] } {
    const committed = Math.max(0, ...[...this.#peers.values()].map((known) => known.committed));
    const prepared = new Set(connected.flatMap((peer) => [...(this.#peers.get(peer)?.prepared ?? [])]));
    return {
      committed,
      prepared: [...prepared].filter((epoch) => epoch > committed).sort((left, right) => left - right),
    };
  }

  #of(peer: string): Known {
    let known = this.#peers.get(peer);
    if (known === undefined) {
      known = { committed: 0, prepared: new Set(), voidThrough: 0 };
      this.#peers.set(peer, known);
    }
    return known;
  }
}
