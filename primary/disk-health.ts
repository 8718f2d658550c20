import { asColobusError, ColobusError } from "../proto/errors.ts";
import { DISK_RETRY_MS } from "../proto/limits.ts";
import type { EventType } from "../proto/words.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

export interface DiskHealthOptions {
  readonly clock: Clock;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly disks: () => readonly ReplicatedDisk[];
}

/** What was tried when a disk failed, and where. */
export interface FailedAccess {
  readonly during: "read" | "write" | "flush";
  readonly offset: number;
  readonly length: number;
}

/** Ranges of one disk that are tried again; a disk with more of them is no better when the first ones are. */
const RANGES_MAX = 64;
const PROBE_MAX_BYTES = 1024 * 1024;

interface Failure {
  error: ColobusError;
  /** The secondary that guests' reads have gone to. */
  readBy?: string;
  readonly ranges: FailedAccess[];
}

/**
 * Owns which local images of a primary have failed. A guest is told of each failure by itself; this is for status, events,
 * and for knowing when it is over: what failed is tried again every so often, and a disk is sound when all of it succeeds,
 * and the image can be flushed. After a failed flush it never is, as long as the image is open (`Image`).
 *
 * A full file system is not a failure of the disk: the guest waits for space, and the disk is sound.
 */
export class DiskHealth {
  readonly #options: DiskHealthOptions;
  readonly #failures = new Map<string, Failure>();
  /** When the last event of a kind was told: a guest that tries again and again is not to fill the list of events. */
  readonly #toldMs = new Map<string, number>();
  #timer: Timer | undefined;
  #stopped = false;

  constructor(options: DiskHealthOptions) {
    this.#options = options;
  }

  /** Why any disk cannot be relied on. */
  get first(): ColobusError | undefined {
    const [failure] = this.#failures.values();
    if (failure?.readBy === undefined) return failure?.error;
    const { code, message, action } = failure.error;
    return new ColobusError(code, `${message}; guests read it from the secondary, as far as that has it`, action);
  }

  has(disk: string): boolean {
    return this.#failures.has(disk);
  }

  /** The local image of the disk has refused something. */
  failed(disk: string, access: FailedAccess, thrown: unknown): void {
    const { clock, emit } = this.#options;
    const error = asColobusError(thrown);
    if (error.code !== "out-of-space" || access.during === "flush") this.#note(disk, access, error);
    const kind = `${disk} ${access.during} ${error.code}`;
    const toldMs = this.#toldMs.get(kind);
    if (toldMs !== undefined && clock.nowMs() < toldMs + DISK_RETRY_MS) return;
    this.#toldMs.set(kind, clock.nowMs());
    emit("disk-error", { disk, ...access, ...error.toJSON() });
  }

  /** What could not be read here has come from that secondary. */
  readBy(disk: string, agentId: string): void {
    const failure = this.#failures.get(disk);
    if (failure === undefined || failure.readBy === agentId) return;
    failure.readBy = agentId;
    this.#options.emit("read-from-secondary", { disk, agentId });
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
  }

  #note(disk: string, access: FailedAccess, error: ColobusError): void {
    const failure = this.#failures.get(disk);
    if (failure === undefined) this.#failures.set(disk, { error, ranges: [access] });
    else {
      failure.error = error;
      const isKnown = failure.ranges.some((known) => known.offset === access.offset && known.during === access.during);
      if (!isKnown && failure.ranges.length < RANGES_MAX) failure.ranges.push(access);
    }
    this.#retryLater();
  }

  #retryLater(): void {
    if (this.#stopped) return;
    this.#timer ??= this.#options.clock.after(DISK_RETRY_MS, () => void this.#retry());
  }

  async #retry(): Promise<void> {
    for (const disk of this.#options.disks()) {
      const failure = this.#failures.get(disk.name);
      if (failure === undefined) continue;
      const error = await tryAgain(disk, failure);
      if (this.#stopped) return;
      if (error !== undefined) failure.error = error;
      else if (this.#failures.delete(disk.name)) this.#options.emit("disk-mended", { disk: disk.name });
    }
    this.#timer = undefined;
    if (this.#failures.size > 0) this.#retryLater();
  }
}

/**
 * Tries the ranges and a flush; what has become sound is taken out. Returns why not everything is. An image that is to be
 * left alone is as it was.
 */
async function tryAgain(disk: ReplicatedDisk, { error: before, ranges }: Failure): Promise<ColobusError | undefined> {
  try {
    for (let access = ranges[0]; access !== undefined; access = ranges[0]) {
      const { during, offset, length } = access;
      for (let done = 0; done < length; done += PROBE_MAX_BYTES) {
        const bytes = Math.min(PROBE_MAX_BYTES, length - done);
        if (!(await disk.tryAgain(offset + done, bytes, during === "write"))) return before;
      }
      ranges.shift();
    }
    if (disk.isLeftAlone) return before;
    await disk.child.flush();
    return undefined;
  } catch (error) {
    return asColobusError(error);
  }
}
