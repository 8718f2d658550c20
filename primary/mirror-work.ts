/**
 * Owns: one mirror at work: its copy of the disk, how it gets what that lacks, and how it ends.
 *
 * How: the copy follows the disk (`FollowedChild`). Every change first marks its range in the copy's dirty bitmap, durably;
 * `write-blocking` then writes it to both, where the copy lacks nothing, and `background` leaves it dirty. A step brings
 * what is dirty. When nothing is, and the target is flushed, the job follows. Told to end, it writes through, so that what
 * is dirty becomes less however busy the guests are.
 *
 * Invariants: an end that says the copy is whole is decided with no change under way, nothing dirty, and the target
 * flushed; nothing is written to the target after that. Until its record is durable the bitmap goes on to be marked, so
 * that a crash leaves a mirror that goes on. The target's failures are the job's alone.
 *
 *     background, write-blocking ──(told to end)──> writing through ──> whole ──> record ──> pivoted | completed
 *                  └──────────────(cancelled, or an error)──────────────────────> record ──> cancelled | failed
 */
import { ColobusError } from "../proto/errors.ts";
import type { MirrorMark } from "../proto/state-record.ts";
import type { JobErrorPolicy, JobOutcome } from "../proto/words.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { FollowingWork, JobEnding, JobSettings, JobWork } from "../shared/jobs/job.ts";
import { CopySync } from "./copy-sync.ts";
import type { PivotedDisk } from "./disk-children.ts";
import type { DiskCopy } from "./disk-copy.ts";
import { unfollow, withoutFollower } from "./followed-child.ts";
import type { MirrorTarget } from "./mirror-target.ts";
import type { PutChild, ReplicatedDisk } from "./replicated-disk.ts";

export interface MirrorWorkOptions {
  readonly mark: MirrorMark;
  readonly disk: ReplicatedDisk;
  readonly geometry: ClusterGeometry;
  readonly copy: DiskCopy;
  readonly target: MirrorTarget;
  /** Records that the mirror is over, and has not pivoted. Resolves when that is durable, however long it takes. */
  readonly record: (outcome: JobOutcome, error: ColobusError | undefined) => Promise<void>;
  /** Records that the mirror is over, and `image` the disk's, in one record. Errors: it surely is not. */
  readonly pivot: (image: DiskImage) => Promise<PivotedDisk>;
  /** The target is the disk's image from now on; the image before it is free once `left` resolves. */
  readonly pivoted: (image: DiskImage, left: Promise<unknown>) => void;
  /** The copy follows no more, and its bitmap means nothing. */
  readonly left: () => void;
  /** Has what the job is set to recorded. Durable when the promise resolves. Errors: why it is not; they are logged. */
  readonly keep: (settings: JobSettings) => Promise<void>;
  /** The disk is quiet enough to complete for the first time. */
  readonly ready: () => void;
}

export class MirrorWork implements JobWork {
  readonly type = "mirror";
  readonly cancellable = true;
  readonly disk: string;
  readonly target: string;
  readonly following: FollowingWork;
  readonly #options: MirrorWorkOptions;
  readonly #sync: CopySync;
  /** The copy broke, and the job has not heard of it. */
  #news: ColobusError | undefined;
  /** Whose error the last one was. */
  #failing: "source" | "target" | "record" = "source";
  #isReady = false;

  constructor(options: MirrorWorkOptions) {
    const { mark, disk, copy, geometry } = options;
    this.#options = options;
    this.disk = mark.disk;
    this.target = mark.target;
    this.#sync = new CopySync(disk, copy, geometry);
    this.following = {
      ending: () => copy.writeThrough(),
      finish: (how, decide) => this.#finish(how, decide),
    };
  }

  progress(): { doneBytes: number; totalBytes: number } {
    return this.#sync.progress;
  }

  guestRequests(): number {
    return this.#options.disk.requests;
  }

  keep(settings: JobSettings): Promise<void> {
    return this.#options.keep(settings);
  }

  /** The copy has another state. */
  copyChanged(): void {
    const { copy } = this.#options;
    if (copy.state === "broken") this.#news = copy.fault;
  }

  errorPolicy(): JobErrorPolicy {
    const { onSourceError, onTargetError } = this.#options.mark;
    if (this.#failing === "record") return "stop";
    return this.#failing === "source" ? onSourceError : onTargetError;
  }

  async step(bytesMax: number): Promise<number | "following"> {
    this.#failing = "target";
    this.#throwNews();
    this.#mend();
    let bytes: number | undefined;
    try {
      bytes = await this.#sync.step(bytesMax);
    } catch (error) {
      if (!this.#isBroken) this.#failing = "source";
      this.#news = undefined;
      throw error;
    }
    if (bytes !== undefined) return bytes;
    if (this.#isReady) return "following";
    const isWhole = await this.#options.copy.finishSync();
    this.#throwNews();
    if (!isWhole) return 0;
    this.#isReady = true;
    this.#options.ready();
    return "following";
  }

  async abandon(outcome: JobOutcome, error: ColobusError | undefined): Promise<void> {
    this.#options.copy.holdBack();
    await this.#leave(outcome, error);
  }

  get #isBroken(): boolean {
    return this.#options.copy.state === "broken";
  }

  #throwNews(): void {
    const news = this.#news;
    this.#news = undefined;
    if (news !== undefined) throw news;
  }

  /** A copy that broke is tried again: the target is opened, if it has to be, and gets what it lacks. */
  #mend(): void {
    const { copy, target } = this.#options;
    if (!this.#isBroken) return;
    if (copy.isUnsettled) throw copy.fault ?? stillUnderWay(this.target);
    target.mend();
    copy.beginSync();
  }

  async #finish(how: JobEnding, decide: () => boolean): Promise<JobOutcome | undefined> {
    const { copy, disk } = this.#options;
    this.#failing = "target";
    // Most of it is flushed while guests go on.
    if (!copy.isClean || !(await this.#flushed())) return undefined;
    const isWhole = await disk.whileStill(async (put) => {
      if (!copy.isClean || this.#isBroken || !(await this.#flushed()) || !decide()) return false;
      if (how === "complete") await this.#pivot(put);
      else copy.holdBack();
      return true;
    });
    if (!isWhole) return undefined;
    if (how === "complete") return "pivoted";
    await this.#leave("completed", undefined);
    return "completed";
  }

  /** Makes the target durable. Resolves with whether it has everything. Errors: the target's. */
  async #flushed(): Promise<boolean> {
    const { copy } = this.#options;
    const fault = await copy.flush();
    this.#news = undefined;
    if (fault !== undefined) throw fault;
    return copy.isClean && !this.#isBroken;
  }

  /** No change of the disk is under way, and none begins. */
  async #pivot(put: PutChild): Promise<void> {
    const { copy, target, pivot, pivoted, left } = this.#options;
    this.#failing = "record";
    const { image } = target;
    const disk = await pivot(image);
    target.handOver();
    const unused = put((child) => withoutFollower(child, copy, disk.child));
    pivoted(image, Promise.all([unused, disk.left]));
    left();
  }

  /** Nothing reaches the target any more. Until that is recorded its bitmap is still marked. */
  async #leave(outcome: JobOutcome, error: ColobusError | undefined): Promise<void> {
    const { copy, target, disk, record, left } = this.#options;
    target.close();
    await record(outcome, error);
    await unfollow(disk, copy);
    left();
  }
}

function stillUnderWay(target: string): ColobusError {
  return new ColobusError("child-timed-out", `${target} has requests under way that were given up`);
}
