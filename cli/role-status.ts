import type { JobStatus, Status } from "../proto/status.ts";
import type { StateRecord } from "../proto/state-record.ts";
import { isInSync, type WaitCondition } from "../proto/words.ts";
import type { PrimaryRole } from "../primary/primary-role.ts";
import type { SecondaryRole } from "../secondary/secondary-role.ts";
import type { AgentRoles } from "./agent-roles.ts";

/** The part of the status that the role knows. */
export type RoleStatus = Pick<Status, "epoch" | "peers" | "disks" | "protection" | "recoverable">;

/** `promoted`: what the disks that it was promoted with still store, in their order. */
export function describePrimary(primary: PrimaryRole, promotedDisks: AgentRoles["promoted"]): RoleStatus {
  const disks = primary.status.describeDisks().map((disk, index) => {
    const promoted = promotedDisks[index];
    return promoted === undefined ? disk : { ...disk, ...promoted.storage };
  });
  return {
    epoch: primary.checkpoints.describe(),
    peers: primary.status.describePeers(),
    disks,
    protection: primary.describeProtection(),
    recoverable: primary.describeRecoverable(),
  };
}

export function describeSecondary(secondary: SecondaryRole): RoleStatus {
  const { checkpoints } = secondary;
  return {
    epoch: {
      open: checkpoints.openEpoch,
      prepared: [...checkpoints.prepared],
      committed: checkpoints.committed.epoch,
      retained: [...checkpoints.kept.retained],
    },
    peers: [secondary.describePeer()],
    disks: secondary.describeDisks(),
    protection: secondary.describeProtection(),
    recoverable: secondary.describeRecoverable(),
  };
}

/** Whether what `colobus wait` waits for is so, while no failover is under way. */
export function isReached(condition: WaitCondition, status: Status, record: StateRecord): boolean {
  const { recoverable, peers, jobs } = status;
  switch (condition) {
    case "connected":
      return peers.length > 0 && peers.every((peer) => peer.connection === "Connected");
    case "synced":
      return peers.length > 0 && peers.every((peer) => isInSync(peer.replication));
    case "committed":
      return recoverable !== null;
    case "merged":
      return record.merge === null && jobs.every(isNoOpenMerge);
  }
}

function isNoOpenMerge(job: JobStatus): boolean {
  return job.type !== "merge" || job.state === "concluded";
}
