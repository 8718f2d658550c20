import assert from "node:assert/strict";
import { DiskModel } from "./disk-model.ts";
import type { PairDisk, PairMember } from "./pair.ts";
import type { CrashKind } from "./simulated-crash.ts";

/** What the guest of each side that is, or was, Primary must see. */
export class ServingGuests {
  readonly #disks: readonly PairDisk[];
  readonly #models = new Map<PairMember, readonly DiskModel[]>();

  constructor(disks: readonly PairDisk[]) {
    this.#disks = disks;
  }

  begin(primary: PairMember, contents: readonly Buffer[]): void {
    this.#models.set(
      primary,
      contents.map((content) => new DiskModel(content)),
    );
  }

  has(member: PairMember): boolean {
    return this.#models.has(member);
  }

  /** Whether that is still what the side's guest sees: a request may be answered after its role was handed over. */
  isCurrent(member: PairMember, model: DiskModel): boolean {
    return this.#models.get(member)?.includes(model) === true;
  }

  diskOf(member: PairMember, index: number): DiskModel {
    const model = this.#models.get(member)?.[index];
    assert(model !== undefined, `${member.name} has served no guest`);
    return model;
  }

  /** All disks of a side as its guest sees them now: copies. */
  forksOf(member: PairMember): DiskModel[] {
    return this.#disks.map((_, index) => this.diskOf(member, index).fork());
  }

  /** A side was promoted: from here on its guest sees that. `checkpoint` is not changed. */
  promoted(member: PairMember, checkpoint: readonly DiskModel[]): void {
    this.#models.set(
      member,
      checkpoint.map((disk) => disk.fork()),
    );
  }

  /** A side serves no more: what its images hold now is its checkpoint. undefined where it had served no guest. */
  demoted(member: PairMember): { readonly epoch: number; readonly disks: readonly DiskModel[] } | undefined {
    const epoch = member.agent?.status().epoch.committed;
    const disks = this.#models.get(member)?.map((disk) => disk.fork());
    this.#models.delete(member);
    return epoch === undefined || disks === undefined ? undefined : { epoch, disks };
  }

  /** Everything of a disk as its guest reads it, while nobody writes. */
  readBack(member: PairMember, index: number, content: Buffer): void {
    const disk = this.diskOf(member, index);
    disk.check(content, 0, `${this.#disks[index]?.name} on ${member.name}`);
    disk.adopt(content);
  }

  died(member: PairMember, kind: CrashKind): void {
    for (const disk of this.#models.get(member) ?? []) disk.crashed(kind);
  }
}
