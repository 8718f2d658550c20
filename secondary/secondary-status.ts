import { notProtected, protectedAtAge, type DiskStatus, type PeerStatus, type Status } from "../proto/status.ts";
import type { Site } from "../proto/replication-messages.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { hostNameOf } from "../shared/replication/site.ts";
import { lackedCheckpoint } from "../shared/replication/lineage.ts";
import { refusalOf, rolledBack } from "../shared/replication/refusal.ts";
import type { Checkpoints } from "./checkpoints.ts";
import type { DiskFaults } from "./disk-faults.ts";
import type { OverlaySpace } from "./overlay-space.ts";
import type { Following } from "./following.ts";
import { describeReplicaDisk } from "./replica-disk.ts";
import type { ReplicaDisks } from "./replica-disks.ts";
import type { ReplicaSessions } from "./replica-sessions.ts";

export interface SecondaryStatusOptions {
  readonly state: Pick<StateFile, "record">;
  readonly site: () => Site;
  readonly checkpoints: Pick<Checkpoints, "committed" | "committedAgeMs" | "volumeSinceCommit">;
  readonly following: Pick<Following, "isOn" | "stableAgeMs">;
  readonly disks: Pick<ReplicaDisks, "all">;
  readonly sessions: Pick<
    ReplicaSessions,
    "current" | "peerSite" | "contactAgeMs" | "lastError" | "ownVerdict" | "standsAlone"
  >;
  readonly space: Pick<OverlaySpace, "full">;
  readonly faults: Pick<DiskFaults, "latest" | "has">;
  readonly maxCheckpointAgeMs: () => number | undefined;
}

/** What status says of a secondary. It reads the role's parts, and changes none. */
export class SecondaryStatus {
  readonly #parts: SecondaryStatusOptions;

  constructor(parts: SecondaryStatusOptions) {
    this.#parts = parts;
  }

  describePeer(): PeerStatus {
    const { sessions, checkpoints, state, site, space, faults } = this.#parts;
    const url = state.record.peers[0] ?? null;
    const session = sessions.current;
    const volume = checkpoints.volumeSinceCommit();
    const address = session?.peerAddress ?? url;
    return {
      url,
      address,
      connection: session !== undefined ? "Connected" : sessions.standsAlone ? "StandAlone" : "Connecting",
      replication: session?.replication ?? "Off",
      lagBytes: volume.bytes,
      agentId: session?.peer?.agentId ?? null,
      agentVersion: session?.peer?.agentVersion ?? null,
      lastContactMs: sessions.contactAgeMs,
      lastError: (space.full ?? faults.latest ?? sessions.lastError)?.toJSON() ?? null,
      host: hostNameOf(sessions.peerSite, site(), address),
      committed: null,
      mayTakeOver: null,
      disks: (sessions.peerSite?.disks ?? []).map((disk) => ({ ...disk, dirtyBytes: 0 })),
    };
  }

  describeDisks(): DiskStatus[] {
    const { checkpoints, state, sessions, disks, faults } = this.#parts;
    const committed = checkpoints.committed.epoch > 0;
    const diskState = !committed
      ? "Inconsistent"
      : state.record.outdated
        ? "Outdated"
        : sessions.current?.isInSync === true
          ? "UpToDate"
          : "Consistent";
    return state.record.disks.map((recorded) => {
      const disk = disks.all.find(({ name }) => name === recorded.name);
      const failed = faults.has(recorded.name) || disk?.base.fault !== undefined;
      return describeReplicaDisk(recorded, disk, failed ? "Failed" : diskState);
    });
  }

  /** Whether a failover would find what was written up to the last checkpoint, and if not, what to do: the gravest reason comes first. */
  describeProtection(): Status["protection"] {
    const { space, faults, state, sessions, checkpoints, disks, maxCheckpointAgeMs } = this.#parts;
    const { full } = space;
    if (full !== undefined) return notProtected("overlay-full", full.action);
    const failed = faults.latest ?? disks.all.find(({ base }) => base.fault !== undefined)?.base.fault;
    if (failed !== undefined) return notProtected("disk-failed", `${failed.message}: ${failed.action}`);
    const { record } = state;
    const { current, ownVerdict } = sessions;
    if (sessions.standsAlone && ownVerdict !== undefined) {
      const reason = ownVerdict.verdict.kind === "split-brain" ? "split-brain" : "outdated";
      return notProtected(reason, refusalOf(ownVerdict.verdict, record.agentId)?.action ?? "");
    }
    if (current === undefined) {
      if (record.history.rolledBackFrom !== undefined) return notProtected("connecting", rolledBack().action);
      const unheard = "Check the primary agent: its `--peer` must name this agent's `--listen` address.";
      return notProtected("connecting", sessions.lastError?.action ?? unheard);
    }
    if (!current.isInSync) {
      const initial = checkpoints.committed.epoch === 0;
      return notProtected(initial ? "initial-sync" : "resync", "Wait: `colobus wait synced`.");
    }
    if (record.outdated) return notProtected("outdated", "Take a checkpoint on the primary.");
    if (checkpoints.committed.epoch === 0) return notProtected("no-checkpoint", "Take a checkpoint on the primary.");
    const lacked = lackedCheckpoint(record);
    if (lacked !== undefined) {
      const what = `This side has checkpoint ${checkpoints.committed.epoch}, and ${lacked} was told to be committed`;
      return notProtected("no-checkpoint", `${what}. Take one on the primary.`);
    }
    return protectedAtAge(
      checkpoints.committedAgeMs,
      maxCheckpointAgeMs(),
      "Take a checkpoint on the primary, or set --checkpoint-every there.",
    );
  }

  /** What a failover would return to, and what it would lose; null: there is no checkpoint. */
  describeRecoverable(): Status["recoverable"] {
    const { checkpoints, sessions, following } = this.#parts;
    const { epoch } = checkpoints.committed;
    if (epoch === 0) return null;
    if (following.isOn) {
      // Guests may have been told of writes that have not come, where they do not wait, or were let go on alone.
      const mayLack = sessions.current === undefined || sessions.current.peer?.ack === "async";
      return {
        epoch,
        ageMs: following.stableAgeMs,
        lastContactMs: sessions.contactAgeMs,
        wouldLose: { writes: 0, bytes: 0, atLeast: mayLack },
      };
    }
    const { writes, bytes, complete } = checkpoints.volumeSinceCommit();
    return {
      epoch,
      ageMs: checkpoints.committedAgeMs,
      lastContactMs: sessions.contactAgeMs,
      // What the primary wrote after the last contact is not known here.
      wouldLose: { writes, bytes, atLeast: !complete || sessions.current === undefined },
    };
  }
}
