import { asColobusError, ColobusError } from "../proto/errors.ts";
import { UNAUTHENTICATED_LINKS_MAX } from "../proto/limits.ts";
import type { Hello, OperationKind } from "../proto/replication-messages.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { both } from "../shared/block/both.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { Link } from "../shared/replication/link.ts";
import { peerEntryOf } from "../shared/replication/peer-slots.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import { refusalOf, takesNoSessions } from "../shared/replication/refusal.ts";
import { decideBetween } from "../shared/replication/shared-verdict.ts";
import type { Pulse } from "../shared/replication/pulse.ts";
import type { Replicator } from "./replicator.ts";
import type { Judged } from "./secondary-place.ts";
import { SecondaryReads } from "./secondary-reads.ts";
import { SourceSession } from "./source-session.ts";

/** A place for one secondary, and what keeps it equal. */
export interface Place {
  readonly slot: number;
  readonly tracking: PeerTracking;
  readonly replicator: Replicator;
}

export interface SecondariesOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly state: StateFile;
  /** One for each secondary that there may be, at least one. */
  readonly places: readonly Place[];
  readonly token: Buffer | undefined;
  readonly peerTimeoutMs: number;
  readonly windowBytes: number;
  readonly hello: () => Hello;
  /** What a handshake came to with a peer that has no place: it was given up, or is another side's. */
  readonly judged: (judged: Judged) => void;
  /** What the pings of a session carry, where an arbiter decides who serves; `peer`: whose it is, once that is known. */
  readonly pulse: (peer: () => string | undefined) => Pulse | undefined;
}

/**
 * Owns the links to a primary's secondaries until their peers have proved themselves, gives each its place, and puts a
 * guest's operation into the stream of each. A secondary keeps its place by its agent id; where there is only one place,
 * whoever comes last has it.
 *
 * A guest waits for each secondary that is in a session as far as `--ack` says, and for none that is not.
 */
export class Secondaries {
  readonly #options: SecondariesOptions;
  readonly all: readonly Replicator[];
  /** What guests read there. */
  readonly reads: SecondaryReads;
  readonly #first: Replicator;
  /** Beside the first one. */
  readonly #others: readonly Replicator[];
  #unproved = 0;
  #stopping = false;

  constructor(options: SecondariesOptions) {
    this.#options = options;
    const [first, ...others] = options.places.map(({ replicator }) => replicator);
    if (first === undefined) throw new RangeError("a primary has a place for a secondary");
    this.all = [first, ...others];
    this.#first = first;
    this.#others = others;
    this.reads = new SecondaryReads(options.log, options.places);
  }

  get isConnected(): boolean {
    return this.#first.isConnected || this.#others.some((one) => one.isConnected);
  }

  get isEstablished(): boolean {
    return this.#first.isEstablished || this.#others.some((one) => one.isEstablished);
  }

  /**
   * Whether a link to the peer at `url` is wanted; where there is one place, to anybody. Not beside a session that is only
   * opening, either: two sides that dial each other would replace each other's for as long as the records take to be written.
   */
  isLinkWanted(url: string): boolean {
    if (this.#others.length === 0) return !this.#first.isTaken;
    return !this.all.some((one) => one.url === url && one.isTaken && this.#isSurelyAt(one));
  }

  /**
   * Whether the secondary of a place is at its URL. Where some place has none, the record does not say which: the agent there may be
   * another one, until it was met there.
   */
  #isSurelyAt({ isReached }: Replicator): boolean {
    return isReached || this.all.every(({ url }) => url !== null);
  }

  /** By the peer's id, those of which `choose` names a session. */
  sessions(choose: (replicator: Replicator) => SourceSession | undefined): Map<string, SourceSession> {
    const sessions = new Map<string, SourceSession>();
    for (const replicator of this.all) {
      const session = choose(replicator);
      if (session?.peer !== undefined) sessions.set(session.peer.agentId, session);
    }
    return sessions;
  }

  /**
   * Takes a link to a peer, whoever has dialled; `url`: this side has, there. `ended` is called when it is over: `wasReady`
   * tells that there had been a stream.
   */
  accept(link: Link, ended: (wasReady: boolean) => void = () => undefined, url: string | null = null): void {
    if (this.#stopping || this.#unproved >= UNAUTHENTICATED_LINKS_MAX) {
      link.start({ message: () => undefined, closed: () => ended(false) });
      link.close(takesNoSessions());
      return;
    }
    const options = this.#options;
    let isProved = false;
    let wasReady = false;
    /** Whom a refusal is told of before it is known whose link this is. */
    let owner = this.all.find((one) => url !== null && one.url === url) ?? this.#first;
    let isStranger = false;
    this.#unproved += 1;
    const hello = options.hello();
    const session: SourceSession = new SourceSession({
      link,
      clock: options.clock,
      random: options.random,
      hello,
      token: options.token,
      peerTimeoutMs: options.peerTimeoutMs,
      windowBytes: options.windowBytes,
      pulse: options.pulse(() => session.peer?.agentId),
      opened: (peer) => {
        this.#unproved -= 1;
        isProved = true;
        const place = this.#isGivenUp(peer) ? undefined : this.#placeOf(peer, session.peerSubject, url);
        isStranger = place === undefined;
        if (place === undefined) throw this.#refusalOf(hello, peer, url);
        owner = place;
        owner.open(session, hello, peer, url);
        for (const one of this.all) if (one !== owner) one.cede(url);
      },
      differs: (disk, runs) => owner.receiveDifferences(session, disk, runs),
      ready: () => {
        owner.ready(session);
        wasReady = true;
      },
      stalled: (reason) => owner.stalled(session, reason),
      notified: (notice) => owner.notified(notice),
      closed: (reason, missing) => {
        if (!isProved) this.#unproved -= 1;
        if (!isStranger) owner.closed(session, reason, missing);
        ended(wasReady);
      },
    });
  }

  /** A dial failed. */
  dialFailed(reason: ColobusError, url: string | null): void {
    (this.all.find((one) => one.url === url) ?? this.#first).dialFailed(reason);
  }

  /** As `Replicator.forward`, to each of them: done when all of them are. */
  forward(kind: OperationKind, disk: number, offset: number, length: number, payload: Buffer | undefined): Pending {
    if (this.#others.length === 0) return this.#first.forward(kind, disk, offset, length, payload);
    let pending: Pending;
    let refusal: ColobusError | undefined;
    for (const one of this.all) {
      // None of them misses it, whatever another one has refused it for.
      try {
        pending = both(pending, one.forward(kind, disk, offset, length, payload));
      } catch (error) {
        refusal ??= asColobusError(error);
      }
    }
    if (refusal === undefined) return pending;
    pending?.catch(() => undefined); // the refusal is told
    throw refusal;
  }

  /** As `Replicator.room`. */
  room(): Pending {
    let pending = this.#first.room();
    for (const one of this.#others) pending = both(pending, one.room());
    return pending;
  }

  /** As `Replicator.flush`. */
  flush(): Pending {
    let pending = this.#first.flush();
    for (const one of this.#others) pending = both(pending, one.flush());
    return pending;
  }

  /** As `Replicator.sendAgain`. */
  sendAgain(disk: number, offset: number, length: number): void {
    for (const one of this.all) one.sendAgain(disk, offset, length);
  }

  /** As `PeerTracking.mark`, for each of them. */
  mark(disk: number, offset: number, length: number): Pending {
    const { places } = this.#options;
    let pending = places[0]?.tracking.mark(disk, offset, length);
    for (let index = 1; index < places.length; index += 1) {
      pending = both(pending, places[index]?.tracking.mark(disk, offset, length));
    }
    return pending;
  }

  /** Leaves the sessions, once everything sent is stable there or `drainTimeout` resolves. */
  async stop(drainTimeout: Promise<void>, reason: ColobusError): Promise<void> {
    await Promise.all(this.all.map((one) => one.stop(drainTimeout, reason)));
    this.#stopping = true;
  }

  /** One that has no place any more. Where there is one place, it judges for itself. */
  #isGivenUp({ agentId }: Hello): boolean {
    const { places, state } = this.#options;
    return places.length > 1 && state.record.replaced?.includes(agentId) === true;
  }

  /** It has no place, but this side has to hear of it if it was promoted. */
  #refusalOf(hello: Hello, peer: Hello, url: string | null): ColobusError {
    const verdict = decideBetween(hello, peer);
    const refusal = refusalOf(verdict, hello.agentId);
    if (refusal === undefined) return this.#noPlace();
    this.#options.judged({ verdict, peer, url });
    return refusal;
  }

  #noPlace(): ColobusError {
    return new ColobusError(
      "role-conflict",
      `this primary has its ${this.#options.places.length} secondaries, and the peer is none of them`,
      "Give up one that is gone for good: `colobus forget PEER` on the primary; or start it with a larger --secondaries.",
    );
  }

  /** undefined: every place is another secondary's. */
  #placeOf(peer: Hello, subject: string | undefined, url: string | null): Replicator | undefined {
    const { places, state } = this.#options;
    const [only, ...others] = places;
    if (only !== undefined && others.length === 0) return only.replicator;
    const entries = places.map((place) => ({ place, entry: peerEntryOf(state.record, place.slot) }));
    const own = entries.find(({ place, entry }) => {
      return (place.replicator.peerId ?? entry.pairing?.peer ?? entry.tracks) === peer.agentId;
    });
    if (own !== undefined) {
      const recorded = own.entry.peerSubject;
      if (recorded !== undefined && subject !== undefined && subject !== recorded) throw takenName();
      return own.place.replicator;
    }
    const free = entries.filter(
      ({ place, entry }) => entry.pairing === null && entry.tracks === null && !place.replicator.isTaken,
    );
    // Whoever answers where a secondary that is not connected was dialled is on its host, and has taken its place.
    const replaced = entries.find(({ place }) => url !== null && place.replicator.url === url);
    if (replaced !== undefined && !replaced.place.replicator.isTaken) {
      const { replicator } = replaced.place;
      if (free.length === 0 || this.#isSurelyAt(replicator)) return replicator;
    }
    // Who has dialled itself leaves a place that this side dials for another one, while there is any other.
    const found = free.find(({ place }) => place.replicator.url === url) ?? free[0];
    return found?.place.replicator;
  }
}

function takenName(): ColobusError {
  return new ColobusError(
    "auth-failed",
    "the certificate is valid, but of another host than the secondary whose agent id the peer names",
    "Connect the right hosts; a host that takes a secondary's place begins with an empty state directory.",
  );
}
