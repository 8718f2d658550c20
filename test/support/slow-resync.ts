import type { JobStatus } from "../../proto/status.ts";
import { AgentPair, MIB, type AgentUnderTest } from "./agent-pair.ts";
import { qemuIo } from "./nbd-tools.ts";

/** What such a pair's resync has to send. */
export const SLOW_RESYNC_BYTES = 48 * MIB;

/** A pair that was parted while its guest wrote, and whose resync goes at 1 MiB/s. */
export async function startSlowResync(): Promise<AgentPair> {
  const pair = await AgentPair.create({ disks: { vda: 64 * MIB }, primaryFlags: ["--resync-speed", "1MiB/s"] });
  const { primary, secondary } = pair;
  await pair.start();
  await secondary.stop();
  await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
  await qemuIo(primary.uri(), `write -P 7 0 ${SLOW_RESYNC_BYTES}`);
  await secondary.start();
  await primary.until("resyncing", ({ peers }) => peers[0]?.replication === "SyncSource");
  return pair;
}

/** The resync that is not concluded. */
export async function presentResync(primary: AgentUnderTest): Promise<JobStatus> {
  const { jobs } = await primary.status();
  const [job] = jobs.filter(({ type, state }) => type === "resync" && state !== "concluded");
  if (job === undefined) throw new Error("no resync is under way");
  return job;
}
