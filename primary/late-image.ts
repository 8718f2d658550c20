import type { Child, Extent, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import type { ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";

/**
 * An image that is opened by the first request, and by the next one when that has failed: a copy whose image is not there
 * fails its requests, and nothing else.
 */
export class LateImage implements Child {
  readonly #geometry: Pick<ClusterGeometry, "sizeBytes">;
  readonly #open: () => DiskImage;
  #image: DiskImage | undefined;

  /** `geometry` is the disk's, which may grow; `open` throws why the image cannot be opened. */
  constructor(geometry: Pick<ClusterGeometry, "sizeBytes">, open: () => DiskImage) {
    this.#geometry = geometry;
    this.#open = open;
  }

  get sizeBytes(): number {
    return this.#geometry.sizeBytes;
  }

  /** The image, where it is open. */
  get opened(): DiskImage | undefined {
    return this.#image;
  }

  get #ready(): DiskImage {
    this.#image ??= this.#open();
    return this.#image;
  }

  /** Until it is open nobody knows. */
  get asksForExtents(): boolean {
    return this.#image === undefined || this.#image.asksForExtents === true;
  }

  get fault(): Child["fault"] {
    return this.#image?.fault;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#ready.read(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    return this.#ready.write(source, offset, flags);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    return this.#ready.zero(offset, length, flags);
  }

  flush(): Pending {
    return this.#ready.flush();
  }

  get grow(): Child["grow"] {
    const image = this.#ready;
    return image.grow?.bind(image);
  }

  get ungrow(): Child["ungrow"] {
    const image = this.#image;
    return image?.ungrow?.bind(image);
  }

  prefetch(offset: number, length: number): void {
    this.#image?.prefetch(offset, length);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    return this.#ready.extents(offset, length, maxExtents);
  }

  /** Whatever a flush has failed to make durable is written again. */
  rewritten(): void {
    this.#image?.rewritten();
  }

  close(): void {
    this.#image?.close();
    this.#image = undefined;
  }
}
