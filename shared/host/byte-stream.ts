import type { ColobusError } from "../../proto/errors.ts";

/**
 * A connection that carries bytes both ways, in order, or ends. In production it is a socket (`node-byte-stream.ts`); in
 * the simulator, and in tests, whatever they need.
 */
export interface ByteStream {
  /** Sends the concatenation of `parts`. The stream owns the parts until it has ended. No-op once closed. */
  send(parts: readonly Uint8Array[]): void;
  /** Starts delivery. `closed` is called exactly once, and nothing after it. */
  start(handlers: ByteStreamHandlers): void;
  /**
   * Ends the connection when what was sent is on its way; an end that does not answer that is left as `abort` does.
   * `closed` still follows.
   */
  close(): void;
  /**
   * Gives the connection up: what has not arrived at the other end's host never does. What has may still be read there.
   * `closed` still follows.
   */
  abort(): void;
}

export interface ByteStreamHandlers {
  /** The next bytes, which belong to the receiver. */
  data(chunk: Buffer): void;
  /** The connection ended: by this side's `close`, by the other side, or by a fault. */
  closed(reason: ColobusError): void;
}

/** A server that streams are opened to, and the way to come by it. */
export interface StreamSource {
  /** What to call the server in messages. */
  readonly name: string;
  /**
   * Opens a stream; the one before has ended. Rejects with `connection-lost` and the reason, with what else keeps the
   * server from being reached (`image-missing`, `image-busy`, `image-format` …), or when `signal` aborts.
   */
  dial(signal: AbortSignal): Promise<ByteStream>;
  /**
   * Waits until a server that an earlier process of this agent has started is gone. Resolves with true when it was killed:
   * what it had answered, and no flush had covered, is lost then.
   */
  wasKilled(): Promise<boolean>;
  /**
   * Makes what the server serves longer, where that is this agent's to do; streams are dialled again afterwards. Errors:
   * `not-found` without qemu-img, `io-error`; it is as long as it was then. Absent where it is somebody else's.
   */
  grow?(sizeBytes: number): Promise<void>;
  /** Ends whatever was started to have a server. Resolves when nothing of it is left; `dial` may start it again. */
  stop(): Promise<void>;
  /**
   * Ends a server that was started at once: it writes nothing more of what it holds. Absent where it is somebody else's.
   */
  abandon?(): void;
  /** As that of an image: tells a change of what the server serves, while no server runs; empty where that cannot be told. */
  changeMark(): string;
}
