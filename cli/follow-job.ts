import type { JobStatus } from "../proto/status.ts";
import { ColobusError, isErrorCode } from "../proto/errors.ts";
import type { ControlClient } from "../shared/control/api-client.ts";
import type { JobOutcome } from "../proto/words.ts";
import type { CommandHost } from "./command.ts";
import { formatDuration } from "./quantities.ts";
import { renderJob } from "./render-jobs.ts";

const POLL_MS = 250;
/** How often the progress is told anew. */
const TELL_EVERY_MS = 2_000;

export interface FollowJobOptions {
  readonly client: ControlClient;
  readonly host: CommandHost;
  readonly id: string;
  readonly timeoutMs: number;
  /** Progress is for people: with `--json` none is shown. */
  readonly json: boolean;
  /** `ready`, or an end that counts before that; or the end. */
  readonly until: "ready" | "concluded";
  /** What is as good an end as any that was asked for. */
  readonly outcomes: readonly JobOutcome[];
}

/**
 * Shows on stderr how a job gets on, until it is as far as asked. The job goes on whatever becomes of this. Errors:
 * `timed-out`; `outcome-unknown` when interrupted; the job's own, or `job-state`, when it has come to another end, or waits
 * for an operator because of an error; `shutting-down` when its agent ends first.
 */
export async function followJob(options: FollowJobOptions): Promise<JobStatus> {
  const { client, host, id, timeoutMs, until } = options;
  const finished = new AbortController();
  const call = { timeoutMs, signal: AbortSignal.any([host.interrupted, finished.signal]) };
  try {
    // The stream of events is how the agent's end is heard of, whatever the progress.
    const lastEvent = (await client.events(0, call)).at(-1);
    const following = drain(client.follow(lastEvent?.sequence ?? 0, call));
    following.catch(() => undefined); // `poll` has its failure, unless it has ended
    return await poll(options, following);
  } catch (error) {
    if (host.interrupted.aborted) throw goesOn(id, "outcome-unknown", `was interrupted before it saw it ${until}`);
    throw error;
  } finally {
    finished.abort();
  }
}

async function poll(
  { client, host, id, timeoutMs, json, until, outcomes }: FollowJobOptions,
  following: Promise<void>,
): Promise<JobStatus> {
  const endMs = host.clock.nowMs() + timeoutMs;
  let tellMs = host.clock.nowMs();
  for (;;) {
    const leftMs = endMs - host.clock.nowMs();
    if (leftMs <= 0) throw goesOn(id, "timed-out", `did not see it ${until} within ${formatDuration(timeoutMs)}`);
    const jobs = await client.jobs({ timeoutMs: leftMs, signal: host.interrupted });
    const job = jobs.find((candidate) => candidate.id === id);
    if (job === undefined)
      throw new ColobusError("job-unknown", `there is no job "${id}" any more`, "See `colobus jobs`.");
    assertSound(job, outcomes);
    if (job.state === "concluded" || job.state === until) return job;
    if (!json && host.clock.nowMs() >= tellMs) {
      host.output.remark(renderJob(job, (_tone, text) => text));
      tellMs += TELL_EVERY_MS;
    }
    await Promise.race([pause(host, Math.min(POLL_MS, leftMs)), following]);
  }
}

/** Reads all events, and ends with a failure of the stream. */
async function drain(events: AsyncIterable<unknown>): Promise<void> {
  for await (const _event of events) continue;
}

function assertSound({ id, state, outcome, error }: JobStatus, outcomes: readonly JobOutcome[]): void {
  const isStuck = error !== null && (state === "paused" || state === "standby");
  const isOver = state === "concluded" && !(outcome !== null && outcomes.includes(outcome));
  if (!isStuck && !isOver) return;
  const { code, message, action } = error ?? {
    code: "job-state",
    message: `it was ${outcome ?? "left"} instead`,
    action: "Somebody else has ended it: see `colobus events`.",
  };
  throw new ColobusError(
    isErrorCode(code) ? code : "job-state",
    `job ${id} (${state}): ${message}`,
    isOver && outcome === null ? "It goes on with the agent, when that runs again: see `colobus jobs`." : action,
  );
}

function goesOn(id: string, code: "outcome-unknown" | "timed-out", why: string): ColobusError {
  return new ColobusError(code, `the command that follows job ${id} ${why}`, "The job goes on: see `colobus jobs`.");
}

function pause(host: CommandHost, ms: number): Promise<void> {
  return new Promise((resolve) => {
    const finish = (): void => {
      timer.cancel();
      host.interrupted.removeEventListener("abort", finish);
      resolve();
    };
    const timer = host.clock.after(ms, finish);
    host.interrupted.addEventListener("abort", finish, { once: true });
  });
}
