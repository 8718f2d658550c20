import type { ColobusError } from "../proto/errors.ts";
import { DISK_RETRY_MS } from "../proto/limits.ts";
import type { EventType } from "../proto/words.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

export interface DiskFaultsOptions {
  readonly clock: Clock;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  /** An earlier use of the images may have lost writes. */
  readonly mayHaveLostWrites: boolean;
  /** Writes may be taken again. */
  readonly retry: () => void;
  /** What a failed flush may have lost was written again, and is stable. */
  readonly rewritten: () => void;
}

/**
 * Owns which of the secondary's disks could not be read or written, while the stream of a primary was applied to them.
 * A fault ends the session; the next one takes no writes before some time has passed, and then tries again. The fault
 * is over when a sync has come to its end, and everything of it is stable.
 *
 * A failed fsync of a base may have lost writes that readers still see. The primary knows them: it was never told that
 * they are stable. Until it has sent them again, nothing that it sends may be taken for equal to what the base shows.
 */
export class DiskFaults {
  readonly #options: DiskFaultsOptions;
  /** By the disk's name; the empty one for what is not known to be about one disk. */
  readonly #faults = new Map<string, ColobusError>();
  /** Of what is committed and could not be put into the base, by the disk's name (mode `mc`). */
  readonly #applyFaults = new Map<string, ColobusError>();
  #waits: ColobusError | undefined;
  #timer: Timer | undefined;
  #mustRewrite: boolean;

  constructor(options: DiskFaultsOptions) {
    this.#options = options;
    this.#mustRewrite = options.mayHaveLostWrites;
  }

  /** Why writes are not taken now, if that is so. */
  get waits(): ColobusError | undefined {
    return this.#waits;
  }

  /** The latest fault of any disk that is not over. */
  get latest(): ColobusError | undefined {
    return [...this.#applyFaults.values(), ...this.#faults.values()].at(-1);
  }

  /** Whether what arrives must be written even where the base shows the same already. */
  get mustRewrite(): boolean {
    return this.#mustRewrite;
  }

  /** Whether the next sync has to come to its end, and be stable, for everything to be well. */
  get isPending(): boolean {
    return this.#mustRewrite || this.#faults.size > 0;
  }

  has(disk: string): boolean {
    return this.#faults.has(disk) || this.#applyFaults.has(disk);
  }

  /** The stream could not go on, because of `disk` if that is known. Faults that are not about a device are passed over. */
  report(reason: ColobusError, disk: string | undefined): void {
    if (reason.code !== "io-error" && reason.code !== "permission-denied") return;
    const name = disk ?? "";
    this.#faults.delete(name);
    this.#faults.set(name, reason);
    this.#waits = reason;
    this.#options.emit("disk-error", { disk: disk ?? null, ...reason.toJSON() });
    this.#timer?.cancel();
    this.#timer = this.#options.clock.after(DISK_RETRY_MS, () => {
      this.#timer = undefined;
      this.#waits = undefined;
      this.#options.retry();
    });
  }

  /** What is committed could not be put into the base of `disk`. Streams go on: it is held beside the base until it can. */
  applyFailed(reason: ColobusError, disk: string): void {
    const isNews = !this.#applyFaults.has(disk);
    this.#applyFaults.set(disk, reason);
    if (isNews) this.#options.emit("disk-error", { disk, ...reason.toJSON() });
  }

  /** What is committed is in the base of `disk`. */
  applied(disk: string): void {
    if (this.#applyFaults.delete(disk)) this.#options.emit("disk-mended", { disk });
  }

  /** A stream is about to begin: it will bring what a failed fsync may have lost. */
  prepare(disks: readonly ReplicaDisk[]): void {
    for (const { base } of disks) {
      if (!base.hasLostWrites) continue;
      this.#mustRewrite = true;
      base.rewritten();
    }
  }

  /** The primary has sent everything, and it is stable. */
  over(): void {
    this.#mustRewrite = false;
    this.#options.rewritten();
    for (const disk of this.#faults.keys()) this.#options.emit("disk-mended", { disk: disk === "" ? null : disk });
    this.#faults.clear();
  }

  /** The role ends. */
  end(): void {
    this.#timer?.cancel();
  }
}
