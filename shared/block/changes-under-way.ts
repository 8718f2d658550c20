import type { Pending } from "./block-device.ts";

/** More are not begun before the earlier ones are done: looking for overlaps would take longer than that gains. */
const UNDER_WAY_MAX = 128;

interface Change<Device> {
  readonly device: Device;
  readonly offset: number;
  readonly end: number;
}

/**
 * Changes of devices that are begun one after the other and run side by side, as far as they do not overlap. For devices
 * that are done at once it does nothing.
 */
export class ChangesUnderWay<Device> {
  #changes: Change<Device>[] = [];
  #pending: Promise<void>[] = [];
  #failed: Device | undefined;

  /** The device of the first change that has failed later than it began. */
  get failed(): Device | undefined {
    return this.#failed;
  }

  /** What has to be awaited before the range may be changed. Rejects when an earlier change has failed. */
  before(device: Device, offset: number, length: number): Pending {
    if (this.#changes.length === 0) return undefined;
    const end = offset + length;
    const overlaps = this.#changes.some((other) => other.device === device && other.offset < end && offset < other.end);
    return overlaps || this.#changes.length >= UNDER_WAY_MAX ? this.all() : undefined;
  }

  /** A change was begun. */
  add(device: Device, offset: number, length: number, pending: Pending): void {
    if (pending === undefined) return;
    pending.catch(() => {
      this.#failed ??= device; // whoever waits for all of them is told why
    });
    this.#changes.push({ device, offset, end: offset + length });
    this.#pending.push(pending);
  }

  /** Done when all are, or failed, when all have settled: nothing is under way behind an error. */
  all(): Pending {
    if (this.#pending.length === 0) return undefined;
    const pending = this.#pending;
    this.#changes = [];
    this.#pending = [];
    return Promise.allSettled(pending).then((outcomes) => {
      for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
    });
  }
}
