import assert from "node:assert/strict";
import { EPOCH_RESERVATION } from "../proto/limits.ts";
import type { StateFile } from "../shared/journal/state-file.ts";

/**
 * Hands out epoch numbers that were never used before, not even by an agent that died: numbers are reserved in the
 * state record in blocks, and a number is used only while its reservation is durable.
 */
export class EpochCounter {
  readonly #state: StateFile;
  #open: number;
  #reserving: Promise<void> | undefined;

  constructor(state: StateFile) {
    this.#state = state;
    this.#open = state.record.epochReserved + 1;
  }

  /** The epoch that is open. */
  get open(): number {
    return this.#open;
  }

  /** A peer has seen `epoch` used: later ones are higher. */
  skipThrough(epoch: number): void {
    this.#open = Math.max(this.#open, epoch + 1);
  }

  /** Whether the open epoch's number is durably reserved, so that it may be closed. */
  get isReserved(): boolean {
    return this.#open <= this.#state.record.epochReserved;
  }

  /** Resolves when the open epoch's number is durably reserved. Errors: `io-error`. */
  async reserve(): Promise<void> {
    while (!this.isReserved) await this.#reserveBlock();
    // The next block is reserved early, so that no checkpoint waits for it.
    if (this.#open + EPOCH_RESERVATION / 2 > this.#state.record.epochReserved) {
      this.#reserveBlock().catch(() => undefined); // the checkpoint that needs the block tries again, and reports it
    }
  }

  /** Closes the open epoch, whose number is reserved, and opens the next one. Returns the closed one. */
  close(): number {
    assert(this.isReserved, "the epoch's number is reserved");
    const closed = this.#open;
    this.#open += 1;
    return closed;
  }

  #reserveBlock(): Promise<void> {
    this.#reserving ??= this.#state
      .update((record) => ({
        ...record,
        epochReserved: Math.max(record.epochReserved, this.#open) + EPOCH_RESERVATION,
      }))
      .then(() => undefined)
      .finally(() => {
        this.#reserving = undefined;
      });
    return this.#reserving;
  }
}
