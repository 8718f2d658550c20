/**
 * The replies of one NBD connection on their way to the socket.
 *
 * Replies are laid out one behind the other in an arena, so that all replies of an event-loop turn usually leave in one
 * write of one buffer. A reply is reserved first, filled (perhaps much later, by a read that waits for the disk), and
 * then committed; replies leave in the order in which they are committed. At most one write is handed to the socket at
 * a time, so what a client does not take stays here, where it is counted.
 *
 * Invariants: bytes of an arena are not used again before the socket has taken them and no reservation is open in it.
 * `unsentBytes` counts everything that is committed and that the socket has not taken.
 */
import assert from "node:assert/strict";
import { NBD_REPLY_ARENA_BYTES } from "../../proto/limits.ts";
import {
  CHUNK,
  CHUNK_FLAG_DONE,
  CHUNK_HEADER_BYTES,
  SIMPLE_REPLY_BYTES,
  putChunkHeader,
  putSimpleReply,
} from "../../proto/nbd-protocol.ts";
import type { Clock } from "../host/clock.ts";
import type { BudgetHolder } from "./byte-budget.ts";

/** Replies larger than this get a buffer of their own. */
const ARENA_REPLY_MAX_BYTES = NBD_REPLY_ARENA_BYTES / 4;
const IDLE_ARENAS_KEPT = 8;
const ERROR_MESSAGE_MAX_CHARACTERS = 256;

class ReplyArena {
  readonly buffer = Buffer.allocUnsafeSlow(NBD_REPLY_ARENA_BYTES);
  usedBytes = 0;
  openReservations = 0;
}

/** Arenas that no connection needs now; shared by all connections of a server. */
export class ReplyArenaPool {
  readonly #idle: ReplyArena[] = [];

  take(): ReplyArena {
    return this.#idle.pop() ?? new ReplyArena();
  }

  giveBack(arena: ReplyArena): void {
    arena.usedBytes = 0;
    if (this.#idle.length < IDLE_ARENAS_KEPT) this.#idle.push(arena);
  }
}

/** Room for one reply: `length` bytes of `buffer` from `position`. Exactly one `commit` or `discard` must follow. */
export interface Reservation {
  readonly buffer: Buffer;
  readonly position: number;
  readonly length: number;
  readonly arena: ReplyArena | undefined;
}

export class ReplyWriter {
  readonly #transmit: (parts: readonly Buffer[]) => void;
  readonly #clock: Clock;
  readonly #arenas: ReplyArenaPool;
  readonly #budget: BudgetHolder;
  readonly #endOfTurn = (): void => this.#flushAtEndOfTurn();
  #arena: ReplyArena | undefined;
  /** Committed replies at the end of the arena that are not in `#parts` yet. */
  #segmentStart = 0;
  #segmentEnd = 0;
  #parts: Buffer[] = [];
  #queuedBytes = 0;
  #queuedCharge = 0;
  #sendingBytes = 0;
  #sendingCharge = 0;
  #flushScheduled = false;
  #closed = false;
  /** How often the socket has taken what was transmitted. */
  #timesTaken = 0;

  /** `transmit` sends the parts in order, and `sent` is called when the socket has taken them all. */
  constructor(
    transmit: (parts: readonly Buffer[]) => void,
    clock: Clock,
    arenas: ReplyArenaPool,
    budget: BudgetHolder,
  ) {
    this.#transmit = transmit;
    this.#clock = clock;
    this.#arenas = arenas;
    this.#budget = budget;
  }

  get unsentBytes(): number {
    return this.#queuedBytes + this.#sendingBytes;
  }

  /** Bytes were handed to the socket and the client has not taken them. */
  get isSending(): boolean {
    return this.#sendingBytes > 0;
  }

  /** Grows while the client takes replies. */
  get timesTaken(): number {
    return this.#timesTaken;
  }

  reserve(length: number): Reservation {
    if (length > ARENA_REPLY_MAX_BYTES || this.#closed) {
      return { buffer: Buffer.allocUnsafeSlow(length), position: 0, length, arena: undefined };
    }
    let arena = this.#arena;
    if (arena === undefined || arena.usedBytes + length > NBD_REPLY_ARENA_BYTES) arena = this.#nextArena();
    const position = arena.usedBytes;
    arena.usedBytes += length;
    arena.openReservations += 1;
    return { buffer: arena.buffer, position, length, arena };
  }

  /** Queues the reply. `chargedBytes` of the budget are given back when the client has taken it. */
  commit(reservation: Reservation, chargedBytes: number): void {
    const { arena, buffer, position, length } = reservation;
    if (arena !== undefined) arena.openReservations -= 1;
    if (this.#closed) {
      this.#budget.giveBack(chargedBytes);
      return;
    }
    if (arena !== undefined && arena === this.#arena) {
      if (position !== this.#segmentEnd) {
        this.#closeSegment();
        this.#segmentStart = position;
      }
      this.#segmentEnd = position + length;
    } else {
      this.#closeSegment();
      this.#parts.push(buffer.subarray(position, position + length));
    }
    this.#queuedBytes += length;
    this.#queuedCharge += chargedBytes;
    this.#scheduleFlush();
  }

  /** Gives the room back; nothing is sent. */
  discard(reservation: Reservation): void {
    const { arena, position, length } = reservation;
    if (arena === undefined) return;
    arena.openReservations -= 1;
    if (arena.usedBytes === position + length) arena.usedBytes = position;
  }

  /** Queues bytes that exist already; the writer owns them from now on. As to `chargedBytes`, see `commit`. */
  append(bytes: Buffer, chargedBytes: number): void {
    this.commit({ buffer: bytes, position: 0, length: bytes.length, arena: undefined }, chargedBytes);
  }

  simpleReply(error: number, cookieHigh: number, cookieLow: number): void {
    const reservation = this.reserve(SIMPLE_REPLY_BYTES);
    putSimpleReply(reservation.buffer, reservation.position, error, cookieHigh, cookieLow);
    this.commit(reservation, 0);
  }

  /** The one and only chunk of a structured reply that carries no data. */
  emptyChunk(cookieHigh: number, cookieLow: number): void {
    const { NONE } = CHUNK;
    const reservation = this.reserve(CHUNK_HEADER_BYTES);
    putChunkHeader(reservation.buffer, reservation.position, CHUNK_FLAG_DONE, NONE, cookieHigh, cookieLow, 0);
    this.commit(reservation, 0);
  }

  /** The one and only chunk of a structured reply that failed. */
  errorChunk(error: number, message: string, cookieHigh: number, cookieLow: number): void {
    const text = Buffer.from(message.slice(0, ERROR_MESSAGE_MAX_CHARACTERS), "utf8");
    const payloadLength = 6 + text.length;
    const reservation = this.reserve(CHUNK_HEADER_BYTES + payloadLength);
    const { buffer, position } = reservation;
    putChunkHeader(buffer, position, CHUNK_FLAG_DONE, CHUNK.ERROR, cookieHigh, cookieLow, payloadLength);
    buffer.writeUInt32BE(error, position + CHUNK_HEADER_BYTES);
    buffer.writeUInt16BE(text.length, position + CHUNK_HEADER_BYTES + 4);
    text.copy(buffer, position + CHUNK_HEADER_BYTES + 6);
    this.commit(reservation, 0);
  }

  /** Sends what is committed now, and not at the end of the turn, unless the socket has not taken the last write. */
  flush(): void {
    if (!this.#closed && this.#queuedBytes > 0 && this.#sendingBytes === 0) this.#flush();
  }

  /** The socket has taken everything that was transmitted. */
  sent(): void {
    if (this.#closed) return;
    const charge = this.#sendingCharge;
    this.#sendingBytes = 0;
    this.#sendingCharge = 0;
    this.#timesTaken += 1;
    this.#budget.giveBack(charge);
    if (this.#queuedBytes > 0) {
      this.#scheduleFlush();
    } else if (this.#arena?.openReservations === 0) {
      this.#arenas.giveBack(this.#arena);
      this.#arena = undefined;
    }
  }

  /** The client is gone: nothing is sent any more, and what was charged is given back. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#budget.giveBack(this.#queuedCharge + this.#sendingCharge);
    this.#parts = [];
    this.#arena = undefined;
    this.#queuedBytes = 0;
    this.#sendingBytes = 0;
  }

  #nextArena(): ReplyArena {
    this.#closeSegment();
    // The full arena is left to the garbage collector: the socket, or open reservations, still refer to it.
    const arena = this.#arenas.take();
    this.#arena = arena;
    this.#segmentStart = 0;
    this.#segmentEnd = 0;
    return arena;
  }

  #closeSegment(): void {
    if (this.#arena !== undefined && this.#segmentEnd > this.#segmentStart) {
      this.#parts.push(this.#arena.buffer.subarray(this.#segmentStart, this.#segmentEnd));
    }
    this.#segmentStart = this.#segmentEnd;
  }

  #scheduleFlush(): void {
    if (this.#sendingBytes > 0) return;
    if (this.#queuedBytes >= NBD_REPLY_ARENA_BYTES) {
      this.#flush();
    } else if (!this.#flushScheduled) {
      this.#flushScheduled = true;
      this.#clock.defer(this.#endOfTurn);
    }
  }

  #flushAtEndOfTurn(): void {
    this.#flushScheduled = false;
    this.flush();
  }

  #flush(): void {
    assert(this.#sendingBytes === 0, "one write at a time");
    this.#closeSegment();
    const parts = this.#parts;
    this.#parts = [];
    this.#sendingBytes = this.#queuedBytes;
    this.#sendingCharge = this.#queuedCharge;
    this.#queuedBytes = 0;
    this.#queuedCharge = 0;
    this.#transmit(parts);
  }
}
