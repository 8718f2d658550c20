import assert from "node:assert/strict";
import type { ColobusError } from "../../proto/errors.ts";
import type { Extent } from "../block/block-device.ts";
import type { DiskImage } from "../block/disk-image.ts";
import { NbdImage, type NbdImageOptions } from "./nbd-image.ts";

/**
 * An image behind an NBD server that another host writes: read, and never changed, until that host is known to write it
 * no more. The other host uses the same server (`isShared`), which shows at once what it has taken; or each has one of its
 * own.
 *
 * A server of this host's own for a format remembers where content lies. What it remembers holds for all content that was not overwritten
 * since the last checkpoint: the other host has flushed what leads there before it, and an original of the whole unit
 * goes before anything moves it (`CopyBeforeWrite`). With each checkpoint it holds no more: see `invalidate`.
 *
 * Holes are not asked for, since their map may be old: everything counts as data.
 */
export class ForeignNbdImage implements DiskImage {
  readonly sizeBytes: number;
  readonly hasLostWrites = false;
  readonly #image: NbdImage;

  constructor(options: Omit<NbdImageOptions, "onDemand" | "isReadOnly"> & { readonly sizeBytes: number }) {
    this.sizeBytes = options.sizeBytes;
    this.#image = new NbdImage({ ...options, onDemand: true, isReadOnly: true });
  }

  read(target: Uint8Array, offset: number): Promise<void> {
    return this.#image.read(target, offset);
  }

  extents(offset: number, length: number): Extent[] {
    return [{ length: Math.min(length, this.sizeBytes - offset), hole: false, zero: false }];
  }

  prefetch(): void {
    // What is cached on the way may be old when it is asked for.
  }

  invalidate(): void {
    this.#image.leave();
  }

  watchServer(watcher: (reason: ColobusError | undefined) => void): void {
    this.#image.watchServer(watcher);
  }

  flush(): Promise<void> {
    return Promise.resolve(); // nothing was written
  }

  syncOwn(): Promise<void> {
    return Promise.resolve();
  }

  rewritten(): void {
    // Nothing was written, and nothing lost.
  }

  changeMark(): string {
    return ""; // that the other host changes it is no news
  }

  close(): void {
    this.#image.close();
  }

  write(): never {
    this.#refuse();
  }

  zero(): never {
    this.#refuse();
  }

  #refuse(): never {
    assert.fail("an image that another host writes is open for reading only");
  }
}
