/** Whether an agent does its role's part, for health checks: that the other host is missing is not this one's fault. */
import type { Status } from "../proto/status.ts";
import type { ProtectionReason } from "../proto/words.ts";

/** Its guests are not served while this is why the VM is not protected. */
const GUESTS_WAIT: readonly ProtectionReason[] = ["held", "outdated", "split-brain", "image-away"];

/**
 * Why the agent cannot do its part, as one sentence; undefined when it can. A primary serves its guests. A secondary holds a
 * checkpoint that a failover can return to, or is being given its first one.
 */
export function ailmentOf({ role, disks, protection, recoverable, peers }: Status): string | undefined {
  const failed = disks.filter(({ state }) => state === "Failed").map(({ name }) => name);
  if (failed.length > 0) return `Failed: ${failed.join(", ")}. ${protection.nextAction}`;
  const { reason, nextAction } = protection;
  if (role === "Primary") {
    if (reason === null || !GUESTS_WAIT.includes(reason)) return undefined;
    return `The guests are not served: ${reason}. ${nextAction}`;
  }
  if (recoverable !== null || peers.some(({ replication }) => replication === "SyncTarget")) return undefined;
  return `There is no checkpoint that a failover could return to: ${reason ?? "none yet"}. ${nextAction}`;
}
