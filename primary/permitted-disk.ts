import type { ColobusError } from "../proto/errors.ts";
import type { BlockDevice, Extent, OpenWrite, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import type { ServingPermit } from "./serving-permit.ts";

/**
 * A disk whose requests are acknowledged only while this side may serve: each looks at the permit when it comes in, and
 * again when it is done. A request that is done outside the permit waits until that is renewed, or fails.
 */
export class PermittedDisk implements BlockDevice {
  readonly #disk: BlockDevice;
  readonly #permit: Pick<ServingPermit, "admit" | "isValid">;

  constructor(disk: BlockDevice, permit: Pick<ServingPermit, "admit" | "isValid">) {
    this.#disk = disk;
    this.#permit = permit;
  }

  get fault(): ColobusError | undefined {
    return this.#disk.fault;
  }

  /** Outside the permit they have to be waited for. */
  get asksForExtents(): boolean {
    return this.#disk.asksForExtents === true || !this.#permit.isValid;
  }

  get sizeBytes(): number {
    return this.#disk.sizeBytes;
  }

  read(target: Uint8Array, offset: number): Pending {
    const coming = this.#permit.admit();
    if (coming !== undefined) return coming.then(() => this.read(target, offset));
    return this.#confirmed(this.#disk.read(target, offset));
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    const coming = this.#permit.admit();
    if (coming !== undefined) return coming.then(() => this.write(source, offset, flags));
    return this.#confirmed(this.#disk.write(source, offset, flags));
  }

  openWrite(offset: number, length: number, flags: WriteFlags): OpenWrite | Promise<OpenWrite> {
    const coming = this.#permit.admit();
    if (coming !== undefined) return coming.then(() => this.openWrite(offset, length, flags));
    const open = this.#disk.openWrite(offset, length, flags);
    return open instanceof Promise ? open.then((write) => this.#confirmedWrite(write)) : this.#confirmedWrite(open);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    const coming = this.#permit.admit();
    if (coming !== undefined) return coming.then(() => this.zero(offset, length, flags));
    return this.#confirmed(this.#disk.zero(offset, length, flags));
  }

  flush(): Pending {
    const coming = this.#permit.admit();
    if (coming !== undefined) return coming.then(() => this.flush());
    return this.#confirmed(this.#disk.flush());
  }

  prefetch(offset: number, length: number): void {
    this.#disk.prefetch(offset, length);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    const coming = this.#permit.admit();
    if (coming !== undefined) return coming.then(() => this.extents(offset, length, maxExtents));
    const extents = this.#disk.extents(offset, length, maxExtents);
    return extents instanceof Promise ? this.#confirmedExtents(extents) : extents;
  }

  #confirmed(done: Pending): Pending {
    return done === undefined ? this.#permit.admit() : done.then(() => this.#permit.admit());
  }

  #confirmedWrite(write: OpenWrite): OpenWrite {
    return {
      push: (piece) => write.push(piece),
      end: () => this.#confirmed(write.end()),
      abandon: () => write.abandon(),
      isWaitedFor: () => write.isWaitedFor?.() === true,
      isBehind: () => write.isBehind?.() === true,
    };
  }

  async #confirmedExtents(extents: Promise<Extent[]>): Promise<Extent[]> {
    const found = await extents;
    await this.#permit.admit();
    return found;
  }
}
