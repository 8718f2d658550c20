import { asColobusError } from "../proto/errors.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { EventType } from "../proto/words.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { newId, type Random } from "../shared/host/random.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { goneAlone, knownBy, shared } from "../shared/replication/lineage.ts";
import { peerEntryOf, slotsOf } from "../shared/replication/peer-slots.ts";
import type { PermitKeeper } from "./permit-keeper.ts";
import type { SourceSession } from "./source-session.ts";

export interface LineageKeeperOptions {
  readonly state: StateFile;
  readonly random: Random;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  /** Throws the reason for which guests are refused, if they are: then nothing may be acknowledged. */
  readonly assertServing: () => void;
  /** The sessions into whose streams guests' writes go, by the peer's id. */
  readonly streaming: () => ReadonlyMap<string, SourceSession>;
  /** With an arbiter. */
  readonly keeper: () => PermitKeeper | undefined;
}

/**
 * Owns the lineage of a primary's disks: which peers may know it, and when a new one begins.
 *
 * Nothing is acknowledged, neither a write nor a checkpoint, that a peer lacks which may know the lineage: a new one is
 * durable first, and the peers that do get it have heard of it. So a peer that is promoted supersedes what it was sent,
 * and has diverged from what was acknowledged without it.
 *
 * An arbiter knows of a lineage that peers are to share before it begins, where one may take over: who has not heard of it yet
 * lacks nothing that was acknowledged without that one.
 */
export class LineageKeeper {
  readonly #options: LineageKeeperOptions;
  #minting: Promise<void> | undefined;
  /** The one that begins next: the same until it has begun, since an arbiter is told of it before. */
  #next: string | undefined;
  /** Peers that cannot know the lineage yet, and are about to be told of it. */
  readonly #sharing = new Set<string>();

  constructor(options: LineageKeeperOptions) {
    this.#options = options;
  }

  /** The record's lineage is about to be another one. */
  get isMinting(): boolean {
    return this.#minting !== undefined;
  }

  /** Whether the peer may be told of the lineage: it is recorded that it may know it. */
  isKnownBy(peer: string): boolean {
    return knownBy(this.#options.state.record).includes(peer);
  }

  /**
   * A step towards what the peers that are not streaming lack being acknowledged: what the caller waits for, and then asks anew
   * from its beginning, since others may be lost meanwhile. undefined: none of them can know the lineage. Errors: `io-error`; why
   * guests are refused.
   */
  parted(): Pending {
    if (this.#minting !== undefined) return this.#minting;
    const areAbsent = (): boolean => this.#hasAbsent(this.#options.state.record);
    if (!areAbsent()) return undefined;
    const planning = this.#planned(areAbsent);
    if (planning !== undefined) return planning;
    this.#minting = this.#mint().finally(() => {
      this.#minting = undefined;
    });
    return this.#minting;
  }

  /**
   * Records that `peer` may know the lineage, and calls `begin`, which is to put it into that one's stream: nothing is minted
   * between the two. A peer whose place another one has taken is not waited for: what follows is without it. Errors: `io-error`.
   */
  async share(peer: string, begin: () => void): Promise<void> {
    try {
      do {
        await this.settled();
        if (!this.isKnownBy(peer)) this.#sharing.add(peer);
        const parts = (): boolean => this.#parts(this.#options.state.record, peer);
        if (parts()) await this.#planned(parts);
        await this.#share(peer);
      } while (this.isMinting || !this.isKnownBy(peer));
      begin();
      this.#options.keeper()?.connectionChanged();
    } finally {
      this.#sharing.delete(peer);
    }
  }

  /**
   * Shared disks: leaves the peers of `leaving` behind, as the mark says already, where just these of all that may know the
   * lineage are not there. Resolves with whether that was so, when those that stay have heard of the new one. Errors: `io-error`.
   */
  async leave(leaving: readonly string[], isThere: (peer: string) => boolean): Promise<boolean> {
    await this.settled();
    const left = this.#leave(leaving, isThere);
    this.#minting = left
      .then(() => undefined)
      .finally(() => {
        this.#minting = undefined;
      });
    await this.#minting;
    return left;
  }

  /** Resolves when no lineage is being minted, whatever has become of it: who waits for it has the error. */
  async settled(): Promise<void> {
    await this.#minting?.catch(() => undefined);
  }

  async #share(peer: string): Promise<void> {
    await this.#change((record) => {
      if (!this.#parts(record, peer)) return shared(record, peer);
      const streaming = [...this.#options.streaming().keys()];
      return this.#isPlanned ? shared(goneAlone(record, this.#nextLineage, streaming), peer) : record;
    });
  }

  /** Whether a new lineage begins when the peer is told: one that may know the present one has no place any more. */
  #parts(record: StateRecord, peer: string): boolean {
    // A shared disk's secondary cannot be left behind: what it holds is void, and the mark says so.
    if (record.mode === "shared") return false;
    const kept = slotsOf(record).map((slot) => peerEntryOf(record, slot).pairing?.peer);
    return knownBy(record).some((known) => known !== peer && !kept.includes(known));
  }

  /** Done when the next lineage may begin, or is not needed. */
  #planned(isNeeded: () => boolean): Pending {
    return this.#options.keeper()?.mayBegin(this.#nextLineage, () => this.#isShared && isNeeded());
  }

  get #isPlanned(): boolean {
    return !this.#isShared || (this.#options.keeper()?.isPlanned(this.#nextLineage) ?? true);
  }

  /** Whether the next lineage will be somebody else's as well. One that is this side's alone has parted from whoever takes over. */
  get #isShared(): boolean {
    return this.#options.streaming().size > 0;
  }

  get #nextLineage(): string {
    this.#next ??= newId(this.#options.random);
    return this.#next;
  }

  /**
   * Whether a peer that may know the lineage gets nothing now. One that is about to hear of it for the first time does not know it
   * yet.
   */
  #hasAbsent(record: StateRecord): boolean {
    const known = knownBy(record);
    if (known.length === 0) return false;
    const present = this.#options.streaming();
    return known.some((peer) => !present.has(peer) && !this.#sharing.has(peer));
  }

  async #mint(): Promise<void> {
    const { streaming, assertServing } = this.#options;
    assertServing();
    await this.#change((record) => {
      const mayPart = this.#hasAbsent(record) && this.#isPlanned;
      return mayPart ? goneAlone(record, this.#nextLineage, [...streaming().keys()]) : record;
    });
    assertServing();
  }

  #leave(leaving: readonly string[], isThere: (peer: string) => boolean): Promise<boolean> {
    return this.#change((record) => {
      const known = knownBy(record);
      const gone = known.filter((peer) => !isThere(peer));
      if (gone.length === 0 || gone.length !== leaving.length || !gone.every((peer) => leaving.includes(peer)))
        return record;
      return goneAlone(record, this.#nextLineage, known.filter(isThere));
    });
  }

  /** Changes the history. Resolves with whether a lineage has begun by that, of which those that stay have heard then. */
  async #change(change: (record: StateRecord) => StateRecord): Promise<boolean> {
    const { state, emit, keeper } = this.#options;
    const before = state.record.lineage;
    const { lineage } = await state.update(change);
    if (lineage === before) return false;
    this.#next = undefined;
    emit("lineage-changed", { lineage, origin: "alone" });
    await this.#tell();
    keeper()?.hasBegun();
    return true;
  }

  /** Resolves when each peer that is streaming has heard of the lineage, durably, or its session is lost. */
  async #tell(): Promise<void> {
    const { state, streaming } = this.#options;
    const { lineage, history } = state.record;
    const told = [...streaming()].map(async ([peer, session]) => {
      if (!this.isKnownBy(peer)) return; // it hears of it when its sync begins
      try {
        await session.request((id) => ({ type: "lineage", id, lineage: lineage ?? "", ancestors: history.ancestors }));
      } catch (error) {
        session.close(asColobusError(error));
      }
    });
    await Promise.all(told);
  }
}
