import type {
  BlockDevice,
  Child,
  Extent,
  OpenWrite,
  Pending,
  WriteFlags,
  ZeroFlags,
} from "../shared/block/block-device.ts";
import { allSettled } from "../shared/block/all-settled.ts";
import { both } from "../shared/block/both.ts";
import { RangeLock, type RangeHold } from "../shared/block/range-lock.ts";
import { withoutFua } from "../shared/block/without-fua.ts";
import { isZero } from "../shared/block/zeroes.ts";
import { WRITE_AHEAD_BYTES } from "../proto/limits.ts";
import { OpenUses } from "../shared/block/open-uses.ts";
import type { GuestGate } from "./guest-gate.ts";

/** Where the writes of one disk go beside its local child. */
export interface Forwarding {
  /**
   * Called under the range lock, before the local child is changed: done when a crash from here on is known to leave
   * the range in doubt. Errors: the change may not be made.
   */
  mark(offset: number, length: number): Pending;
  /**
   * Called under the range lock, right after the local child was given the operation. Done when the secondary has
   * acknowledged it as far as the guest is to wait for.
   */
  forward(kind: "write" | "discard" | "zero", offset: number, length: number, payload: Buffer | undefined): Pending;
  /** Done when the stream can take another operation. */
  room(): Pending;
  flush(): Pending;
  /** The local child failed to change: its content in this range is unknown. */
  failed(offset: number, length: number, error: unknown): void;
  /** The local child could not be read, or flushed. */
  refused(during: "read" | "flush", offset: number, length: number, error: unknown): void;
  /**
   * The local child could not be read for a guest: fills `target` from elsewhere. Resolves with false where nobody has the range.
   * undefined: nobody is asked after such an error. Absent where nobody else has the disk.
   */
  readElsewhere?(target: Uint8Array, offset: number, error: unknown): Promise<boolean> | undefined;
}

/** See `ReplicatedDisk.whileStill`. */
export type PutChild = (make: (child: Child) => Child) => Promise<void>;

/** What lies in a stretch of the disk: bytes, or that many zeroes. */
export type SyncContent = Buffer | number;

/**
 * One disk of the primary as its VM sees it: each write goes to the local child and into the replication stream, both
 * under one range lock, so that overlapping writes reach every replica in the same order.
 */
export class ReplicatedDisk implements BlockDevice {
  readonly name: string;
  /** How long guests find it: while the disk grows its child is longer already. */
  readonly #size: { readonly sizeBytes: number };
  #child: Child;
  readonly #lock = new RangeLock();
  readonly #gate: GuestGate;
  readonly #forwarding: Forwarding;
  /** A count that grows with every request of a guest. */
  #requests = 0;
  /** Pieces of writes that the child has not taken yet, and their requests go on without. */
  #aheadBytes = 0;
  /** What the child does without a range being held. */
  readonly #uses = new OpenUses();
  /** Changes that the child has begun and is not done with. */
  #changesUnderWay = 0;
  /** Called once there are none. */
  readonly #quiet: (() => void)[] = [];
  /** Changes that have passed the gate, and have their ranges still. */
  #passed = 0;
  /** Called once there are none. */
  readonly #drained: (() => void)[] = [];

  constructor(
    name: string,
    size: { readonly sizeBytes: number },
    child: Child,
    gate: GuestGate,
    forwarding: Forwarding,
  ) {
    this.name = name;
    this.#size = size;
    this.#child = child;
    this.#gate = gate;
    this.#forwarding = forwarding;
  }

  get sizeBytes(): number {
    return this.#size.sizeBytes;
  }

  /** What the writes go to at present. */
  get child(): Child {
    return this.#child;
  }

  /**
   * Puts what `make` gives in the child's place between two changes, with none under way. Reads that have begun end on the
   * old one. Errors: what `make` throws; nothing is changed then.
   */
  async replaceChild(make: (child: Child) => Child): Promise<void> {
    await this.whileStill((put) => {
      void put(make); // nobody closes the old one
      return Promise.resolve();
    });
  }

  /**
   * Has `work` done while no change is under way; those that come meanwhile wait. `put` puts what it makes in the child's
   * place; its promise resolves when nothing that has begun on the old one, such as a read, is under way any more.
   */
  async whileStill<T>(work: (put: PutChild) => Promise<T>): Promise<T> {
    const hold = await this.#lock.acquire(0, this.sizeBytes);
    try {
      return await work((make) => {
        this.#child = make(this.#child);
        return this.#uses.past();
      });
    } finally {
      this.#lock.release(hold);
    }
  }

  get requests(): number {
    return this.#requests;
  }

  read(target: Uint8Array, offset: number): Pending {
    this.#requests += 1;
    const admitted = this.#gate.admitRead();
    if (admitted !== undefined) return admitted.then(() => this.#readChild(target, offset));
    return this.#readChild(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    const held = this.#acquire(offset, source.length);
    if (held instanceof Promise) return held.then((hold) => this.#writeHeld(hold, source, offset, flags));
    return this.#writeHeld(held, source, offset, flags);
  }

  openWrite(offset: number, length: number, flags: WriteFlags): OpenWrite | Promise<OpenWrite> {
    const held = this.#acquire(offset, length);
    if (held instanceof Promise) return held.then((hold) => this.#openHeld(hold, offset, flags));
    return this.#openHeld(held, offset, flags);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    const held = this.#acquire(offset, length);
    if (held instanceof Promise) return held.then((hold) => this.#zeroHeld(hold, offset, length, flags));
    return this.#zeroHeld(held, offset, length, flags);
  }

  flush(): Pending {
    const admitted = this.#gate.admitChange();
    if (admitted !== undefined) return admitted.then(() => this.flush());
    return both(this.flushChild(), this.#forwarding.flush());
  }

  /** Nobody is served: the image may be another host's. */
  get isLeftAlone(): boolean {
    return this.#gate.state === "held" || this.#gate.state === "refusing";
  }

  /**
   * Tries whether a range of the local child that was refused can be read now, and written where `isWritten`: with what it
   * holds, which is unknown since then, and dirty. Resolves with false where the image is to be left alone. Errors: the child's.
   */
  async tryAgain(offset: number, length: number, isWritten: boolean): Promise<boolean> {
    const hold = await this.#lock.acquire(offset, length);
    try {
      return !this.isLeftAlone && (await this.#uses.count(this.#tryHeld(offset, length, isWritten)));
    } finally {
      this.#lock.release(hold);
    }
  }

  async #tryHeld(offset: number, length: number, isWritten: boolean): Promise<boolean> {
    const content = Buffer.allocUnsafeSlow(length);
    await this.#child.read(content, offset);
    if (!isWritten) return true;
    if (this.isLeftAlone) return false;
    await this.#child.write(content, offset, { fua: false });
    return true;
  }

  /** Resolves when no read that the child has begun by now is under way any more. */
  idle(): Promise<void> {
    return this.#uses.past();
  }

  /** Makes everything written to the local child so far durable, whether guests may go on or not. */
  flushChild(): Pending {
    const pending = this.#child.flush()?.catch((error: unknown) => {
      this.#forwarding.refused("flush", 0, 0, error);
      throw error;
    });
    return pending === undefined ? undefined : this.#uses.count(pending);
  }

  prefetch(offset: number, length: number): void {
    this.#child.prefetch(offset, length);
  }

  get asksForExtents(): boolean {
    return this.#child.asksForExtents === true;
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    this.#gate.assertServing();
    // While reads wait the image may be another host's, and is left alone.
    if (this.#gate.state === "held") return [{ length, hole: false, zero: false }];
    const extents = this.#child.extents(offset, length, maxExtents);
    return extents instanceof Promise ? this.#uses.count(extents) : extents;
  }

  /** Whether a change of any byte of the range is under way, or waits for another. */
  isBusy(offset: number, length: number): boolean {
    return this.#lock.overlaps(offset, length);
  }

  /** Resolves when the child has no change under way. Once guests are refused it is given no more. */
  quiet(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#changesUnderWay === 0) resolve();
      else this.#quiet.push(resolve);
    });
  }

  /**
   * Resolves when no change that has passed the gate has its range any more. To be asked while guests are held: no other
   * passes then, and those that had come before wait for their ranges, or have them.
   */
  drained(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#passed === 0) resolve();
      else this.#drained.push(resolve);
    });
  }

  /** Resolves when no change that has passed the gate by now is under way on the local child any more. */
  async settled(): Promise<void> {
    this.#lock.release(await this.#lock.acquire(0, this.sizeBytes));
  }

  /** Whether the stretch is one hole, as it seems without its lock. */
  startsWithHole(offset: number, length: number): boolean | Promise<boolean> {
    const isHole = ([extent]: Extent[]): boolean => extent?.zero === true && extent.length >= length;
    const extents = this.#child.extents(offset, length, 1);
    return extents instanceof Promise ? this.#uses.count(extents).then(isHole) : isHole(extents);
  }

  /**
   * Reads a stretch that a replica may lack and hands it to `send` while the range is held, so that no write can come
   * between. A leading hole is taken as far as it goes, up to `length`; anything else into what `take` gives for at most
   * that many bytes, as much as that holds. `send` gets the content, a view of it; where it returns a promise, the range
   * is held until that settles. Resolves with the bytes that were covered.
   */
  async readForSync(
    offset: number,
    length: number,
    take: (length: number) => Buffer,
    clusterBytes: number,
    send: (content: SyncContent) => Pending,
  ): Promise<number> {
    const hold = await this.#lock.acquire(offset, length);
    try {
      const extents = this.#child.extents(offset, length, 1);
      const [extent] = extents instanceof Promise ? await extents : extents;
      const holeLength =
        extent?.zero === true ? wholeClusters(Math.min(extent.length, length), length, clusterBytes) : 0;
      if (holeLength > 0) {
        const sent = send(holeLength);
        if (sent !== undefined) await sent;
        return holeLength;
      }
      const content = take(length).subarray(0, length);
      const reading = this.#readChild(content, offset, true);
      if (reading !== undefined) await reading;
      const sent = send(isZero(content) ? content.length : content);
      if (sent !== undefined) await sent;
      return content.length;
    } finally {
      this.#lock.release(hold);
    }
  }

  #readChild(target: Uint8Array, offset: number, isForCopies = false): Pending {
    const child = this.#child;
    let pending: Pending;
    try {
      pending =
        isForCopies && child.readForCopies !== undefined
          ? child.readForCopies(target, offset)
          : child.read(target, offset);
    } catch (error) {
      return this.#readRefused(target, offset, isForCopies, error);
    }
    if (pending === undefined) return undefined;
    return this.#uses.count(pending).catch((error: unknown) => this.#readRefused(target, offset, isForCopies, error));
  }

  /** What is to be copied is read from the child, or not at all: for guests others are asked. Errors: the child's. */
  #readRefused(target: Uint8Array, offset: number, isForCopies: boolean, error: unknown): Promise<void> {
    this.#forwarding.refused("read", offset, target.length, error);
    const elsewhere = isForCopies ? undefined : this.#forwarding.readElsewhere?.(target, offset, error);
    if (elsewhere === undefined) throw error;
    return elsewhere.then((isRead) => {
      if (!isRead) throw error;
    });
  }

  /** The range, locked and marked, once the guest may go on. */
  #acquire(offset: number, length: number): RangeHold | Promise<RangeHold> {
    this.#requests += 1;
    const admitted = this.#gate.admitChange();
    if (admitted !== undefined) return admitted.then(() => this.#acquire(offset, length));
    const hold = this.#lock.acquire(offset, length);
    if (hold instanceof Promise) return hold.then((later) => this.#mark(later, offset, length));
    return this.#mark(hold, offset, length);
  }

  #mark(hold: RangeHold, offset: number, length: number): RangeHold | Promise<RangeHold> {
    // It keeps its place, so that overlapping changes are made in the order in which they came.
    const { reopened } = this.#gate;
    if (reopened !== undefined) return reopened.then(() => this.#mark(hold, offset, length));
    let marked: Pending;
    try {
      this.#gate.assertServing();
      marked = this.#forwarding.mark(offset, length);
    } catch (error) {
      this.#lock.release(hold);
      throw error;
    }
    if (marked === undefined) return this.#pass(hold);
    return marked.then(
      () => (this.#gate.state === "open" ? this.#pass(hold) : this.#mark(hold, offset, length)),
      (error: unknown) => {
        this.#lock.release(hold);
        throw error;
      },
    );
  }

  #pass(hold: RangeHold): RangeHold {
    this.#passed += 1;
    return hold;
  }

  /** Gives the range of a change that has passed the gate back. */
  #release(hold: RangeHold): void {
    this.#lock.release(hold);
    this.#passed -= 1;
    if (this.#passed === 0) for (const resolve of this.#drained.splice(0)) resolve();
  }

  #writeHeld(hold: RangeHold, source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    return this.#changeHeld(
      hold,
      offset,
      source.length,
      () => this.#child.write(source, offset, flags),
      () => this.#forwarding.forward("write", offset, source.length, asBuffer(source)),
    );
  }

  #zeroHeld(hold: RangeHold, offset: number, length: number, flags: ZeroFlags): Pending {
    return this.#changeHeld(
      hold,
      offset,
      length,
      () => this.#child.zero(offset, length, flags),
      () => this.#forwarding.forward(flags.mayUnmap ? "discard" : "zero", offset, length, undefined),
    );
  }

  #openHeld(hold: RangeHold, offset: number, flags: WriteFlags): OpenWrite {
    const pieceFlags = withoutFua(flags);
    let at = offset;
    let acknowledged: Pending;
    /** What the child has not taken yet: the range is held for that long, whatever becomes of the request. */
    let written: Pending;
    const release = (): void => {
      if (written === undefined) this.#release(hold);
      else void written.catch(() => undefined).then(() => this.#release(hold)); // `end` has told of the error
    };
    return {
      push: (piece) => {
        const start = at;
        at += piece.length;
        const { local, forwarded } = this.#change(
          start,
          piece.length,
          () => this.#child.write(piece, start, pieceFlags),
          () => this.#forwarding.forward("write", start, piece.length, asBuffer(piece)),
        );
        acknowledged = both(acknowledged, forwarded);
        if (local === undefined) return this.#forwarding.room();
        const ahead = this.#countAhead(local, piece.length);
        written = written === undefined ? ahead : allSettled([written, ahead]);
        written.catch(() => undefined); // `end` tells of the error
        return both(this.#aheadBytes > WRITE_AHEAD_BYTES ? written : undefined, this.#forwarding.room());
      },
      end: () => {
        release();
        const done = both(written, acknowledged);
        if (!flags.fua) return done;
        return done === undefined ? this.flush() : done.then(() => this.flush());
      },
      abandon: () => {
        release();
        acknowledged?.catch(() => undefined); // nobody waits for this write any more
      },
      isWaitedFor: () => this.#lock.isWaitedFor(hold),
      isBehind: () => written !== undefined,
    };
  }

  /** A piece that the child takes its time for: several may be under way, so that a long write is not one wait after another. */
  async #countAhead(local: Promise<void>, bytes: number): Promise<void> {
    this.#aheadBytes += bytes;
    try {
      await local;
    } finally {
      this.#aheadBytes -= bytes;
    }
  }

  /** A change that the child takes its time for. */
  async #underWay(local: Promise<void>, offset: number, length: number): Promise<void> {
    this.#changesUnderWay += 1;
    try {
      await local;
    } catch (error) {
      this.#forwarding.failed(offset, length, error);
      throw error;
    } finally {
      this.#changesUnderWay -= 1;
      if (this.#changesUnderWay === 0) for (const resolve of this.#quiet.splice(0)) resolve();
    }
  }

  /** Gives a whole operation to the child and to the stream, and the hold back when the child is done. */
  #changeHeld(
    hold: RangeHold,
    offset: number,
    length: number,
    writeChild: () => Pending,
    forward: () => Pending,
  ): Pending {
    let change: { local: Pending; forwarded: Pending };
    try {
      change = this.#change(offset, length, writeChild, forward);
    } catch (error) {
      this.#release(hold);
      throw error;
    }
    // What the guest waits for beyond its child (room in the window, acknowledgements) needs no lock.
    const beyond = both(change.forwarded, this.#forwarding.room());
    if (change.local === undefined) {
      this.#release(hold);
      return beyond;
    }
    return both(
      change.local.finally(() => this.#release(hold)),
      beyond,
    );
  }

  /** Gives an operation to the child and to the stream. The range is held. Errors: as `GuestGate.assertServing`, before either. */
  #change(
    offset: number,
    length: number,
    writeChild: () => Pending,
    forward: () => Pending,
  ): { local: Pending; forwarded: Pending } {
    // The range may have been waited for, and a payload takes its time to arrive.
    this.#gate.assertServing();
    let local: Pending;
    try {
      local = writeChild();
    } catch (error) {
      this.#forwarding.failed(offset, length, error);
      throw error;
    }
    const forwarded = forward();
    return { local: local === undefined ? undefined : this.#underWay(local, offset, length), forwarded };
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** `found` rounded down to whole clusters, unless it reaches the end of the stretch. */
function wholeClusters(found: number, length: number, clusterBytes: number): number {
  return found >= length ? length : Math.floor(found / clusterBytes) * clusterBytes;
}
