import type { ResyncAnswer } from "../proto/control-api.ts";
import type { Job } from "../shared/jobs/job.ts";
import type { Replicator } from "./replicator.ts";

/**
 * `colobus resync` on a primary: lets a paused sync of the connected secondary go on. Everything else goes on by itself.
 * Errors: why the secondary takes no writes (`overlay-full` …), which only its operator can change.
 */
export function continueSync(replicator: Replicator, job: Job | undefined): ResyncAnswer {
  const { pausedBy } = replicator;
  if (pausedBy !== undefined) throw pausedBy;
  if (replicator.isEstablished || job === undefined) return { outcome: "nothing-to-do", job: null, givenUpEpoch: null };
  if (job.state !== "paused") return { outcome: "running", job: job.id, givenUpEpoch: null };
  job.apply("resume");
  return { outcome: "resumed", job: job.id, givenUpEpoch: null };
}
