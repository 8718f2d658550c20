/**
 * Owns: the copies of one disk of a primary: its image and whatever stands beside it, for as long as the role lasts; which
 * of them the record calls sound, and their dirty bitmaps.
 *
 * How: with one copy there is nothing here, and the image is the disk's child. With more, a `Quorum` is; each copy has a
 * dirty bitmap in a directory of its own, in which ranges are marked before they are changed. After a crash the first copy
 * that was recorded as sound is the one to believe, and what the others may lack is what was marked; after a clean stop the
 * first one that is as it was left.
 *
 * One that is to take another's place stands beside it until it has everything; the record that calls it sound is the one
 * that takes the other one out.
 *
 * Invariants: no change is acknowledged that a copy lacks before the record says that this copy is not sound. A copy is
 * recorded as sound only when it has everything durably. One whose bitmap is not known to be whole is copied whole.
 */
import type { ChildStatus } from "../proto/status.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { QUORUM_EVENT_EVERY_MS } from "../proto/limits.ts";
import type { RecordedChild, RecordedQuorum, StateRecord } from "../proto/state-record.ts";
import type { Child } from "../shared/block/block-device.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import { firstClusterOf, growGeometry, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import { assertStillOfSize } from "../shared/block/growth.ts";
import { RepeatedWork } from "../shared/host/repeated-work.ts";
import { lostSync } from "../shared/journal/lost-syncs.ts";
import { DirtyMap } from "../shared/replication/dirty-map.ts";
import {
  assertAddable,
  assertGrowable,
  assertRemovable,
  assertReplaceable,
  assertRoom,
  isUsed,
  unknownChild,
} from "./child-rules.ts";
import type { ChildrenContext } from "./children-context.ts";
import { ChildrenRecord, entryOf, identityOf } from "./children-record.ts";
import { ChildRecovery } from "./child-recovery.ts";
import { CopyBitmaps } from "./copy-bitmaps.ts";
import { openCopyImage, openCopyImages } from "./copy-image.ts";
import { DiskCopy } from "./disk-copy.ts";
import { forsake, leave, wordsOf, type Member } from "./disk-member.ts";
import { replaceFollowed } from "./followed-child.ts";
import { growTogether } from "./grow-together.ts";
import { Quorum } from "./quorum.ts";
import { RateLimitedEvents } from "./rate-limited-events.ts";
import { RecordedState } from "./recorded-state.ts";
import {
  LOCAL_CHILD,
  newChild,
  newLocalChild,
  newReplacement,
  quorumOf,
  updateQuorum,
  withChild,
} from "./recorded-quorum.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

type OwnImage = Child & Partial<Pick<DiskImage, "rewritten" | "distrust">>;

/** A disk whose own image another one has taken the place of. */
export interface PivotedDisk {
  /** What its requests go to. */
  readonly child: Child;
  /** Resolves when nothing is written to the image before any more. */
  readonly left: Promise<void>;
}

export interface DiskChildrenOptions extends ChildrenContext {
  readonly disk: string;
  readonly local: OwnImage;
  readonly geometry: ClusterGeometry;
  /** As `QuorumOptions.freeze`. */
  readonly freeze: (difference: ColobusError) => void;
}

export class DiskChildren {
  readonly #options: DiskChildrenOptions;
  readonly #events: RateLimitedEvents;
  readonly #record: ChildrenRecord;
  readonly #bitmaps: CopyBitmaps;
  readonly #quorum: Quorum;
  /** The disk's own image. It is not closed here. */
  #local: OwnImage;
  #members: Member[] = [];
  #disk: ReplicatedDisk | undefined;
  readonly #settling: RepeatedWork;
  #changing: Promise<void> = Promise.resolve();
  #stopped = false;

  /** Opens what the record names. The bitmaps are read; images that cannot be opened yet are tried again. */
  constructor(options: DiskChildrenOptions) {
    this.#options = options;
    this.#local = options.local;
    this.#events = new RateLimitedEvents(options.clock, QUORUM_EVENT_EVERY_MS, options.emit);
    this.#record = new ChildrenRecord({ ...options, copies: () => this.#members });
    this.#bitmaps = new CopyBitmaps(options);
    const { clock, log, disk, settleEveryMs } = options;
    this.#settling = new RepeatedWork({
      clock,
      everyMs: settleEveryMs,
      work: () => this.#settle(),
      failed: (error) => log.warn({ disk, reason: asColobusError(error) }, "the bitmap of a copy could not be settled"),
    });
    this.#quorum = this.#newQuorum();
    const children = quorumOf(options.state.record, options.disk)?.children ?? [];
    if (children.length < 2) return;
    const opened = openCopyImages(options, children);
    this.#members = opened.map(({ child, isReference, image }) => this.#open(child, isReference, image));
    this.#quorum.setCopies(this.#members.map(({ copy }) => copy));
    this.#record.look();
  }

  /** What the disk's requests go to. */
  get child(): Child {
    return this.#members.length > 0 ? this.#quorum : this.#local;
  }

  /** Why the disk's own image is not to be relied on by itself. */
  get localFault(): ColobusError | undefined {
    const local = this.#ownImage;
    if (local === undefined || local.copy.state === "sound") return undefined;
    return (
      local.copy.fault ?? new ColobusError("child-syncing", `the image of disk ${this.#options.disk} lacks writes`)
    );
  }

  /** The clusters that the disk's own image lacks. */
  get localDirty(): ClusterBitmap {
    return this.#ownImage?.copy.dirty.dirtyClusters() ?? new ClusterBitmap();
  }

  /** Errors: `child-refused`: why not all copies can be made longer. */
  assertMayGrow(): void {
    assertGrowable(
      this.#options.disk,
      this.#members.map(({ copy }) => copy),
    );
  }

  /** Makes the images of all copies longer. Durable when the promise resolves. Errors: why one cannot be; none is then. */
  growImages(sizeBytes: number): Promise<void> {
    return this.#inTurn(async () => {
      this.assertMayGrow();
      const images = this.#members.length === 0 ? [this.#local] : this.#members.map(({ copy }) => copy.child);
      const { disk, clock, log, geometry } = this.#options;
      await growTogether(images, { disk, clock, log, fromBytes: geometry.sizeBytes, toBytes: sizeBytes });
    });
  }

  /** The images have grown, and the disk has `sizeBytes` from now on. */
  grow(sizeBytes: number): void {
    const { geometry } = this.#options;
    const first = firstClusterOf(geometry, geometry.sizeBytes);
    growGeometry(geometry, sizeBytes);
    for (const { copy } of this.#members) copy.grown(first);
  }

  /**
   * To be awaited before the record forgets how the images were left: no later process takes a copy for better than it was
   * found. Errors: `io-error`.
   */
  begin(): Promise<void> {
    return this.#record.begin();
  }

  /** Begins to bring copies what they lack. `disk` has `child` as its child. */
  start(disk: ReplicatedDisk): void {
    this.#disk = disk;
    if (this.#members.length === 0) return;
    void this.#record.follow();
    for (const member of this.#members) this.#recover(member);
    this.#settling.start();
  }

  /** Status' words; empty where the image is the only copy. */
  describe(): ChildStatus[] {
    const ownImage = this.#options.state.record.disks.find(({ name }) => name === this.#options.disk)?.image ?? "";
    return this.#members.map(({ copy, identity: { name, image, replaces } }) => ({
      name,
      kind: "image",
      path: image ?? ownImage,
      ...(replaces === undefined ? {} : { replaces }),
      state: copy.state,
      dirtyBytes: copy.dirtyBytes,
      lastError: copy.fault?.toJSON() ?? null,
    }));
  }

  /**
   * Adds a copy, which is brought everything before it counts. Resolves when it is recorded. Errors: `child-refused`,
   * `size-mismatch`, those of opening or making the image.
   */
  add(name: string, image: string, options: { readonly create: boolean }): Promise<void> {
    return this.#take(image, options, (record) => {
      assertAddable({ disk: this.#options.disk, name, image, record, policy: this.#policy });
      return newChild(name, image);
    });
  }

  /**
   * Adds a copy that takes the place of the named one once it has everything: one record has the disk go on with it alone
   * then. Resolves when it is recorded that it is to. Errors: as `add`; `child-unknown`.
   */
  replace(name: string, image: string, options: { readonly create: boolean }): Promise<void> {
    return this.#take(image, options, (record) => {
      assertReplaceable({ disk: this.#options.disk, name, image, record, policy: this.#policy });
      return newReplacement(this.#named(name).identity, image);
    });
  }

  /** `judge` says what is recorded of the new copy, or throws why there is to be none beside what the record has. */
  async #take(
    image: string,
    { create }: { readonly create: boolean },
    judge: (record: StateRecord) => RecordedChild & { readonly image: string },
  ): Promise<void> {
    const { geometry, measure, state, release } = this.#options;
    judge(state.record);
    const sizeBytes = await measure(image, geometry.sizeBytes, { create });
    try {
      await this.#takeMeasured(image, sizeBytes, judge);
    } catch (error) {
      // Whoever else has got the image meanwhile takes over what was opened.
      if (!isUsed(state.record, image)) release(image);
      throw error;
    }
  }

  async #takeMeasured(image: string, sizeBytes: number, judge: (record: StateRecord) => RecordedChild): Promise<void> {
    const { disk, geometry, state, emit } = this.#options;
    if (sizeBytes !== geometry.sizeBytes) {
      throw new ColobusError(
        "size-mismatch",
        `${image} has ${sizeBytes} bytes, and disk ${disk} has ${geometry.sizeBytes}`,
        "Name an image of the same size, a longer block device, or an image that is not there yet, with --create.",
      );
    }
    await this.#inTurn(async () => {
      let child = judge(state.record);
      await this.#record.alone(() =>
        state.update((record) => {
          child = judge(record); // another disk's copy, or a mirror, may have got the image before
          assertStillOfSize(record, disk, sizeBytes);
          const changed = withChild(record, disk, child, this.#options.policy);
          assertRoom(changed);
          return changed;
        }),
      );
      const isFirst = this.#members.length === 0;
      const added: Member[] = isFirst ? [this.#open(newLocalChild(), true)] : [];
      added.push(this.#open(child, false));
      await this.#attach(added);
      emit("child-added", { disk, child: child.name, image });
      if (isFirst) this.#settling.start();
    });
  }

  /** Takes a copy out. Errors: `child-unknown`, `child-refused` where the others are too few, or lack something. */
  async remove(name: string): Promise<void> {
    const { disk, emit } = this.#options;
    this.#assertRemovable(this.#named(name));
    await this.#inTurn(async () => {
      const replicated = this.#started;
      const member = await replicated
        .whileStill(() => this.#record.alone(() => this.#removeStill(name)))
        .finally(() => void this.#record.follow()); // whatever was recorded, it is to be what is
      emit("child-removed", { disk, child: name });
      if (this.#members.length === 1) await this.#standAlone(replicated);
      await this.#discard(member);
    });
  }

  /**
   * Has `image`, which has everything durably, take the place of the disk's own, once `record` has that durable. No change
   * is under way, and none begins. Errors: those of `record`; nothing has changed then.
   */
  pivot(image: OwnImage, record: () => Promise<void>): Promise<PivotedDisk> {
    return this.#record.alone(async () => {
      await record();
      this.#local = image;
      const former = this.#ownImage;
      if (former === undefined) return { child: image, left: Promise.resolve() };
      const local = this.#open(newLocalChild(), true);
      this.#members = this.#members.map((member) => (member === former ? local : member));
      this.#quorum.setCopies(this.#members.map(({ copy }) => copy));
      this.#recover(local);
      return { child: this.#quorum, left: forsake(former) };
    });
  }

  /** No change is under way, and nothing else is recorded of the copies. Returns the copy of that name, which is out. */
  async #removeStill(name: string): Promise<Member> {
    const member = this.#named(name);
    this.#assertRemovable(member);
    const others = this.#members.filter((other) => other !== member);
    await this.#record.write(others.map(entryOf));
    try {
      // A read may have broken the others meanwhile.
      this.#assertRemovable(member);
    } catch (error) {
      await this.#record.writeAll();
      throw error;
    }
    this.#members = others;
    this.#quorum.setCopies(others.map(({ copy }) => copy));
    return member;
  }

  /** For the end of the role: copies are brought nothing any more, and are what the disk is until `close`. */
  async stop(reason: ColobusError): Promise<void> {
    this.#stopped = true;
    const settled = this.#settling.stop();
    this.#events.stop();
    for (const { recovery } of this.#members) recovery?.stop(reason);
    for (const { recovery } of this.#members) await recovery?.settled();
    await settled;
    await this.#record.stop();
  }

  /** No request comes any more. What can be made durable is; the images beside the disk's own are closed. Errors: `io-error`. */
  async close(): Promise<void> {
    const marks = new Map<string, string>();
    for (const member of this.#members) {
      const mark = await leave(member, this.#options);
      if (mark !== undefined) marks.set(member.identity.name, mark);
    }
    await this.#record.follow();
    if (marks.size === 0) return;
    const { state, disk } = this.#options;
    await updateQuorum(state, disk, (quorum) => ({
      ...quorum,
      children: quorum.children.map((child) => ({ ...child, cleanMark: marks.get(child.name) ?? null })),
    }));
  }

  /** The rules for the copies. */
  get #policy(): Omit<RecordedQuorum, "children"> {
    return quorumOf(this.#options.state.record, this.#options.disk) ?? this.#options.policy;
  }

  /** The copy that is the disk's own image; undefined where it is the only one. */
  get #ownImage(): Member | undefined {
    return this.#members.find(({ copy }) => copy.name === LOCAL_CHILD);
  }

  /** Errors: `child-unknown`. */
  #named(name: string): Member {
    const member = this.#members.find(({ identity }) => identity.name === name);
    if (member === undefined) throw unknownChild(this.#options.disk, name);
    return member;
  }

  get #started(): ReplicatedDisk {
    if (this.#disk === undefined) throw new RangeError("the role has not begun");
    return this.#disk;
  }

  #newQuorum(): Quorum {
    const { disk, geometry, freeze } = this.#options;
    return new Quorum({
      disk,
      geometry,
      policy: () => this.#policy,
      recorded: () => this.#record.untilTrue(),
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

  #open(child: RecordedChild, isReference: boolean, { late, isChanged } = openCopyImage(this.#options, child)): Member {
    const { disk, geometry, clock, timeoutMs } = this.#options;
    const local = this.#local;
    if (child.image === null && child.lostSync) local.distrust?.(lostSync(`the image of disk ${disk}`));
    const found = child.tracked && !(isChanged && !isReference) ? this.#bitmaps.open(child) : undefined;
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
      lostWrites: () => void this.#record.follow(),
      refused: (during, offset, length, fault) =>
        this.#events.tell("quorum-report-bad", `${copy.name} ${during}`, {
          disk,
          child: copy.name,
          during,
          offset,
          length,
          error: fault.toJSON(),
        }),
      untracked: (reason) => this.#loseTrack(member, reason),
    });
    const member: Member = {
      identity: identityOf(child),
      copy,
      late,
      recovery: undefined,
      recorded: new RecordedState(child),
      words: () => wordsOf(member),
      isFinishing: false,
      isLosingTrack: false,
      tracking: undefined,
    };
    return member;
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
      rewritten: () => (member.late ?? this.#local).rewritten?.(),
      finish: () => this.#finish(member),
    });
    member.recovery.look();
  }

  #changed(member: Member): void {
    const { emit, disk } = this.#options;
    const { copy } = member;
    if (copy.state === "broken") member.isFinishing = false;
    void this.#record.follow();
    // One that was taken out may still be told that a read of it has failed.
    if (this.#stopped || !this.#members.includes(member)) return;
    const type = { sound: "child-sound", syncing: "child-syncing", broken: "child-broken" } as const;
    const reason = copy.state === "broken" ? copy.fault?.toJSON() : undefined;
    emit(type[copy.state], { disk, child: copy.name, dirtyBytes: copy.dirtyBytes, ...reason });
    member.recovery?.look();
  }

  /** The copy has everything durably: it is recorded as sound, and is, unless it has failed meanwhile. */
  async #finish(member: Member): Promise<boolean> {
    const { copy } = member;
    if (member.identity.replaces !== undefined) return this.#takePlace(member, this.#named(member.identity.replaces));
    member.isFinishing = true;
    await this.#record.follow();
    const { isFinishing } = member; // not if it has broken meanwhile, however well it is by now
    member.isFinishing = false;
    if (isFinishing && copy.state === "syncing" && copy.isClean && member.recorded.isSound) {
      copy.becomeSound();
      if (copy.name === LOCAL_CHILD) this.#options.localMended(this.#options.disk);
    }
    if (copy.state === "sound") return true;
    void this.#record.follow();
    return false;
  }

  /**
   * The copy has everything durably: one record has it, as sound, in the place of the former one. Resolves with whether it
   * does; where a read has broken it meanwhile, the former one is put back. Errors: `io-error`; both remain then.
   */
  async #takePlace(member: Member, former: Member): Promise<boolean> {
    const { copy } = member;
    const { image } = member.identity;
    const { name } = former.identity;
    const identity = identityOf({ ...member.identity, name, replaces: undefined });
    // It may have been taken out itself while the changes under way were waited for.
    const isWell = (): boolean =>
      copy.state === "syncing" && copy.isClean && !this.#stopped && this.#members.includes(member);
    const switched = async (): Promise<boolean> => {
      if (!isWell()) return false;
      const words = { sound: true, tracked: member.words().tracked, lostSync: false };
      const entries = this.#members
        .filter((other) => other !== former)
        .map((other) => (other === member ? { copy: other, identity, words } : entryOf(other)));
      await this.#record.write(entries);
      if (!isWell()) return false;
      member.identity = identity;
      copy.rename(name);
      this.#members = this.#members.filter((other) => other !== former);
      copy.becomeSound();
      this.#quorum.setCopies(this.#members.map((other) => other.copy));
      return true;
    };
    try {
      if (!(await this.#started.whileStill(() => this.#record.alone(switched)))) return false;
    } finally {
      void this.#record.follow(); // whatever was recorded, it is to be what is
    }
    this.#options.emit("child-replaced", { disk: this.#options.disk, child: name, image });
    await this.#discard(former);
    return true;
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
    const tracker = await this.#bitmaps.create(member.identity);
    if (copy.tracker !== undefined || this.#stopped) {
      tracker.close();
      return;
    }
    tracker.removeClusters(0, this.#options.geometry.clusterCount);
    tracker.addBitmap(copy.dirty.dirtyClusters());
    member.isLosingTrack = false;
    copy.track(tracker);
    await this.#record.follow();
  }

  async #loseTrack(member: Member, reason: ColobusError): Promise<void> {
    const { log, disk } = this.#options;
    log.warn(
      { disk, child: member.copy.name, reason },
      "the bitmap of a copy cannot be written: it may have to be copied anew",
    );
    member.isLosingTrack = true;
    await this.#record.follow();
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
    void this.#record.follow();
    for (const member of added) this.#recover(member);
  }

  /** The disk's image is the only copy, and sound: it is the child again. */
  async #standAlone(disk: ReplicatedDisk): Promise<void> {
    const [local] = this.#members;
    await replaceFollowed(disk, () => {
      this.#members = [];
      return this.#local;
    });
    if (local !== undefined) await this.#discard(local);
  }

  async #discard(member: Member): Promise<void> {
    await forsake(member);
    this.#bitmaps.remove(member.identity);
  }

  /** What operators have asked for is done in this order. */
  #inTurn(change: () => Promise<void>): Promise<void> {
    const result = this.#changing.then(change);
    this.#changing = result.catch(() => undefined); // the caller has the error
    return result;
  }

  #assertRemovable({ identity, copy }: Member): void {
    const { disk } = this.#options;
    const others = this.#members.filter((other) => other.copy !== copy);
    const { name } = identity;
    const replacement = others.find((other) => other.identity.replaces === name)?.identity.name;
    assertRemovable({
      disk,
      copy: { name, state: copy.state, replacement },
      // What is to take another's place counts with that one.
      others: others.filter((other) => other.identity.replaces === undefined).map((other) => other.copy),
      policy: this.#policy,
    });
  }
}
