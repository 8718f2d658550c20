import type { Clock } from "../host/clock.ts";

/** How much is read from a socket at a time. */
export const INPUT_BUFFER_BYTES = 64 * 1024;

/** As many as one turn of the event loop fills: a busy client's long writes. */
const IDLE_BUFFERS_MAX = 32;

/** Memory that a client's bytes arrive in, and who works with them holds. One that is never released is garbage in the end. */
export class InputBuffer {
  readonly bytes: Buffer;
  readonly #unused: (buffer: InputBuffer) => void;
  #holds = 0;

  constructor(bytes: Buffer, unused: (buffer: InputBuffer) => void) {
    this.bytes = bytes;
    this.#unused = unused;
  }

  hold(): void {
    this.#holds += 1;
  }

  release(): void {
    this.#holds -= 1;
    if (this.#holds === 0) this.#unused(this);
  }
}

/**
 * The input buffers that no connection needs now; shared by all connections of a server. What is used again lies in the
 * processor's cache, and is no garbage.
 *
 * A buffer comes back a turn of the event loop after its last request was done: what has been deferred until then, as the
 * sending of a batch is, may still read it.
 */
export class InputBufferPool {
  readonly #clock: Clock;
  readonly #idle: InputBuffer[] = [];

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Held once, by the caller. */
  take(): InputBuffer {
    const buffer = this.#idle.pop() ?? this.#make();
    buffer.hold();
    return buffer;
  }

  #make(): InputBuffer {
    return new InputBuffer(Buffer.allocUnsafeSlow(INPUT_BUFFER_BYTES), (unused) => this.#giveBack(unused));
  }

  #giveBack(buffer: InputBuffer): void {
    this.#clock.defer(() => {
      if (this.#idle.length < IDLE_BUFFERS_MAX) this.#idle.push(buffer);
    });
  }
}
