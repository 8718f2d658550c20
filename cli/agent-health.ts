/** Whether an agent does its role's part, for health checks: that the other host is missing is not this one's fault. */
import type { Status } from "../proto/status.ts";
import type { ProtectionReason } from "../proto/words.ts";

/** Its guests are not served while this is why the VM is not protected. */
const GUESTS_WAIT: readonly ProtectionReason[] = ["held", "outdated", "split-brain", "image-away"];

/** Why a primary does not serve its guests; null: it does. */
export function whyGuestsWait({ protection: { reason } }: Pick<Status, "protection">): ProtectionReason | null {
  return reason !== null && GUESTS_WAIT.includes(reason) ? reason : null;
}

/**
 * Why the agent cannot do its part, as one sentence; undefined when it can. A primary serves its guests. A secondary holds a
 * checkpoint that a failover can return to, or is being given its first one.
 */
export function ailmentOf(status: Status): string | undefined {
  const { role, disks, protection, recoverable, peers } = status;
  const failed = disks.filter(({ state }) => state === "Failed").map(({ name }) => name);
  if (failed.length > 0) return `Failed: ${failed.join(", ")}. ${protection.nextAction}`;
  const { reason, nextAction } = protection;
  if (role === "Primary") {
    const why = whyGuestsWait(status);
    return why === null ? undefined : `The guests are not served: ${why}. ${nextAction}`;
  }
  if (recoverable !== null || peers.some(({ replication }) => replication === "SyncTarget")) return undefined;
  return `There is no checkpoint that a failover could return to: ${reason ?? "none yet"}. ${nextAction}`;
}
