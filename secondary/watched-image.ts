import type { Extent, Pending } from "../shared/block/block-device.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";

/**
 * A shared disk as a secondary reads it that has a mark to go by: what was read counts only when the mark says, after the
 * read, that nothing had been overwritten without its original. The primary writes the mark before it does so.
 */
export class WatchedImage implements DiskImage {
  readonly #image: DiskImage;
  readonly #confirm: () => Promise<void>;

  /** Takes over `image`. `confirm` rejects with why a read counts for nothing. */
  constructor(image: DiskImage, confirm: () => Promise<void>) {
    this.#image = image;
    this.#confirm = confirm;
  }

  get sizeBytes(): number {
    return this.#image.sizeBytes;
  }

  read(target: Uint8Array, offset: number): Pending {
    const reading = this.#image.read(target, offset);
    return reading === undefined ? this.#confirm() : reading.then(() => this.#confirm());
  }

  write(...request: Parameters<DiskImage["write"]>): Pending {
    return this.#image.write(...request);
  }

  zero(...request: Parameters<DiskImage["zero"]>): Pending {
    return this.#image.zero(...request);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    return this.#image.extents(offset, length, maxExtents);
  }

  prefetch(offset: number, length: number): void {
    this.#image.prefetch(offset, length);
  }

  flush(): Promise<void> {
    return this.#image.flush();
  }

  syncOwn(): Promise<void> {
    return this.#image.syncOwn();
  }

  get hasLostWrites(): boolean {
    return this.#image.hasLostWrites;
  }

  rewritten(): void {
    this.#image.rewritten();
  }

  invalidate(): void {
    this.#image.invalidate?.();
  }

  changeMark(): string | Promise<string> {
    return this.#image.changeMark();
  }

  close(): void {
    this.#image.close();
  }
}
