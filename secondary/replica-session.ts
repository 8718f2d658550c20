import assert from "node:assert/strict";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { HANDSHAKE_TIMEOUT_MS, REQUESTS_MAX } from "../proto/limits.ts";
import {
  encodeContent,
  toErrorBody,
  type ErrorBody,
  type Hello,
  type Message,
  type Notice,
  type Site,
  type SyncPhase,
  type VmStateMessage,
} from "../proto/replication-messages.ts";
import { isInSync, type Durability, type ReplicationState, type SyncExtent } from "../proto/words.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { Random } from "../shared/host/random.ts";
import { differsMessages } from "../shared/replication/differing-runs.ts";
import type { Link } from "../shared/replication/link.ts";
import { refusalOf } from "../shared/replication/refusal.ts";
import { decideBetween } from "../shared/replication/shared-verdict.ts";
import type { Verdict } from "../shared/replication/verdict.ts";
import type { Pulse } from "../shared/replication/pulse.ts";
import { Session, type SessionHandlers } from "../shared/replication/session.ts";
import { listedFor, type Checkpoints } from "./checkpoints.ts";
import type { DiskFaults } from "./disk-faults.ts";
import type { Following } from "./following.ts";
import { ReplicaAnswers, type RangeAnswer, type RangeQuestion } from "./replica-answers.ts";
import type { ReplicaDisk } from "./replica-disk.ts";
import type { BeginMessage, ReplicaHistory } from "./replica-history.ts";
import { ReplicaWriter } from "./replica-writer.ts";
import { SessionHistory } from "./session-history.ts";
import type { VmStateStore } from "./vm-state-store.ts";

type SessionMessage = Parameters<SessionHandlers["message"]>[0];

export interface ReplicaSessionOptions {
  readonly link: Link;
  readonly clock: Clock;
  readonly random: Random;
  /** What this side has said of itself. */
  readonly hello: Hello;
  /** What it would say by now. */
  readonly presentHello: () => Hello;
  readonly token: Buffer | undefined;
  readonly peerTimeoutMs: number;
  readonly windowBytes: number;
  /** Where this side's images are. */
  readonly site: () => Site;
  /** What pings carry, where an arbiter decides who serves. */
  readonly pulse?: Pulse | undefined;
  readonly durability: Durability;
  readonly checkpoints: Checkpoints;
  readonly following: Following;
  readonly vmStates: VmStateStore;
  /** There is a mark beside shared disks. */
  readonly isMarked: boolean;
  /** Throws where this side follows another primary, and the two have nothing to do with each other. */
  readonly assertNotAnothers: (peer: Hello) => void;
  /** The peer has proved itself, and this is what the two are to do. */
  readonly judged: (verdict: Verdict, peer: Hello) => void;
  readonly history: ReplicaHistory;
  /** The primary hands its role over. Resolves when the promotion has begun, which ends the session. Errors: why not. */
  readonly takeOver: (lineage: string, siblings: readonly string[]) => Promise<void>;
  /** Ends the session that this one replaces, and resolves when nothing of it is under way any more. */
  readonly opened: (session: ReplicaSession) => Promise<void>;
  /** The disks in the order of the primary's hello; makes those that are to be created at the primary's size. */
  readonly prepareDisks: (names: readonly string[], sizes: readonly number[]) => Promise<readonly ReplicaDisk[]>;
  /** Makes a disk at least that long. Errors: why it cannot be; it is as it was then. */
  readonly growDisk: (name: string, sizeBytes: number) => Promise<void>;
  /** undefined: the overlays can take writes; else why not. */
  readonly fullness: () => ColobusError | undefined;
  /** The stream may begin. */
  readonly ready: () => void;
  /** This side could not go on, for a reason of its own, of `disk` if it is known. The session is closed with it. */
  readonly failed: (reason: ColobusError, disk: string | undefined) => void;
  readonly faults: DiskFaults;
  readonly synced: (session: ReplicaSession, phase: SyncPhase) => void;
  readonly committed: (epoch: number) => void;
  readonly prepared: (epoch: number) => void;
  readonly discarded: (epochs: readonly number[]) => void;
  /** What was overwritten on the shared disk meanwhile has voided the checkpoint `epoch`. */
  readonly givenUp: (epoch: number) => void;
  readonly closed: (session: ReplicaSession, reason: ColobusError) => void;
}

/**
 * The secondary's end of one session with a primary: waits for `begin`, then feeds the stream to a ReplicaWriter and
 * answers barriers, commits and discards. Commits and discards are about barriers that were answered before, so they
 * do not queue behind the data.
 */
export class ReplicaSession {
  readonly #options: ReplicaSessionOptions;
  readonly #session: Session;
  #peer: Hello | undefined;
  #peerSite: Site | undefined;
  /** What the handshake came to: the peer is the source. */
  #verdict: Verdict | undefined;
  readonly #history: SessionHistory;
  #disks: readonly ReplicaDisk[] = [];
  #writer: ReplicaWriter | undefined;
  #ended: Promise<void> | undefined;
  /** Settles when this side has made itself ready, or has given that up. */
  #begun: Promise<void> | undefined;
  #beginTimer: Timer | undefined;
  /** What the network had not taken of what this side knows to differ, when it had told everything. */
  #toldBytes = 0;
  /** Requests that are not answered yet, and calls that wait for their turn in the stream. */
  #openRequests = 0;
  #requests: Promise<unknown> = Promise.resolve();
  /** Active until the primary has said that everything is here: before it says anything, writes may be missing. */
  #sync: "none" | "active" | "paused" = "active";
  #stalled: ColobusError | undefined;
  /** The primary compares the two copies. */
  #isVerified = false;
  readonly #answers = new ReplicaAnswers();
  /** Called when the session ends: what waits for its turn in the stream will not have it. */
  readonly #giveUpWaiting: (() => void)[] = [];

  constructor(options: ReplicaSessionOptions) {
    this.#options = options;
    this.#history = new SessionHistory(options.history);
    this.#session = new Session({
      link: options.link,
      clock: options.clock,
      random: options.random,
      hello: options.hello,
      token: options.token,
      peerTimeoutMs: options.peerTimeoutMs,
      pulse: options.pulse,
      sentBytes: () => this.#toldBytes,
      handlers: {
        opened: (peer) => this.#opened(peer),
        message: (message) => this.#receive(message),
        closed: (reason) => this.#closed(reason),
      },
    });
  }

  /** The primary's hello, once it has proved itself. */
  get peer(): Hello | undefined {
    return this.#peer;
  }

  /** Where the primary's images are, once it has begun. */
  get peerSite(): Site | undefined {
    return this.#peerSite;
  }

  /** Whether the peer says that it only asks what the two would do: the end of the session is no news then. */
  get isProbe(): boolean {
    return this.#session.isProbe;
  }

  /** Whether the other side has proved that it is the peer. */
  get isProved(): boolean {
    return this.#session.isProved;
  }

  get peerAddress(): string {
    return this.#session.peerAddress;
  }

  get silenceMs(): number {
    return this.#session.silenceMs;
  }

  get replication(): ReplicationState {
    if (this.#writer === undefined) return "Off";
    if (this.#stalled !== undefined || this.#sync === "paused") return "PausedSyncT";
    if (this.#sync === "active" || !this.#isTakenUp) return "SyncTarget";
    return this.#isVerified ? "VerifyT" : "Established";
  }

  /** Whether everything that the primary has sent is applied in order, and nothing is missing. */
  get isInSync(): boolean {
    return isInSync(this.replication);
  }

  get #isMirror(): boolean {
    return this.#options.hello.mode === "mirror";
  }

  /** In mode `mirror` a sync is over when its state is what a failover returns. */
  get #isTakenUp(): boolean {
    return !this.#isMirror || this.#options.following.isOn;
  }

  /** Ends the session, and resolves when nothing of it is under way any more. */
  async end(reason: ColobusError): Promise<void> {
    this.#session.close(reason);
    await this.#ended;
  }

  /** The overlays have room again. */
  unstall(): void {
    if (this.#stalled === undefined) return;
    this.#stalled = undefined;
    this.#session.send({ type: "unstall" });
  }

  /** Tells the primary something, once the stream may begin. */
  notify(notice: Notice): void {
    if (this.#writer !== undefined) this.#session.send(notice);
  }

  /**
   * Runs `work` when everything that has arrived is applied, and before anything later is. Resolves with false when the
   * session has no stream, or ends before; a rejection of `work` is passed on.
   */
  betweenWrites(work: () => Promise<void>): Promise<boolean> {
    const writer = this.#writer;
    if (writer === undefined || this.#ended !== undefined) return Promise.resolve(false);
    return new Promise((resolve, reject) => {
      let begun = false;
      this.#giveUpWaiting.push(() => {
        if (!begun) resolve(false);
      });
      writer.enqueue(() => {
        begun = true;
        return work().then(
          () => resolve(true),
          (error: unknown) => reject(asColobusError(error)),
        );
      });
    });
  }

  #opened(peer: Hello): void {
    const { hello, judged } = this.#options;
    const verdict = decideBetween(hello, peer);
    this.#assertStill(verdict, peer);
    const refusal = refusalOf(verdict, hello.agentId);
    if (refusal === undefined) this.#options.assertNotAnothers(peer);
    judged(verdict, peer);
    if (refusal !== undefined) throw refusal;
    if (peer.mode === "shared" && peer.otherPeers !== undefined && !this.#options.isMarked) throw unmarked();
    assert(verdict.kind === "sync" && verdict.source === peer.agentId, "of a pair, the Primary is the source");
    this.#peer = peer;
    this.#verdict = verdict;
    this.#beginTimer = this.#options.clock.after(HANDSHAKE_TIMEOUT_MS, () => {
      this.#session.close(new ColobusError("peer-timeout", "the peer opened a session and did not begin"));
    });
  }

  /**
   * Another session may have brought this side another history since it has said what it was. Errors: `replaced`: what was agreed
   * on is no more what the two are to do.
   */
  #assertStill(verdict: Verdict, peer: Hello): void {
    const present = decideBetween(this.#options.presentHello(), peer);
    if (present.kind === verdict.kind && extentOf(present) === extentOf(verdict)) return;
    throw new ColobusError(
      "replaced",
      "this side has heard of another history during the handshake",
      "It is tried again.",
    );
  }

  #receive(message: SessionMessage): void {
    switch (message.type) {
      case "begin":
        this.#receiveBegin(message);
        break;
      case "data":
        this.#stream().push(message);
        break;
      case "sync":
        this.#receiveSync(message);
        break;
      case "lineage":
        this.#receiveLineage(message);
        break;
      case "told":
        this.#answer(message.id, () => this.#options.history.hearTold(message.epoch));
        break;
      case "barrier":
        this.#receiveBarrier(message);
        break;
      case "vmstate":
        this.#receiveVmState(message);
        break;
      case "vmstate-end":
        this.#answer(message.id, () => this.#endVmState(message));
        break;
      case "commit":
        this.#answer(message.id, async () => {
          await this.#options.checkpoints.commit(message.epoch, () => this.#history.source);
          this.#options.committed(message.epoch);
        });
        break;
      case "discard":
        this.#answer(message.id, async () => {
          this.#options.discarded(await this.#options.checkpoints.discard(message.epochs));
        });
        break;
      case "united":
        this.#enqueue(() => this.#options.history.forgetOwnChanges());
        break;
      case "takeover":
        this.#receiveTakeover(message);
        break;
      case "verify":
        this.#stream();
        this.#isVerified = message.active;
        break;
      case "resize":
        this.#receiveResize(message);
        break;
      case "checksum":
      case "read":
        this.#receiveQuestion(message);
        break;
      case "differs":
      case "ready":
      case "ack":
      case "vmstate-ack":
      case "answer":
      case "content":
      case "stall":
      case "unstall":
      case "wanted":
      case "given-up":
        throw new ColobusError("protocol-error", `a primary does not send "${message.type}"`);
    }
  }

  /** The primary is about to have a disk grown: from the answer on it may write behind its present end. */
  #receiveResize({ id, disk: index, sizeBytes }: Extract<Message, { type: "resize" }>): void {
    const disk = this.#disks[index];
    if (disk === undefined || this.#options.hello.mode === "shared") {
      throw new ColobusError("protocol-error", "the peer has a disk grown that it must not");
    }
    this.#answer(id, () => this.#options.growDisk(disk.name, sizeBytes));
  }

  #receiveBegin(message: BeginMessage): void {
    if (this.#begun !== undefined) throw new ColobusError("protocol-error", `the peer sent "begin" twice`);
    this.#peerSite = message.site;
    this.#beginTimer?.cancel();
    this.#begun = this.#begin(message).catch((error: unknown) => this.#fail(asColobusError(error)));
  }

  async #begin(message: BeginMessage): Promise<void> {
    const options = this.#options;
    const peer = this.#peer;
    assert(peer !== undefined);
    await options.opened(this);
    if (this.#ended !== undefined) return;
    if (this.#verdict !== undefined) this.#assertStill(this.#verdict, peer);
    // What the two have agreed on stands from here on, and so does an order that it comes of.
    const order = options.history.orderFor(peer);
    const names = peer.disks.map((disk) => disk.name);
    const isAsGreeted =
      this.#fitsVerdict(message) &&
      message.lineage === peer.lineage &&
      message.diskSizes.length === names.length &&
      peer.disks.every((disk, index) => disk.sizeBytes === message.diskSizes[index]);
    if (!isAsGreeted) throw new ColobusError("protocol-error", `the peer's "begin" does not fit its "hello"`);
    this.#disks = await options.prepareDisks(names, message.diskSizes);
    if (this.#ended !== undefined) return;
    // The shared disk was overwritten without the originals: what is held leads back to nothing.
    const givenUp = message.extent === "rearm" ? await options.checkpoints.giveUp() : 0;
    if (givenUp > 0) options.givenUp(givenUp);
    if (this.#ended !== undefined) return;
    await options.checkpoints.withdrawUnlisted(listedFor(peer, options.hello));
    if (this.#ended !== undefined) return;
    await options.checkpoints.openAt(message.openEpoch);
    if (this.#ended !== undefined) return;
    await options.history.paired(peer, { begin: message, peerSubject: this.#session.peerSubject, order });
    if (this.#ended !== undefined) return;
    options.faults.prepare(this.#disks);
    await options.following.end(options.faults.mustRewrite);
    if (this.#ended !== undefined) return;
    this.#writer = new ReplicaWriter({
      disks: this.#disks,
      clock: options.clock,
      durability: options.durability,
      sharesDisks: options.hello.mode === "shared",
      windowBytes: Math.min(options.windowBytes, peer.windowBytes),
      ack: peer.ack,
      savesOriginals: () => options.checkpoints.newestBarrier > 0 && !options.following.isOn,
      follows: () => options.following.isOn,
      makeRoom: () => options.checkpoints.makeRoom(),
      acknowledge: (received, stable) => {
        options.following.stableThrough(stable);
        this.#session.send({ type: "ack", received, stable });
      },
      applied: (operations, bytes) => {
        if (!options.following.isOn) options.checkpoints.countApplied(operations, bytes);
      },
      failed: (reason, disk) => this.#fail(reason, disk),
    });
    this.#stalled = options.fullness();
    // First, so that the primary does not begin to send what there is no room for.
    if (this.#stalled !== undefined) this.#session.send({ type: "stall", error: toErrorBody(this.#stalled) });
    const differs = message.extent === "delta" ? this.#tellOwnChanges() : 0;
    this.#session.send({ type: "ready", differs, site: options.site() });
    this.#toldBytes = this.#session.queuedBytes;
    options.ready();
  }

  /** Nothing that a primary says by itself may cost the checkpoint. */
  #fitsVerdict({ extent }: BeginMessage): boolean {
    const isOfShared = extent === "keep" || extent === "rearm";
    return this.#options.hello.mode === "shared" ? extent === extentOf(this.#verdict) : !isOfShared;
  }

  /** Returns the number of messages that it took. */
  #tellOwnChanges(): number {
    let messages = 0;
    for (const message of differsMessages(this.#options.history.ownChanges(this.#peer) ?? [])) {
      this.#session.send(message);
      messages += 1;
    }
    return messages;
  }

  #receiveSync(message: Extract<Message, { type: "sync" }>): void {
    const writer = this.#stream();
    // The end of a sync takes effect behind the data of the sync.
    this.#enqueue(async () => {
      const { lineage, phase, told } = message;
      if (phase === "end") await this.#history.adopt(message);
      else await this.#history.hear(lineage, told);
      if (phase === "begin" && this.#options.following.isOn) {
        await writer.makeStable();
        await this.#options.following.end(this.#options.faults.mustRewrite);
      }
      this.#sync = SYNC_OF_PHASE[phase];
      writer.compare({ comparing: phase === "begin", rewriting: this.#options.faults.mustRewrite });
      if (phase === "end" && this.#options.faults.isPending) {
        await writer.makeStable();
        this.#options.faults.over();
      }
      this.#options.synced(this, phase);
    });
  }

  #receiveLineage({ id, lineage, ancestors }: Extract<Message, { type: "lineage" }>): void {
    const writer = this.#stream();
    this.#countRequest();
    writer.enqueue(() =>
      this.#request(id, async () => {
        await this.#history.hear(lineage);
        if (this.#sync === "none") await this.#history.adopt({ lineage, ancestors });
      }),
    );
  }

  /** Behind everything that was sent before, as a barrier is. */
  #receiveTakeover({ id, lineage, siblings = [] }: Extract<Message, { type: "takeover" }>): void {
    const writer = this.#stream();
    this.#countRequest();
    writer.enqueue(async () => {
      await writer.makeStable();
      await this.#request(id, () => this.#options.takeOver(lineage, siblings));
    });
  }

  /** Behind everything that was sent before, and before anything that was sent later. */
  #receiveQuestion(question: RangeQuestion): void {
    const writer = this.#stream();
    const answer = this.#answers.prepare(question, this.#disks, this.#options.hello.mode);
    this.#countRequest();
    writer.enqueue(() => this.#request(question.id, answer));
  }

  /** A chunk of a state that nobody awaits any more is taken and forgotten: its end is refused. */
  #receiveVmState({ epoch, index, crc, payload }: VmStateMessage): void {
    this.#stream();
    const { checkpoints, vmStates } = this.#options;
    let error: ErrorBody | null = null;
    try {
      if (checkpoints.awaiting.includes(epoch)) vmStates.append(epoch, index, crc, payload);
    } catch (thrown) {
      const fault = asColobusError(thrown);
      if (fault.code === "protocol-error") throw fault;
      error = toErrorBody(fault);
    }
    this.#session.send({ type: "vmstate-ack", epoch, chunks: index + 1, error });
  }

  async #endVmState({ epoch, chunks, bytes, checksum }: Extract<Message, { type: "vmstate-end" }>): Promise<void> {
    const { checkpoints, vmStates, prepared } = this.#options;
    if (!checkpoints.awaiting.includes(epoch)) {
      throw new ColobusError("epoch-unknown", `checkpoint ${epoch} awaits no VM state`, "See `colobus status`.");
    }
    const mark = { chunks, bytes, checksum };
    await vmStates.seal(epoch, mark);
    await checkpoints.addState(epoch, mark);
    prepared(epoch);
  }

  #receiveBarrier({ id, epoch, commit, vmstate }: Extract<Message, { type: "barrier" }>): void {
    if (commit && vmstate === true) {
      throw new ColobusError("protocol-error", "the peer commits a checkpoint before its VM state has come");
    }
    if (this.#isMirror && (!commit || vmstate === true)) {
      throw new ColobusError("protocol-error", "the peer prepares a checkpoint, which mode mirror has not");
    }
    const writer = this.#stream();
    this.#countRequest();
    writer.enqueue(async () => {
      if (this.#sync !== "none")
        throw new ColobusError("protocol-error", "the peer sent a barrier in the middle of a sync");
      await writer.makeStable();
      await this.#request(id, async () => {
        const { checkpoints, prepared, committed } = this.#options;
        await (commit
          ? checkpoints.prepareAndCommit(epoch, () => this.#history.source)
          : checkpoints.prepare(epoch, vmstate));
        if (commit && this.#peer !== undefined) await this.#options.following.begin(this.#peer.ack);
        if (vmstate !== true) prepared(epoch);
        if (commit) committed(epoch);
      });
    });
  }

  /** Behind everything that was sent before, without an answer. */
  #enqueue(work: () => Promise<void>): void {
    this.#countRequest();
    this.#stream().enqueue(async () => {
      await work();
      this.#openRequests -= 1;
    });
  }

  #answer(id: number, work: () => Promise<void>): void {
    this.#stream();
    this.#countRequest();
    this.#requests = Promise.all([this.#requests, this.#request(id, work)]).then(() => undefined);
  }

  #countRequest(): void {
    this.#openRequests += 1;
    if (this.#openRequests > REQUESTS_MAX) {
      throw new ColobusError("protocol-error", "the peer asks for more than it waits for");
    }
  }

  /** Does what the primary asked for, and tells it the outcome. A refusal does not end the session. */
  async #request(id: number, work: () => Promise<void | RangeAnswer>): Promise<void> {
    const { clock } = this.#options;
    const startedMs = clock.nowMs();
    const answer = (error: ErrorBody | null, result?: Exclude<RangeAnswer, { content: Buffer }>): void =>
      this.#session.send({ type: "answer", id, error, tookMs: clock.nowMs() - startedMs, ...result });
    try {
      const result = await work();
      this.#writer?.acknowledge();
      if (result !== undefined && "content" in result) {
        this.#session.sendParts(encodeContent({ type: "content", id, payload: result.content }));
      } else answer(null, result ?? undefined);
    } catch (error) {
      answer(toErrorBody(asColobusError(error)));
    } finally {
      this.#openRequests -= 1;
    }
  }

  #stream(): ReplicaWriter {
    if (this.#writer === undefined)
      throw new ColobusError("protocol-error", "the peer sent data before the session was ready");
    return this.#writer;
  }

  #fail(reason: ColobusError, disk?: string): void {
    if (this.#ended !== undefined) return;
    this.#options.failed(reason, disk);
    this.#session.close(reason);
  }

  #closed(reason: ColobusError): void {
    this.#beginTimer?.cancel();
    this.#ended = (async () => {
      await this.#writer?.stop();
      await this.#begun;
      await this.#requests;
      if (this.#writer !== undefined) this.#options.vmStates.abandon();
      for (const giveUp of this.#giveUpWaiting) giveUp();
    })();
    this.#options.closed(this, reason);
  }
}

function unmarked(): ColobusError {
  return new ColobusError(
    "not-supported",
    "the primary may have several secondaries on the shared disk, of which only a mark tells which one was promoted",
    "Start this agent with --shared-mark: the file that the primary's names, by this host's path.",
  );
}

const SYNC_OF_PHASE = { begin: "active", pause: "paused", end: "none" } as const satisfies Record<SyncPhase, string>;

function extentOf(verdict: Verdict | undefined): SyncExtent | undefined {
  return verdict?.kind === "sync" ? verdict.extent : undefined;
}
