import type { FailoverAnswer, Status } from "../proto/control-api.ts";
import { formatBytes, formatDuration } from "./quantities.ts";

/** What a failover would return to, in half a sentence, or why there is nothing to return to. */
export function describeRecoverable({ recoverable, role, mode }: Status): string {
  if (recoverable === null) {
    return role === "Primary"
      ? "not possible: no secondary holds a checkpoint"
      : "not possible: no checkpoint is committed";
  }
  const peer = role === "Primary" ? "secondary" : "primary";
  const contact =
    recoverable.lastContactMs === null ? "" : `, ${peer} last heard ${formatDuration(recoverable.lastContactMs)} ago`;
  const what = mode === "mirror" ? "to the last stable write" : `to checkpoint ${recoverable.epoch}`;
  return `${what}, ${formatDuration(recoverable.ageMs)} old, ${describeLoss(recoverable.wouldLose)}${contact}`;
}

/** What a failover drops: `losing nothing`, `losing at least 3 writes (12 KiB)`. */
export function describeLoss(loss: FailoverAnswer["wouldLose"]): string {
  const atLeast = loss.atLeast ? "at least " : "";
  if (loss.writes === 0) return loss.atLeast ? "losing what the primary has not sent" : "losing nothing";
  return `losing ${atLeast}${loss.writes} ${loss.writes === 1 ? "write" : "writes"} (${formatBytes(loss.bytes)})`;
}

/** What a failover came to, or would come to: a sentence each. */
export function describeFailover(answer: FailoverAnswer): string[] {
  if (answer.already) return ["already Primary: nothing to do"];
  const age = answer.ageMs === null ? "age unknown" : `${formatDuration(answer.ageMs)} old`;
  const lines = [
    answer.dryRun
      ? `would become Primary from checkpoint ${answer.epoch}, ${age}, ${describeLoss(answer.wouldLose)}`
      : `now Primary from checkpoint ${answer.epoch}, ${age}, ${describeLoss(answer.wouldLose)}`,
  ];
  if (answer.discardedActiveBytes > 0) {
    const discarded = answer.dryRun ? "would be left out" : "left out";
    lines.push(`${formatBytes(answer.discardedActiveBytes)} of the secondary's own writes ${discarded}`);
  }
  if (answer.mergeBytes > 0) {
    const jobs = answer.jobs.length === 0 ? "" : ` (${answer.jobs.join(", ")})`;
    lines.push(
      `${formatBytes(answer.mergeBytes)} ${answer.dryRun ? "would be" : "are"} merged in the background${jobs}`,
    );
  }
  return lines;
}
