import assert from "node:assert/strict";
import type { AgentEvent, Status } from "../../proto/status.ts";
import type { DiskModel, ModelWrite } from "./disk-model.ts";
import type { MirrorStream } from "./mirror-stream.ts";
import type { PairDisk, PairMember, PairObserver } from "./pair.ts";
import { ServingGuests } from "./serving-guests.ts";
import type { CrashKind } from "./simulated-crash.ts";

/**
 * The truth about a pair whose roles change: for each side what its guest must see while it serves, and for each
 * checkpoint what a promotion to it must show.
 */
export class RoleModel implements PairObserver {
  readonly guests: ServingGuests;
  readonly #listener: (member: PairMember, event: AgentEvent) => void;
  readonly #checkpoints = new Map<number, readonly DiskModel[]>();
  /** Writes acknowledged while the peer was known to be gone, which it has not heard of yet. */
  readonly #alone = new Map<PairMember, number>();
  /** In mode `mirror`: what has followed each barrier. */
  readonly #stream: MirrorStream | undefined;

  constructor(
    disks: readonly PairDisk[],
    listener: (member: PairMember, event: AgentEvent) => void,
    stream?: MirrorStream,
  ) {
    this.guests = new ServingGuests(disks);
    this.#stream = stream;
    if (stream !== undefined) this.sent = (message, by) => stream.sent(message, by);
    this.#listener = listener;
  }

  requested(message: Parameters<PairObserver["requested"]>[0], by: PairMember): void {
    if (message.type !== "barrier") return;
    assert(!this.#checkpoints.has(message.epoch), `epoch ${message.epoch} is closed a second time`);
    this.#closed(message.epoch, by, this.guests.forksOf(by));
  }

  /** `disks` are no one else's. */
  #closed(epoch: number, by: PairMember, disks: readonly DiskModel[]): void {
    this.#checkpoints.set(epoch, disks);
    this.#stream?.barrier(epoch, by, disks);
  }

  sent?: PairObserver["sent"];

  /** A guest was told of its write while the pair called itself Established. */
  acknowledged(member: PairMember, index: number, write: ModelWrite): void {
    this.#stream?.acknowledged(member, index, write);
  }

  /** What a secondary's view may show of a disk. */
  checkpointOf(epoch: number, index: number): DiskModel {
    const disk = this.#checkpoints.get(epoch)?.[index];
    assert(disk !== undefined, `no barrier has closed epoch ${epoch}`);
    return disk;
  }

  happened(member: PairMember, event: AgentEvent): void {
    // The peer hears of the history that this side went on with alone.
    if (event.type === "sync-started" || event.type === "sync-finished") this.#alone.delete(member);
    if (event.type === "role-changed" && event.data.role === "Primary") this.#promotedUnawares(member);
    if (event.type === "role-changed" && event.data.role === "Secondary") this.#demoted(member);
    this.#listener(member, event);
  }

  acknowledgedAlone(member: PairMember): void {
    this.#alone.set(member, (this.#alone.get(member) ?? 0) + 1);
  }

  /** A side was promoted to a checkpoint: from here on its guest sees that. */
  promoted(member: PairMember, epoch: number): void {
    const checkpoint = this.#stream?.promoted(epoch) ?? this.#checkpoints.get(epoch);
    assert(checkpoint !== undefined, `${member.name} was promoted to epoch ${epoch}, which no barrier has closed`);
    this.#alone.delete(member);
    this.guests.promoted(member, checkpoint);
  }

  /** An outdated primary has become Secondary of its own accord: nothing that it had told its guest alone may be lost. */
  rejoined(member: PairMember): void {
    const lost = this.#alone.get(member) ?? 0;
    assert(lost === 0, `${member.name} has rejoined, and ${lost} writes are lost that it had acknowledged alone`);
  }

  died(member: PairMember, kind: CrashKind): void {
    if (!this.guests.has(member)) this.#stream?.secondaryDied();
    this.guests.died(member, kind);
  }

  started(member: PairMember, status: Status | undefined): void {
    // It may have been promoted by the very call over which it died.
    if (status?.role === "Primary" && !this.guests.has(member)) this.promoted(member, status.epoch.committed);
  }

  #promotedUnawares(member: PairMember): void {
    const epoch = member.agent?.status().epoch.committed;
    if (epoch !== undefined) this.promoted(member, epoch);
  }

  #demoted(member: PairMember): void {
    const checkpoint = this.guests.demoted(member);
    if (checkpoint !== undefined) this.#closed(checkpoint.epoch, member, checkpoint.disks);
  }
}
