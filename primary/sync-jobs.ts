import type { ResyncAnswer } from "../proto/control-api.ts";
import type { JobSpeed } from "../proto/status.ts";
import { ColobusError } from "../proto/errors.ts";
import type { OperatorSettings } from "../proto/state-record.ts";
import type { Log } from "../shared/host/log.ts";
import type { Job } from "../shared/jobs/job.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import { KeptSettings, setByOperator } from "../shared/jobs/kept-settings.ts";
import { NOTHING_SET, syncSettingsOf, withSyncSettings } from "../shared/journal/operator-settings.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { Replicator } from "./replicator.ts";
import { SyncWork, type SyncWorkOptions } from "./sync-work.ts";

export interface SyncJobsOptions {
  readonly jobs: JobList;
  readonly state: StateFile;
  readonly log: Log;
  /** Of the peer that is brought what it lacks. */
  readonly slot: number;
  /** The speed of a sync for which no other is set. */
  readonly resyncSpeed: JobSpeed;
}

/**
 * The syncs of one secondary, one after the other: a sync ends with its session, and the next one goes on with what is
 * left. What an operator has set for a sync (its speed, that it is paused) holds until everything is sent, in later processes
 * as well: the state record has it.
 */
export class SyncJobs {
  readonly #options: SyncJobsOptions;
  #usualSpeed: JobSpeed;
  #job: Job | undefined;
  /** How the next one begins. */
  #set: OperatorSettings;
  #kept: KeptSettings<OperatorSettings>;

  constructor(options: SyncJobsOptions) {
    this.#options = options;
    this.#usualSpeed = options.resyncSpeed;
    this.#set = syncSettingsOf(options.state.record, options.slot);
    this.#kept = this.#keeping(this.#set);
  }

  /** The speed of the sync that is under way, and of later ones, whatever was set for them. */
  setSpeed(speed: JobSpeed): void {
    this.#usualSpeed = speed;
    if (this.#job !== undefined && this.#job.state !== "concluded") this.#job.setSpeed(speed);
    else this.#keepUnasked({ isPaused: this.#set.isPaused });
  }

  /** Whether an operator has paused the sync that is under way. */
  get isHeld(): boolean {
    return this.#job?.isHeld === true;
  }

  /** Begins a sync, in place of one that may be under way. */
  start(options: Omit<SyncWorkOptions, "keep">): void {
    this.end(new ColobusError("connection-lost", "a newer sync took the place of this one"));
    const { speed = this.#usualSpeed, isPaused } = this.#set;
    const keep: SyncWorkOptions["keep"] = (settings) => {
      this.#set = setByOperator(settings, this.#usualSpeed);
      return this.#kept.keep(this.#set);
    };
    this.#job = this.#options.jobs.start(new SyncWork({ ...options, keep }), { speed, held: isPaused });
  }

  /** Ends the sync before it is done. */
  end(reason: ColobusError): void {
    this.#job?.conclude(reason);
  }

  /** Everything is sent. */
  done(): void {
    this.#keepUnasked(NOTHING_SET);
  }

  /** The record has nothing of the secondary any more, nor of what was set for its syncs. None is under way. */
  forget(): void {
    this.#set = NOTHING_SET;
    this.#kept = this.#keeping(NOTHING_SET);
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

  #keepUnasked(settings: OperatorSettings): void {
    this.#set = settings;
    this.#kept.keep(settings).catch(() => undefined); // the log has it
  }

  #keeping(recorded: OperatorSettings): KeptSettings<OperatorSettings> {
    const { state, slot, log } = this.#options;
    return new KeptSettings({
      recorded,
      write: (settings) => state.update((record) => withSyncSettings(record, slot, settings)),
      failed: (reason) => log.warn({ reason }, "how a sync is set is not recorded"),
    });
  }
}
