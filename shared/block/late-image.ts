import type { Extent, Pending, WriteFlags, ZeroFlags } from "./block-device.ts";
import type { DiskImage } from "./disk-image.ts";

/**
 * A shared disk of a primary that may not be its writer any more: the other side may have been promoted while this one was
 * away. It is opened for writing, and locked, by the first request of a guest, which the gate lets through only once the
 * other side was asked. Until then it is open as a secondary has it, so that a former primary keeps nobody off the disk,
 * nor is kept from coming back by whoever has locked it.
 *
 * A flush needs no more than that: what an earlier process has left in the page cache belongs to the file.
 */
export class LateImage implements DiskImage {
  readonly sizeBytes: number;
  readonly #foreign: DiskImage;
  readonly #open: () => DiskImage;
  #own: DiskImage | undefined;

  /** Takes over `foreign`. `open` opens the disk for writing; what it throws, whoever has asked is told. */
  constructor(foreign: DiskImage, open: () => DiskImage) {
    this.sizeBytes = foreign.sizeBytes;
    this.#foreign = foreign;
    this.#open = open;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#opened().read(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    return this.#opened().write(source, offset, flags);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    return this.#opened().zero(offset, length, flags);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    return this.#opened().extents(offset, length, maxExtents);
  }

  prefetch(offset: number, length: number): void {
    this.#own?.prefetch(offset, length);
  }

  flush(): Promise<void> {
    return this.#present.flush();
  }

  syncOwn(): Promise<void> {
    return this.#present.syncOwn();
  }

  get hasLostWrites(): boolean {
    return this.#present.hasLostWrites;
  }

  rewritten(): void {
    this.#present.rewritten();
  }

  changeMark(): string | Promise<string> {
    return this.#present.changeMark();
  }

  close(): void {
    this.#own?.close();
    this.#foreign.close();
  }

  get #present(): DiskImage {
    return this.#own ?? this.#foreign;
  }

  #opened(): DiskImage {
    this.#own ??= this.#open();
    return this.#own;
  }
}
