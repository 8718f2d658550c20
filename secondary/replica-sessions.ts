import { ColobusError, isForWantOfSpace } from "../proto/errors.ts";
import { UNAUTHENTICATED_LINKS_MAX } from "../proto/limits.ts";
import type { Hello, Site, SyncPhase } from "../proto/replication-messages.ts";
import type { EventType } from "../proto/words.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import type { SharedMark } from "../shared/journal/shared-mark.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { Pulse } from "../shared/replication/pulse.ts";
import { lackedCheckpoint } from "../shared/replication/lineage.ts";
import { ownHello } from "../shared/replication/own-hello.ts";
import type { Link } from "../shared/replication/link.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import { takesNoSessions } from "../shared/replication/refusal.ts";
import { Strangers } from "../shared/replication/strangers.ts";
import { areRelated, findBehind, type Verdict } from "../shared/replication/verdict.ts";
import { havingVmState, preparedIn, type Checkpoints } from "./checkpoints.ts";
import type { DiskFaults } from "./disk-faults.ts";
import type { Following } from "./following.ts";
import type { OverlaySpace } from "./overlay-space.ts";
import type { ReplicaDisks } from "./replica-disks.ts";
import type { ReplicaHistory } from "./replica-history.ts";
import { ReplicaSession } from "./replica-session.ts";
import type { VmStateStore } from "./vm-state-store.ts";

export interface ReplicaSessionsOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  /** The mark beside shared disks, where there is a place for it. */
  readonly sharedMark: SharedMark | undefined;
  readonly tracking: PeerTracking;
  readonly token: Buffer | undefined;
  readonly peerTimeoutMs: number;
  readonly windowBytes: number;
  /** Where this side's images are. */
  readonly site: () => Site;
  /** What pings carry, where an arbiter decides who serves. */
  readonly pulse?: Pulse | undefined;
  /** The primary hands its role to this side, under that lineage; `siblings`: where it dials its other secondaries. */
  readonly takeOver: (lineage: string, siblings: readonly string[]) => void;
  /** A handshake has come to a verdict, or a stream may begin. */
  readonly judged: () => void;
  readonly history: ReplicaHistory;
  readonly disks: ReplicaDisks;
  readonly space: OverlaySpace;
  readonly faults: DiskFaults;
  readonly checkpoints: () => Checkpoints;
  readonly following: () => Following;
  readonly vmStates: VmStateStore;
}

/** What a handshake with a proved peer came to. */
export interface Judged {
  readonly verdict: Verdict;
  readonly peer: Hello;
}

/**
 * Owns the sessions with primaries: takes their links, says what this side is, and serves at most one of them; a new one
 * ends the old one first. Nobody else may touch the disks before a session that has ended is done with what it applies.
 */
export class ReplicaSessions {
  readonly #options: ReplicaSessionsOptions;
  readonly #sessions = new Set<ReplicaSession>();
  /** Sessions that have ended, and still apply what they had begun: nobody else may touch the disks before they are done. */
  readonly #leaving = new Set<Promise<void>>();
  readonly #strangers: Strangers;
  #current: ReplicaSession | undefined;
  #peerSite: Site | undefined;
  #lastContactMs: number | undefined;
  #lastError: ColobusError | undefined;
  /** How many reasons there are to take no sessions now. */
  #endings = 0;
  #lastVerdict: Judged | undefined;
  #ownVerdict: Judged | undefined;

  constructor(options: ReplicaSessionsOptions) {
    this.#options = options;
    this.#strangers = new Strangers(options.clock);
  }

  /** The session that is open. */
  get current(): ReplicaSession | undefined {
    return this.#current;
  }

  /** Where the primary's images are, as it said last. */
  get peerSite(): Site | undefined {
    return this.#peerSite;
  }

  /** Whether by the `ownVerdict` the two are no pair any more. */
  get standsAlone(): boolean {
    const kind = this.#ownVerdict?.verdict.kind;
    return kind === "split-brain" || kind === "outdated";
  }

  /** Why there is no session; undefined while there is one, whoever else was refused meanwhile. */
  get lastError(): ColobusError | undefined {
    return this.#current === undefined ? this.#lastError : undefined;
  }

  /** What the last handshake with a proved peer came to. */
  get lastVerdict(): Judged | undefined {
    return this.#lastVerdict;
  }

  /** The same of the primary that this side follows: who was refused beside the session with that one is a stranger. */
  get ownVerdict(): Judged | undefined {
    return this.#ownVerdict;
  }

  /** How long ago the primary was heard; null: never by this process. */
  get contactAgeMs(): number | null {
    if (this.#current !== undefined) return this.#current.silenceMs;
    return this.#lastContactMs === undefined ? null : this.#options.clock.nowMs() - this.#lastContactMs;
  }

  /** Whether the primary `agentId` has the session, and its stream may begin: the record says so. */
  isFollowing(agentId: string): boolean {
    return this.#current?.peer?.agentId === agentId && this.#current.replication !== "Off";
  }

  /**
   * Whether a link to the peer at `url` is wanted. Beside a session, which may be only opening, only to whom an order names: one to
   * the primary that this side follows would end that.
   */
  isLinkWanted(url: string): boolean {
    const { order } = this.#options.history;
    const primaries = [...this.#sessions].flatMap(({ peer }) => peer?.agentId ?? []);
    return order?.url === undefined ? primaries.length === 0 : order.url === url && !primaries.includes(order.primary);
  }

  /** A dial failed. */
  dialFailed(reason: ColobusError): void {
    if (this.#current === undefined && !this.standsAlone) this.#lastError = reason;
  }

  /** Takes a link to a peer, whoever has dialled. `ended` is called when it is over: `wasReady` tells that there had been a stream. */
  accept(link: Link, ended: (wasReady: boolean) => void = () => undefined): void {
    const unproved = [...this.#sessions].filter((session) => session !== this.#current);
    if (this.#endings > 0 || unproved.length >= UNAUTHENTICATED_LINKS_MAX) {
      link.start({ message: () => undefined, closed: () => ended(false) });
      link.close(takesNoSessions());
      return;
    }
    const { space, faults, emit, ...options } = this.#options;
    const session = new ReplicaSession({
      link,
      clock: options.clock,
      random: options.random,
      hello: this.hello(),
      presentHello: () => this.hello(),
      token: options.token,
      peerTimeoutMs: options.peerTimeoutMs,
      windowBytes: options.windowBytes,
      pulse: options.pulse,
      site: options.site,
      durability: options.state.record.durability,
      checkpoints: options.checkpoints(),
      following: options.following(),
      vmStates: options.vmStates,
      isMarked: options.sharedMark !== undefined,
      assertNotAnothers: (peer) => this.#assertNotAnothers(peer),
      judged: (verdict, peer) => this.#judged(verdict, peer),
      history: options.history,
      takeOver: (lineage, siblings) => this.#takeOver(session, lineage, siblings),
      opened: (opened) => this.#opened(opened),
      prepareDisks: (names, sizes) => options.disks.prepare(names, sizes),
      growDisk: (name, sizeBytes) => options.disks.grow(name, sizeBytes),
      fullness: () => {
        space.retry();
        return space.full ?? faults.waits;
      },
      ready: () => {
        if (space.isWanting) this.tellWanted();
        options.judged();
      },
      failed: (reason, disk) => {
        if (isForWantOfSpace(reason)) space.report(reason);
        else faults.report(reason, disk);
      },
      faults,
      synced: (_, phase) => emit(EVENT_OF_SYNC_PHASE[phase], {}),
      prepared: (epoch) => emit("checkpoint-prepared", { epoch }),
      committed: (epoch) => {
        emit("checkpoint-committed", { epoch });
        space.retry();
      },
      discarded: (epochs) => {
        if (epochs.length > 0) emit("checkpoint-discarded", { epochs });
      },
      givenUp: (epoch) => {
        emit("checkpoint-given-up", { epoch });
      },
      closed: (closed, reason) => {
        this.#closed(closed, reason);
        ended(closed.replication !== "Off");
      },
    });
    this.#sessions.add(session);
  }

  /** Ends all sessions and takes no more. Resolves when nothing of them is under way. */
  async end(reason: ColobusError): Promise<void> {
    this.#endings += 1;
    this.#options.space.end();
    await Promise.all([...[...this.#sessions].map((session) => session.end(reason)), ...this.#leaving]);
  }

  /** Takes sessions again, when every `end` is made up for. */
  welcome(): void {
    this.#endings -= 1;
    if (this.#endings === 0) this.#options.space.resume();
  }

  /** Does `work` while no session is open, and none can begin. */
  async without<T>(why: string, work: () => Promise<T>): Promise<T> {
    await this.end(new ColobusError("replaced", `this side takes no stream while ${why}`));
    try {
      return await work();
    } finally {
      this.welcome();
    }
  }

  /** What kept writes from being taken may be over. */
  unstall(): void {
    const { space, faults } = this.#options;
    if (space.full === undefined && faults.waits === undefined) this.#current?.unstall();
  }

  /** Asks the primary for a checkpoint. */
  tellWanted(): void {
    this.#current?.notify({ type: "wanted", ...this.#options.space.describeWanted() });
  }

  /**
   * A secondary that holds nothing yet, or not yet everything, would follow more than one primary. Two are not to take it from
   * each other for ever: the one that has it keeps it while its session lasts, but for a newer one, and for whom an order names.
   * For whose data an operator gave up what is here, that one keeps it also while it is away: only another order takes that back.
   */
  #assertNotAnothers(peer: Hello): void {
    const { history, state } = this.#options;
    const { order } = history;
    if (order !== undefined) {
      if (order.primary === peer.agentId) return;
      throw new ColobusError(
        "role-conflict",
        `an operator is just having this secondary follow another primary, ${order.primary}`,
        "It is tried again. To have this one follow the peer: `colobus rejoin --peer WS_URL` on it.",
      );
    }
    const followed = this.#current?.peer;
    const { discardsOwn, discardsOwnFor } = state.record;
    if (followed === undefined && discardsOwn && discardsOwnFor !== undefined && discardsOwnFor !== peer.agentId) {
      throw new ColobusError(
        "role-conflict",
        `this secondary follows another primary, ${discardsOwnFor}, for whose data an operator gave up what is here`,
        "Wait for that one. If it is gone for good: `colobus rejoin --peer WS_URL` on this secondary, with the peer's address.",
      );
    }
    if (followed === undefined || followed.agentId === peer.agentId || findBehind(followed, peer) === followed) return;
    const follows = `this secondary follows another primary, ${followed.agentId}`;
    throw areRelated(followed, peer)
      ? new ColobusError(
          "role-conflict",
          `${follows}, which the peer is no later one than`,
          "To have it follow the peer: `colobus rejoin --peer WS_URL` on it.",
        )
      : new ColobusError(
          "role-conflict",
          `${follows}, whose disks have no common history with the peer's`,
          "Give each primary a secondary of its own: check --peer on both, and --listen. To have this one, stop the other primary.",
        );
  }

  #judged(verdict: Verdict, peer: Hello): void {
    const { emit, state, tracking } = this.#options;
    const isNews = this.#lastVerdict?.verdict.kind !== verdict.kind;
    this.#lastVerdict = { verdict, peer };
    // Also beside one that is only opening.
    const isFollowed = [...this.#sessions].some((one) => one.peer !== undefined && one.peer.agentId !== peer.agentId);
    if (verdict.kind === "sync" || !isFollowed) this.#ownVerdict = this.#lastVerdict;
    if (verdict.kind === "split-brain" && isNews) {
      emit("split-brain", {
        peer: peer.agentId,
        wouldLoseBytes: { here: tracking.bytes, there: peer.changedBytes },
      });
    }
    if (verdict.kind === "outdated" && isNews) emit("outdated", { peer: state.record.agentId, lineage: peer.lineage });
    this.#options.judged();
  }

  #takeOver(session: ReplicaSession, lineage: string, siblings: readonly string[]): Promise<void> {
    const checkpoints = this.#options.checkpoints();
    const { writes } = checkpoints.volumeSinceCommit();
    const isCommitted = checkpoints.committed.epoch > 0 && !this.#options.state.record.outdated;
    if (session !== this.#current || !session.isInSync || !isCommitted || writes > 0) {
      return Promise.reject(
        new ColobusError(
          "no-checkpoint",
          "this secondary has not committed everything that the primary has sent",
          "Try again: a switchover commits what there is.",
        ),
      );
    }
    this.#options.takeOver(lineage, siblings);
    return Promise.resolve();
  }

  /** What this side says of itself to a peer. */
  hello(): Hello {
    const { history, tracking } = this.#options;
    const record = history.ordered;
    const lacks = lackedCheckpoint(record);
    const vmstates = havingVmState(record);
    return {
      ...ownHello(record, this.#options),
      // Own changes of which the list is lost: no bitmap proves anything then.
      pairing: record.tracks !== null && tracking.peer === null ? null : record.pairing,
      role: "Secondary",
      ack: "async",
      disks: record.disks.map(({ name, sizeBytes, formerSizeBytes }) =>
        formerSizeBytes === undefined ? { name, sizeBytes } : { name, sizeBytes, formerSizeBytes },
      ),
      committed: record.committed.epoch,
      ...(lacks === undefined ? {} : { lacks }),
      // What awaits its VM state ends with the session in which that was to come.
      prepared: preparedIn(record),
      ...(vmstates.length === 0 ? {} : { vmstates }),
      epochSeen: this.#options.checkpoints().epochSeen,
      assumeInSync: false,
    };
  }

  async #opened(session: ReplicaSession): Promise<void> {
    const older = [...this.#sessions].filter((other) => other !== session && other.peer !== undefined);
    const reason = new ColobusError("replaced", "a newer session of the primary takes the place of this one");
    await Promise.all([...older.map((other) => other.end(reason)), ...this.#leaving]);
    if (!this.#sessions.has(session)) return;
    this.#current = session;
    this.#peerSite = session.peerSite;
    this.#lastError = undefined;
    this.#options.emit("peer-connected", { address: session.peerAddress, agentId: session.peer?.agentId ?? null });
  }

  #closed(session: ReplicaSession, reason: ColobusError): void {
    this.#sessions.delete(session);
    const left = session.end(reason).finally(() => this.#leaving.delete(left));
    this.#leaving.add(left);
    if (session === this.#current) {
      this.#current = undefined;
      this.#lastContactMs = this.#options.clock.nowMs() - session.silenceMs;
      this.#lastError = reason;
      this.#options.emit("peer-disconnected", { address: session.peerAddress, ...reason.toJSON() });
    } else if (session.isProbe && reason.code !== "auth-failed") {
      return;
    } else if (this.#endings === 0 && reason.code !== "replaced" && reason.message !== this.#lastError?.message) {
      // A refused primary tries again for ever: each reason is reported once.
      this.#lastError = reason;
      if (!session.isProved && !this.#strangers.mayTell()) return;
      this.#options.emit("peer-refused", { address: session.peerAddress, ...reason.toJSON() });
    }
  }
}

const EVENT_OF_SYNC_PHASE = {
  begin: "sync-started",
  pause: "sync-paused",
  end: "sync-finished",
} as const satisfies Record<SyncPhase, EventType>;
