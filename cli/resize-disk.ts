import type { PrimaryRole } from "../primary/primary-role.ts";
import type { ResizeAnswer, ResizeRequest } from "../proto/control-api.ts";
import type { Clock } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import type { AgentRoles } from "./agent-roles.ts";

/** An operator's order to make a disk longer. Errors: those of `Resizes`; `timed-out`, and it may still be done. */
export async function resizeDisk(
  {
    primary,
    roles,
    dropClients,
  }: { readonly primary: PrimaryRole; readonly roles: AgentRoles; readonly dropClients: () => void },
  { disk, sizeBytes, closeClients, timeoutMs }: ResizeRequest,
  clock: Clock,
  signal: AbortSignal,
): Promise<ResizeAnswer> {
  const index = primary.resizes.assertPossible(disk, sizeBytes);
  const formerSizeBytes = primary.disks[index]?.sizeBytes ?? 0;
  const deadline = new Deadline(clock, timeoutMs, signal);
  try {
    const grow = async (): Promise<number> => {
      const grown = await primary.resizes.askPeers(index, sizeBytes);
      await roles.grow(primary, index, sizeBytes, grown);
      if (closeClients) dropClients();
      return grown.size;
    };
    const grownPeers = await deadline.race(grow(), `disk ${disk} is not known to be resized yet`);
    return { disk, sizeBytes, formerSizeBytes, grownPeers };
  } finally {
    deadline.end();
  }
}
