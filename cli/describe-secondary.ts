import type { Status } from "../proto/control-api.ts";
import type { SecondaryRole } from "../secondary/secondary-role.ts";

/** The part of the status that the role has to say. */
export type RoleStatus = Pick<Status, "epoch" | "peers" | "disks" | "protection" | "recoverable">;

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
