import assert from "node:assert/strict";
import { notProtected, type ChildStatus, type DiskStatus, type PeerStatus, type Status } from "../proto/status.ts";
import type { AckPolicy } from "../proto/words.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { describePrimaryDisks } from "./describe-disks.ts";
import type { DiskHealth } from "./disk-health.ts";
import type { GuestPolicy } from "./guest-policy.ts";
import type { PermitKeeper } from "./permit-keeper.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import { describePrimaryProtection } from "./primary-protection.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { SecondaryPlace } from "./secondary-place.ts";

export interface PrimaryStatusOptions {
  readonly state: Pick<StateFile, "record">;
  readonly maxCheckpointAgeMs: number | undefined;
  readonly disks: readonly ReplicatedDisk[];
  readonly health: DiskHealth;
  readonly guests: GuestPolicy;
  /** With an arbiter. */
  readonly keeper: Pick<PermitKeeper, "permit" | "isPlanAwaited" | "isOutdated" | "describe"> | undefined;
  readonly places: readonly SecondaryPlace[];
  readonly checkpoints: Pick<PrimaryCheckpoints, "committed" | "committedAgeMs" | "volumeSinceCommit">;
  /** As `EpochSessions` says. */
  readonly heldBy: (place: SecondaryPlace) => number;
  readonly lackedBy: (place: SecondaryPlace) => number | undefined;
  readonly ack: AckPolicy;
  /** Whether there is a secondary, or one is to be dialled. */
  readonly isPaired: () => boolean;
  /** The copies of a disk, by its index; empty where its image is the only one. */
  readonly children: (disk: number) => readonly ChildStatus[];
}

/** What status says of a primary. It reads the role's parts, and changes none. */
export class PrimaryStatus {
  readonly #parts: PrimaryStatusOptions;

  constructor(parts: PrimaryStatusOptions) {
    this.#parts = parts;
  }

  describePeers(): PeerStatus[] {
    return this.#used.map((place) => place.describe());
  }

  /** The places that a secondary has, or is dialled for. */
  get #used(): readonly SecondaryPlace[] {
    const { isPaired, places } = this.#parts;
    if (!isPaired()) return [];
    const used = places.filter(({ isUsed }) => isUsed);
    return used.length === 0 ? places.slice(0, 1) : used;
  }

  describeDisks(): DiskStatus[] {
    const { state, disks, health, children } = this.#parts;
    const dirtyBytes = (disk: number): number =>
      Math.max(0, ...this.#used.map(({ replicator }) => replicator.dirtyBytes(disk)));
    return describePrimaryDisks(state.record, disks, health, { dirtyBytes, children });
  }

  /** The VM is protected while one of its secondaries protects it. */
  describeProtection(): Status["protection"] {
    const { keeper, guests, state } = this.#parts;
    const areWaiting = keeper !== undefined && (!keeper.permit.isValid || keeper.isPlanAwaited);
    // What else guests are held for is named first where it is to be settled first.
    const isOtherFirst = guests.isHeld && (state.record.handOver !== null || guests.splitBrain !== undefined);
    if (areWaiting && !isOtherFirst && !state.record.outdated) return notProtected("held", keeper.describe());
    const [first, ...others] = this.#used.length === 0 ? this.#parts.places : this.#used;
    assert(first !== undefined, "there is a place for a secondary");
    let best = this.#describeProtectionBy(first);
    for (const place of others) {
      if (best.state === "Protected") break;
      const other = this.#describeProtectionBy(place);
      if (other.state === "Protected" || !best.isConnected) best = other;
    }
    const { isConnected: _, ...protection } = best;
    return protection;
  }

  #describeProtectionBy(place: SecondaryPlace): Status["protection"] & { readonly isConnected: boolean } {
    const { state, health, disks, guests, isPaired, checkpoints } = this.#parts;
    const { replicator } = place;
    const committed = this.#parts.heldBy(place);
    // Of an older one than the newest it is not known when that was.
    const checkpointAgeMs = committed === checkpoints.committed ? checkpoints.committedAgeMs : Infinity;
    const protection = describePrimaryProtection({
      record: state.record,
      failed: health.first ?? disks.find(({ child }) => child.fault !== undefined)?.child.fault,
      verdict: place.judged?.verdict,
      guests,
      hasPeer: isPaired(),
      replicator,
      isSynced: replicator.isEstablished && place.isTakenUp,
      committed,
      lacked: this.#parts.lackedBy(place),
      isOutdated: place.peerId !== undefined && this.#parts.keeper?.isOutdated(place.peerId) === true,
      checkpointAgeMs,
      maxCheckpointAgeMs: this.#parts.maxCheckpointAgeMs,
    });
    return { ...protection, isConnected: replicator.isConnected };
  }

  /** What the secondary would return to if this side died now, as far as this side knows. */
  describeRecoverable(): Status["recoverable"] {
    const { isPaired, checkpoints, heldBy, lackedBy } = this.#parts;
    const { committed, committedAgeMs } = checkpoints;
    if (committed === 0 || !isPaired()) return null;
    // The one that has the newest checkpoint, and is connected if any of those is.
    const newest = this.#used.filter((place) => heldBy(place) === committed && lackedBy(place) === undefined);
    const place = newest.find(({ replicator }) => replicator.isEstablished) ?? newest[0];
    if (place === undefined) return null;
    const session = place.replicator.establishedSession;
    if (place.mirroring?.isTakenUp === true && session !== undefined) {
      const mayLack = this.#parts.ack === "async";
      return {
        epoch: committed,
        ageMs: session.stableAgeMs,
        lastContactMs: session.silenceMs,
        wouldLose: {
          writes: mayLack ? session.unstable().length : 0,
          bytes: mayLack ? session.unstableBytes : 0,
          atLeast: false,
        },
      };
    }
    const { writes, bytes, complete } = checkpoints.volumeSinceCommit();
    return {
      epoch: committed,
      ageMs: committedAgeMs,
      lastContactMs: place.replicator.describe().lastContactMs,
      wouldLose: { writes, bytes, atLeast: !complete },
    };
  }
}
