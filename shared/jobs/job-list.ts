import type { JobSpeed } from "../../proto/status.ts";
import { ColobusError } from "../../proto/errors.ts";
import { JOBS_CONCLUDED_KEPT } from "../../proto/limits.ts";
import type { Clock } from "../host/clock.ts";
import type { JobType } from "../../proto/words.ts";
import { Job, type JobWork } from "./job.ts";

/** The jobs of one agent, the latest concluded ones included. */
export class JobList {
  readonly #clock: Clock;
  readonly #changed: (job: Job) => void;
  readonly #jobs: Job[] = [];
  #started = 0;

  constructor(clock: Clock, changed: (job: Job) => void) {
    this.#clock = clock;
    this.#changed = changed;
  }

  /** An id that no job has had, those of earlier processes that are still known included. */
  newId(type: JobType): string {
    this.#started += 1;
    return `${type}-${this.#started}`;
  }

  /** Later ids have higher numbers than this one of an earlier process. */
  skip(id: string): void {
    this.#started = Math.max(this.#started, Number(/-(\d+)$/.exec(id)?.[1] ?? 0));
  }

  /**
   * Starts a job without a speed limit, unless there is one. One that is `held` waits for `resume` from its beginning, and
   * `error` is why.
   */
  start(
    work: JobWork,
    {
      speed = 0,
      held = false,
      error,
      id = this.newId(work.type),
    }: {
      readonly speed?: JobSpeed;
      readonly held?: boolean;
      readonly error?: ColobusError | undefined;
      readonly id?: string;
    } = {},
  ): Job {
    const job = new Job({ id, clock: this.#clock, work, speed, changed: this.#changed });
    this.#jobs.push(job);
    const concluded = this.#jobs.filter((other) => other.state === "concluded");
    for (const old of concluded.slice(0, -JOBS_CONCLUDED_KEPT)) this.#jobs.splice(this.#jobs.indexOf(old), 1);
    job.start(held, error);
    return job;
  }

  all(): readonly Job[] {
    return this.#jobs;
  }

  /** Errors: `job-unknown`. */
  get(id: string): Job {
    const job = this.#jobs.find((candidate) => candidate.id === id);
    if (job !== undefined) return job;
    throw new ColobusError("job-unknown", `there is no job "${id}"`, "See `colobus jobs`.");
  }

  /** Ends all jobs after the piece that each has under way; what they came to is left to a later process. */
  async stop(reason: ColobusError): Promise<void> {
    const running = this.#jobs.filter((job) => job.state !== "concluded");
    for (const job of running) job.conclude(reason, null);
    await Promise.all(running.map((job) => job.finished()));
  }
}
