import type { ColobusError } from "../../proto/errors.ts";

/**
 * The one shape of everything that can be read and written by byte ranges: images, overlays' views, the primary's
 * replicated disk. Ranges are always within the device; whoever takes requests from outside checks that first.
 *
 * `Pending`: `undefined` when the work is done already, else a promise. The data path is mostly synchronous
 * (page cache), and a promise for each request would cost more than the request.
 */
export type Pending = Promise<void> | undefined;

export interface Extent {
  readonly length: number;
  /** No storage is allocated for the extent. */
  readonly hole: boolean;
  /** The extent is known to read as zeroes. */
  readonly zero: boolean;
}

interface ChangeFlags {
  /** Durable when the request is done ("force unit access"). */
  readonly fua: boolean;
}

export interface WriteFlags extends ChangeFlags {
  /**
   * The payload is the caller's again when the request is done, and the turn of the event loop in which it was is over: who
   * keeps it for longer takes a copy. That of a request that has failed, or was abandoned, stays the callee's. Default: false.
   */
  readonly isLent?: boolean;
}

export interface ZeroFlags extends ChangeFlags {
  /** The space may be freed (trim, or write-zeroes without NO_HOLE). */
  readonly mayUnmap: boolean;
}

/** A write whose payload arrives in pieces. The range is held from `openWrite` to `end` or `abandon`. */
export interface OpenWrite {
  /**
   * The next piece, in order. The callee may keep views of `piece`: nobody changes its bytes again, unless the write `isLent`.
   * Then it does so as with a request of its own, which is done with this call's promise, unless the write `isBehind`.
   */
  push(piece: Uint8Array): Pending;
  /** All pieces were pushed: done when the request may be acknowledged. */
  end(): Pending;
  /** The payload will never be complete (the client is gone, or a piece failed); what was pushed may remain written. */
  abandon(): void;
  /** Whether others wait until it is ended or abandoned. Absent where nobody has to. */
  isWaitedFor?(): boolean;
  /** Whether pieces whose `push` is done are still being written: what is lent stays so until `end` is done. Absent: never. */
  isBehind?(): boolean;
}

export interface BlockDevice {
  readonly sizeBytes: number;
  /** Fills `target` with the bytes at `offset`. Done, or failed, only when nothing touches `target` any more. */
  read(target: Uint8Array, offset: number): Pending;
  /** Writes a whole request. The callee may keep views of `source`: nobody changes its bytes again, unless it `isLent`. */
  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending;
  /** Starts a write of `length` bytes at `offset` whose payload is still arriving. */
  openWrite(offset: number, length: number, flags: WriteFlags): OpenWrite | Promise<OpenWrite>;
  /** Makes the range read as zeroes. */
  zero(offset: number, length: number, flags: ZeroFlags): Pending;
  /** Everything acknowledged before the call is durable when done. */
  flush(): Pending;
  /** Asks for the range to be cached. A hint. */
  prefetch(offset: number, length: number): void;
  /**
   * Allocation of the range from its beginning on, adjacent extents differing; at most `maxExtents`. They may cover less
   * than `length`, but at least one byte. True of some moment between the call and its answer.
   */
  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]>;
  /** Why requests fail now, where that is known without trying one. */
  readonly fault?: ColobusError | undefined;
  /**
   * `extents` has to be waited for, now: another process has to be asked, mostly. That is no way to save the copying of
   * zeroes. Default: false.
   */
  readonly asksForExtents?: boolean;
}

/** One copy that the writes of a disk go to: pieces of a request are whole writes to it. */
export interface Child extends Omit<BlockDevice, "openWrite"> {
  /**
   * The content is placed in units of this length, a power of two: to change a part of one may move all of it, so that
   * whoever has looked up where it lay finds something else there. undefined: everything stays where it is.
   */
  readonly placementBytes?: number | undefined;
  /**
   * As `read`, for who brings other copies what they lack: fewer copies than a guest's read asks for are enough. Absent
   * where there is no difference.
   */
  readForCopies?(target: Uint8Array, offset: number): Pending;
  /**
   * Resolves when requests would reach the image. Errors: why they cannot (`image-busy`, `read-only` …). Absent where
   * opening takes no waiting.
   */
  ready?(): Promise<void>;
  /**
   * Makes it longer; durable when the promise resolves. What is added reads as whatever lies there: zeroes in a file that
   * was made longer. Errors: the storage's; it is as long as it was then. Absent where its length is another program's business.
   */
  readonly grow?: ((sizeBytes: number) => Promise<void>) | undefined;
  /**
   * Undoes `grow` of a disk that keeps its `sizeBytes` after all: nothing but zeroes was written behind them. Durable when the
   * promise resolves. Errors: the storage's. There where `grow` is, unless the disk has nobody to grow with.
   */
  readonly ungrow?: ((sizeBytes: number) => Promise<void>) | undefined;
  /**
   * Makes everything durable, and gives the image back until the next request, which opens it again: meanwhile another
   * host may take it over. Nothing may be under way. Errors: `io-error`; it is not given back then. Absent where the image
   * is this host's alone.
   */
  letGo?(): Promise<void>;
}
