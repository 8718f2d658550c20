import assert from "node:assert/strict";
import type { CrashKind } from "./simulated-crash.ts";

/**
 * The truth about one disk, byte for byte: what a reader must see, given the writes that were made and what has
 * happened to the host since.
 *
 * `current` has every write in the order of the calls. A byte may differ from it only where the rules allow: while a
 * write is under way (or was when its process died) each byte of it may be new or not; after a loss of power so may
 * each byte that was written since the last flush; and a read may miss what was written while it was under way. What a
 * byte may be then is one of the values that it had since that flush, and nothing else. `adopt` ends the doubt with
 * what was read back.
 */
const CHECKED_AT_ONCE_BYTES = 512;

/** One write of a guest. */
export class ModelWrite {
  readonly offset: number;
  readonly length: number;
  /** undefined: zeroes. The model replaces it where only a part of the write took effect. */
  data: Uint8Array | undefined;
  /** The guest was told that it is done. */
  settled = false;
  /** Which call of the disk's it was. */
  place = 0;

  constructor(offset: number, length: number, data: Uint8Array | undefined) {
    this.offset = offset;
    this.length = length;
    this.data = data;
  }

  covers(at: number): boolean {
    return at >= this.offset && at < this.offset + this.length;
  }

  touches(offset: number, length: number): boolean {
    return this.offset < offset + length && offset < this.offset + this.length;
  }

  byteAt(at: number): number {
    return this.data?.[at - this.offset] ?? 0;
  }
}

/** A read that is under way: what was there when it began, and what was written since. */
export interface ModelRead {
  flushed: Buffer;
  before: readonly ModelWrite[];
  unsettled: ReadonlySet<ModelWrite>;
  during: ModelWrite[];
}

export class DiskModel {
  #current: Buffer;
  /** Content as of the last flush; undefined while nothing has been written since. */
  #flushed: Buffer | undefined;
  /** Somebody else has `#flushed` too: it is not changed in place. */
  #flushedShared = true;
  /** Since the last flush, in the order of the calls. */
  #writes: ModelWrite[] = [];
  /** How many there have been. */
  #calls = 0;
  /** For a write that no flush has covered yet: later ones over it that a flush has covered, in the order of the calls. */
  readonly #flushedLater = new Map<ModelWrite, ModelWrite[]>();
  readonly #reads = new Set<ModelRead>();
  #powerLost = false;

  /** `content` is not changed. */
  constructor(content: Buffer) {
    this.#current = content;
  }

  get sizeBytes(): number {
    return this.#current.length;
  }

  /** A copy of what a reader must see in a range. */
  content(offset = 0, length = this.sizeBytes): Buffer {
    return Buffer.from(this.#current.subarray(offset, offset + length));
  }

  /** The disk as it is now, with its doubts; what happens to this one later does not touch the copy. */
  fork(): DiskModel {
    const copy = new DiskModel(Buffer.from(this.#current));
    copy.#flushed = this.#flushed === undefined ? undefined : Buffer.from(this.#flushed);
    const clones = new Map(
      this.#writes.map((write) => {
        const clone = new ModelWrite(write.offset, write.length, write.data);
        clone.settled = write.settled;
        clone.place = write.place;
        return [write, clone] as const;
      }),
    );
    copy.#writes = [...clones.values()];
    copy.#calls = this.#calls;
    for (const [write, later] of this.#flushedLater) {
      const clone = clones.get(write);
      if (clone !== undefined) copy.#flushedLater.set(clone, [...later]);
    }
    copy.#powerLost = this.#powerLost;
    return copy;
  }

  /** Writes that are under way, or were when their process died. */
  unsettled(): ModelWrite[] {
    return this.#writes.filter((write) => !write.settled);
  }

  get isInDoubt(): boolean {
    return this.#powerLost || this.#writes.some((write) => !write.settled);
  }

  /** Which writes no flush covers, and which of them are not answered, as a comparable text. */
  describeDoubt(): string {
    return this.#writes.map(({ offset, length, settled }) => `${offset}+${length}${settled ? "" : "?"}`).join(" ");
  }

  /** A write is handed to the device. Overlapping writes take effect in the order of these calls. */
  begin(write: ModelWrite): void {
    if (this.#flushed === undefined) {
      this.#flushed = this.#current;
      this.#flushedShared = true;
      this.#current = Buffer.from(this.#current);
    }
    apply(write, this.#current, write);
    this.#add(write);
    for (const read of this.#reads) read.during.push(write);
  }

  /** What a write that was given up has left is `actual`. Writes that wait for it come after it. */
  giveUp(write: ModelWrite, actual: Buffer): void {
    write.data = actual;
    write.settled = true;
    apply(write, this.#current, write);
    for (const later of this.#writes.slice(this.#writes.indexOf(write) + 1)) apply(later, this.#current, write);
  }

  beginRead(): ModelRead {
    const unsettled = new Set(this.unsettled());
    this.#flushedShared = true;
    const read: ModelRead = {
      flushed: this.#flushed ?? this.#current,
      before: [...this.#writes],
      unsettled,
      during: [],
    };
    this.#reads.add(read);
    return read;
  }

  endRead(read: ModelRead): void {
    this.#reads.delete(read);
  }

  /** Takes the requests that are under way on `other` for this disk's: they waited until this one took its place. */
  takeOver(other: DiskModel): void {
    for (const write of other.unsettled()) this.begin(write);
    this.takeReads(other);
  }

  /** The same of reads alone. */
  takeReads(other: DiskModel): void {
    const flushed = this.#flushed ?? this.#current;
    this.#flushedShared = true;
    for (const read of other.#reads) {
      Object.assign(read, { flushed, before: [], unsettled: new Set(), during: [...this.#writes] });
      this.#reads.add(read);
    }
    other.#reads.clear();
  }

  /** A flush begins. What it covers is to be given to `flushed` when it has succeeded. */
  beginFlush(): ReadonlySet<ModelWrite> {
    return new Set(this.#writes.filter((write) => write.settled));
  }

  flushed(covered: ReadonlySet<ModelWrite>): void {
    if (this.#flushed === undefined) return;
    if (covered.size === 0) return;
    const flushed = this.#flushedShared ? Buffer.from(this.#flushed) : this.#flushed;
    this.#flushedShared = false;
    this.#flushed = flushed;
    const open: ModelWrite[] = [];
    for (const write of this.#writes) {
      if (!covered.has(write)) {
        open.push(write);
        continue;
      }
      apply(write, flushed, write);
      for (const later of this.#flushedLater.get(write) ?? []) apply(later, flushed, write);
      this.#flushedLater.delete(write);
      for (const earlier of open) {
        if (!earlier.touches(write.offset, write.length)) continue;
        const list = this.#flushedLater.get(earlier);
        if (list === undefined) this.#flushedLater.set(earlier, [write]);
        else list.splice(list.findLastIndex(({ place }) => place < write.place) + 1, 0, write);
      }
    }
    this.#writes = open;
  }

  /** The host of the disk has crashed. */
  crashed(kind: CrashKind): void {
    if (kind === "power" && this.#writes.length > 0) this.#powerLost = true;
    this.#reads.clear();
  }

  /** The whole disk as it was read, and found possible, while no write was under way: now it is what it is. */
  adopt(actual: Buffer): void {
    assert.equal(actual.length, this.#current.length);
    if (!this.isInDoubt) return;
    this.#current = Buffer.from(actual);
    if (this.#powerLost) {
      // What is read after a loss of power is what the medium has.
      this.#powerLost = false;
      this.#flushed = undefined;
      this.#writes = [];
      this.#flushedLater.clear();
      return;
    }
    // The cache has this now; the medium may still have anything since the last flush.
    for (const write of this.unsettled()) {
      write.settled = true;
      const found = Buffer.from(actual.subarray(write.offset, write.offset + write.length));
      const known = new ModelWrite(write.offset, write.length, found);
      known.settled = true;
      this.#add(known);
    }
  }

  /** Fails, naming `what`, when the disk can impossibly hold `actual` at `offset`, or show it to `read`. */
  check(actual: Buffer, offset: number, what: string, read?: ModelRead): void {
    if (actual.equals(this.#current.subarray(offset, offset + actual.length))) return;
    let wrong = 0;
    let first = -1;
    let end = 0;
    for (let from = 0; from < actual.length; from += CHECKED_AT_ONCE_BYTES) {
      const piece = actual.subarray(from, from + CHECKED_AT_ONCE_BYTES);
      if (piece.equals(this.#current.subarray(offset + from, offset + from + piece.length))) continue;
      const writes = this.#writes.filter((write) => write.touches(offset + from, piece.length));
      for (let index = 0; index < piece.length; index += 1) {
        const at = offset + from + index;
        const byte = piece[index] ?? 0;
        if (byte === this.#current[at] || this.#couldBe(at, byte, writes)) continue;
        if (read !== undefined && couldShow(read, at, byte)) continue;
        wrong += 1;
        if (first < 0) first = at;
        end = at + 1;
      }
    }
    if (wrong === 0) return;
    assert.fail(
      `${what} is wrong in ${wrong} bytes of [${first}, ${end}): ` +
        `${hex(actual, first - offset)} instead of ${hex(this.#current, first)}`,
    );
  }

  #add(write: ModelWrite): void {
    write.place = this.#calls++;
    this.#writes.push(write);
  }

  /** `writes` are all that may cover `at`. */
  #couldBe(at: number, byte: number, writes: readonly ModelWrite[]): boolean {
    let inDoubt = this.#powerLost;
    let known = (this.#flushed ?? this.#current)[at] === byte;
    for (const write of writes) {
      if (!write.covers(at)) continue;
      if (!write.settled) inDoubt = true;
      if (write.byteAt(at) === byte) known = true;
    }
    return inDoubt && known;
  }
}

function couldShow(read: ModelRead, at: number, byte: number): boolean {
  let inDoubt = false;
  let known = read.flushed[at] === byte;
  for (const write of read.before) {
    if (!write.covers(at)) continue;
    if (read.unsettled.has(write)) inDoubt = true;
    if (write.byteAt(at) === byte) known = true;
  }
  for (const write of read.during) {
    if (!write.covers(at)) continue;
    inDoubt = true;
    if (write.byteAt(at) === byte) known = true;
  }
  return inDoubt && known;
}

/** Applies what of `write` lies within the range of `within`. */
function apply(write: ModelWrite, content: Buffer, within: ModelWrite): void {
  const from = Math.max(write.offset, within.offset);
  const end = Math.min(write.offset + write.length, within.offset + within.length);
  if (from >= end) return;
  if (write.data === undefined) content.fill(0, from, end);
  else content.set(write.data.subarray(from - write.offset, end - write.offset), from);
}

function hex(bytes: Buffer, at: number): string {
  return bytes.subarray(at, at + 8).toString("hex");
}
