import type { ChildStatus, DiskStatus, PeerStatus, Status } from "../proto/control-api.ts";
import type { AckPolicy } from "../proto/words.ts";
import type { Verdict } from "../shared/replication/verdict.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { describePrimaryDisks } from "./describe-disks.ts";
import type { DiskHealth } from "./disk-health.ts";
import type { GuestPolicy } from "./guest-policy.ts";
import type { Mirroring } from "./mirroring.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import { describePrimaryProtection } from "./primary-protection.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { Replicator } from "./replicator.ts";
import type { SyncJobs } from "./sync-jobs.ts";
import type { VerifyJobs } from "./verify-jobs.ts";

export interface PrimaryStatusOptions {
  readonly state: Pick<StateFile, "record">;
  readonly clock: Pick<Clock, "wallMs">;
  readonly maxCheckpointAgeMs: number | undefined;
  readonly disks: readonly ReplicatedDisk[];
  readonly health: DiskHealth;
  readonly guests: GuestPolicy;
  readonly replicator: Replicator;
  readonly syncs: Pick<SyncJobs, "isHeld">;
  readonly verifies: Pick<VerifyJobs, "isRunning">;
  readonly checkpoints: Pick<PrimaryCheckpoints, "committed" | "committedAtMs" | "volumeSinceCommit">;
  /** In mode `mirror`. */
  readonly mirroring: Pick<Mirroring, "isTakenUp"> | undefined;
  readonly ack: AckPolicy;
  /** Whether there is a secondary, or one is to be dialled. */
  readonly isPaired: () => boolean;
  /** The copies of a disk, by its index; empty where its image is the only one. */
  readonly children: (disk: number) => readonly ChildStatus[];
  readonly verdict: () => Verdict | undefined;
}

/** What status says of a primary. It reads the role's parts, and changes none. */
export class PrimaryStatus {
  readonly #parts: PrimaryStatusOptions;

  constructor(parts: PrimaryStatusOptions) {
    this.#parts = parts;
  }

  describePeers(): PeerStatus[] {
    const { isPaired, replicator, syncs, verifies } = this.#parts;
    if (!isPaired()) return [];
    const peer = replicator.describe();
    if (peer.replication === "Established" && !this.#isTakenUp) return [{ ...peer, replication: "SyncSource" }];
    if (peer.replication === "Established" && verifies.isRunning) return [{ ...peer, replication: "VerifyS" }];
    const isHeld = peer.replication === "SyncSource" && syncs.isHeld;
    return [isHeld ? { ...peer, replication: "PausedSyncS" } : peer];
  }

  /** In mode `mirror` a sync is over when the secondary has taken it up. */
  get #isTakenUp(): boolean {
    return this.#parts.mirroring?.isTakenUp !== false;
  }

  describeDisks(): DiskStatus[] {
    const { state, disks, health, isPaired, replicator, children } = this.#parts;
    const dirtyBytes = (disk: number): number => (isPaired() ? replicator.dirtyBytes(disk) : 0);
    return describePrimaryDisks(state.record, disks, health, { dirtyBytes, children });
  }

  describeProtection(): Status["protection"] {
    const { state, clock, health, disks, verdict, guests, isPaired, replicator, checkpoints } = this.#parts;
    const nowMs = clock.wallMs();
    return describePrimaryProtection({
      record: state.record,
      failed: health.first ?? disks.find(({ child }) => child.fault !== undefined)?.child.fault,
      verdict: verdict(),
      guests,
      hasPeer: isPaired(),
      replicator,
      isSynced: replicator.isEstablished && this.#isTakenUp,
      committed: checkpoints.committed,
      checkpointAgeMs: nowMs - (checkpoints.committedAtMs ?? nowMs),
      maxCheckpointAgeMs: this.#parts.maxCheckpointAgeMs,
    });
  }

  /** What the secondary would return to if this side died now, as far as this side knows. */
  describeRecoverable(): Status["recoverable"] {
    const { isPaired, clock, replicator, checkpoints } = this.#parts;
    const { committed, committedAtMs } = checkpoints;
    if (committed === 0 || !isPaired()) return null;
    const nowMs = clock.wallMs();
    const session = replicator.establishedSession;
    if (this.#parts.mirroring?.isTakenUp === true && session !== undefined) {
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
      ageMs: Math.max(0, nowMs - (committedAtMs ?? nowMs)),
      lastContactMs: replicator.describe().lastContactMs,
      wouldLose: { writes, bytes, atLeast: !complete },
    };
  }
}
