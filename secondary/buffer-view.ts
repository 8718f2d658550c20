import type { Pending } from "../shared/block/block-device.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import type { EpochBuffer } from "./epoch-buffer.ts";
import type { EpochView, OverlaySource, ReadBelow } from "./epoch-overlay.ts";

/**
 * A disk as its base shows it with some epochs' buffers over it, the newest uppermost. Reads what is below first, and
 * puts over it what the buffers have, from the oldest on: what a buffer lacks needs no looking for.
 *
 * A buffer may be taken out of the view while it is read from: when the base has what it has. The reader goes on with it.
 */
export class BufferView implements EpochView, OverlaySource {
  readonly #buffers: () => readonly EpochBuffer[];
  readonly #version: () => number;

  /** `buffers` are oldest first. */
  constructor(buffers: () => readonly EpochBuffer[], version: () => number) {
    this.#buffers = buffers;
    this.#version = version;
  }

  get version(): number {
    return this.#version();
  }

  find(cluster: number): OverlaySource | undefined {
    for (const { index } of this.#buffers()) if (index.has(cluster)) return this;
    return undefined;
  }

  intersects(first: number, end: number): boolean {
    return this.#buffers().some(({ index }) => index.intersects(first, end));
  }

  union(): ClusterBitmap {
    return ClusterBitmap.orMany(this.#buffers().map(({ index }) => index.held()));
  }

  read(target: Uint8Array, offset: number, readBelow: ReadBelow): Pending {
    const buffers = [...this.#buffers()];
    const reading = readBelow(target, offset);
    if (reading !== undefined) return paintLater(buffers, 0, reading, target, offset);
    for (const [index, buffer] of buffers.entries()) {
      const painting = buffer.paint(target, offset);
      if (painting !== undefined) return paintLater(buffers, index + 1, painting, target, offset);
    }
    return undefined;
  }
}

/** Goes on with the buffers from `next` on when `pending` is done. */
async function paintLater(
  buffers: readonly EpochBuffer[],
  next: number,
  pending: Promise<void>,
  target: Uint8Array,
  offset: number,
): Promise<void> {
  for (const buffer of buffers) buffer.enter();
  try {
    await pending;
    for (const buffer of buffers.slice(next)) await buffer.paint(target, offset);
  } finally {
    for (const buffer of buffers) buffer.leave();
  }
}
