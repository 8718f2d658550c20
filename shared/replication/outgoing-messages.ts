import { BATCH_TARGET_BYTES, WRITE_PIECE_MAX_BYTES } from "../../proto/limits.ts";

/** Holds several of the largest batches: nearly full, and then one more piece. */
const BUFFER_BYTES = 2 * (BATCH_TARGET_BYTES + WRITE_PIECE_MAX_BYTES);
/** Buffers that are kept when a slow network has made them necessary: more than a window of the usual size needs. */
const IDLE_BUFFERS_MAX = 32;

class OutgoingBuffer {
  readonly bytes = Buffer.allocUnsafeSlow(BUFFER_BYTES);
  usedBytes = 0;
  /** Messages in it that the network has not taken. */
  messages = 0;
}

/**
 * Owns the messages of one link on their way to the network, each put together from its parts: it leaves as one frame
 * with one system call then, and to copy a part costs less than a frame of its own, on either side.
 *
 * They lie one behind the other in buffers that are used again when the network has taken everything in them. So what
 * waits for a slow network is no garbage later, and where nothing waits the same few cache lines serve every message.
 */
export class OutgoingMessages {
  readonly #idle: OutgoingBuffer[] = [];
  #current = new OutgoingBuffer();

  /** The parts as one message, valid until `sent` is called. */
  join(parts: readonly Uint8Array[]): { readonly message: Buffer; readonly sent: () => void } {
    let length = 0;
    for (const part of parts) length += part.length;
    if (length > BUFFER_BYTES) return { message: Buffer.concat(parts, length), sent: () => undefined };
    const buffer = this.#bufferFor(length);
    const start = buffer.usedBytes;
    for (const part of parts) {
      buffer.bytes.set(part, buffer.usedBytes);
      buffer.usedBytes += part.length;
    }
    buffer.messages += 1;
    return { message: buffer.bytes.subarray(start, buffer.usedBytes), sent: () => this.#sent(buffer) };
  }

  #bufferFor(length: number): OutgoingBuffer {
    if (this.#current.usedBytes + length > BUFFER_BYTES) this.#current = this.#idle.pop() ?? new OutgoingBuffer();
    return this.#current;
  }

  #sent(buffer: OutgoingBuffer): void {
    buffer.messages -= 1;
    if (buffer.messages > 0) return;
    buffer.usedBytes = 0;
    if (buffer !== this.#current && this.#idle.length < IDLE_BUFFERS_MAX) this.#idle.push(buffer);
  }
}
