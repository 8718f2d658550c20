import type { JobSpeed, ResyncAnswer } from "../proto/control-api.ts";
import { ColobusError } from "../proto/errors.ts";
import type { Job } from "../shared/jobs/job.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import type { Replicator } from "./replicator.ts";
import { SyncWork, type SyncWorkOptions } from "./sync-work.ts";

/**
 * The syncs of one primary, one after the other: a sync ends with its session, and the next one goes on with what is
 * left. What an operator has set for a sync (its speed, that it is paused) holds until everything is sent.
 */
export class SyncJobs {
  readonly #jobs: JobList;
  #speed: JobSpeed;
  #job: Job | undefined;
  /** How the next one begins. */
  #control: { readonly speed: JobSpeed; readonly held: boolean };

  /** `speed` is that of a sync for which no other is set. */
  constructor(jobs: JobList, speed: JobSpeed) {
    this.#jobs = jobs;
    this.#speed = speed;
    this.#control = { speed, held: false };
  }

  /** The speed of the sync that is under way, and of later ones, whatever was set for them. */
  setSpeed(speed: JobSpeed): void {
    this.#speed = speed;
    this.#control = { ...this.#control, speed };
    if (this.#job !== undefined && this.#job.state !== "concluded") this.#job.setSpeed(speed);
  }

  /** Whether an operator has paused the sync that is under way. */
  get isHeld(): boolean {
    return this.#job?.isHeld === true;
  }

  /** Begins a sync, in place of one that may be under way. */
  start(options: SyncWorkOptions): void {
    this.end(new ColobusError("connection-lost", "a newer sync took the place of this one"));
    this.#job = this.#jobs.start(new SyncWork(options), this.#control);
  }

  /** Ends the sync before it is done. */
  end(reason: ColobusError): void {
    const job = this.#job;
    if (job === undefined || job.state === "concluded") return;
    this.#control = { speed: job.speed, held: job.isHeld };
    job.conclude(reason);
  }

  /** Everything is sent. */
  done(): void {
    this.#control = { speed: this.#speed, held: false };
  }

  /**
   * `colobus resync` on a primary: lets a paused sync of the connected secondary go on. Everything else goes on by
   * itself. Errors: why the secondary takes no writes (`overlay-full` …), which only its operator can change.
   */
  resume({ pausedBy, isEstablished }: Replicator): ResyncAnswer {
    if (pausedBy !== undefined) throw pausedBy;
    const job = this.#job;
    if (isEstablished || job === undefined) return { outcome: "nothing-to-do", job: null, givenUpEpoch: null };
    if (job.state !== "paused") return { outcome: "running", job: job.id, givenUpEpoch: null };
    job.apply("resume");
    return { outcome: "resumed", job: job.id, givenUpEpoch: null };
  }
}
