import type { JobVerb } from "../../proto/control-api.ts";
import type { JobSpeed, JobStatus } from "../../proto/status.ts";
import { asColobusError, ColobusError } from "../../proto/errors.ts";
import { DISK_RETRY_MS, JOB_FOLLOW_EVERY_MS } from "../../proto/limits.ts";
import type { JobErrorPolicy, JobOutcome, JobState, JobType } from "../../proto/words.ts";
import type { Clock, Timer } from "../host/clock.ts";
import { letOthersRun } from "../host/sleep.ts";
import { Pace } from "./pace.ts";
import { RateMeter } from "./rate-meter.ts";

/** How a job that follows is asked to end. */
export type JobEnding = "cancel" | "complete";

/** What a job is set to: by an operator, or by a fault that has paused it. */
export interface JobSettings {
  readonly speed: JobSpeed;
  readonly isPaused: boolean;
  /** Why it is paused, where no operator has done that. */
  readonly error: ColobusError | undefined;
}

/** What a job does, a piece at a time, so that it can be paused, limited and stopped between pieces. */
export interface JobWork {
  readonly type: JobType;
  /** The disk that the job works on; null for all of them. */
  readonly disk: string | null;
  /** The copy of the disk that the job is for, where it is for one. */
  readonly child?: string;
  /** Whether `cancel` may end it before it is done. */
  readonly cancellable: boolean;
  /** Where the job copies to. Default: null. */
  readonly target?: string;
  /** How long after an error the piece is tried again by itself; undefined: only when the job is resumed. */
  readonly retryMs?: number;
  progress(): { readonly doneBytes: number; readonly totalBytes: number };
  /**
   * Does the next piece, of about `bytesMax` if it can be that small. Resolves with the bytes that it had to move,
   * undefined when all is done, or, where the work has two phases, `following`: nothing is left for now.
   */
  step(bytesMax: number): Promise<number | undefined | "following">;
  /** Told whenever the job begins, pauses, goes on or ends. */
  stateChanged?(state: JobState): void;
  /**
   * Has what the job is set to written down, for the process after this one; asked at every change. Durable when the promise
   * resolves. Errors: why it is not, which the work has logged. Absent where no later process goes on with the job.
   */
  keep?(settings: JobSettings): Promise<void>;
  /** What status says of this work beside what it says of every job. */
  report?(): Pick<JobStatus, "verify">;
  /** A count that grows with the requests of the guests to whom the job yields. */
  guestRequests(): number;
  /** What a failed piece means for the job. Default: `stop`. */
  errorPolicy?(error: unknown): JobErrorPolicy;
  /** What the job does beside its steps once it follows, and how it ends. Absent where the work has one phase. */
  readonly following?: FollowingWork;
  /** Gives everything up; resolves when what the job came to is durable, and never rejects. Absent where nothing is to be undone. */
  abandon?(outcome: JobOutcome, error: ColobusError | undefined): Promise<void>;
}

/** The second phase of a work: nothing is left to be done but what comes up anew. */
export interface FollowingWork {
  /** The job is to end in this way, so what is left should become less from now on. */
  ending(how: JobEnding): void;
  /**
   * Ends the job, if nothing is left. `decide` is asked right before what cannot be taken back: with false the job has
   * been told otherwise. Resolves with what it came to when that is durable; undefined: something is left, or it was told otherwise.
   */
  finish(how: JobEnding, decide: () => boolean): Promise<JobOutcome | undefined>;
}

export interface JobOptions {
  readonly id: string;
  readonly clock: Clock;
  readonly work: JobWork;
  readonly speed: JobSpeed;
  /** Called at every change of state. */
  readonly changed: (job: Job) => void;
}

/**
 * One long-running task with a state, progress, rate and speed limit. A piece that fails pauses the job with the
 * error; `resume` tries that piece again, and so does the job itself where its work says so. Other error policies let
 * the job go on, or fail.
 *
 *     created ──> running <──> paused
 *                  │ └───────────┴──> aborting ──> concluded
 *                  v                     ^             ^
 *                ready <──> standby ─────┘             │
 *                  └──> pending ───────────────────────┘
 *
 * A job of one phase goes from `running` to `concluded`. One of two is `ready` once nothing was left for the first time,
 * and stays so, whatever comes up anew, until it is told to end; `pending` means that nothing can take its end back.
 */
export class Job {
  readonly id: string;
  readonly #options: JobOptions;
  #state: JobState = "created";
  #error: ColobusError | undefined;
  #outcome: JobOutcome | null = null;
  readonly #pace: Pace;
  readonly #rate: RateMeter;
  #startedWallMs: number;
  #endedWallMs: number | undefined;
  /** What was done when the job ended: its work may go on to measure something else. */
  #finalProgress: ReturnType<JobWork["progress"]> | undefined;
  #timer: Timer | undefined;
  #wake: (() => void) | undefined;
  /** Nothing has been left once: the job follows. */
  #follows = false;
  #ending: JobEnding | undefined;
  #finished: Promise<void> = Promise.resolve();
  #kept: Promise<void> = Promise.resolve();

  constructor(options: JobOptions) {
    this.id = options.id;
    this.#options = options;
    this.#pace = new Pace(options.speed);
    this.#rate = new RateMeter(options.clock, () => options.work.progress().doneBytes);
    this.#startedWallMs = options.clock.wallMs();
  }

  get state(): JobState {
    return this.#state;
  }

  get type(): JobType {
    return this.#options.work.type;
  }

  get disk(): string | null {
    return this.#options.work.disk;
  }

  /** What it came to; null: nothing yet, or it was left to a later process. */
  get outcome(): JobOutcome | null {
    return this.#outcome;
  }

  /** The error that paused or ended the job, if one did. */
  get error(): ColobusError | undefined {
    return this.#error;
  }

  /** What an operator has set: a job that takes this one's place goes on with it. */
  get speed(): JobSpeed {
    return this.#pace.speed;
  }

  /** Whether an operator has paused it, and not a fault. */
  get isHeld(): boolean {
    return this.#isPaused() && this.#error === undefined;
  }

  /** Begins, or waits for `resume` where it is `held` from the beginning; `error` is why, where no operator has held it. */
  start(held = false, error?: ColobusError): void {
    if (held) this.#error = error;
    this.#set(held ? "paused" : "running");
    this.#finished = this.#run();
  }

  /** Resolves when the job is concluded. */
  finished(): Promise<void> {
    return this.#finished;
  }

  /** `force`: a `cancel` does not wait for a consistent copy. Errors: `job-state` when the job's state does not allow the verb. */
  apply(verb: JobVerb, { force = false }: { readonly force?: boolean } = {}): void {
    this.#kept = Promise.resolve();
    if (verb === "pause" && (this.#state === "running" || this.#state === "ready") && this.#ending === undefined) {
      this.#error = undefined;
      this.#pause();
    } else if (verb === "resume" && this.#isPaused()) {
      this.#goOn();
      this.#wake?.();
    } else if (verb === "complete" && this.#state === "ready" && this.#ending === undefined) {
      this.#end(verb);
    } else if (verb === "cancel" && this.#isCancellable()) {
      if (this.#follows && !force) this.#end(verb);
      else this.#cancelNow();
    } else throw this.#refusal(verb);
  }

  setSpeed(speed: JobSpeed): void {
    this.#pace.speed = speed;
    this.#keep();
    this.#wake?.();
  }

  /** Resolves when a later process would find what was set last, where it goes on with the job. Errors: why it would not. */
  kept(): Promise<void> {
    return this.#kept;
  }

  /**
   * Ends the job after the piece that is under way. `outcome` is null where a later process goes on with it; by default
   * the error decides.
   */
  conclude(error?: ColobusError, outcome: JobOutcome | null = error === undefined ? "completed" : "failed"): void {
    if (this.#state === "concluded") return;
    this.#error = error;
    this.#outcome = outcome;
    this.#endedWallMs = this.#options.clock.wallMs();
    this.#finalProgress = this.#options.work.progress();
    this.#set("concluded");
    this.#wake?.();
  }

  describe(): JobStatus {
    const { doneBytes, totalBytes } = this.#finalProgress ?? this.#options.work.progress();
    const rate = this.#state === "running" ? this.#rate.bytesPerSecond() : 0;
    return {
      id: this.id,
      type: this.type,
      state: this.#state,
      disk: this.disk,
      target: this.#options.work.target ?? null,
      child: this.#options.work.child ?? null,
      progress: { doneBytes, totalBytes },
      bytesPerSecond: rate,
      etaMs: rate > 0 ? Math.round(((totalBytes - doneBytes) / rate) * 1000) : null,
      speedLimit: this.#pace.speed,
      startedAt: new Date(this.#startedWallMs).toISOString(),
      endedAt: this.#endedWallMs === undefined ? null : new Date(this.#endedWallMs).toISOString(),
      outcome: this.#outcome,
      error: this.#error?.toJSON() ?? null,
      ...this.#options.work.report?.(),
    };
  }

  #isPaused(): boolean {
    return this.#state === "paused" || this.#state === "standby";
  }

  /** Nothing is to be done any more but what ends it. */
  #isOver(): boolean {
    return this.#state === "concluded" || this.#state === "aborting";
  }

  #isCancellable(): boolean {
    return this.#options.work.cancellable && !this.#isOver() && this.#state !== "pending";
  }

  #pause(): void {
    this.#set(this.#follows ? "standby" : "paused");
  }

  #goOn(): void {
    this.#error = undefined;
    this.#set(this.#follows ? "ready" : "running");
  }

  /** A piece is done: the error before it is over. */
  #recovered(): void {
    if (this.#error === undefined) return;
    if (this.#isPaused()) this.#goOn();
    else this.#error = undefined;
  }

  #end(how: JobEnding): void {
    this.#ending = how;
    this.#options.work.following?.ending(how);
    if (this.#isPaused()) this.#goOn();
    this.#wake?.();
  }

  #cancelNow(): void {
    const reason = new ColobusError("job-state", "the job was cancelled");
    if (this.#options.work.abandon === undefined) this.conclude(reason, "cancelled");
    else this.#abandon("cancelled", reason);
  }

  /** Gives everything up. The job is concluded when that is durable; `finished` waits for it, whoever has asked. */
  #abandon(outcome: JobOutcome, error: ColobusError): void {
    this.#error = error;
    this.#set("aborting");
    this.#wake?.();
    const loop = this.#finished;
    const abandoning = this.#options.work.abandon?.(outcome, error) ?? Promise.resolve();
    const ended = abandoning.then(() => this.conclude(error, outcome));
    this.#finished = Promise.all([loop, ended]).then(() => undefined);
  }

  #refusal(verb: JobVerb): ColobusError {
    const { work } = this.#options;
    const ending = this.#ending === undefined ? "" : `, being told to ${this.#ending},`;
    const action = work.cancellable ? "See `colobus jobs`." : "A job of this type ends by itself; see `colobus jobs`.";
    return new ColobusError(
      "job-state",
      `job ${this.id} (${this.type}) is ${this.#state}${ending} and cannot be told to ${verb}`,
      verb === "complete" && work.following !== undefined && !this.#follows
        ? "Wait until it is ready: `colobus jobs`."
        : action,
    );
  }

  async #run(): Promise<void> {
    const { clock, work } = this.#options;
    let requests = work.guestRequests();
    for (;;) {
      if (this.#isPaused()) await this.#untilUnpaused();
      if (this.#isOver()) return;
      const startedMs = clock.nowMs();
      try {
        const bytes = await work.step(this.#pace.pieceBytes);
        if (this.#isOver()) return;
        if (bytes === undefined) {
          this.conclude();
          return;
        }
        this.#recovered();
        this.#rate.sample();
        if (bytes === "following") {
          if (await this.#follow()) return;
          continue;
        }
        const guestsActive = work.guestRequests() !== requests;
        requests = work.guestRequests();
        const restMs = this.#pace.restMs({ startedMs, endedMs: clock.nowMs(), bytes, guestsActive });
        if (restMs > 0) await this.#sleep(restMs);
        else await letOthersRun(this.#options.clock);
      } catch (error) {
        if (this.#isOver()) return;
        await this.#failed(error);
      }
    }
  }

  async #untilUnpaused(): Promise<void> {
    const { retryMs } = this.#options.work;
    while (this.#isPaused()) {
      const isRetried = this.#error !== undefined && retryMs !== undefined;
      await this.#sleep(isRetried ? retryMs : undefined);
      if (isRetried) return;
    }
  }

  /** Nothing is left for now: waits until something is, or ends as it was told to. Resolves with whether it is over. */
  async #follow(): Promise<boolean> {
    if (this.#state === "running") {
      this.#follows = true;
      this.#set("ready");
    }
    const how = this.#ending;
    if (how !== undefined && !this.#isPaused()) {
      const outcome = await this.#options.work.following?.finish(how, () => this.#decide(how));
      if (this.#isOver()) return true;
      if (outcome !== undefined) {
        this.conclude(undefined, outcome);
        return true;
      }
      if (this.#state === "pending") this.#set("ready");
      await letOthersRun(this.#options.clock);
      return false;
    }
    if (this.#ending !== undefined || this.#isPaused()) await letOthersRun(this.#options.clock);
    else await this.#sleep(JOB_FOLLOW_EVERY_MS);
    return this.#isOver();
  }

  #decide(how: JobEnding): boolean {
    if (this.#isOver() || this.#isPaused() || this.#ending !== how) return false;
    this.#set("pending");
    return true;
  }

  async #failed(thrown: unknown): Promise<void> {
    const error = asColobusError(thrown);
    if (this.#state === "pending") this.#set("ready");
    const policy = this.#options.work.errorPolicy?.(thrown) ?? "stop";
    // Whoever has paused it meanwhile lets it go on, and nothing else does: the piece fails again then.
    if (policy === "stop" && this.isHeld) return;
    if (policy === "report") {
      this.#abandon("failed", error);
    } else if (policy === "ignore") {
      this.#error = error;
      await this.#sleep(DISK_RETRY_MS);
    } else {
      const isNews = !this.#isPaused() || this.#error === undefined;
      this.#error = error;
      if (isNews) this.#pause();
    }
  }

  /** Waits for a verb, a new speed or the end, or for `forMs`. */
  #sleep(forMs: number | undefined): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        this.#timer?.cancel();
        this.#timer = undefined;
        this.#wake = undefined;
        resolve();
      };
      this.#wake = wake;
      if (forMs !== undefined) this.#timer = this.#options.clock.after(forMs, wake);
    });
  }

  #set(state: JobState): void {
    this.#state = state;
    this.#options.work.stateChanged?.(state);
    this.#keep();
    this.#options.changed(this);
  }

  /** A job whose end has begun keeps what it was set to before: the end may be left to a later process. */
  #keep(): void {
    if (this.#isOver() || this.#state === "pending") return;
    const isPaused = this.#isPaused();
    const error = isPaused ? this.#error : undefined;
    this.#kept = this.#options.work.keep?.({ speed: this.speed, isPaused, error }) ?? Promise.resolve();
    this.#kept.catch(() => undefined); // who has set it waits for `kept`
  }
}
