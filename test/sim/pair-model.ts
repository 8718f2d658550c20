import assert from "node:assert/strict";
import type { AgentEvent, Status } from "../../proto/status.ts";
import type { DataMessage, Message } from "../../proto/replication-messages.ts";
import { DiskModel, type ModelWrite } from "./disk-model.ts";
import type { MirrorStream } from "./mirror-stream.ts";
import { imagePath, type PairDisk, type PairMember, type PairObserver } from "./pair.ts";
import { SeededRandom } from "./seeded-random.ts";
import type { CrashKind } from "./simulated-crash.ts";

/** The VM state of an epoch: bytes that no other epoch's has, of one chunk mostly, and of several now and then. */
export function vmStateBytesOf(epoch: number): Buffer {
  const random = new SeededRandom(epoch).fork("VM state");
  const bytes = random.bytes(1 + random.below(random.pick([100, 20_000, 700_000])));
  bytes.write(String(epoch));
  return bytes;
}

/**
 * What a pair may do, as a model: the disks of the primary, what each barrier closed, and which checkpoint the
 * secondary must be able to return to.
 *
 * The barriers are seen in the stream itself: all disks of the primary are copied at the moment at which a barrier takes
 * its place behind the writes before it. From then on the epoch is *closed*. A commit or a discard that was asked for
 * may happen until it is answered, or found out from the secondary's record; one that was answered has happened.
 *
 * Invariants held here: an epoch number closes once; the committed epoch only grows, and only to a closed epoch whose
 * commit was asked for and which was not withdrawn; an answered checkpoint is never lost.
 */
export class PairModel implements PairObserver {
  /** The primary's disks as its guest must see them; after a promotion those of the promoted side. */
  guest: readonly DiskModel[];
  /** The secondary's committed view, with its own VM's writes; empty before the first commit. */
  view: readonly DiskModel[] = [];
  /** The secondary's committed epoch as last seen. */
  committed = 0;
  readonly counts = { barriers: 0, prepared: 0, committed: 0, discarded: 0, voided: 0 };
  readonly #disks: readonly PairDisk[];
  /** Closed epochs that have a VM state when they are committed. */
  readonly #withVmState = new Set<number>();
  readonly #snapshots = new Map<number, readonly Buffer[]>();
  readonly #commitsAsked = new Set<number>();
  readonly #discardsAsked = new Set<number>();
  readonly #discarded = new Set<number>();
  readonly #prepared = new Set<number>();
  readonly #listener: (member: PairMember, event: AgentEvent) => void;
  /** In mode `mirror`: what has followed each barrier. */
  readonly #stream: MirrorStream | undefined;
  #primary: PairMember | undefined;
  #lastClosed = 0;
  /** The secondary may find that it has lost its checkpoint: it never fsyncs, and its host lost its power. */
  #mayBeVoid = false;
  /** The operator has asked the secondary to give its checkpoints up. */
  #mayBeGivenUp = false;
  /** It had none as that was asked: one whose commit was under way may go, until the primary is told of it. */
  #mayGoUntold = false;
  /** The operator has asked the secondary to go back to that checkpoint, and it may have done so. */
  #mayBeRolledBackTo: number | undefined;
  /** The newest barrier that was closed when the secondary lost its checkpoints. */
  #voidThrough = 0;
  #committedAnswered = 0;

  constructor(
    disks: readonly PairDisk[],
    contents: readonly Buffer[],
    listener: (member: PairMember, event: AgentEvent) => void,
    stream?: MirrorStream,
  ) {
    this.#stream = stream;
    if (stream !== undefined) this.sent = (message, by) => this.#sent(stream, message, by);
    this.#disks = disks;
    this.guest = contents.map((content) => new DiskModel(content));
    this.#listener = listener;
  }

  /** Whose disks a barrier closes. */
  watch(primary: PairMember): void {
    this.#primary = primary;
  }

  // What the primary asks for and is told

  requested(message: Parameters<PairObserver["requested"]>[0]): void {
    // A primary that was overruled may not know yet.
    if (this.#primary === undefined) return;
    switch (message.type) {
      case "barrier":
        this.#close(message.epoch);
        if (message.vmstate === true) this.#withVmState.add(message.epoch);
        if (message.commit) this.#commitsAsked.add(message.epoch);
        break;
      case "commit":
        this.#commitsAsked.add(message.epoch);
        break;
      case "discard":
        for (const epoch of message.epochs) this.#discardsAsked.add(epoch);
        break;
    }
  }

  sent?: (message: DataMessage | Extract<Message, { type: "sync" }>, by: PairMember) => void;

  #sent(stream: MirrorStream, message: Parameters<MirrorStream["sent"]>[0], by: PairMember): void {
    if (this.#primary === by) stream.sent(message, by);
  }

  /** The primary has told its guest of a write, while the pair called itself Established. */
  acknowledged(disk: number, write: ModelWrite): void {
    if (this.#primary !== undefined) this.#stream?.acknowledged(this.#primary, disk, write);
  }

  happened(member: PairMember, event: AgentEvent): void {
    if (member === this.#primary) {
      const epoch = Number(event.data.epoch);
      // An answer from before the secondary lost its checkpoints binds it no more.
      const isBinding = epoch > this.#voidThrough;
      if (event.type === "checkpoint-prepared") {
        this.counts.prepared += 1;
        if (isBinding) this.#prepared.add(epoch);
      } else if (event.type === "checkpoint-committed") {
        this.counts.committed += 1;
        if (isBinding) this.#committedAnswered = Math.max(this.#committedAnswered, epoch);
        this.#mayGoUntold = false;
      } else if (event.type === "checkpoint-discarded") {
        for (const discarded of event.data.epochs as readonly number[]) this.discardAnswered(discarded);
      }
    }
    this.#listener(member, event);
  }

  /** The secondary has confirmed that the checkpoint is withdrawn. */
  discardAnswered(epoch: number): void {
    this.counts.discarded += 1;
    this.#discarded.add(epoch);
  }

  /** The VM state that belongs to the checkpoint; undefined where that is one of the disks. */
  vmStateOf(epoch: number): Buffer | undefined {
    return this.#withVmState.has(epoch) ? vmStateBytesOf(epoch) : undefined;
  }

  isClosed(epoch: number): boolean {
    return epoch <= this.#lastClosed && (this.#snapshots.has(epoch) || epoch <= this.committed);
  }

  /** Whether the secondary must have the checkpoint as prepared: nothing was asked that could have ended it. */
  mustBePrepared(epoch: number): boolean {
    if (!this.#prepared.has(epoch) || this.#discardsAsked.has(epoch) || epoch <= this.committed) return false;
    for (const asked of this.#commitsAsked) if (asked >= epoch) return false;
    return true;
  }

  /** What binds the secondary now, as one comparable text: two moments with the same promises allow the same. */
  describePromises(): string {
    const sets = [this.#commitsAsked, this.#discardsAsked, this.#discarded, this.#prepared];
    const epochs = [this.#lastClosed, this.committed, this.#committedAnswered];
    const view = this.view.map((disk) => disk.describeDoubt());
    return JSON.stringify([epochs, ...sets.map((set) => [...set]), view, this.#stream?.describePromises()]);
  }

  #close(epoch: number): void {
    assert(epoch > this.#lastClosed, `epoch ${epoch} is closed after ${this.#lastClosed}: numbers never repeat`);
    this.#lastClosed = epoch;
    this.counts.barriers += 1;
    const snapshot = this.#disks.map((disk, index) => {
      const content = this.#primary?.host.disk.readFile(imagePath(disk));
      assert(content !== undefined);
      this.guest[index]?.check(content, 0, `${disk.name} at the barrier of epoch ${epoch}`);
      return content;
    });
    this.#snapshots.set(epoch, snapshot);
    const by = this.#primary;
    if (by === undefined) return;
    this.#stream?.barrier(
      epoch,
      by,
      snapshot.map((content) => new DiskModel(content)),
      snapshot,
    );
  }

  // What the secondary shows

  /** Takes the secondary's committed epoch as it is now. True when it is another one than before. */
  observeCommitted(epoch: number): boolean {
    const isLost = epoch === 0 && this.committed > 0;
    if (epoch === 0 && (this.#mayBeVoid || this.#mayBeGivenUp || (isLost && this.#mayGoUntold))) {
      // A barrier that commits may have been under way when the checkpoint was given up, and comes behind that. Where there
      // was no checkpoint, it may have been prepared since.
      const comesBehind = (asked: number): boolean => this.committed === 0 || !this.#prepared.has(asked);
      const underWay = this.#mayBeGivenUp ? [...this.#commitsAsked].filter(comesBehind) : [];
      this.#forgetCheckpoints();
      for (const asked of underWay) this.#commitsAsked.add(asked);
      this.#mayBeGivenUp = false;
      if (isLost) this.#mayGoUntold = false;
    }
    this.#mayBeVoid = false;
    if (epoch === this.#mayBeRolledBackTo && epoch < this.committed) this.rolledBack(epoch);
    assert(
      epoch >= this.#committedAnswered,
      `the secondary has committed ${epoch}, though the commit of ${this.#committedAnswered} was answered`,
    );
    if (epoch === this.committed) return false;
    assert(epoch > this.committed, `the committed epoch went back from ${this.committed} to ${epoch}`);
    const snapshot = this.#snapshots.get(epoch);
    assert(snapshot !== undefined, `the secondary has committed epoch ${epoch}, which no barrier has closed`);
    assert(this.#commitsAsked.has(epoch), `epoch ${epoch} was committed by itself`);
    assert(!this.#discarded.has(epoch), `epoch ${epoch} was withdrawn, and is committed`);
    this.committed = epoch;
    // A request of the secondary's VM that is still under way waited for the commit, and goes to the new view.
    const old = this.view;
    if (this.#stream !== undefined) {
      this.view = this.#stream.at(epoch);
      for (const [index, disk] of old.entries()) this.view[index]?.takeReads(disk);
    } else
      this.view = snapshot.map((content, index) => {
        const disk = new DiskModel(content);
        const replaced = old[index];
        if (replaced !== undefined) disk.takeOver(replaced);
        return disk;
      });
    for (const set of [this.#prepared, this.#discardsAsked, this.#commitsAsked]) {
      for (const old of set) if (old <= epoch) set.delete(old);
    }
    return true;
  }

  /** Checks the secondary's own account of its checkpoints. */
  observeSecondary(epoch: Status["epoch"]): void {
    this.observeCommitted(epoch.committed);
    for (const prepared of epoch.prepared) {
      assert(prepared > epoch.committed, `epoch ${prepared} is prepared behind the committed ${epoch.committed}`);
      assert(this.#snapshots.has(prepared), `epoch ${prepared} is prepared, and no barrier has closed it`);
      assert(!this.#discarded.has(prepared), `epoch ${prepared} was withdrawn, and is prepared again`);
    }
    for (const retained of epoch.retained) {
      assert(retained < epoch.committed, `epoch ${retained} is retained, and ${epoch.committed} is committed`);
      this.contentAt(retained);
    }
    for (const prepared of this.#prepared) {
      if (this.mustBePrepared(prepared)) {
        assert(epoch.prepared.includes(prepared), `epoch ${prepared} was prepared, and is lost`);
      }
    }
  }

  secondaryDied(kind: CrashKind): void {
    this.#stream?.secondaryDied();
    for (const disk of this.view) disk.crashed(kind);
  }

  /** The host of a secondary that never fsyncs has lost its power: what it says when it is back decides. */
  secondaryMayBeVoid(): void {
    this.#mayBeVoid = true;
  }

  /** From now on the secondary may be found without a checkpoint, once. */
  checkpointGivenUp(): void {
    this.#mayBeGivenUp = true;
    this.#mayGoUntold = this.committed === 0;
  }

  /** From now on the secondary may be found at the checkpoint `epoch`, once, and later ones are no more then. */
  rollbackAsked(epoch: number): void {
    this.#mayBeRolledBackTo = epoch;
  }

  rolledBack(epoch: number): void {
    this.#mayBeRolledBackTo = undefined;
    this.view = this.contentAt(epoch).map((content) => new DiskModel(content));
    this.committed = epoch;
    this.#committedAnswered = epoch;
    this.#voidThrough = this.#lastClosed;
    for (const asked of [this.#prepared, this.#discardsAsked, this.#commitsAsked]) asked.clear();
  }

  /** The disks as they were when the epoch was closed, which is, or was, committed. */
  contentAt(epoch: number): readonly Buffer[] {
    const snapshot = this.#snapshots.get(epoch);
    assert(snapshot !== undefined, `epoch ${epoch} is a checkpoint, and no barrier has closed it`);
    assert(!this.#discarded.has(epoch), `epoch ${epoch} was withdrawn, and is a checkpoint`);
    return snapshot;
  }

  #forgetCheckpoints(): void {
    this.counts.voided += 1;
    this.#voidThrough = this.#lastClosed;
    this.committed = 0;
    this.view = [];
    this.#committedAnswered = 0;
    // What the barriers closed stays known: an answer about one of them may still be on its way to the operator.
    for (const asked of [this.#prepared, this.#discardsAsked, this.#commitsAsked]) asked.clear();
  }

  /** What the secondary shows is of one moment, as far as a pair without epochs promises that; nobody has written to it. */
  checkMoment(contents: readonly Buffer[]): void {
    this.#stream?.checkPrefix(this.committed, contents);
  }

  /** The host of the guest's disks has died. */
  guestDied(kind: CrashKind): void {
    for (const disk of this.guest) disk.crashed(kind);
  }

  /** The dead primary's images are what its guest finds again. Its agent is not running. */
  recoverGuest(member: PairMember): void {
    for (const [index, disk] of this.#disks.entries()) {
      const content = member.host.disk.readFile(imagePath(disk));
      this.guest[index]?.check(content, 0, `${disk.name} after the crash of the primary`);
      this.guest[index]?.adopt(content);
    }
  }

  /** The secondary serves its committed view as primary from now on. */
  promoted(discardActive: boolean): void {
    const snapshot = this.#snapshots.get(this.committed);
    assert(snapshot !== undefined);
    this.guest =
      this.#stream !== undefined
        ? this.#stream.promoted(this.committed)
        : discardActive || this.#withVmState.has(this.committed)
          ? snapshot.map((content) => new DiskModel(content))
          : this.view;
    this.view = [];
    this.#primary = undefined;
  }
}
