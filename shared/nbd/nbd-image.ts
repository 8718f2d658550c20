/**
 * Owns: an image that an NBD server exports, for as long as it is open.
 *
 * How: each request becomes one or more requests to the server (`NbdClient`), which outlive its connections. A server that
 * dies may have lost what it had answered and no flush had covered: such changes are kept, and written again to the next
 * one before anything else reaches it. There is so much of them at most; then changes wait for a flush.
 *
 * Invariants: what was answered here is there, or the image fails: with a server that has lost something and does not take
 * it back, every request fails. A failed flush means a server that has lost something: no flush succeeds before that was
 * written again; none at all, where it may have been answered to an earlier process.
 *
 * Does not: check ranges, or order overlapping requests (see `DiskImage`). Nothing locks the export against others: that
 * is for the server.
 */
import assert from "node:assert/strict";
import { ColobusError, NBD_ERRNO } from "../../proto/errors.ts";
import { NBD_CLIENT_PAYLOAD_BYTES_MAX, NBD_CLIENT_ZERO_BYTES_MAX } from "../../proto/limits.ts";
import { COMMAND, COMMAND_FLAG, TRANSMISSION_FLAG } from "../../proto/nbd-protocol.ts";
import { allSettled } from "../block/all-settled.ts";
import type { Extent, WriteFlags, ZeroFlags } from "../block/block-device.ts";
import type { DiskImage, ImageNotes } from "../block/disk-image.ts";
import { RangeLock } from "../block/range-lock.ts";
import type { StreamSource } from "../host/byte-stream.ts";
import type { Clock } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import type { Random } from "../host/random.ts";
import { assertUsable } from "./assert-usable.ts";
import type { ServerExport } from "./client-handshake.ts";
import { NbdClient } from "./nbd-client.ts";
import { OpenRequest, type RequestOptions } from "./open-request.ts";
import { UnflushedChanges } from "./unflushed-changes.ts";

/** A block status has a length of 32 bits; whole mebibytes, so that any alignment is kept. */
const STATUS_BYTES_MAX = 2 ** 31;
const FLUSH: RequestOptions = { type: COMMAND.FLUSH, flags: 0, offset: 0, length: 0 };
const ZEROES = Buffer.alloc(1024 * 1024);

export interface NbdImageOptions {
  readonly source: StreamSource;
  readonly exportName: string;
  /** The disk's size, which the export must have at least; undefined: what it has is the disk's. */
  readonly sizeBytes: number | undefined;
  /** The server is connected when there is something to ask it. Default: at once. */
  readonly onDemand?: boolean;
  /** Nothing is ever changed, so the export may be a read-only one. Default: false. */
  readonly isReadOnly?: boolean;
  /** Another host uses the same export of the same server: what one has flushed, the other has to see. Default: false. */
  readonly isShared?: boolean;
  /** See `Child`. */
  readonly placementBytes?: number | undefined;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

export class NbdImage implements DiskImage {
  readonly asksForExtents = true;
  readonly placementBytes: number | undefined;
  readonly #isReadOnly: boolean;
  readonly #isShared: boolean;
  readonly #source: StreamSource;
  readonly #client: NbdClient;
  readonly #unflushed = new UnflushedChanges();
  #sizeBytes: number | undefined;
  #exported: ServerExport | undefined;
  /** The longest read or write; 0: there was no connection yet. */
  #maxPayload = 0;
  /** The flush that is under way. */
  #running: Promise<void> | undefined;
  /** The flush that starts when that one has ended. */
  #next: Promise<void> | undefined;

  /** Why the server cannot be used. */
  #away: ColobusError | undefined;
  #watcher: ((reason: ColobusError | undefined) => void) | undefined;
  #notes: ImageNotes | undefined;
  /** A flush has succeeded: nothing of an earlier process is unflushed. */
  #hasFlushed = false;
  /** It is noted that a flush has failed. */
  #isLossNoted = false;
  /** Why every flush fails. */
  #lost: ColobusError | undefined;
  /** A server has died, and no other one has all that it had answered. */
  #owesReplay = false;

  /** Begins to connect; requests wait for that. `failsFast`: a first try that fails is told at once. */
  constructor(options: NbdImageOptions, { failsFast } = { failsFast: false }) {
    this.#source = options.source;
    this.#sizeBytes = options.sizeBytes;
    this.placementBytes = options.placementBytes;
    this.#isReadOnly = options.isReadOnly === true;
    this.#isShared = options.isShared === true;
    this.#client = new NbdClient({
      ...options,
      failsFast,
      onDemand: options.onDemand === true,
      changed: (reason) => {
        this.#away = reason;
        this.#watcher?.(reason);
      },
      replacing: () => this.#replacing(),
      accept: (exported) => this.#accept(exported),
      restore: (send) => this.#restore(send),
    });
  }

  /** Resolves with the image when it is connected. Errors: why it cannot be; nothing is left open then. */
  static async connect(options: NbdImageOptions): Promise<NbdImage> {
    const image = new NbdImage(options, { failsFast: true });
    try {
      await image.#client.untilOpen();
      return image;
    } catch (error) {
      image.close();
      throw error;
    }
  }

  get sizeBytes(): number {
    assert(this.#sizeBytes !== undefined, "the image's size is given, or it is connected");
    return this.#sizeBytes;
  }

  get fault(): ColobusError | undefined {
    return this.#client.failure;
  }

  read(target: Uint8Array, offset: number): Promise<void> {
    const most = this.#maxPayload;
    if (most === 0) return this.#connected().then(() => this.read(target, offset));
    if (target.length <= most) return this.#readPiece(target, offset);
    const pieces: Promise<void>[] = [];
    for (let at = 0; at < target.length; at += most) {
      pieces.push(this.#readPiece(target.subarray(at, Math.min(at + most, target.length)), offset + at));
    }
    return allSettled(pieces);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Promise<void> {
    // Before anything is waited for: who has given this image up by then may have the payload back.
    const kept = flags.isLent === true ? Buffer.from(source) : source;
    const most = this.#maxPayload;
    if (most === 0) return this.#connected().then(() => this.write(kept, offset, { fua: flags.fua }));
    if (this.#unflushed.isFull) return this.syncOwn().then(() => this.write(kept, offset, { fua: flags.fua }));
    const isOne = kept.length <= most;
    if (isOne && (!flags.fua || this.#has(TRANSMISSION_FLAG.SEND_FUA))) {
      return this.#change(COMMAND.WRITE, flags.fua ? COMMAND_FLAG.FUA : 0, offset, kept.length, kept);
    }
    const pieces: Promise<void>[] = [];
    for (let at = 0; at < kept.length; at += most) {
      const piece = kept.subarray(at, Math.min(at + most, kept.length));
      pieces.push(this.#change(COMMAND.WRITE, 0, offset + at, piece.length, piece));
    }
    return this.#end(pieces, flags);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Promise<void> {
    if (this.#maxPayload === 0) return this.#connected().then(() => this.zero(offset, length, flags));
    if (this.#unflushed.isFull) return this.syncOwn().then(() => this.zero(offset, length, flags));
    const canZero = this.#has(TRANSMISSION_FLAG.SEND_WRITE_ZEROES);
    const most = canZero ? NBD_CLIENT_ZERO_BYTES_MAX : Math.min(ZEROES.length, this.#maxPayload);
    const noHole = flags.mayUnmap ? 0 : COMMAND_FLAG.NO_HOLE;
    const pieces: Promise<void>[] = [];
    for (let at = 0; at < length; at += most) {
      const bytes = Math.min(most, length - at);
      pieces.push(
        canZero
          ? this.#change(COMMAND.WRITE_ZEROES, noHole, offset + at, bytes, undefined)
          : this.#change(COMMAND.WRITE, 0, offset + at, bytes, ZEROES.subarray(0, bytes)),
      );
    }
    return this.#end(pieces, flags);
  }

  flush(): Promise<void> {
    return this.#lost === undefined ? this.syncOwn() : Promise.reject(this.#lost);
  }

  syncOwn(): Promise<void> {
    // A server that was never asked, or has been taken leave of, holds nothing back.
    if (this.#client.isResting && this.#unflushed.isEmpty) return Promise.resolve();
    if (this.#next !== undefined) return this.#next;
    if (this.#running === undefined) return this.#flushNow();
    const flushAgain = (): Promise<void> => {
      this.#next = undefined;
      return this.#flushNow();
    };
    this.#next = this.#running.then(flushAgain, flushAgain);
    return this.#next;
  }

  prefetch(offset: number, length: number): void {
    // Nobody counts hints, or waits for them: a server that is busy gets none.
    if (length > this.#maxPayload || !this.#client.hasRoom || !this.#has(TRANSMISSION_FLAG.SEND_CACHE)) return;
    this.#request({ type: COMMAND.CACHE, flags: 0, offset, length }).catch(() => undefined); // it was a hint
  }

  async extents(offset: number, length: number, maxExtents: number): Promise<Extent[]> {
    if (this.#maxPayload === 0) await this.#connected();
    if (this.#exported?.allocationContextId === undefined) return [{ length, hole: false, zero: false }];
    const { extents } = await this.#request({
      type: COMMAND.BLOCK_STATUS,
      flags: maxExtents === 1 ? COMMAND_FLAG.REQ_ONE : 0,
      offset,
      length: Math.min(length, STATUS_BYTES_MAX),
      maxExtents,
    });
    return extents;
  }

  /**
   * An export of a server of somebody else's has to be that long already, so it may be asked for anew. What is on the way
   * meanwhile goes to the next connection.
   */
  async grow(sizeBytes: number): Promise<void> {
    if (this.sizeBytes >= sizeBytes) return this.syncOwn();
    await this.syncOwn();
    await this.ready();
    if (this.#exportedBytes < sizeBytes) {
      this.#client.leave();
      await this.#source.grow?.(sizeBytes);
      await this.ready();
    }
    if (this.#exportedBytes < sizeBytes) {
      throw new ColobusError(
        "not-supported",
        `${this.#source.name} has ${this.#exportedBytes} bytes, and is made longer by whoever serves it`,
        "Make it longer there first, and have its server say so; then resize again.",
      );
    }
    await this.syncOwn();
    this.#sizeBytes = sizeBytes;
  }

  /** The export stays as long as it is. */
  ungrow(sizeBytes: number): Promise<void> {
    this.#sizeBytes = sizeBytes;
    return Promise.resolve();
  }

  /** The disk has these bytes of what is exported. */
  cutTo(sizeBytes: number): void {
    assert(this.sizeBytes >= sizeBytes, "an export has room for its disk");
    this.#sizeBytes = sizeBytes;
  }

  get hasLostWrites(): boolean {
    return this.#lost !== undefined;
  }

  watchServer(watcher: (reason: ColobusError | undefined) => void): void {
    this.#watcher = watcher;
    if (this.#away !== undefined) watcher(this.#away);
  }

  noteWith(notes: ImageNotes): void {
    this.#notes = notes;
  }

  distrust(reason: ColobusError): void {
    this.#lost = reason;
  }

  rewritten(): void {
    this.#lost = undefined;
  }

  /** The connection is made anew when the next request comes: a server that keeps what it knows of an image reads it again then. */
  leave(): void {
    this.#client.leave();
  }

  /** Resolves when the server is connected, and serves what it has to. Errors: why it cannot be reached, or does not. */
  ready(): Promise<void> {
    return this.#client.untilOpen();
  }

  /** The server is left, and one of this agent's has ended, having written what it held. */
  async letGo(): Promise<void> {
    await this.flush();
    this.#client.leave();
    await this.#source.stop();
  }

  abandon(): void {
    this.#source.abandon?.();
    this.close();
  }

  async changeMark(): Promise<string> {
    this.#client.close();
    await this.#source.stop();
    return this.#source.changeMark();
  }

  close(): void {
    this.#client.close();
    void this.#source.stop();
  }

  get #exportedBytes(): number {
    return this.#exported?.sizeBytes ?? 0;
  }

  #connected(): Promise<void> {
    return this.#client.untilOpen();
  }

  #has(flag: number): boolean {
    return ((this.#exported?.flags ?? 0) & flag) !== 0;
  }

  async #readPiece(target: Uint8Array, offset: number): Promise<void> {
    await this.#request({ type: COMMAND.READ, flags: 0, offset, length: target.length, target });
  }

  /** The changes that a request consists of, and a flush where it is to be durable. */
  async #end(pieces: readonly Promise<void>[], { fua }: WriteFlags): Promise<void> {
    await allSettled(pieces);
    if (fua) await this.flush();
  }

  /** Sends a change, and keeps it until a flush has covered it. */
  #change(type: number, flags: number, offset: number, length: number, payload: Uint8Array | undefined): Promise<void> {
    const options: RequestOptions = { type, flags, offset, length, payload };
    const change = this.#unflushed.add(options);
    if (this.#unflushed.isDue && this.#running === undefined) {
      this.syncOwn().catch(() => undefined); // the server is not relied on any more then, and is told everything again
    }
    return new Promise((resolve, reject) => {
      this.#client.submit(
        new OpenRequest(options, (failure, request) => {
          if (failure === undefined && request.errno === 0) {
            this.#unflushed.answered(change);
            resolve();
          } else {
            this.#unflushed.failed(change);
            reject(failure ?? this.#refused(request));
          }
        }),
      );
    });
  }

  #flushNow(): Promise<void> {
    const running = this.#flushOnce().finally(() => {
      if (this.#running === running) this.#running = undefined;
    });
    this.#running = running;
    return running;
  }

  #flushOnce(): Promise<void> {
    const flush = this.#unflushed.flushBegins();
    return new Promise((resolve, reject) => {
      this.#client.submit(
        new OpenRequest(FLUSH, (failure, request) => {
          if (failure === undefined && request.errno === 0) {
            this.#unflushed.flushed(flush);
            this.#hasFlushed = true;
            this.#noteMended();
            resolve();
            return;
          }
          const reason = failure ?? this.#refused(request);
          if (failure === undefined) this.#client.distrust(reason);
          void this.#flushFailed(reason, failure === undefined).then(() => reject(reason));
        }),
      );
    });
  }

  /** `isRefused`: a server has answered so. Resolves when that is noted. */
  async #flushFailed(reason: ColobusError, isRefused: boolean): Promise<void> {
    // What an earlier process was answered is not here to be written again.
    if (isRefused && !this.#hasFlushed && this.#notes !== undefined) this.#lost ??= reason;
    const isLossPossible = isRefused || this.#unflushed.answeredChanges().length > 0;
    if (!isLossPossible || reason.code === "shutting-down") return;
    this.#isLossNoted = true;
    await this.#notes?.lost();
  }

  #noteMended(): void {
    if (!this.#isLossNoted || this.#lost !== undefined) return;
    this.#isLossNoted = false;
    void this.#notes?.mended();
  }

  async #replacing(): Promise<void> {
    if (this.#unflushed.answeredChanges().length === 0) return;
    this.#owesReplay = true;
    await this.#notes?.replayOwed();
  }

  #request(options: RequestOptions): Promise<OpenRequest> {
    return new Promise((resolve, reject) => {
      this.#client.submit(
        new OpenRequest(options, (failure, request) => {
          if (failure === undefined && request.errno === 0) resolve(request);
          else reject(failure ?? this.#refused(request));
        }),
      );
    });
  }

  #refused({ type, offset, length, errno, message }: OpenRequest): ColobusError {
    const known = Object.entries(NBD_ERRNO).find(([, value]) => value === errno)?.[0] ?? `error ${errno}`;
    const said = message === "" ? known : `${message} (${known})`;
    const range = type === COMMAND.FLUSH ? "" : ` ${length} bytes at ${offset} of`;
    return new ColobusError(
      errno === NBD_ERRNO.ENOSPC ? "out-of-space" : errno === NBD_ERRNO.EPERM ? "permission-denied" : "io-error",
      `cannot ${WHAT[type] ?? "use"}${range} ${this.#source.name}: its server says ${said}`,
      errno === NBD_ERRNO.ENOSPC
        ? `Make room where the server keeps ${this.#source.name}.`
        : "Look at the server's log, and at the device under its image.",
    );
  }

  #accept(exported: ServerExport): void {
    assertUsable(exported, {
      name: this.#source.name,
      sizeBytes: this.#sizeBytes,
      before: this.#exported,
      isReadOnly: this.#isReadOnly,
      isShared: this.#isShared,
    });
    this.#sizeBytes ??= exported.sizeBytes;
    this.#exported = exported;
    this.#maxPayload = Math.min(exported.maxPayloadBytes, NBD_CLIENT_PAYLOAD_BYTES_MAX);
  }

  /** Writes again what the server may have lost: overlapping changes in their order, others side by side. */
  async #restore(send: (request: OpenRequest) => void): Promise<void> {
    const lock = new RangeLock();
    const rewriting: Promise<void>[] = [];
    const rewrite = async (options: RequestOptions): Promise<void> => {
      const hold = await lock.acquire(options.offset, options.length);
      try {
        await new Promise<void>((resolve, reject) => {
          send(
            new OpenRequest(options, (failure, request) => {
              if (failure === undefined && request.errno === 0) resolve();
              else reject(failure ?? this.#refused(request));
            }),
          );
        });
      } finally {
        lock.release(hold);
      }
    };
    for (const { request } of this.#unflushed.answeredChanges()) rewriting.push(rewrite(request));
    await allSettled(rewriting);
    if (!this.#owesReplay) return;
    this.#owesReplay = false;
    void this.#notes?.replayed();
  }
}

const WHAT: Readonly<Record<number, string>> = {
  [COMMAND.READ]: "read",
  [COMMAND.WRITE]: "write",
  [COMMAND.WRITE_ZEROES]: "zero",
  [COMMAND.FLUSH]: "flush",
  [COMMAND.BLOCK_STATUS]: "find the allocation of",
};
