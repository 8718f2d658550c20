import type { JobSpeed, JobStatus, JobVerb } from "../../proto/control-api.ts";
import { asColobusError, ColobusError } from "../../proto/errors.ts";
import type { JobState, JobType } from "../../proto/words.ts";
import type { Clock, Timer } from "../host/clock.ts";
import { Pace } from "./pace.ts";

/** What a job does, a piece at a time, so that it can be paused, limited and stopped between pieces. */
export interface JobWork {
  readonly type: JobType;
  /** The disk that the job works on; null for all of them. */
  readonly disk: string | null;
  /** The copy of the disk that the job is for, where it is for one. */
  readonly child?: string;
  /** Whether `cancel` may end it before it is done. */
  readonly cancellable: boolean;
  /** How long after an error the piece is tried again by itself; undefined: only when the job is resumed. */
  readonly retryMs?: number;
  progress(): { readonly doneBytes: number; readonly totalBytes: number };
  /**
   * Does the next piece, of about `bytesMax` if it can be that small. Resolves with the bytes that it had to move, or
   * undefined when all is done.
   */
  step(bytesMax: number): Promise<number | undefined>;
  /** Told whenever the job begins, pauses, goes on or ends. */
  stateChanged?(state: JobState): void;
  /** What status says of this work beside what it says of every job. */
  report?(): Pick<JobStatus, "verify">;
  /** A count that grows with the requests of the guests to whom the job yields. */
  guestRequests(): number;
}

export interface JobOptions {
  readonly id: string;
  readonly clock: Clock;
  readonly work: JobWork;
  readonly speed: JobSpeed;
  /** Called at every change of state. */
  readonly changed: (job: Job) => void;
}

const RATE_WINDOW_MS = 5_000;

/**
 * One long-running task with a state, progress, rate and speed limit. A piece that fails pauses the job with the
 * error; `resume` tries that piece again, and so does the job itself where its work says so.
 *
 *     created ──> running <──> paused
 *                    └───────────┴──> concluded
 */
export class Job {
  readonly id: string;
  readonly #options: JobOptions;
  #state: JobState = "created";
  #error: ColobusError | undefined;
  readonly #pace: Pace;
  #startedWallMs: number;
  #endedWallMs: number | undefined;
  /** What was done when the job ended: its work may go on to measure something else. */
  #finalProgress: ReturnType<JobWork["progress"]> | undefined;
  #timer: Timer | undefined;
  #wake: (() => void) | undefined;
  #samples: { atMs: number; doneBytes: number }[] = [];
  #finished: Promise<void> = Promise.resolve();

  constructor(options: JobOptions) {
    this.id = options.id;
    this.#options = options;
    this.#pace = new Pace(options.speed);
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
    return this.#state === "paused" && this.#error === undefined;
  }

  /** Begins, or waits for `resume` where it is `held` from the beginning. */
  start(held = false): void {
    this.#set(held ? "paused" : "running");
    this.#finished = this.#run();
  }

  /** Resolves when the job is concluded. */
  finished(): Promise<void> {
    return this.#finished;
  }

  /** Errors: `job-state` when the job's state does not allow the verb. */
  apply(verb: JobVerb): void {
    if (verb === "pause" && this.#state === "running") this.#set("paused");
    else if (verb === "resume" && this.#state === "paused") {
      this.#goOn();
      this.#wake?.();
    } else if (verb === "cancel" && this.#options.work.cancellable && this.#state !== "concluded") {
      this.conclude(new ColobusError("job-state", "the job was cancelled"));
    } else {
      throw new ColobusError(
        "job-state",
        `job ${this.id} (${this.type}) is ${this.#state} and cannot be told to ${verb}`,
        this.#options.work.cancellable
          ? "See `colobus jobs`."
          : "A job of this type ends by itself; see `colobus jobs`.",
      );
    }
  }

  setSpeed(speed: JobSpeed): void {
    this.#pace.speed = speed;
    this.#wake?.();
  }

  /** Ends the job after the piece that is under way. */
  conclude(error?: ColobusError): void {
    if (this.#state === "concluded") return;
    this.#error = error;
    this.#endedWallMs = this.#options.clock.wallMs();
    this.#finalProgress = this.#options.work.progress();
    this.#set("concluded");
    this.#wake?.();
  }

  describe(): JobStatus {
    const { doneBytes, totalBytes } = this.#finalProgress ?? this.#options.work.progress();
    const rate = this.#state === "running" ? this.#rate() : 0;
    return {
      id: this.id,
      type: this.type,
      state: this.#state,
      disk: this.disk,
      child: this.#options.work.child ?? null,
      progress: { doneBytes, totalBytes },
      bytesPerSecond: rate,
      etaMs: rate > 0 ? Math.round(((totalBytes - doneBytes) / rate) * 1000) : null,
      speedLimit: this.#pace.speed,
      startedAt: new Date(this.#startedWallMs).toISOString(),
      endedAt: this.#endedWallMs === undefined ? null : new Date(this.#endedWallMs).toISOString(),
      error: this.#error?.toJSON() ?? null,
      ...this.#options.work.report?.(),
    };
  }

  #goOn(): void {
    this.#error = undefined;
    this.#set("running");
  }

  #isConcluded(): boolean {
    return this.#state === "concluded";
  }

  async #run(): Promise<void> {
    const { clock, work } = this.#options;
    let requests = work.guestRequests();
    for (;;) {
      while (this.#state === "paused") {
        const isRetried = this.#error !== undefined && work.retryMs !== undefined;
        await this.#sleep(isRetried ? work.retryMs : undefined);
        if (isRetried) break;
      }
      if (this.#isConcluded()) return;
      const startedMs = clock.nowMs();
      try {
        const bytes = await work.step(this.#pace.pieceBytes);
        if (bytes === undefined) {
          this.conclude();
          return;
        }
        if (this.#isConcluded()) return;
        if (this.#state === "paused" && this.#error !== undefined) this.#goOn();
        this.#sample();
        const guestsActive = work.guestRequests() !== requests;
        requests = work.guestRequests();
        const restMs = this.#pace.restMs({ startedMs, endedMs: clock.nowMs(), bytes, guestsActive });
        if (restMs > 0) await this.#sleep(restMs);
        else await this.#letOthersRun();
      } catch (error) {
        if (this.#isConcluded()) return;
        const isNews = this.#state !== "paused" || this.#error === undefined;
        this.#error = asColobusError(error);
        if (isNews) this.#set("paused");
      }
    }
  }

  /** A piece may be done without ever waiting for the device: then only this lets requests in between two of them. */
  #letOthersRun(): Promise<void> {
    return new Promise((resolve) => {
      this.#options.clock.defer(resolve);
    });
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

  #sample(): void {
    const atMs = this.#options.clock.nowMs();
    const last = this.#samples.at(-1);
    if (last !== undefined && atMs - last.atMs < RATE_WINDOW_MS / 20) return;
    this.#samples.push({ atMs, doneBytes: this.#options.work.progress().doneBytes });
    while (this.#samples.length > 2 && atMs - (this.#samples[0]?.atMs ?? atMs) > RATE_WINDOW_MS) this.#samples.shift();
  }

  #rate(): number {
    const first = this.#samples[0];
    if (first === undefined) return 0;
    const elapsedMs = this.#options.clock.nowMs() - first.atMs;
    const bytes = this.#options.work.progress().doneBytes - first.doneBytes;
    return elapsedMs > 0 ? Math.max(0, (bytes / elapsedMs) * 1000) : 0;
  }

  #set(state: JobState): void {
    this.#state = state;
    this.#options.work.stateChanged?.(state);
    this.#options.changed(this);
  }
}
