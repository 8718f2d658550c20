import type { AckPolicy } from "../proto/words.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { CheckpointAges } from "../shared/replication/checkpoint-ages.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

export interface FollowingOptions {
  readonly state: StateFile;
  readonly clock: Pick<Clock, "nowMs">;
  readonly ages: Pick<CheckpointAges, "ageMs">;
  readonly disks: () => readonly ReplicaDisk[];
}

/**
 * Mode `mirror`: owns whether the bases *follow* the primary. While they do, a failover returns them as they are, and no
 * originals are kept; while they do not, they are being resynced, and a failover returns what they were before.
 *
 * They begin to follow with the checkpoint that ends a sync, and cease before the first write of the next one: whether a
 * generation holds originals tells a later process which of the two it was.
 *
 * Guests who wait for each write to be stable here have none in doubt after a loss of power but those that nobody was
 * told of, and these may be there or not, as with any disk. Where they do not wait so long, a later write may be on the
 * medium and an earlier one not. So the record says when bases follow such a primary, and a host that loses its power
 * then leaves no state to return to.
 */
export class Following {
  readonly #options: FollowingOptions;
  readonly #isMirror: boolean;
  #isOn: boolean;
  #lastStableMs: number;
  #stableSequence = 0;

  constructor(options: FollowingOptions) {
    this.#options = options;
    const { mode, committed } = options.state.record;
    this.#isMirror = mode === "mirror";
    this.#isOn = this.#isMirror && committed.epoch > 0 && options.disks().every(({ epochs }) => epochs.isEmpty);
    this.#lastStableMs = options.clock.nowMs() - options.ages.ageMs(committed.epoch);
  }

  /** Whether a failover returns the bases as they are. */
  get isOn(): boolean {
    return this.#isOn && this.#options.state.record.committed.epoch > 0;
  }

  /** How long ago a write became stable here last, as far as this process knows. */
  get stableAgeMs(): number {
    return this.#options.clock.nowMs() - this.#lastStableMs;
  }

  /** A checkpoint of everything that has come is committed: from here on the bases are the state. Errors: `io-error`. */
  async begin(ack: AckPolicy): Promise<void> {
    if (!this.#isMirror) return;
    const { state } = this.#options;
    const acksUnsynced = ack !== "applied" && state.record.durability === "power";
    if (acksUnsynced !== (state.record.acksUnsynced === true)) {
      await state.update((record) => ({ ...record, acksUnsynced }));
    }
    this.#isOn = true;
    this.#lastStableMs = this.#options.clock.nowMs();
  }

  /**
   * What comes next is a resync: when the promise resolves, the bases are durable as they are. `mayLack` tells that a
   * failed flush may have lost something that readers still see. Errors: `io-error`.
   */
  async end(mayLack: boolean): Promise<void> {
    if (!this.#isMirror) return;
    const { state, disks } = this.#options;
    if (state.record.durability === "power") await Promise.all(disks().map(({ base }) => base.flush()));
    if (state.record.acksUnsynced === true && !mayLack) {
      await state.update((record) => ({ ...record, acksUnsynced: false }));
    }
    this.#isOn = false;
  }

  /**
   * What the record says once a clean stop has flushed the bases: as far as they follow, they are durable as they are, unless
   * a failed flush is noted.
   */
  leftDurable(record: StateRecord): Pick<StateRecord, "acksUnsynced"> {
    const hasLost = record.lostSyncs.some(({ active }) => active === null);
    return this.isOn && record.acksUnsynced === true && !hasLost ? { acksUnsynced: false } : {};
  }

  /** The stream of the present session is stable up to that operation. */
  stableThrough(sequence: number): void {
    if (sequence === this.#stableSequence) return;
    this.#stableSequence = sequence;
    this.#lastStableMs = this.#options.clock.nowMs();
  }
}
