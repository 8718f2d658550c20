/**
 * Owns: the copies of one disk of a primary: its image and whatever stands beside it, for as long as the role lasts; which
 * of them the record calls sound, and their dirty bitmaps.
 *
 * How: with one copy there is nothing here, and the image is the disk's child. With more, a `Quorum` is; each copy has a
 * dirty bitmap in a directory of its own, in which ranges are marked before they are changed. After a crash the first copy
 * that was recorded as sound is the one to believe, and what the others may lack is what was marked.
 *
 * Invariants: no change is acknowledged that a copy lacks before the record says that this copy is not sound. A copy is
 * recorded as sound only when it has everything durably. One whose bitmap is not known to be whole is copied whole.
 */
import assert from "node:assert/strict";
import type { ChildStatus } from "../proto/control-api.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { QUORUM_EVENT_EVERY_MS, STATE_RETRY_MS } from "../proto/limits.ts";
import type { RecordedChild, RecordedQuorum } from "../proto/state-record.ts";
import type { Child } from "../shared/block/block-device.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import { growGeometry, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import { assertNotGrowing } from "../shared/block/growth.ts";
import { RepeatedWork } from "../shared/host/repeated-work.ts";
import { sleep } from "../shared/host/sleep.ts";
import { lostSync } from "../shared/journal/lost-syncs.ts";
import { DirtyMap } from "../shared/replication/dirty-map.ts";
import { DirtyTracker, type DirtyTrackerOptions } from "../shared/replication/dirty-tracker.ts";
import { assertAddable, assertRemovable } from "./child-rules.ts";
import type { ChildrenContext } from "./children-context.ts";
import { ChildRecovery } from "./child-recovery.ts";
import { DiskCopy } from "./disk-copy.ts";
import { replaceFollowed } from "./followed-child.ts";
import { LateImage } from "./late-image.ts";
import { Quorum } from "./quorum.ts";
import { RateLimitedEvents } from "./rate-limited-events.ts";
import { RecordedState, type StateWords } from "./recorded-state.ts";
import { LOCAL_CHILD, newChild, newLocalChild, quorumOf, updateQuorum } from "./recorded-quorum.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

export interface DiskChildrenOptions extends ChildrenContext {
  readonly disk: string;
  /** The disk's own image. It is not closed here. */
  readonly local: Child & Partial<Pick<DiskImage, "rewritten" | "distrust">>;
  readonly geometry: ClusterGeometry;
  /** `blkverify` has found a difference. */
  readonly freeze: () => void;
}

interface Member {
  readonly copy: DiskCopy;
  /** undefined: the disk's own. */
  readonly image: string | undefined;
  readonly late: LateImage | undefined;
  recovery: ChildRecovery | undefined;
  /** What the record says. */
  readonly recorded: RecordedState;
  /** It lacks nothing, and is being recorded as sound. */
  isFinishing: boolean;
  /** Its bitmap cannot be written, and is being recorded as worth nothing. */
  isLosingTrack: boolean;
  /** Its bitmap is being made. */
  tracking: Promise<void> | undefined;
}

export class DiskChildren {
  readonly #options: DiskChildrenOptions;
  readonly #events: RateLimitedEvents;
  #quorum: Quorum;
  #members: Member[] = [];
  #disk: ReplicatedDisk | undefined;
  /** The record calls a copy sound, or its bitmap whole, that is not. */
  #isOverstated = false;
  #recording: Promise<void> | undefined;
  readonly #settling: RepeatedWork;
  #stopped = false;

  /** Opens what the record names. The bitmaps are read; images that cannot be opened yet are tried again. */
  constructor(options: DiskChildrenOptions) {
    this.#options = options;
    this.#events = new RateLimitedEvents(options.clock, QUORUM_EVENT_EVERY_MS, options.emit);
    const { clock, log, disk, settleEveryMs } = options;
    this.#settling = new RepeatedWork({
      clock,
      everyMs: settleEveryMs,
      work: () => this.#settle(),
      failed: (error) => log.warn({ disk, reason: asColobusError(error) }, "the bitmap of a copy could not be settled"),
    });
    const recorded = this.#recordedQuorum;
    this.#quorum = this.#newQuorum();
    const children = recorded?.children ?? [];
    if (children.length < 2) return;
    const reference = Math.max(
      0,
      children.findIndex(({ sound }) => sound),
    );
    this.#members = children.map((child, index) => this.#open(child, index === reference));
    this.#quorum.setCopies(this.#members.map(({ copy }) => copy));
    this.#isOverstated = this.#looksOverstated();
  }

  /** What the disk's requests go to. */
  get child(): Child {
    return this.#members.length > 0 ? this.#quorum : this.#options.local;
  }

  /** Why the disk's own image is not to be relied on by itself. */
  get localFault(): ColobusError | undefined {
    const local = this.#members.find(({ copy }) => copy.name === LOCAL_CHILD);
    if (local === undefined || local.copy.state === "sound") return undefined;
    return (
      local.copy.fault ?? new ColobusError("child-syncing", `the image of disk ${this.#options.disk} lacks writes`)
    );
  }

  /** The clusters that the disk's own image lacks. */
  get localDirty(): ClusterBitmap {
    const local = this.#members.find(({ copy }) => copy.name === LOCAL_CHILD);
    return local?.copy.dirty.dirtyClusters() ?? new ClusterBitmap();
  }

  /** The image, which is the only copy, has `sizeBytes` from now on. */
  grow(sizeBytes: number): void {
    assert(this.#members.length === 0, "a disk with further copies does not grow");
    growGeometry(this.#options.geometry, sizeBytes);
    this.#quorum = this.#newQuorum();
  }

  /** Begins to bring copies what they lack. `disk` has `child` as its child. */
  start(disk: ReplicatedDisk): void {
    this.#disk = disk;
    if (this.#members.length === 0) return;
    void this.#record();
    for (const member of this.#members) this.#recover(member);
    this.#settling.start();
  }

  /** Status' words; empty where the image is the only copy. */
  describe(): ChildStatus[] {
    const ownImage = this.#options.state.record.disks.find(({ name }) => name === this.#options.disk)?.image ?? "";
    return this.#members.map(({ copy, image }) => ({
      name: copy.name,
      kind: "image",
      path: image ?? ownImage,
      state: copy.state,
      dirtyBytes: copy.dirtyBytes,
      lastError: copy.fault?.toJSON() ?? null,
    }));
  }

  /**
   * Adds a copy, which is brought everything before it counts. Resolves when it is recorded. Errors: `child-refused`,
   * `size-mismatch`, those of opening or making the image.
   */
  async add(name: string, image: string, { create }: { readonly create: boolean }): Promise<void> {
    const { disk, geometry, measure, state, policy } = this.#options;
    this.#assertAddable(name, image);
    const sizeBytes = await measure(image, create ? geometry.sizeBytes : undefined);
    if (sizeBytes !== geometry.sizeBytes) {
      throw new ColobusError(
        "size-mismatch",
        `${image} has ${sizeBytes} bytes, and disk ${disk} has ${geometry.sizeBytes}`,
        "Name an image of the same size, or one that is not there yet, with --create.",
      );
    }
    this.#assertAddable(name, image);
    const child = newChild(name, image);
    await state.update((record) => {
      assertNotGrowing(record, disk);
      return {
        ...record,
        disks: record.disks.map((recorded) => {
          if (recorded.name !== disk) return recorded;
          const quorum = recorded.quorum ?? { ...policy, children: [newLocalChild()] };
          return { ...recorded, quorum: { ...quorum, children: [...quorum.children, child] } };
        }),
      };
    });
    const isFirst = this.#members.length === 0;
    const added: Member[] = isFirst ? [this.#open(newLocalChild(), true)] : [];
    added.push(this.#open(child, false));
    await this.#attach(added);
    this.#options.emit("child-added", { disk, child: name, image });
    if (isFirst) this.#settling.start();
  }

  /**
   * Takes a copy out. With `isReplaced` another one takes its place at once. Errors: `child-unknown`, `child-refused`
   * where the others are too few, or lack something.
   */
  async remove(name: string, { isReplaced }: { readonly isReplaced: boolean }): Promise<void> {
    const { disk, state, emit } = this.#options;
    const member = this.#members.find(({ copy }) => copy.name === name);
    if (member === undefined) {
      throw new ColobusError("child-unknown", `disk ${disk} has no copy ${name}`, "See `colobus status`.");
    }
    this.#assertRemovable(member, isReplaced);
    const replicated = this.#started;
    await replicated.whileQuiet(async () => {
      this.#assertRemovable(member, isReplaced);
      const recorded = this.#recordedQuorum?.children.find((child) => child.name === name);
      await updateQuorum(state, disk, (quorum) => ({
        ...quorum,
        children: quorum.children.filter((child) => child.name !== name),
      }));
      try {
        // A read may have broken the others meanwhile.
        this.#assertRemovable(member, isReplaced);
      } catch (error) {
        await updateQuorum(state, disk, (quorum) =>
          recorded === undefined ? quorum : { ...quorum, children: [...quorum.children, recorded] },
        );
        throw error;
      }
      this.#members = this.#members.filter((other) => other !== member);
      this.#quorum.setCopies(this.#members.map(({ copy }) => copy));
    });
    this.#isOverstated = this.#looksOverstated();
    emit("child-removed", { disk, child: name });
    if (this.#members.length === 1) await this.#standAlone(replicated);
    await this.#discard(member);
  }

  /**
   * For the end of the role: nothing is written to the copies any more. Resolves with what could not be made durable, if
   * anything. The images beside the disk's own are closed.
   */
  async stop(reason: ColobusError): Promise<void> {
    this.#stopped = true;
    const settled = this.#settling.stop();
    this.#events.stop();
    for (const { recovery } of this.#members) recovery?.stop(reason);
    for (const { recovery } of this.#members) await recovery?.settled();
    await settled;
    await this.#recording;
    const marks = new Map<string, string>();
    for (const member of this.#members) {
      const mark = await this.#leave(member);
      if (mark !== undefined) marks.set(member.copy.name, mark);
    }
    if (this.#members.length > 0) await this.#record();
    if (marks.size === 0) return;
    const { state, disk } = this.#options;
    await updateQuorum(state, disk, (quorum) => ({
      ...quorum,
      children: quorum.children.map((child) => ({ ...child, cleanMark: marks.get(child.name) ?? null })),
    }));
  }

  get #recordedQuorum(): RecordedQuorum | undefined {
    return quorumOf(this.#options.state.record, this.#options.disk);
  }

  get #started(): ReplicatedDisk {
    if (this.#disk === undefined) throw new RangeError("the role has not begun");
    return this.#disk;
  }

  #newQuorum(): Quorum {
    const { disk, geometry, freeze } = this.#options;
    return new Quorum({
      disk,
      sizeBytes: geometry.sizeBytes,
      policy: () => this.#recordedQuorum ?? this.#options.policy,
      recorded: () => (this.#isOverstated ? this.#record() : undefined),
      outvoted: (copy, offset, length) =>
        this.#events.tell("quorum-report-bad", `${copy.name} outvoted`, {
          disk,
          child: copy.name,
          during: "read",
          offset,
          length,
          error: null,
        }),
      failed: (during, offset, length, reason) =>
        this.#events.tell("quorum-failure", during, { disk, during, offset, length, ...reason.toJSON() }),
      freeze,
    });
  }

  #open(child: RecordedChild, isReference: boolean): Member {
    const { disk, local, geometry, clock, timeoutMs } = this.#options;
    if (child.image === null && child.lostSync) local.distrust?.(lostSync(`the image of disk ${disk}`));
    const { late, isChanged } =
      child.image === null ? { late: undefined, isChanged: false } : this.#openImage(child, child.image);
    const found =
      child.tracked && !(isChanged && !isReference) ? DirtyTracker.open(this.#trackerOptions(child.name)) : undefined;
    // What was marked may be on this copy and not on the others; it is the one to believe.
    if (isReference) found?.removeClusters(0, geometry.clusterCount);
    const dirty = found ?? new DirtyMap(geometry);
    if (found === undefined && !isReference) dirty.addAll();
    const state = isReference || (child.sound && dirty.isEmpty) ? "sound" : "syncing";
    const copy: DiskCopy = new DiskCopy({
      disk,
      name: child.name,
      child: late ?? local,
      geometry,
      dirty,
      clock,
      timeoutMs,
      state,
      mayBreak: () => this.#quorum.mayBreak(copy),
      changed: () => this.#changed(member),
      hasLostWrites: child.lostSync,
      lostWrites: () => {
        this.#isOverstated = this.#looksOverstated();
        void this.#record();
      },
      refused: (during, offset, length, fault) =>
        this.#events.tell("quorum-report-bad", `${child.name} ${during}`, {
          disk,
          child: child.name,
          during,
          offset,
          length,
          error: fault.toJSON(),
        }),
      untracked: (reason) => this.#loseTrack(member, reason),
    });
    const member: Member = {
      copy,
      image: child.image ?? undefined,
      late,
      recovery: undefined,
      recorded: new RecordedState(child),
      isFinishing: false,
      isLosingTrack: false,
      tracking: undefined,
    };
    return member;
  }

  /** `isChanged`: another program has changed the image since the agent was cleanly stopped. */
  #openImage(child: RecordedChild, image: string): { late: LateImage; isChanged: boolean } {
    const { disk, geometry, open } = this.#options;
    const { name } = child;
    let isChanged = false;
    let first: DiskImage | undefined;
    if (child.cleanMark !== null) {
      try {
        first = open(disk, { name, image, cleanMark: child.cleanMark });
      } catch (error) {
        isChanged = asColobusError(error).code === "image-changed"; // otherwise the first request is told
      }
    }
    const late = new LateImage(geometry.sizeBytes, () => {
      const opened = first ?? open(disk, { name, image, cleanMark: null });
      first = undefined;
      if (child.lostSync) opened.distrust?.(lostSync(image));
      return opened;
    });
    return { late, isChanged };
  }

  #trackerOptions(child: string): DirtyTrackerOptions {
    const { storage, random, geometry, extentBytes, state, dirtyFileMinBytes } = this.#options;
    const { durability } = state.record;
    const directory = this.#directoryOf(child);
    return { storage, random, directory, geometry, extentBytes, durability, fileMinBytes: dirtyFileMinBytes };
  }

  /** Holds the bitmap of one copy, and nothing else. */
  #directoryOf(child: string): string {
    const { stateDirectory, disk } = this.#options;
    const directory = `${stateDirectory}/copies/${disk}.${child}`;
    this.#options.storage.makeDirectory(`${stateDirectory}/copies`);
    this.#options.storage.makeDirectory(directory);
    return directory;
  }

  #recover(member: Member): void {
    const { clock, jobs, speed, geometry } = this.#options;
    member.recovery = new ChildRecovery({
      disk: this.#started,
      copy: member.copy,
      geometry,
      clock,
      jobs,
      speed,
      track: () => this.#tracked(member),
      rewritten: () => (member.late ?? this.#options.local).rewritten?.(),
      finish: () => this.#finish(member),
    });
    member.recovery.look();
  }

  #changed(member: Member): void {
    const { emit, disk } = this.#options;
    const { copy } = member;
    if (copy.state === "broken") member.isFinishing = false;
    this.#isOverstated = this.#looksOverstated();
    void this.#record();
    if (this.#stopped) return;
    const type = { sound: "child-sound", syncing: "child-syncing", broken: "child-broken" } as const;
    const reason = copy.state === "broken" ? copy.fault?.toJSON() : undefined;
    emit(type[copy.state], { disk, child: copy.name, dirtyBytes: copy.dirtyBytes, ...reason });
    member.recovery?.look();
  }

  /** The copy has everything durably: it is recorded as sound, and is, unless it has failed meanwhile. */
  async #finish(member: Member): Promise<boolean> {
    const { copy } = member;
    member.isFinishing = true;
    await this.#record();
    const { isFinishing } = member; // not if it has broken meanwhile, however well it is by now
    member.isFinishing = false;
    if (isFinishing && copy.state === "syncing" && copy.isClean && member.recorded.isSound) {
      copy.becomeSound();
      if (copy.name === LOCAL_CHILD) this.#options.localMended(this.#options.disk);
    }
    if (copy.state === "sound") return true;
    this.#isOverstated = this.#looksOverstated();
    void this.#record();
    return false;
  }

  /** One at a time. */
  #tracked(member: Member): Promise<void> {
    member.tracking ??= this.#track(member).finally(() => {
      member.tracking = undefined;
    });
    return member.tracking;
  }

  /**
   * Has what the copy lacks written down. On disk everything is dirty to begin with, so that neither what is under way nor
   * what no flush has covered need be known: settling takes out what is not.
   */
  async #track(member: Member): Promise<void> {
    const { copy } = member;
    const { geometry, storage, stateDirectory } = this.#options;
    const options = this.#trackerOptions(copy.name);
    for (const directory of [`${stateDirectory}/copies`, stateDirectory]) await storage.syncDirectory(directory);
    const tracker = await DirtyTracker.create(options, "all-dirty");
    if (copy.tracker !== undefined || this.#stopped) {
      tracker.close();
      return;
    }
    tracker.removeClusters(0, geometry.clusterCount);
    tracker.addBitmap(copy.dirty.dirtyClusters());
    member.isLosingTrack = false;
    copy.track(tracker);
    await this.#record();
  }

  async #loseTrack(member: Member, reason: ColobusError): Promise<void> {
    const { log, disk } = this.#options;
    log.warn(
      { disk, child: member.copy.name, reason },
      "the bitmap of a copy cannot be written: it may have to be copied anew",
    );
    member.isLosingTrack = true;
    this.#isOverstated = this.#looksOverstated();
    await this.#record();
  }

  /** What the record is to say of a copy. */
  #wanted({ copy, isFinishing, isLosingTrack }: Member): StateWords {
    const isSound = copy.state === "sound" || (isFinishing && copy.state === "syncing" && copy.isClean);
    const tracked = copy.tracker !== undefined && !isLosingTrack;
    return { sound: isSound, tracked, lostSync: copy.hasLostWrites && !(isFinishing && isSound) };
  }

  #looksOverstated(): boolean {
    return this.#members.some((member) => member.recorded.overstates(this.#wanted(member)));
  }

  /** Resolves when the record says what is. It is tried again for as long as the role lasts. */
  #record(): Promise<void> {
    if (this.#recording === undefined && !this.#isRecorded) this.#recording = this.#recordAll();
    return this.#recording ?? Promise.resolve();
  }

  get #isRecorded(): boolean {
    return this.#members.every((member) => member.recorded.says(this.#wanted(member)));
  }

  async #recordAll(): Promise<void> {
    const { state, disk, clock, log } = this.#options;
    while (!this.#isRecorded) {
      const wanted = new Map(this.#members.map((member) => [member, this.#wanted(member)]));
      for (const [{ recorded }, states] of wanted) recorded.attempt(states);
      const byName = new Map([...wanted].map(([{ copy }, states]) => [copy.name, states]));
      try {
        await updateQuorum(state, disk, (quorum) => ({
          ...quorum,
          children: quorum.children.map((child) => ({ ...child, ...byName.get(child.name) })),
        }));
        for (const [{ recorded }, states] of wanted) recorded.written(states);
        this.#isOverstated = this.#looksOverstated();
      } catch (error) {
        if (this.#stopped) break;
        log.warn({ disk, reason: asColobusError(error) }, "which copies are sound cannot be recorded yet");
        await sleep(clock, STATE_RETRY_MS);
      }
    }
    this.#recording = undefined; // at once: what is not so any more a moment later is to be recorded anew
  }

  async #settle(): Promise<void> {
    const disk = this.#started;
    for (const member of this.#members) {
      const { copy } = member;
      if (copy.state === "sound" && copy.tracker === undefined && !this.#stopped) await this.#tracked(member);
      if (copy.state !== "sound" || this.#stopped) continue;
      await copy.tracker?.settle({
        inFlight: () => new ClusterBitmap(),
        isBusy: (offset, length) => disk.isBusy(offset, length),
        flush: async () => this.#quorum.flush(),
      });
    }
  }

  async #attach(added: readonly Member[]): Promise<void> {
    const disk = this.#started;
    await replaceFollowed(disk, () => {
      this.#members = [...this.#members, ...added];
      this.#quorum.setCopies(this.#members.map(({ copy }) => copy));
      return this.#quorum;
    });
    void this.#record();
    for (const member of added) this.#recover(member);
  }

  /** The disk's image is the only copy, and sound: it is the child again. */
  async #standAlone(disk: ReplicatedDisk): Promise<void> {
    const [local] = this.#members;
    await replaceFollowed(disk, () => {
      this.#members = [];
      return this.#options.local;
    });
    if (local !== undefined) await this.#discard(local);
  }

  async #discard(member: Member): Promise<void> {
    member.recovery?.stop(new ColobusError("child-refused", "the copy was taken out"));
    await member.recovery?.settled();
    member.copy.close();
    member.late?.close();
    DirtyTracker.remove({ storage: this.#options.storage, directory: this.#directoryOf(member.copy.name) });
  }

  /** Ends a copy's part in the role. Resolves with what tells a change of its image, where it is sound and was flushed. */
  async #leave({ copy, late }: Member): Promise<string | undefined> {
    const { log, disk } = this.#options;
    let mark: string | undefined;
    try {
      if (copy.state !== "broken") {
        await copy.tracker?.settleAll({
          inFlight: () => new ClusterBitmap(),
          flush: async () => {
            const fault = await copy.flush();
            if (fault !== undefined) throw fault;
          },
        });
        if (copy.state === "sound") mark = await late?.opened?.changeMark();
      }
    } catch (error) {
      log.warn({ disk, child: copy.name, reason: asColobusError(error) }, "a copy could not be left in good order");
    }
    copy.close();
    late?.close();
    return mark;
  }

  #assertAddable(name: string, image: string): void {
    const { disk, state, policy } = this.#options;
    assertAddable({ disk, name, image, record: state.record, policy: this.#recordedQuorum ?? policy });
  }

  #assertRemovable(member: Member, isReplaced: boolean): void {
    const others = this.#members.filter((other) => other !== member).map(({ copy }) => copy);
    const policy = this.#recordedQuorum ?? this.#options.policy;
    assertRemovable({ disk: this.#options.disk, copy: member.copy, others, policy, isReplaced });
  }
}
