import assert from "node:assert/strict";
import type { AgentEvent } from "../../proto/status.ts";
import { DiskModel } from "./disk-model.ts";
import type { PairDisk, PairMember, PairObserver } from "./pair.ts";
import type { SimProcess } from "./sim-host.ts";
import type { CrashKind } from "./simulated-crash.ts";

/**
 * The truth about hosts that share their disks, and whose roles change: what the disks hold for the guest of the one side
 * that may write them, and what each checkpoint holds.
 */
export class SharedRoleModel implements PairObserver {
  readonly #disks: readonly PairDisk[];
  readonly #listener: (member: PairMember, event: AgentEvent) => void;
  readonly #checkpoints = new Map<number, { readonly process: SimProcess; readonly disks: readonly DiskModel[] }>();
  #guest: readonly DiskModel[];
  #writer: PairMember | undefined;
  readonly #mayReuse: boolean;

  /** `mayReuse`: of three hosts one may be promoted that has not seen all epochs. */
  constructor(
    disks: readonly PairDisk[],
    contents: readonly Buffer[],
    listener: (member: PairMember, event: AgentEvent) => void,
    { mayReuse = false } = {},
  ) {
    this.#mayReuse = mayReuse;
    this.#disks = disks;
    this.#guest = contents.map((content) => new DiskModel(content));
    this.#listener = listener;
  }

  begin(primary: PairMember): void {
    this.#writer = primary;
  }

  /** Who may write the disks. */
  get writer(): PairMember | undefined {
    return this.#writer;
  }

  get guest(): readonly DiskModel[] {
    return this.#guest;
  }

  hasCheckpoint(epoch: number): boolean {
    return this.#checkpoints.has(epoch);
  }

  checkpointOf(epoch: number, index: number): DiskModel {
    const disk = this.#checkpoints.get(epoch)?.disks[index];
    assert(disk !== undefined, `no barrier has closed epoch ${epoch}`);
    return disk;
  }

  requested(message: Parameters<PairObserver["requested"]>[0], by: PairMember): void {
    if (message.type !== "barrier") return;
    assert(by === this.#writer, `${by.name} takes a checkpoint of disks that it does not write`);
    const { process } = by.host;
    const before = this.#checkpoints.get(message.epoch);
    const disks = this.#guest.map((disk) => disk.fork());
    if (before?.process === process) {
      const isSame = disks.every((disk, index) =>
        disk.content().equals(before.disks[index]?.content() ?? Buffer.alloc(0)),
      );
      assert(isSame, `the barrier of epoch ${message.epoch} has another place in the second stream`);
      return;
    }
    // One that no other side has seen is void with the side that has closed it.
    assert(before === undefined || this.#mayReuse, `epoch ${message.epoch} is closed a second time`);
    this.#checkpoints.set(message.epoch, { process, disks });
  }

  happened(member: PairMember, event: AgentEvent): void {
    this.#listener(member, event);
  }

  /** The writer has answered its guest. */
  acknowledged(member: PairMember): void {
    assert(member === this.#writer, `${member.name} has written disks that the other side was promoted on`);
  }

  /** A side was promoted: to a checkpoint, or, with epoch 0, to the disks as a crash of the other host has left them. */
  promoted(member: PairMember, epoch: number): void {
    if (this.#writer === member) return;
    this.#writer = member;
    if (epoch > 0) this.#guest = this.#disks.map((_, index) => this.checkpointOf(epoch, index).fork());
    else for (const disk of this.#guest) disk.crashed("power");
  }

  /** Everything of a disk as the writer's guest reads it, while nobody writes. */
  readBack(index: number, content: Buffer): void {
    const disk = this.#guest[index];
    disk?.check(content, 0, `${this.#disks[index]?.name} on ${this.#writer?.name}`);
    disk?.adopt(content);
  }

  died(member: PairMember, kind: CrashKind): void {
    if (member === this.#writer) for (const disk of this.#guest) disk.crashed(kind);
  }
}
