/** Jobs for people: a line each, with a bar where there is progress to show. */
import type { JobStatus } from "../proto/status.ts";
import type { Paint } from "./output.ts";
import { formatBytes, formatDuration, formatRate } from "./quantities.ts";
import { renderTable } from "./render-table.ts";

const BAR_CELLS = 20;

const COLUMNS = [
  { title: "JOB" },
  { title: "TYPE" },
  { title: "DISK" },
  { title: "STATE" },
  { title: "PROGRESS" },
] as const;

export function renderJobs(jobs: readonly JobStatus[], paint: Paint): string {
  if (jobs.length === 0) return "no jobs";
  return renderJobLines(jobs, paint).join("\n");
}

export function renderJobLines(jobs: readonly JobStatus[], paint: Paint): string[] {
  return renderTable(
    COLUMNS,
    jobs.map((job) => [job.id, job.type, job.disk ?? "all", paintState(job, paint), renderProgress(job)]),
    paint,
  );
}

/** The one line with which the `job` command answers. */
export function renderJob(job: JobStatus, paint: Paint): string {
  return `job ${job.id}: ${paintState(job, paint)}, ${renderProgress(job)}`;
}

/** `[##########..........]`: never full before the work is done, never empty once it has begun. */
export function renderBar(done: number, total: number): string {
  const filled = done >= total ? BAR_CELLS : Math.min(BAR_CELLS - 1, Math.ceil((done / total) * BAR_CELLS));
  return `[${"#".repeat(filled)}${".".repeat(BAR_CELLS - filled)}]`;
}

function renderProgress(job: JobStatus): string {
  if (job.error !== null) return job.error.message;
  const { doneBytes, totalBytes } = job.progress;
  const target = job.target === null ? "" : ` to ${job.target}`;
  if (job.state === "concluded") {
    const outcome = job.outcome === null || job.outcome === "completed" ? "" : `${job.outcome}, `;
    return `${outcome}${formatBytes(doneBytes)}${renderFindings(job)}${target}`;
  }
  const percent = doneBytes >= totalBytes ? 100 : Math.floor((doneBytes / totalBytes) * 100);
  const parts = [
    `${renderBar(doneBytes, totalBytes)} ${String(percent).padStart(3)} %  ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`,
  ];
  if (job.state === "running") {
    parts.push(formatRate(job.bytesPerSecond));
    if (job.etaMs !== null) parts.push(`${formatDuration(job.etaMs)} left`);
  }
  if (job.speedLimit !== "dynamic" && job.speedLimit > 0) parts.push(`limit ${formatRate(job.speedLimit)}`);
  return `${parts.join(", ")}${renderFindings(job)}${target}`;
}

function renderFindings({ verify, state }: JobStatus): string {
  if (verify === undefined || (verify.ranges === 0 && state !== "concluded")) return "";
  if (verify.ranges === 0) return ", no difference";
  const ranges = verify.ranges === 1 ? "1 range" : `${verify.ranges} ranges`;
  return `, ${ranges} differing (${formatBytes(verify.differingBytes)})`;
}

function paintState(job: JobStatus, paint: Paint): string {
  if (job.outcome === "cancelled") return paint("warn", job.outcome);
  if (job.error !== null) return paint("bad", "failed");
  if (job.state === "concluded" || job.state === "ready") return paint("good", job.state);
  if (job.state === "paused" || job.state === "aborting") return paint("warn", job.state);
  return job.state;
}
