import assert from "node:assert/strict";
import type { AgentEvent, Status } from "../../proto/status.ts";
import { present } from "../support/present.ts";
import type { DiskModel } from "./disk-model.ts";
import type { PairDisk, PairMember, PairObserver } from "./pair.ts";
import { ServingGuests } from "./serving-guests.ts";
import type { SimProcess } from "./sim-host.ts";
import type { CrashKind } from "./simulated-crash.ts";

interface Checkpoint {
  readonly process: SimProcess;
  readonly disks: readonly DiskModel[];
}

/**
 * The truth about a primary with two secondaries whose roles change: for each side what its guest must see while it serves,
 * for each checkpoint what a promotion to it must show, and for each side who has something that was told while it was
 * missing. What was told so is never lost without an operator's word: who has it is not synced from the side that lacks it.
 */
export class TrioModel implements PairObserver {
  readonly guests: ServingGuests;
  readonly #listener: (member: PairMember, event: AgentEvent) => void;
  /** By who has placed the barrier, and the epoch: two sides that have not spoken may use one number. */
  readonly #checkpoints = new Map<PairMember, Map<number, Checkpoint>>();
  /** By side: those that it has prepared or committed, by epoch. */
  readonly #held = new Map<PairMember, Map<number, Checkpoint>>();
  /** What a former primary's images held as it became Secondary: its checkpoint, until a newer one is committed there. */
  readonly #own = new Map<PairMember, { readonly epoch: number; readonly disks: readonly DiskModel[] }>();
  /** By the name of the side that was missing: the names of those that have what was told meanwhile. */
  readonly #told = new Map<string, Set<string>>();
  /** Names of sides whose operator has given up what they have, and where nothing was committed since: that word stands. */
  readonly #givenUp = new Set<string>();
  /** By lineage: the newest checkpoint that was told under it, or before it began. Empty again where an operator has given one up. */
  readonly #toldUnder = new Map<string, number>();
  /** The lineage of each side that has told of a checkpoint. */
  readonly #lineages = new Map<PairMember, string>();
  /** By agent id: the side's name. */
  readonly #names = new Map<string, string>();
  /** By name: who has sent to a side last. */
  readonly #sources = new Map<string, PairMember>();

  constructor(disks: readonly PairDisk[], listener: (member: PairMember, event: AgentEvent) => void) {
    this.guests = new ServingGuests(disks);
    this.#listener = listener;
  }

  /** A barrier goes to all secondaries that take part, at the same place of each stream. */
  requested(message: Parameters<PairObserver["requested"]>[0], by: PairMember): void {
    if (message.type !== "barrier") return;
    const { process } = by.host;
    const placed = entryOf(this.#checkpoints, by);
    const closed = placed.get(message.epoch);
    const disks = this.guests.forksOf(by);
    if (closed !== undefined) {
      assert(closed.process === process, `epoch ${message.epoch} is closed a second time`);
      for (const [index, disk] of disks.entries()) {
        assert(
          disk.content().equals(closed.disks[index]?.content() ?? Buffer.alloc(0)),
          `the barrier of epoch ${message.epoch} has another place in the second stream`,
        );
      }
      return;
    }
    placed.set(message.epoch, { process, disks });
  }

  /** What a secondary's view may show of a disk. */
  checkpointOf(member: PairMember, epoch: number, index: number): DiskModel {
    return present(this.#checkpointsOf(member, epoch)[index]);
  }

  #checkpointsOf(member: PairMember, epoch: number): readonly DiskModel[] {
    const own = this.#own.get(member);
    const disks = own?.epoch === epoch ? own.disks : this.#checkpointOf(member, epoch)?.disks;
    assert(disks !== undefined, `no barrier has closed epoch ${epoch}`);
    return disks;
  }

  /** What a side has told of; where it died before it could, what its last source had there, or anybody. */
  #checkpointOf(member: PairMember, epoch: number): Checkpoint | undefined {
    const source = this.#sources.get(member.name);
    const anybodys = [...this.#checkpoints.values()].findLast((placed) => placed.has(epoch));
    return (
      this.#held.get(member)?.get(epoch) ??
      (source && this.#checkpoints.get(source)?.get(epoch)) ??
      anybodys?.get(epoch)
    );
  }

  #tookPart(member: PairMember, epoch: unknown): void {
    const by = member.role === "Primary" ? member : this.#sources.get(member.name);
    const checkpoint = by && typeof epoch === "number" ? this.#checkpoints.get(by)?.get(epoch) : undefined;
    if (checkpoint !== undefined && typeof epoch === "number") entryOf(this.#held, member).set(epoch, checkpoint);
  }

  happened(member: PairMember, event: AgentEvent): void {
    if (event.type === "peer-connected") this.#learnId(member.name, member.status);
    if (event.type === "lineage-changed" && event.data.origin === "alone") this.#begun(member, event.data.lineage);
    if (event.type === "sync-started" || event.type === "sync-finished") this.#synced(member, event);
    if (event.type === "checkpoint-prepared" || event.type === "checkpoint-committed") {
      this.#tookPart(member, event.data.epoch);
    }
    if (event.type === "checkpoint-committed") {
      this.#own.delete(member);
      this.#givenUp.delete(member.name);
    }
    if (event.type === "sync-finished" || event.type === "checkpoint-committed") this.#adopted(member);
    if (event.type === "role-changed" && event.data.role === "Primary") this.#promotedUnawares(member);
    if (event.type === "role-changed" && event.data.role === "Secondary") this.#demoted(member);
    this.#listener(member, event);
  }

  /** Something was told to guests or to an operator while `missing` got nothing; `holders` have it. */
  toldWithout(missing: string, holders: readonly string[]): void {
    const told = this.#told.get(missing) ?? new Set();
    for (const holder of holders) if (!this.#givenUp.has(holder)) told.add(holder);
    this.#told.set(missing, told);
  }

  /** A primary has told that a checkpoint is committed. */
  checkpointTold(member: PairMember, epoch: number): void {
    const lineage = member.status?.lineage ?? undefined;
    if (lineage === undefined) return;
    this.#lineages.set(member, lineage);
    this.#toldUnder.set(lineage, Math.max(epoch, this.#toldUnder.get(lineage) ?? 0));
  }

  /** A side was promoted to a checkpoint, without force: it has what was told under the histories that its own supersedes. */
  supersedes(epoch: number, lineages: readonly string[]): void {
    for (const lineage of lineages) {
      const told = this.#toldUnder.get(lineage) ?? 0;
      assert(told <= epoch, `checkpoint ${told} was told, and a promotion to ${epoch} supersedes that`);
    }
  }

  #begun(member: PairMember, lineage: unknown): void {
    const before = this.#lineages.get(member);
    if (typeof lineage !== "string" || before === undefined) return;
    this.#lineages.set(member, lineage);
    this.#toldUnder.set(lineage, this.#toldUnder.get(before) ?? 0);
  }

  /** An operator has given up what that side has. */
  gaveUp(member: PairMember): void {
    this.#toldUnder.clear();
    this.#givenUp.add(member.name);
    for (const holders of this.#told.values()) holders.delete(member.name);
  }

  /** A side was promoted to a checkpoint: from here on its guest sees that. */
  promoted(member: PairMember, epoch: number): void {
    this.guests.promoted(member, this.#checkpointsOf(member, epoch));
    this.#own.delete(member);
  }

  died(member: PairMember, kind: CrashKind): void {
    this.guests.died(member, kind);
  }

  started(member: PairMember, status: Status | undefined): void {
    this.#learnId(member.name, status);
    // It may have been promoted by the very call over which it died.
    if (status?.role === "Primary" && !this.guests.has(member)) this.promoted(member, status.epoch.committed);
  }

  #learnId(name: string, status: Status | undefined): void {
    if (status !== undefined) this.#names.set(status.agentId, name);
  }

  /** A primary sends to a side: that one hears of what it has missed, and what it has that the primary lacks goes. */
  #synced(primary: PairMember, { type, data }: AgentEvent): void {
    if (typeof data.agentId !== "string") return; // a secondary says that it takes a sync
    const target = this.#names.get(data.agentId);
    assert(target !== undefined, `${type}: of ${data.agentId}, whom nobody knows`);
    assert(
      this.#told.get(primary.name)?.has(target) !== true,
      `${type}: ${target} is synced from ${primary.name}, which lacks what was told with ${target} meanwhile`,
    );
    this.#told.delete(target);
    this.#sources.set(target, primary);
  }

  /** A secondary that has made its source's history its own has what that one has. */
  #adopted(member: PairMember): void {
    const source = this.#sources.get(member.name);
    const lineage = member.agent?.status().lineage;
    if (this.#givenUp.has(member.name) || source === undefined || source.agent?.status().lineage !== lineage) return;
    for (const holders of this.#told.values()) if (holders.has(source.name)) holders.add(member.name);
  }

  #promotedUnawares(member: PairMember): void {
    const epoch = member.agent?.status().epoch.committed;
    if (epoch !== undefined) this.promoted(member, epoch);
  }

  #demoted(member: PairMember): void {
    const checkpoint = this.guests.demoted(member);
    if (checkpoint !== undefined) this.#own.set(member, checkpoint);
  }
}

function entryOf<T>(maps: Map<PairMember, Map<number, T>>, member: PairMember): Map<number, T> {
  let found = maps.get(member);
  if (found === undefined) maps.set(member, (found = new Map<number, T>()));
  return found;
}
