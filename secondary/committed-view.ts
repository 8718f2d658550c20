import { ColobusError } from "../proto/errors.ts";
import type { SecondaryExport } from "../proto/words.ts";
import type { BlockDevice, Extent, OpenWrite, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import { RangeLock } from "../shared/block/range-lock.ts";
import { withoutFua } from "../shared/block/without-fua.ts";
import type { OverlayStack } from "./overlay-stack.ts";
import type { ViewGate } from "./view-gate.ts";

/** What has taken a view's place; it may change, and while there is nothing to be served `device` throws why. */
export interface ViewSuccessor {
  readonly device: SuccessorDevice;
}

type SuccessorDevice = Omit<BlockDevice, "openWrite">;

/**
 * What the secondary exports: one disk as it was at the last committed checkpoint, with the secondary VM's own writes
 * (`read-write` only) in the active disk above it. Before the first commit there is nothing to show, and every request
 * fails with `no-checkpoint`.
 */
export class CommittedView implements BlockDevice {
  readonly #stack: OverlayStack;
  readonly #gate: ViewGate;
  readonly #lock = new RangeLock();
  readonly #hasCheckpoint: () => boolean;
  readonly #access: SecondaryExport;
  #successor: ViewSuccessor | undefined;

  constructor(stack: OverlayStack, gate: ViewGate, hasCheckpoint: () => boolean, access: SecondaryExport) {
    this.#stack = stack;
    this.#gate = gate;
    this.#hasCheckpoint = hasCheckpoint;
    this.#access = access;
  }

  get sizeBytes(): number {
    return this.#stack.geometry.sizeBytes;
  }

  /**
   * The disk was promoted: requests go to `successor` from now on, those included that wait at the gate, which is
   * closed, and the pieces still to come of a write that was begun before. What they would write to the active disk behind
   * the back of `successor` would be lost with the merge.
   */
  handOver(successor: ViewSuccessor): void {
    this.#successor = successor;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#run(
      () => this.#stack.read(target, offset),
      (successor) => successor.read(target, offset),
    );
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    return this.#writeActive(source, offset, flags, (successor) => successor.write(source, offset, flags));
  }

  openWrite(offset: number, length: number, flags: WriteFlags): OpenWrite {
    this.#assertAccess();
    if (this.#successor === undefined) this.#assertCheckpoint();
    const pieceFlags = withoutFua(flags);
    let at = offset;
    return {
      push: (piece) => {
        const pieceOffset = at;
        at += piece.length;
        return this.#writeActive(piece, pieceOffset, pieceFlags, (successor) =>
          successor.write(piece, pieceOffset, pieceFlags),
        );
      },
      end: () => (flags.fua ? this.flush() : undefined),
      abandon: () => undefined,
    };
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    return this.#writeActive(length, offset, flags, (successor) => successor.zero(offset, length, flags));
  }

  flush(): Pending {
    return this.#run(
      () => this.#stack.active.flush(),
      (successor) => successor.flush(),
    );
  }

  prefetch(offset: number, length: number): void {
    this.#stack.base.prefetch(offset, length);
  }

  get asksForExtents(): boolean {
    return this.#stack.base.asksForExtents === true;
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    if (this.#successor !== undefined) return this.#successor.device.extents(offset, length, maxExtents);
    this.#assertCheckpoint();
    // A read that comes now waits for the next view: what is a hole in this one may be none there.
    if (this.#gate.opening !== undefined) return [{ length, hole: false, zero: false }];
    return this.#stack.extents(offset, length, maxExtents);
  }

  /** Runs a request in the view that is open now or next, or, once the disk was promoted, against its successor. */
  #run(inView: () => Pending, inSuccessor: (successor: SuccessorDevice) => Pending): Pending {
    if (this.#successor !== undefined) return inSuccessor(this.#successor.device);
    this.#assertCheckpoint();
    const { opening } = this.#gate;
    if (opening !== undefined) return opening.then(() => this.#run(inView, inSuccessor));
    return this.#gate.run(inView);
  }

  #writeActive(
    source: Uint8Array | number,
    offset: number,
    flags: WriteFlags,
    inSuccessor: (successor: SuccessorDevice) => Pending,
  ): Pending {
    this.#assertAccess();
    return this.#run(() => {
      const length = typeof source === "number" ? source : source.length;
      // Long zeroes are held a while after they are in the file: a write beside them must not fill their cluster from below.
      const { geometry, active } = this.#stack;
      const unit = typeof source === "number" ? geometry.clusterBytes : active.partBytes;
      const from = Math.floor(offset / unit) * unit;
      const hold = this.#lock.acquire(from, Math.ceil((offset + length) / unit) * unit - from);
      if (hold instanceof Promise) return hold.then((later) => this.#lockedWrite(later, source, offset, flags));
      return this.#lockedWrite(hold, source, offset, flags);
    }, inSuccessor);
  }

  #lockedWrite(
    hold: Awaited<ReturnType<RangeLock["acquire"]>>,
    source: Uint8Array | number,
    offset: number,
    flags: WriteFlags,
  ): Pending {
    let pending: Pending;
    try {
      pending = this.#stack.active.write(source, offset, (target, at) => this.#stack.readBelow(target, at));
      if (flags.fua) pending = (pending ?? Promise.resolve()).then(() => this.#stack.active.flush());
    } catch (error) {
      this.#lock.release(hold);
      throw error;
    }
    if (pending === undefined) {
      this.#lock.release(hold);
      return undefined;
    }
    return pending.finally(() => this.#lock.release(hold));
  }

  #assertAccess(): void {
    if (this.#access === "read-write") return;
    throw new ColobusError(
      "read-only",
      "the secondary's export is read-only",
      "Fail over first, or start the secondary with --secondary-export read-write for a lock-step VM.",
    );
  }

  #assertCheckpoint(): void {
    if (this.#hasCheckpoint()) return;
    throw new ColobusError(
      "no-checkpoint",
      "no checkpoint has been committed yet: the secondary's disks are Inconsistent",
      "Wait for the first sync to end: `colobus wait committed`.",
    );
  }
}
