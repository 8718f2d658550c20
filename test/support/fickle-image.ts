import { ColobusError } from "../../proto/errors.ts";
import type { Extent, Pending, WriteFlags } from "../../shared/block/block-device.ts";
import type { DiskImage } from "../../shared/block/disk-image.ts";
import type { Clock } from "../../shared/host/clock.ts";
import type { SeededRandom } from "../sim/seeded-random.ts";

const SECTOR = 512;

/**
 * The medium of one copy: what is in the cache, and what a loss of power would leave. It outlives the processes that open it,
 * and fails, hangs or is away as it is told.
 */
export class FickleMedium {
  readonly bytes: Buffer;
  readonly #durable: Buffer;
  /** Sectors that no flush has covered, and those that a failed flush has forgotten. */
  #unflushed = new Set<number>();
  #forgotten = new Set<number>();
  /** What it does with requests. */
  mood: "sound" | "failing" | "hanging" | "away" = "sound";
  failingShare = 1;
  /** Requests that wait for a hanging medium. */
  #waiting: (() => void)[] = [];
  readonly random: SeededRandom;

  constructor(sizeBytes: number, random: SeededRandom) {
    this.bytes = Buffer.alloc(sizeBytes);
    this.#durable = Buffer.alloc(sizeBytes);
    this.random = random;
  }

  put(source: Uint8Array | number, offset: number): void {
    const length = typeof source === "number" ? source : source.length;
    if (typeof source === "number") this.bytes.fill(0, offset, offset + source);
    else this.bytes.set(source, offset);
    for (let sector = Math.floor(offset / SECTOR); sector * SECTOR < offset + length; sector += 1) {
      this.#unflushed.add(sector);
      this.#forgotten.delete(sector);
    }
  }

  /** Everything that was put is durable. */
  flushed(): void {
    for (const sector of this.#unflushed) this.#keep(sector);
    this.#unflushed.clear();
  }

  /** A flush has failed: some of what it covered was written, and the rest is forgotten. */
  flushFailed(): void {
    for (const sector of this.#unflushed) {
      if (this.random.chance(0.5)) this.#keep(sector);
      else this.#forgotten.add(sector);
    }
    this.#unflushed.clear();
  }

  losePower(): void {
    for (const sector of this.#unflushed) if (this.random.chance(0.5)) this.#revert(sector);
    for (const sector of this.#forgotten) this.#revert(sector);
    this.#unflushed.clear();
    this.#forgotten.clear();
    this.#durable.set(this.bytes);
  }

  waits(resume: () => void): void {
    this.#waiting.push(resume);
  }

  /** What has waited goes on. */
  goOn(): void {
    for (const resume of this.#waiting.splice(0)) resume();
  }

  #keep(sector: number): void {
    this.bytes.copy(this.#durable, sector * SECTOR, sector * SECTOR, (sector + 1) * SECTOR);
  }

  #revert(sector: number): void {
    this.#durable.copy(this.bytes, sector * SECTOR, sector * SECTOR, (sector + 1) * SECTOR);
  }
}

/** A medium as one process has it open. */
export class FickleImage implements DiskImage {
  readonly sizeBytes: number;
  readonly #medium: FickleMedium;
  readonly #clock: Clock;
  #failedFlush: ColobusError | undefined;
  /** The process has died: what it began may still land. */
  #isGone = false;

  constructor(medium: FickleMedium, clock: Clock) {
    if (medium.mood === "away") throw new ColobusError("image-missing", "the image is not there");
    this.sizeBytes = medium.bytes.length;
    this.#medium = medium;
    this.#clock = clock;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#do(() => {
      target.set(this.#medium.bytes.subarray(offset, offset + target.length));
    });
  }

  write(source: Uint8Array, offset: number, { fua }: WriteFlags): Pending {
    const done = this.#do(() => this.#medium.put(source, offset));
    if (!fua) return done;
    return done === undefined ? this.flush() : done.then(() => this.flush());
  }

  zero(offset: number, length: number, { fua }: WriteFlags): Pending {
    const done = this.#do(() => this.#medium.put(length, offset));
    if (!fua) return done;
    return done === undefined ? this.flush() : done.then(() => this.flush());
  }

  async flush(): Promise<void> {
    if (this.#failedFlush !== undefined) throw this.#failedFlush;
    try {
      await this.#do(() => this.#medium.flushed());
    } catch (error) {
      this.#medium.flushFailed();
      this.#failedFlush = error instanceof ColobusError ? error : undefined;
      throw error;
    }
  }

  prefetch(): void {
    // There is no cache to fill.
  }

  extents(_offset: number, length: number): Extent[] {
    return [{ length, hole: false, zero: false }];
  }

  get hasLostWrites(): boolean {
    return this.#failedFlush !== undefined;
  }

  distrust(reason: ColobusError): void {
    this.#failedFlush = reason;
  }

  rewritten(): void {
    this.#failedFlush = undefined;
  }

  async syncOwn(): Promise<void> {
    await this.flush();
  }

  changeMark(): string {
    return "";
  }

  /** The process dies. */
  abandon(): void {
    this.#isGone = true;
  }

  close(): void {
    this.#isGone = true;
  }

  #do(work: () => void): Pending {
    const medium = this.#medium;
    const failure = (): ColobusError => new ColobusError("io-error", "the medium fails");
    if (this.#isGone || medium.mood === "away") throw failure();
    if (medium.mood === "failing" && medium.random.chance(medium.failingShare)) {
      if (medium.random.chance(0.5)) throw failure();
      return Promise.reject(failure());
    }
    if (medium.mood !== "hanging" && medium.random.chance(0.5)) {
      work();
      return undefined;
    }
    return new Promise((resolve, reject) => {
      const land = (): void => {
        // A request of a process that has died is on its way, or it is not.
        if (this.#isGone && medium.random.chance(0.5)) return;
        if (medium.mood === "failing" && medium.random.chance(0.2)) reject(failure());
        else {
          work();
          resolve();
        }
      };
      if (medium.mood === "hanging") medium.waits(land);
      else this.#clock.after(medium.random.within([0, 3]), land);
    });
  }
}
