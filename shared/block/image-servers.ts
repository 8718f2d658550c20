import { notProtected, type Status } from "../../proto/status.ts";
import type { ColobusError } from "../../proto/errors.ts";
import { DISK_RETRY_MS } from "../../proto/limits.ts";
import type { EventType } from "../../proto/words.ts";
import type { Clock, Timer } from "../host/clock.ts";
import type { DiskImage, ImageSource } from "./disk-image.ts";

export interface ImageServersOptions {
  readonly clock: Clock;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
}

interface Watched {
  /** Why the server cannot be used; undefined: it can. */
  reason: ColobusError | undefined;
  isTold: boolean;
  toldMs: number;
  timer: Timer | undefined;
}

/**
 * Owns which of the images' servers are away, and tells it by events. One that comes and goes is told of once in a while:
 * in between it counts as there.
 */
export class ImageServers {
  readonly #options: ImageServersOptions;
  /** By disk. */
  readonly #watched = new Map<string, Watched>();
  #stopped = false;

  constructor(options: ImageServersOptions) {
    this.#options = options;
  }

  /** Why a disk cannot be read or written for now. */
  get fault(): ColobusError | undefined {
    return [...this.#watched.values()].find(({ isTold }) => isTold)?.reason;
  }

  describeProtection(): Status["protection"] | undefined {
    const { fault } = this;
    return fault === undefined ? undefined : notProtected("image-away", `${fault.message}: ${fault.action}`);
  }

  /** `images`, with each that is opened watched. A disk has one image open at a time. */
  watching(images: ImageSource): ImageSource {
    return {
      measure: (location, use) => images.measure(location, use),
      measureFor: (location, diskBytes) => images.measureFor(location, diskBytes),
      haveLostWrites: (disks, use) => images.haveLostWrites(disks, use),
      prepare: (disks, use) => images.prepare(disks, use),
      release: (location) => images.release(location),
      canCreate: (location) => images.canCreate(location),
      create: (location, sizeBytes) => images.create(location, sizeBytes),
      open: (disk, use) => this.watch(disk.name, images.open(disk, use)),
    };
  }

  stop(): void {
    this.#stopped = true;
    for (const { timer } of this.#watched.values()) timer?.cancel();
  }

  /** `image` is the disk's from now on. */
  watch(disk: string, image: DiskImage): DiskImage {
    const watched = this.#watched.get(disk) ?? {
      reason: undefined,
      isTold: false,
      toldMs: -Infinity,
      timer: undefined,
    };
    this.#watched.set(disk, watched);
    // The image before has been closed.
    this.#changed(disk, watched, undefined);
    image.watchServer?.((reason) => this.#changed(disk, watched, reason));
    return image;
  }

  #changed(disk: string, watched: Watched, reason: ColobusError | undefined): void {
    watched.reason = reason;
    if (reason === undefined) {
      watched.timer?.cancel();
      watched.timer = undefined;
      if (!watched.isTold) return;
      watched.isTold = false;
      if (!this.#stopped) this.#options.emit("image-back", { disk });
    } else if (!watched.isTold) this.#tellInTime(disk, watched);
  }

  #tellInTime(disk: string, watched: Watched): void {
    if (this.#stopped) return;
    const { clock, emit } = this.#options;
    const waitMs = watched.toldMs + DISK_RETRY_MS - clock.nowMs();
    if (waitMs > 0) {
      watched.timer ??= clock.after(waitMs, () => {
        watched.timer = undefined;
        this.#tellInTime(disk, watched);
      });
      return;
    }
    watched.isTold = true;
    watched.toldMs = clock.nowMs();
    emit("image-away", { disk, ...watched.reason?.toJSON() });
  }
}
