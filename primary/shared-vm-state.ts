import type { VmStateBytes } from "./vm-state-stream.ts";

/**
 * One VM state that several secondaries are sent: each piece is read once, and the next only when all that take part still
 * have asked for it. So the slowest one sets the pace, and none of it is kept.
 */
export class SharedVmState {
  readonly #bytes: VmStateBytes;
  /** By reader: what is called with the next piece, where it has asked for one. */
  readonly #asking = new Map<number, (piece: Promise<IteratorResult<Uint8Array, unknown>>) => void>();
  readonly #left: Set<number>;

  constructor(bytes: VmStateBytes, readers: number) {
    this.#bytes = bytes;
    this.#left = new Set(Array.from({ length: readers }, (_, index) => index));
  }

  reader(index: number): VmStateBytes {
    return {
      next: () =>
        new Promise((resolve) => {
          this.#asking.set(index, resolve);
          this.#serve();
        }),
    };
  }

  /** This one takes no more: the others go on without it. */
  leave(index: number): void {
    this.#left.delete(index);
    this.#asking.delete(index);
    this.#serve();
  }

  #serve(): void {
    if (this.#left.size === 0 || this.#asking.size < this.#left.size) return;
    const piece = this.#bytes.next();
    const askers = [...this.#asking.values()];
    this.#asking.clear();
    for (const resolve of askers) resolve(piece);
  }
}
