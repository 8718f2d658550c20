import { ColobusError, asColobusError } from "../proto/errors.ts";
import type { MirrorRequest } from "../proto/control-api.ts";
import {
  CHILD_TIMEOUT_DEFAULT_MS,
  CLUSTER_MAX_BYTES,
  CLUSTER_MIN_BYTES,
  MIRROR_GRANULARITY_DEFAULT_MAX_BYTES,
  MIRRORS_MAX,
  STATE_RETRY_MS,
} from "../proto/limits.ts";
import { fitsStateSlot, type MirrorMark, type StateRecord } from "../proto/state-record.ts";
import type { EventType, JobOutcome } from "../proto/words.ts";
import type { Child } from "../shared/block/block-device.ts";
import { ClusterBitmap, type ClusterRun } from "../shared/block/cluster-bitmap.ts";
import {
  clusterGeometry,
  endClusterOf,
  firstClusterOf,
  type ClusterGeometry,
} from "../shared/block/cluster-geometry.ts";
import type { Stretch } from "../shared/block/data-stretches.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import { assertNotGrowing, assertStillOfSize } from "../shared/block/growth.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import { RepeatedWork } from "../shared/host/repeated-work.ts";
import { sleep } from "../shared/host/sleep.ts";
import type { Job } from "../shared/jobs/job.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import { KeptSettings } from "../shared/jobs/kept-settings.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { DirtyMap } from "../shared/replication/dirty-map.ts";
import { DirtyTracker, type DirtyTrackerOptions } from "../shared/replication/dirty-tracker.ts";
import { isUsed } from "./child-rules.ts";
import type { PivotedDisk } from "./disk-children.ts";
import type { DiskCopies } from "./disk-copies.ts";
import { DiskCopy } from "./disk-copy.ts";
import { follow, FollowedChild, unfollow } from "./followed-child.ts";
import { mergeUnfinished } from "../shared/jobs/merge-unfinished.ts";
import { begun, ended, leftAs, openMirrors, pivoted, setTo, settingsOf, type MirrorEnd } from "./mirror-record.ts";
import { MirrorTarget } from "./mirror-target.ts";
import { MirrorWork } from "./mirror-work.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

/** The images that mirrors copy to, and what becomes of one that a disk is given. */
export interface MirrorTargets {
  /**
   * Opens the target of a new mirror, and makes it first where that is asked for. Errors: `usage`, those of opening or
   * making it, `image-busy` where this agent uses it already, `size-mismatch`.
   */
  open(request: MirrorRequest, sizeBytes: number, signal: AbortSignal): Promise<DiskImage>;
  /** Opens a recorded target. Errors: those of opening it; `image-changed` when it is not as `cleanMark`, if given, says. */
  reopen(target: string, sizeBytes: number, cleanMark?: string): DiskImage;
  /** The parts of the disk that the top layer of its image holds. Errors: `not-supported` where that is not known. */
  topLayer(disk: ReplicatedDisk): Promise<readonly Stretch[]>;
  /** `image` is the disk's from now on; the one before is to be closed when `left` resolves. */
  pivoted(disk: string, image: DiskImage, left: Promise<unknown>): void;
  /** Where the dirty bitmap of a mirror lies; the directory is there. */
  tracker(slot: number, geometry: ClusterGeometry): DirtyTrackerOptions;
}

export interface MirrorsOptions {
  readonly state: StateFile;
  readonly clock: Clock;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly jobs: JobList;
  readonly targets: MirrorTargets;
  readonly disks: () => readonly ReplicatedDisk[];
  readonly copies: Pick<DiskCopies, "localFault" | "pivot">;
  readonly settleEveryMs: number;
}

interface Mirror {
  readonly mark: MirrorMark;
  readonly geometry: ClusterGeometry;
  readonly copy: DiskCopy;
  readonly target: MirrorTarget;
  work: MirrorWork | undefined;
  job: Job | undefined;
}

/**
 * Owns the mirrors of one primary: those that an earlier process has left, which follow their disks from before the first
 * request of a guest on, and new ones. A mirror is recorded when its bitmap is durable and follows the disk, and its end
 * is one more record; so after a crash it goes on, or is over, and a disk has its old image or the new one.
 */
export class Mirrors {
  readonly #options: MirrorsOptions;
  readonly #open: Mirror[] = [];
  /** Slots and targets of mirrors that are about to begin. */
  readonly #starting = new Map<number, string>();
  /** Slots of mirrors that were refused, and whose bitmap cannot be removed yet. */
  readonly #uncleared = new Set<number>();
  readonly #settling: RepeatedWork;
  /** What tells a later change of the targets that were left in good order, by the mirror's id. */
  readonly #leftMarks = new Map<string, string>();
  #stopped = false;

  constructor(options: MirrorsOptions, sizes: ReadonlyMap<string, number>) {
    this.#options = options;
    this.#settling = new RepeatedWork({
      clock: options.clock,
      everyMs: options.settleEveryMs,
      work: () => this.#settle(),
      failed: (error) => this.#unsettled(error),
    });
    for (const mark of options.state.record.mirrors) options.jobs.skip(mark.id);
    for (const mark of openMirrors(options.state.record)) {
      const sizeBytes = sizes.get(mark.disk);
      if (sizeBytes !== undefined) this.#open.push(this.#takeUp(mark, sizeBytes));
    }
  }

  /** `child` with the mirrors of an earlier process that follow it. */
  followed(disk: string, child: Child): Child {
    const copies = this.#open.filter(({ mark }) => mark.disk === disk).map(({ copy }) => copy);
    return copies.length === 0 ? child : new FollowedChild(child, copies);
  }

  /**
   * To be awaited before the record forgets how the targets were left: no later process takes one for better than it was
   * found. Errors: `io-error`.
   */
  async recordFound(): Promise<void> {
    for (const { mark, copy } of this.#open) if (mark.isTracked && !copy.isTracked) await this.#untracked(mark.id);
  }

  start(): void {
    for (const mirror of this.#open) this.#launch(mirror);
    this.#settling.start();
  }

  /**
   * Begins a mirror. Resolves with its job when a crash leaves it going on. Errors: `not-found` (no such disk), `usage`,
   * `not-supported`, `merge-unfinished`, those of the target and of the storage.
   */
  async begin(request: MirrorRequest, signal: AbortSignal): Promise<Job> {
    const { jobs, clock, state } = this.#options;
    assertCanMirror(state.record, request.disk);
    const disk = this.#disk(request.disk);
    const geometry = this.#geometryOf(request, disk.sizeBytes);
    const mark: MirrorMark = {
      id: jobs.newId("mirror"),
      disk: disk.name,
      target: request.target,
      slot: this.#freeSlot(),
      isTracked: true,
      sync: request.sync,
      copyMode: request.copyMode,
      granularityBytes: geometry.clusterBytes,
      unmap: request.unmap,
      speed: request.speed,
      isPaused: false,
      onSourceError: request.onSourceError,
      onTargetError: request.onTargetError,
      startedAtMs: clock.wallMs(),
      outcome: null,
      endedAtMs: null,
      doneBytes: 0,
      error: null,
    };
    this.#assertRoom(mark);
    this.#starting.set(mark.slot, mark.target);
    try {
      return await this.#begin(mark, disk, geometry, request, signal);
    } finally {
      this.#starting.delete(mark.slot);
    }
  }

  /** The mirrors as they are to be recorded where the agent, which has stopped them, ends in good order. */
  leftAs(recorded: readonly MirrorMark[]): MirrorMark[] {
    return leftAs(recorded, this.#leftMarks);
  }

  /** Nothing is under way any more on the disks: what is left dirty is settled, and the targets are closed. */
  async stop(reason: ColobusError): Promise<void> {
    this.#stopped = true;
    await this.#settling.stop();
    for (const mirror of this.#open.slice()) {
      mirror.job?.conclude(reason);
      await mirror.job?.finished();
      // Its own end, which had begun, has closed it.
      if (!this.#open.includes(mirror)) continue;
      await this.#leave(mirror);
      mirror.copy.close();
      mirror.target.close();
    }
  }

  async #leave({ mark, copy, target }: Mirror): Promise<void> {
    if (target.isUntouched && mark.cleanMark !== undefined) this.#leftMarks.set(mark.id, mark.cleanMark);
    // What a broken copy has taken cannot be made durable.
    if (copy.state === "broken") return;
    const disk = this.#disk(mark.disk);
    try {
      await copy.tracker?.settleAll({ inFlight: () => new ClusterBitmap(), flush: () => flushBoth(disk, copy) });
      this.#leftMarks.set(mark.id, await target.image.changeMark());
    } catch (error) {
      this.#unsettled(error);
    }
  }

  async #begin(
    mark: MirrorMark,
    disk: ReplicatedDisk,
    geometry: ClusterGeometry,
    request: MirrorRequest,
    signal: AbortSignal,
  ): Promise<Job> {
    const { targets, state } = this.#options;
    const image = await targets.open(request, disk.sizeBytes, signal);
    let tracker: DirtyTracker;
    try {
      const initial = mark.sync === "full" ? "all-dirty" : "clean";
      tracker = await DirtyTracker.create(targets.tracker(mark.slot, geometry), initial);
    } catch (error) {
      image.close();
      throw error;
    }
    const mirror = this.#mirrorOf(mark, geometry, tracker, { image, state: "syncing" });
    await follow(disk, mirror.copy);
    try {
      if (mark.sync === "top") {
        // From here on the mirror is told of what the image may miss.
        this.#assertWhole(disk.name);
        await tracker.addRuns(clustersOf(await targets.topLayer(disk), geometry));
      }
      this.#assertGoing(signal);
      await state.update((record) => {
        assertStillOfSize(record, disk.name, geometry.sizeBytes);
        if (isUsed(record, mark.target)) throw inUse(mark.target);
        return begun(record, { ...mark, isTracked: mirror.copy.isTracked });
      });
    } catch (error) {
      mirror.copy.holdBack();
      mirror.target.close();
      // The record may name it all the same: the next process is to find no bitmap that does not know of later writes.
      const isRemoved = await this.#tryRemoveBitmap(mark, geometry);
      await unfollow(disk, mirror.copy);
      mirror.copy.close();
      if (!isRemoved) void this.#clear(mark, geometry);
      throw error;
    }
    this.#open.push(mirror);
    return this.#launch(mirror);
  }

  /** What an earlier process has left: it lacks everything where its bitmap cannot be believed. */
  #takeUp(mark: MirrorMark, sizeBytes: number): Mirror {
    const { targets, log } = this.#options;
    const geometry = clusterGeometry(sizeBytes, mark.granularityBytes);
    const trackerOptions = targets.tracker(mark.slot, geometry);
    const { image, isChanged } = this.#openAsLeft(mark, sizeBytes);
    const tracker = mark.isTracked && !isChanged ? DirtyTracker.open(trackerOptions) : undefined;
    if (tracker !== undefined) return this.#mirrorOf(mark, geometry, tracker, { image, state: "broken" });
    if (!isChanged) log.warn({ job: mark.id }, "the mirror's dirty bitmap cannot be read: everything is copied");
    DirtyTracker.remove(trackerOptions);
    const map = new DirtyMap(geometry);
    map.addAll();
    return this.#mirrorOf(mark, geometry, map, { image, state: "broken" });
  }

  /**
   * The target of a mirror that an earlier process has left in good order. `isChanged`: another program has changed it since,
   * or may have: nobody can tell of one that cannot be opened now.
   */
  #openAsLeft({ id, target, cleanMark }: MirrorMark, sizeBytes: number): { image?: DiskImage; isChanged: boolean } {
    if (cleanMark === undefined) return { isChanged: false };
    try {
      return { image: this.#options.targets.reopen(target, sizeBytes, cleanMark), isChanged: false };
    } catch (error) {
      const reason = asColobusError(error);
      this.#options.log.warn({ job: id, reason }, "the mirror's target may have been changed: everything is copied");
      return { isChanged: true };
    }
  }

  /** `image`: the target, where it is open already. */
  #mirrorOf(
    mark: MirrorMark,
    geometry: ClusterGeometry,
    dirty: DirtyMap,
    { image, state }: { readonly image?: DiskImage | undefined; readonly state: "broken" | "syncing" },
  ): Mirror {
    const { clock, targets } = this.#options;
    const open = (): DiskImage => targets.reopen(mark.target, geometry.sizeBytes);
    const target = new MirrorTarget(mark.target, geometry.sizeBytes, open, image);
    const copy = new DiskCopy({
      disk: mark.disk,
      name: mark.id,
      child: target,
      geometry,
      dirty,
      clock,
      timeoutMs: CHILD_TIMEOUT_DEFAULT_MS,
      state,
      isWrittenThrough: mark.copyMode === "write-blocking",
      unmap: mark.unmap,
      changed: () => mirror.work?.copyChanged(),
      untracked: () => this.#untracked(mark.id),
    });
    const mirror: Mirror = { mark, geometry, copy, target, work: undefined, job: undefined };
    return mirror;
  }

  #launch(mirror: Mirror): Job {
    const { jobs, emit, targets, log } = this.#options;
    const { mark, geometry, copy, target } = mirror;
    const settings = settingsOf(mark);
    const kept = new KeptSettings({
      recorded: settings,
      write: (changed) => this.#change(mark.id, (recorded) => setTo(recorded, changed)),
      failed: (reason) => log.warn({ job: mark.id, reason }, "how a mirror is set is not recorded"),
    });
    const work = new MirrorWork({
      mark,
      disk: this.#disk(mark.disk),
      geometry,
      copy,
      target,
      record: (outcome, error) => this.#record(mirror, outcome, error),
      pivot: (pivoting) => this.#pivot(mirror, pivoting),
      pivoted: (image, left) => {
        targets.pivoted(mark.disk, image, left);
        emit("disk-pivoted", { disk: mark.disk, image: mark.target, job: mark.id });
      },
      left: () => this.#left(mirror),
      keep: (changed) => kept.keep(changed),
      ready: () => emit("job-ready", { id: mark.id, type: "mirror", disk: mark.disk }),
    });
    mirror.work = work;
    mirror.job = jobs.start(work, { ...settings, held: settings.isPaused, id: mark.id });
    return mirror.job;
  }

  #record(mirror: Mirror, outcome: JobOutcome, error: ColobusError | undefined): Promise<void> {
    const end = { outcome, ...this.#endOf(mirror), error };
    return this.#untilRecorded(() => this.#options.state.update((record) => ended(record, mirror.mark.id, end)));
  }

  #pivot(mirror: Mirror, image: DiskImage): Promise<PivotedDisk> {
    const { state, copies } = this.#options;
    return copies.pivot(mirror.mark.disk, image, async () => {
      const end = { ...this.#endOf(mirror), error: undefined };
      try {
        await state.update((record) => pivoted(record, mirror.mark, end));
      } catch (failure) {
        // Which of the two records is on the disk is not known, and no guest may write before it is.
        await this.#untilRecorded(() => state.update((record) => record));
        throw failure;
      }
    });
  }

  #endOf({ work }: Mirror): Pick<MirrorEnd, "endedAtMs" | "doneBytes"> {
    return { endedAtMs: this.#options.clock.wallMs(), doneBytes: work?.progress().doneBytes ?? 0 };
  }

  /** Tries again until it is recorded, or the agent stops: then the next process decides by what it finds. */
  async #untilRecorded(update: () => Promise<unknown>): Promise<void> {
    for (;;) {
      try {
        await update();
        return;
      } catch (error) {
        if (this.#stopped) return;
        this.#options.log.warn({ reason: asColobusError(error) }, "the end of a mirror cannot be recorded yet");
      }
      await sleep(this.#options.clock, STATE_RETRY_MS);
    }
  }

  /** Durable when the promise resolves to true: a mirror that the record names all the same lacks everything. */
  async #tryRemoveBitmap({ id, slot }: MirrorMark, geometry: ClusterGeometry): Promise<boolean> {
    try {
      const options = this.#options.targets.tracker(slot, geometry);
      DirtyTracker.remove(options);
      await options.storage.syncDirectory(options.directory);
      return true;
    } catch (error) {
      this.#options.log.warn({ job: id, reason: asColobusError(error) }, "a mirror's bitmap cannot be removed yet");
      return false;
    }
  }

  /** No other mirror has the slot until its bitmap is removed, or the agent stops: nobody waits for that. */
  async #clear(mark: MirrorMark, geometry: ClusterGeometry): Promise<void> {
    this.#uncleared.add(mark.slot);
    do await sleep(this.#options.clock, STATE_RETRY_MS);
    while (!this.#stopped && !(await this.#tryRemoveBitmap(mark, geometry)));
    this.#uncleared.delete(mark.slot);
  }

  #left(mirror: Mirror): void {
    this.#open.splice(this.#open.indexOf(mirror), 1);
    mirror.copy.close();
    DirtyTracker.remove(this.#options.targets.tracker(mirror.mark.slot, mirror.geometry));
  }

  async #untracked(id: string): Promise<void> {
    await this.#change(id, (mark) => ({ ...mark, isTracked: false }));
  }

  async #change(id: string, change: (mark: MirrorMark) => MirrorMark): Promise<void> {
    await this.#options.state.update((record) => ({
      ...record,
      mirrors: record.mirrors.map((mark) => (mark.id === id ? change(mark) : mark)),
    }));
  }

  async #settle(): Promise<void> {
    for (const { mark, copy } of this.#open.slice()) {
      const disk = this.#disk(mark.disk);
      // What a broken copy has taken cannot be made durable.
      if (copy.state === "broken") continue;
      await copy.tracker
        ?.settle({
          inFlight: () => new ClusterBitmap(),
          isBusy: (offset, length) => disk.isBusy(offset, length),
          flush: () => flushBoth(disk, copy),
        })
        .catch((error: unknown) => this.#unsettled(error));
    }
  }

  /** It has more than need be, and goes on. */
  #unsettled(error: unknown): void {
    this.#options.log.warn({ reason: asColobusError(error) }, "the bitmap of a mirror could not be settled");
  }

  #disk(name: string): ReplicatedDisk {
    const disk = this.#options.disks().find((candidate) => candidate.name === name);
    if (disk !== undefined) return disk;
    throw new ColobusError("not-found", `there is no disk "${name}"`, "`colobus status` lists the disks.");
  }

  #geometryOf({ granularityBytes }: MirrorRequest, sizeBytes: number): ClusterGeometry {
    const ofDisks = this.#options.state.record.clusterBytes;
    const chosen = granularityBytes ?? Math.min(ofDisks, MIRROR_GRANULARITY_DEFAULT_MAX_BYTES);
    if (Number.isInteger(Math.log2(chosen)) && chosen >= CLUSTER_MIN_BYTES && chosen <= CLUSTER_MAX_BYTES) {
      return clusterGeometry(sizeBytes, chosen);
    }
    throw new ColobusError(
      "usage",
      `a granularity of ${chosen} bytes is not possible`,
      `Choose a power of two from ${CLUSTER_MIN_BYTES} to ${CLUSTER_MAX_BYTES}.`,
    );
  }

  #freeSlot(): number {
    const taken = new Set([...this.#open.map(({ mark }) => mark.slot), ...this.#starting.keys(), ...this.#uncleared]);
    for (let slot = 0; slot < MIRRORS_MAX; slot += 1) if (!taken.has(slot)) return slot;
    throw new ColobusError(
      "job-state",
      `there are ${MIRRORS_MAX} mirrors already`,
      "Complete or cancel one of them: `colobus jobs`.",
    );
  }

  #assertRoom(mark: MirrorMark): void {
    const { record } = this.#options.state;
    const isTaken = [...this.#open.map((mirror) => mirror.mark.target), ...this.#starting.values()].includes(
      mark.target,
    );
    if (isTaken) {
      throw new ColobusError("image-busy", `${mark.target} is the target of another mirror`, "Name another target.");
    }
    const end = { endedAtMs: mark.startedAtMs, doneBytes: 0, error: undefined };
    if (fitsStateSlot(pivoted(begun(record, mark), mark, end))) return;
    throw new ColobusError(
      "not-supported",
      "the state record has no room for another mirror",
      "Use shorter paths, or complete or cancel other mirrors.",
    );
  }

  /** What lacks something has not all of it in its top layer. */
  #assertWhole(disk: string): void {
    const fault = this.#options.copies.localFault(disk);
    if (fault === undefined) return;
    throw new ColobusError(
      "child-syncing",
      `the image of disk ${disk} lacks what other copies have: ${fault.message}`,
      "Wait until it is sound (`colobus status`), or copy everything: --sync full.",
    );
  }

  #assertGoing(signal: AbortSignal): void {
    if (this.#stopped) throw new ColobusError("shutting-down", "the primary agent is being stopped");
    signal.throwIfAborted();
  }
}

function inUse(target: string): ColobusError {
  return new ColobusError("image-busy", `${target} is used by this agent already`, "Name another target.");
}

function assertCanMirror(record: StateRecord, disk: string): void {
  const { mode, merge } = record;
  assertNotGrowing(record, disk);
  if (mode === "shared") {
    throw new ColobusError(
      "not-supported",
      "a shared disk cannot be mirrored: the secondary would go on with the old one",
      "Copy it while no agent uses it.",
    );
  }
  if (merge !== null) throw mergeUnfinished();
}

/** What the journal of a copy says is clean then is so on both media. */
async function flushBoth(disk: ReplicatedDisk, copy: DiskCopy): Promise<void> {
  await disk.flushChild();
  const fault = await copy.flush();
  if (fault !== undefined) throw fault;
}

function clustersOf(stretches: readonly Stretch[], geometry: ClusterGeometry): ClusterRun[] {
  return stretches.map(({ offset, length }) => ({
    first: firstClusterOf(geometry, offset),
    end: endClusterOf(geometry, offset, length),
  }));
}
