import type { FailoverAnswer, ForeseenClaim } from "../proto/control-api.ts";
import type { CopyStatus, HostStatus, Status } from "../proto/status.ts";
import type { Mode } from "../proto/words.ts";
import { formatBytes, formatDuration } from "./quantities.ts";

/** What a failover would return to, in half a sentence, or why there is nothing to return to. */
export function describeRecoverable({ recoverable, role, mode, epoch }: Status): string {
  if (recoverable === null) {
    if (role === "Secondary") return "not possible: no checkpoint is committed";
    return `not possible: no secondary holds ${epoch.committed === 0 ? "a" : "the last"} checkpoint`;
  }
  const peer = role === "Primary" ? "secondary" : "primary";
  const contact =
    recoverable.lastContactMs === null ? "" : `, ${peer} last heard ${formatDuration(recoverable.lastContactMs)} ago`;
  return `to ${describeTarget(mode, recoverable.epoch)}, ${formatDuration(recoverable.ageMs)} old, ${describeLoss(recoverable.wouldLose)}${contact}`;
}

/** Whose copy it is: `Primary b`, `Secondary`. */
export function describeCopy({ role, name }: Pick<CopyStatus, "role" | "name">): string {
  return name === null || name === "local" ? role : `${role} ${name}`;
}

/** What becomes of the VM when a host is lost, behind "the VM ". */
export function describeHostLoss({ ifLost }: HostStatus, mode: Mode): string {
  switch (ifLost.outcome) {
    case "protected":
      return "goes on, and stays protected";
    case "unprotected":
      return "goes on, with nothing to fail over to";
    case "frozen":
      return "waits with its writes";
    case "failover": {
      const where = ifLost.failoverTo === null ? "" : ` on ${ifLost.failoverTo}`;
      const loss = ifLost.wouldLose === null ? "" : `, ${describeLoss(ifLost.wouldLose)}`;
      return `stops: a failover${where} returns to ${describeTarget(mode, ifLost.epoch ?? 0)}${loss}`;
    }
    case "copies":
      return "stops: there is no checkpoint to return to, but a sound copy of each disk";
    case "lost":
      return "stops: nothing is left to go on with";
  }
}

/** What a failover returns to. */
function describeTarget(mode: Mode, epoch: number): string {
  return mode === "mirror" ? "the last stable write" : `checkpoint ${epoch}`;
}

/** What a failover drops: `losing nothing`, `losing at least 3 writes (12 KiB)`. */
export function describeLoss(loss: FailoverAnswer["wouldLose"]): string {
  const atLeast = loss.atLeast ? "at least " : "";
  if (loss.writes === 0) return loss.atLeast ? "losing what the primary has not sent" : "losing nothing";
  return `losing ${atLeast}${loss.writes} ${loss.writes === 1 ? "write" : "writes"} (${formatBytes(loss.bytes)})`;
}

function describeOutlook({ outlook, reason, waitMs }: ForeseenClaim): string {
  const why = reason === null ? "" : `: ${reason}`;
  switch (outlook) {
    case "granted":
      return "the arbiter would let it";
    case "promised":
      return `would wait ${formatDuration(waitMs ?? 0)} first${why}`;
    case "held":
      return `would wait first, and fail while that goes on${why}`;
    case "overruled":
      return `would overrule the arbiter${why}`;
    case "untold":
      return `the arbiter would be told later${why}`;
  }
}

/** What a failover came to, or would come to: a sentence each. */
export function describeFailover(answer: FailoverAnswer): string[] {
  if (answer.already) return ["already Primary: nothing to do"];
  const age = answer.ageMs === null ? "age unknown" : `${formatDuration(answer.ageMs)} old`;
  const what = describeTarget(answer.mode, answer.epoch);
  const becomes = answer.dryRun ? "would become Primary" : "now Primary";
  const lines = [`${becomes} from ${what}, ${age}, ${describeLoss(answer.wouldLose)}`];
  if (answer.arbiter !== undefined) lines.push(describeOutlook(answer.arbiter));
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
