import type { ColobusError } from "../../proto/errors.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Child } from "./block-device.ts";
import type { Stretch } from "./data-stretches.ts";

/**
 * A copy of a disk that an agent opens, owns and closes: a raw file or block device (`Image`), or what an NBD server
 * exports. Overlapping requests are ordered by whoever makes them (`RangeLock`), and ranges are checked by whoever takes
 * requests from outside.
 *
 * Written means: a change that is done survives the death of this process. Durable means: a later `flush` is done.
 */
export interface DiskImage extends Child {
  /** Everything that was done before the call is durable when the promise resolves. Calls at the same time share one sync. */
  flush(): Promise<void>;
  /** Whether a flush has failed, so that what was written since the last good one may be lost. Every flush fails then. */
  readonly hasLostWrites: boolean;
  /** Has what must outlive this process written down from now on. Absent where that is not asked for. */
  noteWith?(notes: ImageNotes): void;
  /** An earlier process has seen a flush fail: flushes fail from now on, as they did there. Absent as `noteWith`. */
  distrust?(reason: ColobusError): void;
  /**
   * Has `watcher` told why the image's server cannot be used, whenever it is lost or another try has failed, and undefined
   * when it can be used again. There is one watcher. Absent where there is no server.
   */
  watchServer?(watcher: (reason: ColobusError | undefined) => void): void;
  /** What no flush has covered is written again, or serves nobody: flushes may succeed again. */
  rewritten(): void;
  /**
   * Makes what was written just now durable, whatever a flush has lost before: for an owner that writes its own part
   * again after a failure, while clients' flushes go on failing.
   */
  syncOwn(): Promise<void>;
  /**
   * Differs from an earlier answer when anyone has changed the image in between; empty where that cannot be told. Asked
   * after the last request: the image takes none any more.
   */
  changeMark(): string | Promise<string>;
  /**
   * Drops everything that is known here, or cached on the way, of the content: whatever another host had made durable
   * before the call is read from then on. Absent where nothing is cached that another host could have changed.
   * Requests that are under way, or come meanwhile, wait, and are answered afterwards.
   */
  invalidate?(): void;
  /**
   * Gives the image back without writing anything more of what was not flushed: another host writes it now. Absent where
   * nobody but the kernel holds anything back.
   */
  abandon?(): void;
  /** Gives the image back. What was not flushed is wherever the last holder of it keeps it. */
  close(): void;
}

/** How an image has written down what a later process has to know of it. None of the promises rejects. */
export interface ImageNotes {
  /** A flush has failed. Awaited before anybody is told. */
  lost(): Promise<void>;
  /** What that flush covered was written again, and a flush of it has succeeded. */
  mended(): Promise<void>;
  /** A server has died, and may have lost what it had answered. Awaited before another one can hide that. */
  replayOwed(): Promise<void>;
  /** All of that was written again. */
  replayed(): Promise<void>;
}

/**
 * How an image is used: by this host alone; by two hosts, of which this one writes it (`shared`); or by two, of which the
 * other one writes it, so that it is read past every cache, and not locked (`foreign`).
 */
export type ImageUse = "own" | "shared" | "foreign";

/** How an agent uses the images that it writes. */
export function imageUseOf({ mode }: Pick<StateRecord, "mode">): ImageUse {
  return mode === "shared" ? "shared" : "own";
}

/** Opens the images of an agent's disks, whatever they are. */
export interface ImageSource {
  /**
   * Finds out how large the image at `location` is, which takes waiting where it is not a file. The next `open` of the
   * same location takes over what was opened for that; what two hosts use is only looked at. Errors: those of opening it (`image-missing` …).
   */
  measure(location: string, use?: ImageUse): Promise<number>;
  /**
   * As `measure`, how large the image is for a disk of `diskBytes`, which has the first part of a block device or an export
   * that is longer: LVM and others round up.
   */
  measureFor(location: string, diskBytes: number): Promise<number>;
  /**
   * Whether an image lay behind a server of an earlier process of this agent that was killed: what it had answered, and no
   * flush had covered, is lost. To be asked before anything is opened, by who writes them, as `use` says.
   */
  haveLostWrites(disks: StateRecord["disks"], use: ImageUse): Promise<boolean>;
  /**
   * Opens what takes waiting of the images of recorded disks, so that what is wrong with them is told at the start;
   * what two hosts use is only looked at. Errors: those of opening them; what was opened is kept for `open`.
   */
  prepare(disks: StateRecord["disks"], use?: ImageUse): Promise<void>;
  /** Gives back what was opened and not taken over: of all images, or of the one at `location`. */
  release(location?: string): void;
  /**
   * Opens the image of a recorded disk, whose size is known. Where that takes waiting, and `prepare` was not asked, the
   * first requests wait; what is wrong then (`image-changed` …), they are told.
   * Errors: those of opening a file; `image-changed` when it has another size than recorded, or was changed by another
   * program while the agent was cleanly stopped, where this host alone uses it; `not-supported` where it cannot be used so.
   * A block device, and what a server exports, may be longer than recorded: the disk is the first part of it.
   */
  open(disk: StateRecord["disks"][number], use?: ImageUse): DiskImage;
  /**
   * The parts that the image at `location` holds itself, and not one that it is based on, of what was flushed; undefined
   * where that cannot be told. Absent where images have one layer. Errors: `not-found`, `io-error`.
   */
  topLayer?(location: string): Promise<readonly Stretch[] | undefined>;
  /** Whether nothing is at `location` yet, and `create` could make an image there. */
  canCreate(location: string): boolean;
  /** Makes the image longer, which nobody has open; durable when the promise resolves. Absent where images cannot grow. */
  grow?(location: string, sizeBytes: number): Promise<void>;
  /** Makes an image that reads as zeroes; durable when the promise resolves, also where an earlier try has made it. */
  create(location: string, sizeBytes: number): Promise<void>;
}
