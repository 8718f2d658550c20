import { ColobusError } from "../proto/errors.ts";
import type { Hello } from "../proto/replication-messages.ts";
import type { Child, Pending } from "../shared/block/block-device.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { CopyBeforeWrite } from "./copy-before-write.ts";
import type { GuestPolicy } from "./guest-policy.ts";
import type { SourceSession } from "./source-session.ts";

export interface SharedDisksOptions {
  readonly state: StateFile;
  readonly guests: GuestPolicy;
  readonly disks: readonly { readonly child: Child; readonly geometry: ClusterGeometry }[];
  /** The session whose secondary takes originals now; undefined: there is none. */
  readonly session: () => SourceSession | undefined;
  /** Counts a guest's change in the open epoch. */
  readonly overwritten: (bytes: number) => void;
  /**
   * The host has lost its power since an earlier process placed the barriers up to this epoch: what it had not flushed
   * of them is gone. 0: it has not.
   */
  readonly unflushedThrough: number;
}

/**
 * What mode `shared` adds to a primary, for all disks of the VM: the originals that go before each overwrite, the barrier
 * that they all begin anew at, and the flush that makes a checkpoint of what another host can see.
 *
 * Without a secondary guests' changes wait: the disk is the only copy, and what is overwritten without an original is
 * overwritten for both sides. Only a history that no secondary can have a checkpoint of needs none.
 */
export class SharedDisks {
  readonly children: readonly CopyBeforeWrite[];
  readonly #options: SharedDisksOptions;
  #placing: Promise<unknown> = Promise.resolve();

  constructor(options: SharedDisksOptions) {
    this.#options = options;
    const stream = {
      session: options.session,
      isUnwatched: () => !options.state.record.history.shared,
      wait: () => this.#wait(),
      overwritten: options.overwritten,
    };
    this.children = options.disks.map(
      ({ child, geometry }, index) => new CopyBeforeWrite(index, child, geometry, stream),
    );
  }

  /**
   * Places a barrier: runs `place` while no change is under way on any disk, after all earlier ones, and before any later
   * one has begun. From then on every change needs its original again. Rejects with what `place` throws.
   */
  atBarrier<T>(place: () => T): Promise<T> {
    const placed = this.#placing.then(async () => {
      try {
        for (const changing of this.children.map((child) => child.holdChanges())) {
          if (changing !== undefined) await changing;
        }
        return place();
      } finally {
        for (const child of this.children) child.beginEpoch();
      }
    });
    this.#placing = placed.catch(() => undefined); // the caller has the error
    return placed;
  }

  /** Everything written so far is on the shared disk, where the other host can read it. Errors: `io-error`. */
  async flush(): Promise<void> {
    await Promise.all(this.children.map(async (child) => child.flush()));
  }

  /** What a secondary's hello says of its checkpoints, as far as it counts: nothing where it is to give them up. */
  countedOf(peer: Hello, isKept: boolean): Hello {
    if (!isKept) return { ...peer, committed: 0, prepared: [] };
    const unflushed = this.unflushedOf(peer.prepared);
    return { ...peer, prepared: peer.prepared.filter((epoch) => !unflushed.includes(epoch)) };
  }

  /** The prepared epochs of which the disks may lack what was written before the barrier: they are no checkpoints. */
  unflushedOf(prepared: readonly number[]): number[] {
    const through = Math.max(this.#options.unflushedThrough, this.#options.state.record.unflushedThrough);
    return prepared.filter((epoch) => epoch <= through);
  }

  /** The disks could not be flushed for the barrier of `epoch`: no later process may take it for a checkpoint. */
  async noteUnflushed(epoch: number): Promise<void> {
    await this.#options.state.update((record) => ({
      ...record,
      unflushedThrough: Math.max(record.unflushedThrough, epoch),
    }));
  }

  /** Guests' changes are frozen until there is a secondary again. Errors: why guests are refused. */
  #wait(): Pending {
    const { guests } = this.#options;
    if (guests.gate.state === "open") guests.freeze();
    return guests.gate.admitChange();
  }
}

/** Why a shared disk's primary cannot go on without the secondary. */
export function cannotGoAlone(): ColobusError {
  return new ColobusError(
    "not-supported",
    "the secondary's checkpoint would be lost with the first write, and in mode shared there is no place to say so",
    "Bring the secondary back. When it is gone for good, start this agent with an empty --state directory, and the secondary too.",
  );
}
