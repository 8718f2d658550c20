import { ColobusError } from "../../proto/errors.ts";
import { COMMAND } from "../../proto/nbd-protocol.ts";
import type { Extent } from "../block/block-device.ts";

/** Pieces of a read that may lie apart, while the ones between them have not come. */
const APART_MAX = 1024;

export interface RequestOptions {
  /** One of COMMAND. */
  readonly type: number;
  /** COMMAND_FLAG bits. */
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  /** The bytes to write; kept as they are until the request is settled. */
  readonly payload?: Uint8Array | undefined;
  /** Where the bytes go that are read. */
  readonly target?: Uint8Array;
  /** Extents that are kept of a block status. */
  readonly maxExtents?: number;
}

/**
 * A request to an NBD server, and what has come of its reply. It may be sent several times, over one connection after
 * another, until one of them brings an answer.
 */
export class OpenRequest {
  readonly type: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  readonly payload: Uint8Array | undefined;
  readonly target: Uint8Array | undefined;
  readonly #maxExtents: number;
  readonly #settled: (failure: ColobusError | undefined, request: OpenRequest) => void;
  /** The client numbers requests in the order in which they were made. */
  number = 0;
  /** Where the connection keeps it. */
  slot = -1;
  /** When it was last sent, by the monotonic clock. */
  sentMs = 0;
  /** Chunks of the reply that have come. */
  chunks = 0;
  errno = 0;
  message = "";
  hasExtents = false;
  extents: Extent[] = [];
  #extentBytes = 0;
  /** There are more extents than are kept. */
  #isCut = false;
  /** Bytes that have come, or are coming now, from the request's offset on. */
  #covered = 0;
  /** Ranges beyond that, ascending and apart. */
  #apart: { start: number; end: number }[] = [];

  constructor(options: RequestOptions, settled: (failure: ColobusError | undefined, request: OpenRequest) => void) {
    this.type = options.type;
    this.flags = options.flags;
    this.offset = options.offset;
    this.length = options.length;
    this.payload = options.payload;
    this.target = options.target;
    this.#maxExtents = options.maxExtents ?? 0;
    this.#settled = settled;
  }

  /** It is sent now, for the first time or again: nothing of an earlier reply counts. `slot` is the connection's. */
  begin(slot: number, nowMs: number): void {
    this.slot = slot;
    this.sentMs = nowMs;
    this.chunks = 0;
    this.errno = 0;
    this.message = "";
    this.hasExtents = false;
    this.extents = [];
    this.#extentBytes = 0;
    this.#isCut = false;
    this.#covered = 0;
    this.#apart = [];
  }

  /** The server has answered, or nobody will: called once. */
  settle(failure: ColobusError | undefined): void {
    this.#settled(failure, this);
  }

  /** Notes that [offset, offset+length) comes now. Errors: `protocol-error` when it was not asked for, or has come before. */
  claim(offset: number, length: number): void {
    const start = offset - this.offset;
    const end = start + length;
    if (start < 0 || length === 0 || end > this.length) throw outside();
    if (start === this.#covered) {
      this.#covered = end;
      const [next] = this.#apart;
      if (next !== undefined) this.#join(next.start);
      return;
    }
    const at = this.#apart.findIndex((range) => range.start >= end);
    const index = at < 0 ? this.#apart.length : at;
    const before = this.#apart[index - 1];
    if (start < this.#covered || (before !== undefined && before.end > start)) throw outside();
    if (this.#apart.length >= APART_MAX) {
      throw new ColobusError("protocol-error", "the NBD server answers a read in too many pieces that lie apart");
    }
    this.#apart.splice(index, 0, { start, end });
  }

  #join(nextStart: number): void {
    if (nextStart < this.#covered) throw outside();
    while (this.#apart[0]?.start === this.#covered) this.#covered = this.#apart.shift()?.end ?? this.#covered;
  }

  /** The range reads as zeroes. Errors: as `claim`. */
  zeroRange(offset: number, length: number): void {
    this.claim(offset, length);
    this.target?.fill(0, offset - this.offset, offset - this.offset + length);
  }

  /** The next extent of a block status; the last one may go beyond the request. */
  addExtent(length: number, hole: boolean, zero: boolean): void {
    if (this.#extentBytes >= this.length) throw outside();
    const within = Math.min(length, this.length - this.#extentBytes);
    this.#extentBytes += length;
    if (this.#isCut) return;
    const last = this.extents.at(-1);
    if (last !== undefined && last.hole === hole && last.zero === zero) {
      this.extents[this.extents.length - 1] = { length: last.length + within, hole, zero };
    } else if (this.extents.length < this.#maxExtents) this.extents.push({ length: within, hole, zero });
    else this.#isCut = true;
  }

  /** Errors: `protocol-error` when a reply without an error lacks something that was asked for. */
  assertComplete(): void {
    if (this.errno !== 0) return;
    const isMissing =
      (this.type === COMMAND.READ && this.#covered !== this.length) ||
      (this.type === COMMAND.BLOCK_STATUS && this.extents.length === 0);
    if (isMissing) {
      throw new ColobusError("protocol-error", "the NBD server did not send everything that was asked for");
    }
  }
}

function outside(): ColobusError {
  return new ColobusError("protocol-error", "the NBD server sent what was not asked for, or the same twice");
}
