import { asColobusError } from "../proto/errors.ts";
import type { Hello } from "../proto/replication-messages.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { CheckpointAges } from "../shared/replication/checkpoint-ages.ts";
import { peerEntryOf, withPeerEntry } from "../shared/replication/peer-slots.ts";
import { knownBy, toldNothing, toldOf } from "../shared/replication/lineage.ts";
import type { LineageKeeper } from "./lineage-keeper.ts";
import type { PermitKeeper } from "./permit-keeper.ts";
import { mainFirst } from "./place-orders.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import { PeerEpochs } from "./peer-epochs.ts";
import type { Replicator } from "./replicator.ts";
import type { Secondaries } from "./secondaries.ts";
import type { SecondaryPlace } from "./secondary-place.ts";
import { SessionGroup, type EpochSession } from "./session-group.ts";
import type { SourceSession } from "./source-session.ts";

export interface EpochSessionsOptions {
  readonly state: StateFile;
  readonly places: () => readonly SecondaryPlace[];
  readonly secondaries: () => Secondaries;
  readonly lineages: () => LineageKeeper;
  /** With an arbiter. */
  readonly keeper: () => PermitKeeper | undefined;
  /** The last checkpoint that is known to be committed, where there is but one place, is its secondary's. */
  readonly checkpoints: () => Pick<PrimaryCheckpoints, "committed" | "hasVmState">;
}

/** What the secondaries have together. */
type Summary = ReturnType<PeerEpochs["summary"]>;

/**
 * Which of a primary's secondaries take part in a checkpoint, and what each of them has. Where there is one place, its
 * session is asked itself.
 */
export class EpochSessions {
  readonly #options: EpochSessionsOptions;
  readonly #epochs: PeerEpochs;
  /** The newest checkpoint that was told, or is about to be told, to be committed, as far as one that lacks it has to know. */
  #told: number;
  /** By session: the newest one of which its secondary knows that it lacks it. */
  readonly #heard = new WeakMap<SourceSession, number>();
  /** By peer: the epoch that it has to commit before it lacks nothing, as it knows itself. */
  readonly #lacking = new Map<string, number>();

  constructor(options: EpochSessionsOptions) {
    this.#options = options;
    this.#epochs = new PeerEpochs(options.state.record);
    const { committed, told = 0 } = options.state.record;
    // One that was promoted stands on its checkpoint.
    this.#told = Math.max(committed.epoch, told);
  }

  /** Those that are connected; only those that have `epoch`, where one is named and any has. Errors: `no-peer`. */
  connected(epoch?: number): EpochSession {
    const [first, ...others] = this.#options.places();
    if (first === undefined) throw new RangeError("there is a place for a secondary");
    if (others.length === 0) return first.replicator.session;
    const sessions = this.#sessions;
    if (sessions.size === 0) return first.replicator.session; // which says why there is none
    const having = [...sessions].filter(([peer]) => epoch === undefined || this.#epochs.isPreparedBy(peer, epoch));
    return this.#group(new Map(having.length === 0 ? sessions : having));
  }

  /** Whom a barrier goes to: all that have everything, as those of shared disks do that are connected. Errors: `no-peer`. */
  forBarrier(): EpochSession {
    const { places, state } = this.#options;
    if (places().length === 1 || state.record.mode === "shared") return this.connected();
    return this.#group(this.#options.secondaries().sessions(({ establishedSession }) => establishedSession));
  }

  /** The one secondary of a place, which is connected, to be asked for something that is about its own epochs. Errors: `no-peer`. */
  only(place: SecondaryPlace): EpochSession {
    const { session } = place.replicator;
    return this.#options.places().length === 1 ? session : this.#group(new Map([[place.peerId ?? "", session]]));
  }

  /** The last checkpoint that the secondary of a place is known to have committed. */
  committedBy(place: SecondaryPlace): number {
    const { places, checkpoints } = this.#options;
    return places().length === 1 ? checkpoints().committed : this.#epochs.committedBy(place.peerId ?? "");
  }

  /** The last checkpoint that a peer is known to have committed; 0: none, or it has no place. */
  committedByPeer(peer: string): number {
    const place = this.#options.places().find(({ peerId }) => peerId === peer);
    return place === undefined ? 0 : this.committedBy(place);
  }

  /**
   * Done when it may be told that the checkpoint of `epoch` is committed, as this side was told just now, whoever lacks it.
   * Errors: as of the permit keeper and the lineage keeper.
   */
  mayTell(epoch: number): Pending {
    const { places, state, lineages } = this.#options;
    const [only, ...others] = places();
    // Where there is one secondary, it has committed it itself.
    const isCommittedBy = (peer: string): boolean =>
      others.length === 0 ? only?.peerId === peer : this.committedByPeer(peer) >= epoch;
    const keeper = this.#options.keeper();
    // An arbiter knows of who lacks it before anybody is left behind: one that may take over never is.
    const telling = keeper?.mayTell(isCommittedBy);
    if (telling !== undefined) return telling.then(() => this.mayTell(epoch));
    // Of shared disks the mark says whose checkpoints stand.
    if (state.record.mode === "shared" || others.length === 0) return undefined;
    // The arbiter's record keeps who lacks it from taking over, and the next write parts from that one. A lineage of this side's
    // alone would part it from those as well that have the checkpoint, and may take over.
    if (keeper !== undefined && (this.#streaming.size === 0 || knownBy(state.record).every(isCommittedBy)))
      return undefined;
    const parting = this.#tellLacking(epoch, isCommittedBy) ?? lineages().parted();
    return parting?.then(() => this.mayTell(epoch));
  }

  /**
   * As `committedBy`, of this side's own history: the checkpoint of a former primary's place is the one that this side was
   * promoted from, which that peer has never had.
   */
  heldBy(place: SecondaryPlace): number {
    const { peerId } = place;
    return peerId !== undefined && hasFollowed(this.#options.state.record, peerId) ? this.committedBy(place) : 0;
  }

  /** The newest checkpoint that was told to be committed. */
  get #newest(): number {
    return Math.max(this.#told, this.#options.checkpoints().committed);
  }

  /**
   * The newest checkpoint that was told to be committed, where the secondary of a place lacks it, or the one that it knows itself
   * to lack: a failover there does not return to what was told. undefined: none. Without epochs each has everything.
   */
  lackedBy(place: SecondaryPlace): number | undefined {
    if (this.#options.state.record.mode === "mirror") return undefined;
    const told = Math.max(this.#newest, this.#lacking.get(place.peerId ?? "") ?? 0);
    return told > this.heldBy(place) ? told : undefined;
  }

  /**
   * Whether one that gets everything lacks the newest checkpoint that was told to be committed, or is outdated to the arbiter
   * until it commits: until then a failover there would not return to what was told, or be refused. In mode `mirror` each sync
   * ends with a commit. Not where the newest has a VM state: only whoever sends those is to take the next one.
   */
  get isLacked(): boolean {
    const { places, keeper, checkpoints } = this.#options;
    if (checkpoints().hasVmState(this.#newest)) return false;
    const lacks = (place: SecondaryPlace): boolean =>
      this.lackedBy(place) !== undefined || keeper()?.isBehind(place.peerId ?? "") === true;
    return places().some((place) => place.mirroring === undefined && place.replicator.isEstablished && lacks(place));
  }

  /**
   * Whether a secondary holds the newest checkpoint that was told to be committed, and that has a VM state: one of the disks
   * would take its place.
   */
  get isVmStateHeld(): boolean {
    const { places, checkpoints } = this.#options;
    const newest = this.#newest;
    return checkpoints().hasVmState(newest) && places().some((place) => this.heldBy(place) >= newest);
  }

  /** Whether a secondary is in sync without any checkpoint, and is to get one of the disks. In mode `mirror` each sync ends with a commit. */
  isFirstDue(place: SecondaryPlace): boolean {
    const { mirroring, replicator } = place;
    return mirroring === undefined && replicator.isEstablished && this.committedBy(place) === 0 && !this.isVmStateHeld;
  }

  /**
   * As `lackedBy`, and what the secondary is to be told of that: without an operator's word it is not promoted then. undefined
   * also where an arbiter, or the mark of shared disks, says who may be.
   */
  tellLackedBy(place: SecondaryPlace): number | undefined {
    const told = this.#secondariesDecide ? this.lackedBy(place) : undefined;
    if (told !== undefined && place.peerId !== undefined) this.#lacking.set(place.peerId, told);
    return told;
  }

  /** Whether nobody but the secondaries themselves can say which of several may be promoted. Without epochs each has everything. */
  get #secondariesDecide(): boolean {
    const { places, state, keeper } = this.#options;
    const { mode } = state.record;
    return places().length > 1 && keeper() === undefined && mode !== "shared" && mode !== "mirror";
  }

  /**
   * Done when those that get everything from here on, and lack that checkpoint, know so, or are lost, and it is recorded for
   * those that come back. undefined: they do, and it is. Errors: `io-error`.
   */
  #tellLacking(epoch: number, isCommittedBy: (peer: string) => boolean): Pending {
    if (!this.#secondariesDecide) return undefined;
    const { state, places } = this.#options;
    this.#told = Math.max(this.#told, epoch);
    const isLacked = places().some((place) => place.peerId !== undefined && this.committedBy(place) < epoch);
    if (isLacked && epoch > (state.record.told ?? 0)) {
      return state.update((record) => this.#withVmState(toldOf(record, epoch))).then(() => undefined);
    }
    const lacking = [...this.#streaming].filter(
      ([peer, session]) => !isCommittedBy(peer) && (this.#heard.get(session) ?? 0) < epoch,
    );
    if (lacking.length === 0) return undefined;
    const hearing = lacking.map(async ([peer, session]) => {
      try {
        this.#lacking.set(peer, epoch);
        await session.request((id) => ({ type: "told", id, epoch }));
        this.#heard.set(session, epoch);
      } catch (error) {
        session.close(asColobusError(error));
      }
    });
    return Promise.all(hearing).then(() => undefined);
  }

  /** One opens a session, and says what it lacks: of another primary's epochs the number says nothing here, but any later commit ends it. */
  learnLack({ agentId, lacks, committed }: Pick<Hello, "agentId" | "lacks" | "committed">): void {
    if (lacks === undefined) this.#lacking.delete(agentId);
    else this.#lacking.set(agentId, committed + 1);
  }

  /** One of several opens a session, and says what it has. Returns what all have then, and which of its own have a VM state. */
  learn(peer: Hello): Summary & Pick<Hello, "vmstates"> {
    this.#epochs.learn(peer);
    const { outdated, vmstates } = peer;
    return { ...this.#epochs.summary([...this.#sessions.keys(), peer.agentId]), vmstates: outdated ? [] : vmstates };
  }

  /** One has given up what it had of epochs up to this one. Returns what the others have; undefined: none has anything. */
  givenUp(peer: string, throughEpoch: number): Summary | undefined {
    this.#epochs.givenUp(peer, throughEpoch);
    this.#forgetTold();
    if (this.#options.places().length === 1) return undefined;
    const left = this.#epochs.summary([...this.#sessions.keys()]);
    return left.committed > 0 ? left : undefined;
  }

  /** What was told may have been just what is given up. */
  #forgetTold(): void {
    this.#told = 0;
    const { state } = this.#options;
    if (state.record.told === undefined) return;
    state.update(toldNothing).catch(() => undefined); // `state.fault` says so; the next commit mends it
  }

  /** One is no secondary any more. Returns what the others have. */
  forgotten(peer: string): Summary {
    this.#epochs.forget(peer);
    this.#told = 0;
    return this.#epochs.summary([...this.#sessions.keys()]);
  }

  /** What the hello says to the secondaries of all places but the first. */
  helloToOthers(): Hello["otherPeers"] {
    const { record } = this.#options.state;
    const [, ...others] = mainFirst(this.#options.places(), record);
    if (others.length === 0) return undefined;
    return others.map((place) => {
      const { pairing } = peerEntryOf(record, place.slot);
      const { peer, bytes } = place.tracking;
      return { pairing, tracks: peer, changedBytes: bytes, committed: this.committedBy(place) };
    });
  }

  /** The record with what each has committed. */
  recorded(record: StateRecord, ages: Pick<CheckpointAges, "recorded">): StateRecord {
    const [first, ...others] = mainFirst(this.#options.places(), record);
    const committed = ages.recorded(first === undefined ? 0 : this.committedBy(first));
    const whole = this.#withVmState({ ...record, committed });
    const known = others.filter(({ slot }) => peerEntryOf(record, slot).pairing !== null);
    return known.reduce(
      (changed, place) => withPeerEntry(changed, place.slot, { committed: this.committedBy(place) }),
      whole,
    );
  }

  /** The record that says of the newest checkpoint that it has a VM state, where it has: a later process is to know. */
  #withVmState(record: StateRecord): StateRecord {
    return this.#options.checkpoints().hasVmState(this.#newest) ? { ...record, vmStateEpoch: this.#newest } : record;
  }

  /** Those that get everything from here on. */
  get #streaming(): Map<string, SourceSession> {
    return this.#options.secondaries().sessions(({ streamingSession }) => streamingSession);
  }

  get #sessions(): Map<string, SourceSession> {
    return this.#options.secondaries().sessions(openSession);
  }

  #group(members: ReadonlyMap<string, SourceSession>): SessionGroup {
    return new SessionGroup({
      members,
      answered: (peer, question) => {
        if (question.type === "barrier" && question.commit) this.#epochs.committed(peer, question.epoch);
        else if (question.type === "barrier" && question.vmstate !== true) this.#epochs.prepared(peer, question.epoch);
        else if (question.type === "vmstate-end") this.#epochs.prepared(peer, question.epoch);
        else if (question.type === "commit") this.#epochs.committed(peer, question.epoch);
        else if (question.type === "discard") this.#epochs.discarded(peer, question.epochs);
      },
      mayTell: (epoch) => this.mayTell(epoch),
    });
  }
}

/** Whether a peer may have been this primary's secondary, as far as the record goes back. */
function hasFollowed(record: StateRecord, peer: string): boolean {
  return knownBy(record).includes(peer) || record.history.left?.some((one) => one.peer === peer) === true;
}

function openSession(replicator: Replicator): SourceSession | undefined {
  return replicator.isConnected ? replicator.session : undefined;
}
