import assert from "node:assert/strict";
import { ColobusError } from "../proto/errors.ts";
import type { Child, Extent, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";

/**
 * The image that a mirror copies to, which may not be there yet when the agent starts, or be given to the disk at the end.
 * While it is not open every request fails, with the reason of the last try.
 */
export class MirrorTarget implements Child {
  readonly sizeBytes: number;
  readonly #open: () => DiskImage;
  #image: DiskImage | undefined;
  #isUntouched = true;
  #fault: ColobusError;

  constructor(location: string, sizeBytes: number, open: () => DiskImage, image?: DiskImage) {
    this.sizeBytes = sizeBytes;
    this.#open = open;
    this.#image = image;
    this.#fault = new ColobusError("io-error", `${location} is not open`);
  }

  /** Of one that an earlier process has left: this one has asked nothing of it. */
  get isUntouched(): boolean {
    return this.#isUntouched;
  }

  /** Opens the image, unless it is; one whose flush has failed takes flushes again. Errors: those of opening it. */
  mend(): void {
    this.#image ??= this.#open();
    this.#isUntouched = false;
    this.#image.rewritten();
  }

  /** The image, which is open. */
  get image(): DiskImage {
    assert(this.#image !== undefined, "an image that was flushed just now is open");
    return this.#image;
  }

  /** Somebody else closes the image. */
  handOver(): void {
    this.#image = undefined;
  }

  close(): void {
    this.#image?.close();
    this.#image = undefined;
  }

  get fault(): ColobusError | undefined {
    return this.#image === undefined ? this.#fault : this.#image.fault;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#opened.read(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    return this.#opened.write(source, offset, flags);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    return this.#opened.zero(offset, length, flags);
  }

  flush(): Pending {
    return this.#opened.flush();
  }

  prefetch(offset: number, length: number): void {
    this.#image?.prefetch(offset, length);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    return this.#opened.extents(offset, length, maxExtents);
  }

  get #opened(): DiskImage {
    if (this.#image === undefined) throw this.#fault;
    return this.#image;
  }
}
