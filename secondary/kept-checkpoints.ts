import type { StateRecord } from "../proto/state-record.ts";

/** One reader's hold on a committed checkpoint: its generations are kept until the hold is released, or dropped. */
export interface CheckpointHold {
  readonly epoch: number;
  /** The space was needed, or the checkpoint is no more: it cannot be read any longer. */
  readonly isDropped: boolean;
  release(): void;
}

/**
 * Owns which checkpoints stay readable beside the committed one: those that the state record retains (`--retain`), and
 * those that a client has open. A hold is not recorded: its client is gone after a restart.
 *
 * A checkpoint can be read while every generation above its epoch is there, so the oldest kept checkpoint decides
 * what is freed: the *floor*.
 */
export class KeptCheckpoints {
  readonly #retain: number;
  readonly #record: () => StateRecord;
  readonly #released: () => void;
  readonly #holds = new Set<{ readonly epoch: number; isDropped: boolean }>();

  /** `released` is called when a hold has ended that may have been the last one of its checkpoint. */
  constructor(retain: number, record: () => StateRecord, released: () => void) {
    this.#retain = retain;
    this.#record = record;
    this.#released = released;
  }

  /** Ascending. */
  get retained(): readonly number[] {
    return this.#record().retained.map(({ epoch }) => epoch);
  }

  /** Generations up to this epoch serve nobody; the committed epoch where nothing is kept. */
  get floor(): number {
    const { committed, retained } = this.#record();
    let floor = Math.min(committed.epoch, retained[0]?.epoch ?? Infinity);
    for (const hold of this.#holds) floor = Math.min(floor, hold.epoch);
    return floor;
  }

  /** Every checkpoint between which generations must not be joined. */
  get needed(): number[] {
    const { committed, prepared, retained } = this.#record();
    const recorded = [...retained, committed, ...prepared].map(({ epoch }) => epoch);
    return [...recorded, ...Array.from(this.#holds, ({ epoch }) => epoch)];
  }

  /** Whether a hold can begin. */
  has(epoch: number): boolean {
    return epoch > 0 && (epoch === this.#record().committed.epoch || this.retained.includes(epoch));
  }

  hold(epoch: number): CheckpointHold {
    const hold = { epoch, isDropped: false };
    this.#holds.add(hold);
    return {
      epoch,
      get isDropped() {
        return hold.isDropped;
      },
      release: () => {
        if (this.#holds.delete(hold)) this.#released();
      },
    };
  }

  /** What `record` retains once the prepared checkpoint `epoch`, and every earlier one with it, is committed. */
  retainedAfterCommit(record: StateRecord, epoch: number): StateRecord["retained"] {
    if (this.#retain === 0) return [];
    const older = record.committed.epoch > 0 ? [...record.retained, record.committed] : [];
    // A state that was still awaited does not come any more: what is kept is a checkpoint of the disks.
    const earlier = record.prepared
      .filter((prepared) => prepared.epoch < epoch)
      .map(({ epoch: kept, atMs, vmstate }) =>
        vmstate === undefined ? { epoch: kept, atMs } : { epoch: kept, atMs, vmstate },
      );
    return [...older, ...earlier].slice(-this.#retain);
  }

  /** Ends the holds of the epochs that `concerns` is true for: their readers get an error from now on. */
  dropHolds(concerns: (epoch: number) => boolean): void {
    for (const hold of this.#holds) {
      if (!concerns(hold.epoch)) continue;
      hold.isDropped = true;
      this.#holds.delete(hold);
    }
  }
}
