import assert from "node:assert/strict";
import type {
  BlockDevice,
  Extent,
  OpenWrite,
  Pending,
  WriteFlags,
  ZeroFlags,
} from "../../shared/block/block-device.ts";

export type DeviceOperationKind =
  | "read"
  | "write"
  | "open-write"
  | "push"
  | "end"
  | "abandon"
  | "zero"
  | "flush"
  | "prefetch";

export interface DeviceOperation {
  readonly kind: DeviceOperationKind;
  readonly offset: number;
  readonly length: number;
  readonly fua?: boolean;
  readonly mayUnmap?: boolean;
}

/** Called before each operation. A promise delays the operation until it resolves; a throw or rejection fails it. */
export type OperationGate = (operation: DeviceOperation) => Promise<void> | undefined;

const BLOCK_BYTES = 4096;

/**
 * A disk in memory for tests. Without a gate everything is done synchronously. A delayed write takes its bytes only when
 * the delay is over, so a caller that reuses the buffer too early is found out.
 */
export class MemoryDevice implements BlockDevice {
  readonly bytes: Buffer;
  /** One flag for each block of 4 KiB: whether it was ever written since it was last unmapped. */
  readonly #allocated: Uint8Array;
  gate: OperationGate | undefined;
  /** Set to an array to have every operation recorded. */
  operations: DeviceOperation[] | undefined;
  /** Writes that were opened and are not ended or abandoned. */
  openWrites = 0;

  constructor(sizeBytes: number) {
    this.bytes = Buffer.alloc(sizeBytes);
    this.#allocated = new Uint8Array(Math.ceil(sizeBytes / BLOCK_BYTES));
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#run({ kind: "read", offset, length: target.length }, () => {
      target.set(this.bytes.subarray(offset, offset + target.length));
    });
  }

  write(source: Uint8Array, offset: number, { fua }: WriteFlags): Pending {
    return this.#run({ kind: "write", offset, length: source.length, fua }, () => this.#put(source, offset));
  }

  openWrite(offset: number, length: number, { fua }: WriteFlags): OpenWrite | Promise<OpenWrite> {
    const open = (): OpenWrite => {
      this.openWrites += 1;
      return this.#openWrite(offset, length);
    };
    const pending = this.#before({ kind: "open-write", offset, length, fua });
    return pending === undefined ? open() : pending.then(open);
  }

  #openWrite(offset: number, length: number): OpenWrite {
    let pushed = 0;
    const close = (): void => {
      this.openWrites -= 1;
    };
    return {
      push: (piece) => {
        const at = offset + pushed;
        pushed += piece.length;
        assert(pushed <= length, "more was pushed than was announced");
        return this.#run({ kind: "push", offset: at, length: piece.length }, () => this.#put(piece, at));
      },
      end: () => {
        assert.equal(pushed, length, "the payload is complete");
        close();
        return this.#run({ kind: "end", offset, length }, () => undefined);
      },
      abandon: () => {
        close();
        this.operations?.push({ kind: "abandon", offset, length });
      },
    };
  }

  zero(offset: number, length: number, { fua, mayUnmap }: ZeroFlags): Pending {
    return this.#run({ kind: "zero", offset, length, fua, mayUnmap }, () => {
      this.#assertInside(offset, length);
      this.bytes.fill(0, offset, offset + length);
      if (!mayUnmap)
        this.#allocated.fill(1, Math.floor(offset / BLOCK_BYTES), Math.ceil((offset + length) / BLOCK_BYTES));
      else this.#allocated.fill(0, Math.ceil(offset / BLOCK_BYTES), Math.floor((offset + length) / BLOCK_BYTES));
    });
  }

  flush(): Pending {
    return this.#run({ kind: "flush", offset: 0, length: 0 }, () => undefined);
  }

  prefetch(offset: number, length: number): void {
    this.#assertInside(offset, length);
    this.operations?.push({ kind: "prefetch", offset, length });
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] {
    this.#assertInside(offset, length);
    const extents: Extent[] = [];
    const end = offset + length;
    for (let position = offset; position < end && extents.length < maxExtents;) {
      const allocated = this.#allocated[Math.floor(position / BLOCK_BYTES)];
      let next = position;
      do next = (Math.floor(next / BLOCK_BYTES) + 1) * BLOCK_BYTES;
      while (next < end && this.#allocated[next / BLOCK_BYTES] === allocated);
      next = Math.min(next, end);
      extents.push({ length: next - position, hole: allocated === 0, zero: allocated === 0 });
      position = next;
    }
    return extents;
  }

  #put(source: Uint8Array, offset: number): void {
    this.#assertInside(offset, source.length);
    this.bytes.set(source, offset);
    this.#allocated.fill(1, Math.floor(offset / BLOCK_BYTES), Math.ceil((offset + source.length) / BLOCK_BYTES));
  }

  #assertInside(offset: number, length: number): void {
    assert(offset >= 0 && offset + length <= this.bytes.length, "the range lies within the device");
  }

  #before(operation: DeviceOperation): Promise<void> | undefined {
    this.operations?.push(operation);
    return this.gate?.(operation);
  }

  #run(operation: DeviceOperation, work: () => void): Pending {
    const pending = this.#before(operation);
    if (pending !== undefined) return pending.then(work);
    work();
    return undefined;
  }
}
