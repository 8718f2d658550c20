import { ColobusError } from "../proto/errors.ts";
import type { SecondaryExport } from "../proto/words.ts";
import type { BlockDevice, Extent, OpenWrite, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import { RangeLock } from "../shared/block/range-lock.ts";
import type { OverlayStack } from "./overlay-stack.ts";
import type { ViewGate } from "./view-gate.ts";

/**
 * What the secondary exports: one disk as it was at the last committed checkpoint, with the secondary VM's own writes
 * (`read-write` only) in the active disk above it. Before the first commit there is nothing to show, and every request
 * fails with `no-checkpoint`.
 */
export class CommittedView implements BlockDevice {
  readonly sizeBytes: number;
  readonly #stack: OverlayStack;
  readonly #gate: ViewGate;
  readonly #lock = new RangeLock();
  readonly #hasCheckpoint: () => boolean;
  readonly #access: SecondaryExport;

  constructor(stack: OverlayStack, gate: ViewGate, hasCheckpoint: () => boolean, access: SecondaryExport) {
    this.sizeBytes = stack.geometry.sizeBytes;
    this.#stack = stack;
    this.#gate = gate;
    this.#hasCheckpoint = hasCheckpoint;
    this.#access = access;
  }

  read(target: Uint8Array, offset: number): Pending {
    this.#assertCheckpoint();
    return this.#gate.run(() => this.#stack.read(target, offset));
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    return this.#writeActive(source, offset, flags);
  }

  openWrite(offset: number, length: number, flags: WriteFlags): OpenWrite {
    this.#assertWritable();
    let at = offset;
    return {
      push: (piece) => {
        const pending = this.#writeActive(piece, at, { fua: false });
        at += piece.length;
        return pending;
      },
      end: () => (flags.fua ? this.flush() : undefined),
      abandon: () => undefined,
    };
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    return this.#writeActive(length, offset, flags);
  }

  flush(): Pending {
    this.#assertCheckpoint();
    return this.#gate.run(() => this.#stack.active.flush());
  }

  prefetch(offset: number, length: number): void {
    this.#stack.base.prefetch(offset, length);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] {
    this.#assertCheckpoint();
    return this.#stack.extents(offset, length, maxExtents);
  }

  #writeActive(source: Uint8Array | number, offset: number, flags: WriteFlags): Pending {
    this.#assertWritable();
    return this.#gate.run(() => {
      const length = typeof source === "number" ? source : source.length;
      const unit = this.#stack.active.partBytes;
      const from = Math.floor(offset / unit) * unit;
      const hold = this.#lock.acquire(from, Math.ceil((offset + length) / unit) * unit - from);
      if (hold instanceof Promise) return hold.then((later) => this.#lockedWrite(later, source, offset, flags));
      return this.#lockedWrite(hold, source, offset, flags);
    });
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

  #assertWritable(): void {
    if (this.#access !== "read-write") {
      throw new ColobusError(
        "read-only",
        "the secondary's export is read-only",
        "Fail over first, or start the secondary with --secondary-export read-write for a lock-step VM.",
      );
    }
    this.#assertCheckpoint();
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
