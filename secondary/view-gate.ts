import assert from "node:assert/strict";
import type { Pending } from "../shared/block/block-device.ts";

/**
 * Separates the requests of one view of the disks from those of the next. A commit closes the gate: requests that are
 * under way finish against the old view, later ones wait, and go on against the new one when the gate opens again.
 */
export class ViewGate {
  #inFlight = 0;
  #closed: { promise: Promise<void>; open: () => void } | undefined;
  #drained: (() => void) | undefined;

  /** Resolves when the gate opens again; undefined while it is open. */
  get opening(): Promise<void> | undefined {
    return this.#closed?.promise;
  }

  /** Runs `request` in the view that is open now, or in the next one. */
  run(request: () => Pending): Pending {
    if (this.#closed !== undefined) return this.#closed.promise.then(() => this.run(request));
    const pending = request();
    if (pending === undefined) return undefined;
    this.#inFlight += 1;
    return pending.finally(() => {
      this.#inFlight -= 1;
      if (this.#inFlight === 0) this.#drained?.();
    });
  }

  /** Resolves when no request of the present view is under way; later ones are held until `open`. */
  async close(): Promise<void> {
    assert(this.#closed === undefined, "one view change at a time");
    let open = (): void => undefined;
    const promise = new Promise<void>((resolve) => {
      open = resolve;
    });
    this.#closed = { promise, open };
    if (this.#inFlight > 0) {
      await new Promise<void>((resolve) => {
        this.#drained = resolve;
      });
      this.#drained = undefined;
    }
  }

  open(): void {
    const closed = this.#closed;
    this.#closed = undefined;
    closed?.open();
  }
}
