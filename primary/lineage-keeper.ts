import { asColobusError } from "../proto/errors.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { EventType } from "../proto/words.ts";
import type { Pending } from "../shared/block/block-device.ts";
import { newId, type Random } from "../shared/host/random.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { goneAlone, knownBy, shared } from "../shared/replication/lineage.ts";
import { peerEntryOf, slotsOf } from "../shared/replication/peer-slots.ts";
import type { SourceSession } from "./source-session.ts";

export interface LineageKeeperOptions {
  readonly state: StateFile;
  readonly random: Random;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  /** Throws the reason for which guests are refused, if they are: then nothing may be acknowledged. */
  readonly assertServing: () => void;
  /** The sessions into whose streams guests' writes go, by the peer's id. */
  readonly streaming: () => ReadonlyMap<string, SourceSession>;
}

/**
 * Owns the lineage of a primary's disks: which peers may know it, and when a new one begins.
 *
 * Nothing is acknowledged, neither a write nor a checkpoint, that a peer lacks which may know the lineage: a new one is
 * durable first, and the peers that do get it have heard of it. So a peer that is promoted supersedes what it was sent,
 * and has diverged from what was acknowledged without it.
 */
export class LineageKeeper {
  readonly #options: LineageKeeperOptions;
  #minting: Promise<void> | undefined;
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
   * Done when what the peers that are not streaming lack may be acknowledged. undefined at once where none of them can know
   * the lineage. Errors: `io-error`; why guests are refused.
   */
  parted(): Pending {
    if (this.#minting !== undefined) return this.#minting;
    if (this.#absent.length === 0) return undefined;
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
        await this.#share(peer);
      } while (this.isMinting || !this.isKnownBy(peer));
      begin();
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
    const { random } = this.#options;
    await this.#change((record) => {
      const kept = slotsOf(record).map((slot) => peerEntryOf(record, slot).pairing?.peer);
      const isGone = (known: string): boolean => known !== peer && !kept.includes(known);
      // A shared disk's secondary cannot be left behind: what it holds is void, and the mark says so.
      const isParted = record.mode !== "shared" && knownBy(record).some(isGone);
      const streaming = [...this.#options.streaming().keys()];
      return shared(isParted ? goneAlone(record, newId(random), streaming) : record, peer);
    });
  }

  /** Peers that may know the lineage, and get nothing now. One that is about to hear of it for the first time does not know it yet. */
  get #absent(): readonly string[] {
    const { state, streaming } = this.#options;
    const known = knownBy(state.record);
    if (known.length === 0) return known;
    const present = streaming();
    return known.filter((peer) => !present.has(peer) && !this.#sharing.has(peer));
  }

  async #mint(): Promise<void> {
    const { random, streaming, assertServing } = this.#options;
    assertServing();
    // One of those that stay may be lost before it has heard of it: then it is without that one as well.
    while (this.#absent.length > 0) {
      await this.#change((record) => {
        const present = [...streaming().keys()];
        const isParted = knownBy(record).some((peer) => !present.includes(peer) && !this.#sharing.has(peer));
        return isParted ? goneAlone(record, newId(random), present) : record;
      });
    }
    assertServing();
  }

  #leave(leaving: readonly string[], isThere: (peer: string) => boolean): Promise<boolean> {
    const { random } = this.#options;
    return this.#change((record) => {
      const known = knownBy(record);
      const gone = known.filter((peer) => !isThere(peer));
      if (gone.length === 0 || gone.length !== leaving.length || !gone.every((peer) => leaving.includes(peer)))
        return record;
      return goneAlone(record, newId(random), known.filter(isThere));
    });
  }

  /** Changes the history. Resolves with whether a lineage has begun by that, of which those that stay have heard then. */
  async #change(change: (record: StateRecord) => StateRecord): Promise<boolean> {
    const { state, emit } = this.#options;
    const before = state.record.lineage;
    const { lineage } = await state.update(change);
    if (lineage === before) return false;
    emit("lineage-changed", { lineage, origin: "alone" });
    await this.#tell();
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
