/**
 * Owns: how the requests of one disk become requests to its copies, and what they come to.
 *
 * How: a change goes to all copies at once, under the range lock of the disk. It is done when all have taken it or failed,
 * none later than its time limit, and it succeeds when at least `voteThreshold` sound copies have it. A copy that failed
 * lacks the range from then on, and nobody is told of a success before the record says that this copy is not sound. Reads
 * go to the first copy that has the range, and to the next one when that fails (`fifo`), or to all of them, and the majority
 * wins (`quorum`).
 *
 * Invariants: at least one copy is sound. The last one never breaks, however it fails: the guest is told, and the others
 * lack what it may have. What one copy has lost, or never had, is never read from it.
 *
 * Does not: bring copies what they lack (`CopySync`), or decide when a broken one is tried again (`ChildRecovery`).
 */
import assert from "node:assert/strict";
import { ColobusError } from "../proto/errors.ts";
import type { ReadPattern } from "../proto/words.ts";
import type { Child, Extent, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import { both } from "../shared/block/both.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import { RangeLock, type RangeHold } from "../shared/block/range-lock.ts";
import { combineExtents } from "./combine-extents.ts";
import type { DiskCopy, Outcome } from "./disk-copy.ts";
import { electContent, firstDifference } from "./elect-content.ts";
import { comparesReads } from "./recorded-quorum.ts";

export interface QuorumPolicy {
  /** So many sound copies must take a change, or a flush; of a read in the pattern `quorum`, agree. */
  readonly voteThreshold: number;
  readonly readPattern: ReadPattern;
  /** In the pattern `quorum`: copies that were outvoted are written with what won. */
  readonly rewriteCorrupted: boolean;
  /** Two copies are compared at every read, and guests are frozen when they differ. */
  readonly blkverify: boolean;
}

type Request = "read" | "write" | "flush";

export interface QuorumOptions {
  readonly disk: string;
  /** Of the disk, which may grow. */
  readonly geometry: Pick<ClusterGeometry, "sizeBytes" | "clusterBytes">;
  readonly policy: () => QuorumPolicy;
  /** Done when the record calls no copy sound that is not. */
  readonly recorded: () => Pending;
  /** A copy has something else than the majority. */
  readonly outvoted: (copy: DiskCopy, offset: number, length: number) => void;
  /** Too few copies have done a request, or agree. */
  readonly failed: (during: Request, offset: number, length: number, reason: ColobusError) => void;
  /** `blkverify` has found a difference: no guest is to go on before an operator has seen it. Once for each cluster. */
  readonly freeze: (difference: ColobusError) => void;
}

export class Quorum implements Child {
  readonly #options: QuorumOptions;
  #copies: readonly DiskCopy[] = [];
  /** Where contents are compared: a read that ran beside a write of the same range would find copies that differ. */
  readonly #lock = new RangeLock();
  /** Clusters whose difference guests were frozen for: what an operator has let go on, the next read is not to stop again. */
  readonly #differing = new ClusterBitmap();

  constructor(options: QuorumOptions) {
    this.#options = options;
  }

  get sizeBytes(): number {
    return this.#options.geometry.sizeBytes;
  }

  /** Nothing may be under way but reads. */
  setCopies(copies: readonly DiskCopy[]): void {
    assert(
      copies.some(({ state }) => state === "sound"),
      "at least one copy is sound",
    );
    this.#copies = copies;
  }

  /** Whether the others can do without the copy. */
  mayBreak(copy: DiskCopy): boolean {
    return this.#copies.some((other) => other !== copy && other.state === "sound");
  }

  get asksForExtents(): boolean {
    return this.#copies.some(({ child }) => child.asksForExtents === true);
  }

  get fault(): ColobusError | undefined {
    const sound = this.#copies.filter(({ state }) => state === "sound");
    return sound.every(({ child }) => child.fault !== undefined) ? sound[0]?.child.fault : undefined;
  }

  read(target: Uint8Array, offset: number): Pending {
    if (comparesReads(this.#options.policy())) return this.#vote(target, offset);
    return this.#readNext(target, offset, this.#readable(offset, target.length), 0, undefined);
  }

  readForCopies(target: Uint8Array, offset: number): Pending {
    return this.#readNext(target, offset, this.#readable(offset, target.length), 0, undefined);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    return this.#change(offset, source.length, flags, (copy) => copy.write(source, offset, flags));
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    return this.#change(offset, length, flags, (copy) => copy.zero(offset, length, flags));
  }

  flush(): Pending {
    // Only what is sound counts. A copy that lacks nothing may be sound before the next flush, by a flush before this one.
    const asked = this.#copies.filter(({ state, isClean }) => state === "sound" || (state === "syncing" && isClean));
    return this.#decided(
      asked,
      asked.map((copy) => copy.flush()),
      "flush",
      0,
      0,
    );
  }

  prefetch(offset: number, length: number): void {
    this.#readable(offset, length)[0]?.child.prefetch(offset, length);
  }

  /** A stretch is zero where all copies say so. */
  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    const answers = this.#readable(offset, length).map((copy) => copy.extents(offset, length, maxExtents));
    const known = answers.filter((answer): answer is Extent[] => !(answer instanceof Promise));
    if (known.length === answers.length) return combineExtents(known, length, maxExtents);
    return Promise.all(answers.map(async (answer) => answer)).then((all) => combineExtents(all, length, maxExtents));
  }

  /** The copies that have the range, sound ones first. */
  #readable(offset: number, length: number): DiskCopy[] {
    const readable = this.#copies.filter((copy) => copy.has(offset, length));
    return readable.sort((one, other) => Number(other.state === "sound") - Number(one.state === "sound"));
  }

  /** Tries the copies from `index` on. Each reads into its own memory: one that was given up may fill it at any time. */
  #readNext(
    target: Uint8Array,
    offset: number,
    copies: readonly DiskCopy[],
    index: number,
    fault: ColobusError | undefined,
  ): Pending {
    const copy = copies[index];
    if (copy === undefined) {
      throw this.#failure("read", offset, target.length, fault === undefined ? [] : [fault]);
    }
    const content = Buffer.allocUnsafe(target.length);
    let pending: Pending;
    try {
      pending = copy.read(content, offset);
    } catch (error) {
      const reason = copy.failed("read", error, offset, target.length);
      return this.#readNext(target, offset, copies, index + 1, fault ?? reason);
    }
    if (pending === undefined) {
      target.set(content);
      return undefined;
    }
    return pending.then(
      () => target.set(content),
      (error: unknown) => {
        const reason = copy.failed("read", error, offset, target.length);
        return this.#readNext(target, offset, copies, index + 1, fault ?? reason);
      },
    );
  }

  async #vote(target: Uint8Array, offset: number): Promise<void> {
    const { length } = target;
    const hold = await this.#lock.acquire(offset, length);
    try {
      const { voteThreshold, blkverify, rewriteCorrupted } = this.#options.policy();
      const voters = this.#readable(offset, length);
      const faults: ColobusError[] = [];
      const contents = await Promise.all(
        voters.map(async (copy) => {
          const content = Buffer.allocUnsafe(length);
          try {
            await copy.read(content, offset);
            return content;
          } catch (error) {
            faults.push(copy.failed("read", error, offset, length));
            return undefined;
          }
        }),
      );
      const election = electContent(contents, voteThreshold);
      if (election.kind === "failed") {
        const isDifference = blkverify && election.versions > 1;
        const difference = isDifference ? this.#differ(voters, contents, offset) : undefined;
        throw this.#failure("read", offset, length, difference === undefined ? faults : [difference]);
      }
      target.set(election.content);
      for (const loser of election.losers) {
        const copy = voters[loser];
        if (copy === undefined) continue;
        this.#options.outvoted(copy, offset, length);
        if (rewriteCorrupted) await copy.write(election.content, offset, { isLent: false });
      }
    } finally {
      this.#lock.release(hold);
    }
  }

  /** Two copies that are to be the same are not: nobody goes on before an operator has seen it. undefined: not both were read. */
  #differ(
    copies: readonly DiskCopy[],
    contents: readonly (Uint8Array | undefined)[],
    offset: number,
  ): ColobusError | undefined {
    const { disk, geometry, outvoted, freeze } = this.#options;
    const [content, otherContent] = contents;
    const [copy, other] = copies;
    if (content === undefined || otherContent === undefined || copy === undefined || other === undefined) return;
    const { length } = content;
    const at = offset + firstDifference(content, otherContent);
    outvoted(other, at, offset + length - at);
    const difference = new ColobusError(
      "quorum-failure",
      `copies ${copy.name} and ${other.name} of disk ${disk} differ at offset ${at}, in a read of ${length} bytes at ${offset}`,
      "Find out which of the two is right; a write there makes them alike.",
    );
    if (this.#differing.tryAdd(Math.floor(at / geometry.clusterBytes))) freeze(difference);
    return difference;
  }

  #change(
    offset: number,
    length: number,
    { fua }: WriteFlags,
    give: (copy: DiskCopy) => Outcome | Promise<Outcome>,
  ): Pending {
    let marked: Pending;
    for (const copy of this.#copies) marked = both(marked, copy.mark(offset, length));
    let done: Pending;
    if (comparesReads(this.#options.policy())) {
      marked?.catch(() => undefined); // it is awaited once the range is held
      const held = this.#lock.acquire(offset, length);
      done =
        held instanceof Promise
          ? held.then((hold) => this.#held(hold, marked, offset, length, give))
          : this.#held(held, marked, offset, length, give);
    } else if (marked === undefined) done = this.#give(offset, length, give);
    else done = marked.then(() => this.#give(offset, length, give));
    if (!fua) return done;
    return done === undefined ? this.flush() : done.then(() => this.flush());
  }

  async #held(
    hold: RangeHold,
    marked: Pending,
    offset: number,
    length: number,
    give: (copy: DiskCopy) => Outcome | Promise<Outcome>,
  ): Promise<void> {
    try {
      if (marked !== undefined) await marked;
      await this.#give(offset, length, give);
      this.#forgetDifferences(offset, length);
    } finally {
      this.#lock.release(hold);
    }
  }

  /** Copies are alike where all were given the same: the next difference there is news. */
  #forgetDifferences(offset: number, length: number): void {
    const { clusterBytes } = this.#options.geometry;
    const first = Math.ceil(offset / clusterBytes);
    const end = Math.floor((offset + length) / clusterBytes);
    if (first < end) this.#differing.removeRange(first, end);
  }

  #give(offset: number, length: number, give: (copy: DiskCopy) => Outcome | Promise<Outcome>): Pending {
    return this.#decided(this.#copies, this.#copies.map(give), "write", offset, length);
  }

  #decided(
    copies: readonly DiskCopy[],
    outcomes: readonly (Outcome | Promise<Outcome>)[],
    during: Request,
    offset: number,
    length: number,
  ): Pending {
    if (outcomes.some((outcome) => outcome instanceof Promise)) {
      return Promise.all(outcomes.map((outcome) => Promise.resolve(outcome))).then((settled) =>
        this.#decide(copies, settled, during, offset, length),
      );
    }
    return this.#decide(copies, outcomes as readonly Outcome[], during, offset, length);
  }

  #decide(
    copies: readonly DiskCopy[],
    outcomes: readonly Outcome[],
    during: Request,
    offset: number,
    length: number,
  ): Pending {
    const taken = copies.filter((copy, index) => outcomes[index] === undefined && copy.state === "sound").length;
    if (taken > 0 && length > 0) {
      // One that has refused it while nobody else was sound could do so unmarked, and is not the only one any more. It may
      // not even be sound by now: of several changes that it has refused, another one was decided first.
      for (const [index, copy] of copies.entries()) if (outcomes[index] !== undefined) copy.miss(offset, length);
    }
    if (taken >= this.#options.policy().voteThreshold) return this.#options.recorded();
    // The last sound copy has refused the change: nobody knows what it has there, and nobody else is to have anything.
    if (taken === 0 && length > 0) {
      for (const copy of copies) if (copy.state !== "sound") copy.miss(offset, length);
    }
    const failure = this.#failure(during, offset, length, outcomes);
    // What a failed flush has lost is recorded before anybody is told.
    const recorded = this.#options.recorded();
    if (recorded === undefined) throw failure;
    return recorded.then(() => {
      throw failure;
    });
  }

  /** The reason that most copies have given, told as an event. */
  #failure(during: Request, offset: number, length: number, outcomes: readonly Outcome[]): ColobusError {
    const counts = new Map<string, { readonly fault: ColobusError; count: number }>();
    for (const fault of outcomes) {
      if (fault === undefined || fault.code === "child-syncing") continue;
      const known = counts.get(fault.code);
      if (known === undefined) counts.set(fault.code, { fault, count: 1 });
      else known.count += 1;
    }
    const [most] = [...counts.values()].sort((one, other) => other.count - one.count);
    const reason = most?.fault ?? this.#tooFew(during);
    this.#options.failed(during, offset, length, reason);
    return reason;
  }

  #tooFew(during: Request): ColobusError {
    return new ColobusError(
      "quorum-failure",
      `too few copies of disk ${this.#options.disk} have done, or agree on, a ${during}`,
      "See the disk's children in `colobus status`.",
    );
  }
}
