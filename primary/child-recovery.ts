import { asColobusError, type ColobusError } from "../proto/errors.ts";
import type { JobSpeed } from "../proto/status.ts";
import { CHILD_RETRY_MAX_MS, CHILD_RETRY_MIN_MS, DISK_RETRY_MS } from "../proto/limits.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import type { Job, JobWork } from "../shared/jobs/job.ts";
import { CopySync } from "./copy-sync.ts";
import type { DiskCopy } from "./disk-copy.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

export interface ChildRecoveryOptions {
  readonly disk: ReplicatedDisk;
  readonly copy: DiskCopy;
  readonly geometry: ClusterGeometry;
  readonly clock: Clock;
  readonly jobs: JobList;
  readonly speed: JobSpeed;
  /** Has what the copy lacks written down, where it is not. */
  readonly track: () => Promise<void>;
  /** What flushes of the copy have lost is about to be written again. */
  readonly rewritten: () => void;
  /** The copy lacks nothing, durably. Resolves with whether it is sound now. */
  readonly finish: () => Promise<boolean>;
}

const PROBE_BYTES = 512;

/**
 * Owns the way of one copy from broken back to sound: a broken one is tried again, less and less often; one that answers,
 * and has nothing under way that was given up, is brought what it lacks by a job. A copy that breaks again keeps what is
 * left, and the next job goes on with it.
 */
export class ChildRecovery {
  readonly #options: ChildRecoveryOptions;
  #retryMs = CHILD_RETRY_MIN_MS;
  #timer: Timer | undefined;
  #job: Job | undefined;
  #stopped = false;

  constructor(options: ChildRecoveryOptions) {
    this.#options = options;
  }

  /** To be called at the start, and whenever the copy's state has changed. */
  look(): void {
    const { copy } = this.#options;
    if (this.#stopped) return;
    if (copy.state === "sound") this.#retryMs = CHILD_RETRY_MIN_MS;
    else if (copy.state === "broken") {
      this.#job?.conclude(copy.fault);
      this.#job = undefined;
      this.#retryLater();
    } else if (this.#job === undefined || this.#job.state === "concluded") this.#startJob();
  }

  stop(reason: ColobusError): void {
    this.#stopped = true;
    this.#timer?.cancel();
    this.#job?.conclude(reason);
  }

  /** Resolves when nothing of the job is under way any more. */
  async settled(): Promise<void> {
    await this.#job?.finished();
  }

  #retryLater(): void {
    this.#timer ??= this.#options.clock.after(this.#retryMs, () => {
      this.#timer = undefined;
      void this.#retry();
    });
  }

  async #retry(): Promise<void> {
    const { copy, rewritten } = this.#options;
    if (this.#stopped || copy.state !== "broken") return;
    const isAnswering = !copy.isUnsettled && (await this.#isAnswering());
    if (this.#stopped || copy.state !== "broken") return;
    this.#retryMs = Math.min(this.#retryMs * 2, CHILD_RETRY_MAX_MS);
    // The probe itself may have been given up by now.
    if (!isAnswering || copy.isUnsettled) {
      this.#retryLater();
      return;
    }
    rewritten();
    copy.beginSync();
  }

  async #isAnswering(): Promise<boolean> {
    const { copy } = this.#options;
    try {
      await copy.read(Buffer.allocUnsafeSlow(Math.min(PROBE_BYTES, copy.child.sizeBytes)), 0);
      return true;
    } catch (error) {
      copy.stillFails(asColobusError(error));
      return false;
    }
  }

  #startJob(): void {
    const { jobs, speed } = this.#options;
    this.#job = jobs.start(new ChildResync(this.#options), { speed });
  }
}

/** Brings a copy what it lacks, until that is nothing. */
class ChildResync implements JobWork {
  readonly type = "resync";
  readonly cancellable = false;
  readonly retryMs = DISK_RETRY_MS;
  readonly disk: string;
  readonly child: string;
  readonly #options: ChildRecoveryOptions;
  readonly #sync: CopySync;

  constructor(options: ChildRecoveryOptions) {
    this.#options = options;
    this.disk = options.disk.name;
    this.child = options.copy.name;
    this.#sync = new CopySync(options.disk, options.copy, options.geometry);
  }

  progress(): { doneBytes: number; totalBytes: number } {
    return this.#sync.progress;
  }

  guestRequests(): number {
    return this.#options.disk.requests;
  }

  async step(bytesMax: number): Promise<number | undefined> {
    const { copy, track, finish } = this.#options;
    if (copy.tracker === undefined) await track();
    const bytes = await this.#sync.step(bytesMax);
    if (bytes !== undefined) return bytes;
    if ((await copy.finishSync()) && (await finish())) return undefined;
    return 0;
  }
}
