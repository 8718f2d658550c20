import assert from "node:assert/strict";
import { connect, type Socket } from "node:net";
import { ColobusError } from "../../proto/errors.ts";
import { NBD_CLIENT_DIAL_TIMEOUT_MS } from "../../proto/limits.ts";
import type { ByteStream, ByteStreamHandlers, StreamSource } from "./byte-stream.ts";
import { resetOnClose } from "./posix.ts";

/** Where a server listens. */
export type StreamAddress =
  | { readonly kind: "unix"; readonly path: string }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number };

export function formatAddress(address: StreamAddress): string {
  return address.kind === "unix" ? address.path : `${address.host}:${address.port}`;
}

/** A server that somebody else runs. */
export class ServerAddress implements StreamSource {
  readonly name: string;
  readonly #address: StreamAddress;

  constructor(name: string, address: StreamAddress) {
    this.name = name;
    this.#address = address;
  }

  dial(signal: AbortSignal): Promise<ByteStream> {
    return dialAddress(this.#address, signal);
  }

  wasKilled(): Promise<boolean> {
    return Promise.resolve(false); // nobody here knows
  }

  stop(): Promise<void> {
    return Promise.resolve();
  }

  changeMark(): string {
    return "";
  }
}

/**
 * Opens a stream to `address`; with `untilGreeted`, of a server that speaks first, when it has begun to. Rejects with
 * `connection-lost` and the reason, or when `signal` aborts.
 */
export function dialAddress(
  address: StreamAddress,
  signal: AbortSignal,
  options: { readonly untilGreeted: boolean } = { untilGreeted: false },
): Promise<ByteStream> {
  return new Promise((resolve, reject) => {
    const socket = connect(
      address.kind === "unix" ? { path: address.path } : { host: address.host, port: address.port, noDelay: true },
    );
    let isSettled = false;
    const settle = (how: () => void): void => {
      if (isSettled) return;
      isSettled = true;
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
      how();
    };
    const fail = (why: string, cause?: Error): void =>
      settle(() => {
        socket.destroy();
        reject(lost(`cannot connect to ${formatAddress(address)}: ${why}`, cause));
      });
    const abort = (): void => fail("it was given up");
    const timer = setTimeout(() => fail("nothing answers"), NBD_CLIENT_DIAL_TIMEOUT_MS).unref();
    signal.addEventListener("abort", abort, { once: true });
    if (address.kind === "tcp") socket.once("connect", () => haveReset(socket));
    socket.on("error", (error) => fail(error.message, error));
    socket.once("close", () => fail("it was closed at once"));
    const open = (): void => settle(() => resolve(new SocketStream(socket)));
    if (options.untilGreeted)
      socket.once("readable", () => (socket.readableLength > 0 ? open() : fail("it was closed")));
    else socket.once("connect", open);
    if (signal.aborted) abort();
  });
}

/**
 * A connection that is given up, or that the process leaves behind when it is killed, may not deliver what is still under
 * way on it: the server would carry it out behind what it is asked on the next one. Node can reset a socket itself, but not
 * one that it is closing, and not when the process is killed; and it has no other way to a socket's options than its handle.
 */
function haveReset(socket: Socket): void {
  const { _handle: handle } = socket as Socket & { readonly _handle?: { readonly fd?: number } };
  assert(handle?.fd !== undefined && handle.fd >= 0, "a connected socket has a descriptor");
  assert.equal(resetOnClose(handle.fd), 0, "a socket takes its options");
}

/** How long a close waits for the other end to take what was sent, and close in turn. */
const CLOSE_GRACE_MS = 1000;

class SocketStream implements ByteStream {
  readonly #socket: Socket;
  #isCorked = false;
  #reason: ColobusError | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    // A socket that fails before `start` has told nobody; its `close` event has passed then as well.
    socket.on("error", (error) => (this.#reason ??= lost(error.message, error)));
    socket.pause();
  }

  send(parts: readonly Uint8Array[]): void {
    const socket = this.#socket;
    if (socket.destroyed || socket.writableEnded) return;
    if (!this.#isCorked) {
      // What is sent in one turn of the event loop leaves in one system call.
      this.#isCorked = true;
      socket.cork();
      setImmediate(() => {
        this.#isCorked = false;
        socket.uncork();
      });
    }
    for (const part of parts) socket.write(part);
  }

  start(handlers: ByteStreamHandlers): void {
    const socket = this.#socket;
    let isOver = false;
    const over = (): void => {
      if (isOver) return;
      isOver = true;
      handlers.closed(this.#reason ?? lost("the other end closed the connection"));
    };
    socket.on("data", (chunk: Buffer) => {
      if (!isOver) handlers.data(chunk);
    });
    socket.once("end", () => socket.destroy());
    socket.once("close", over);
    if (socket.destroyed) setImmediate(over);
    else socket.resume();
  }

  close(): void {
    const socket = this.#socket;
    this.#reason ??= lost("this side closed the connection");
    socket.end();
    setTimeout(() => socket.destroy(), CLOSE_GRACE_MS).unref();
  }

  abort(): void {
    this.#reason ??= lost("this side gave the connection up");
    this.#socket.destroy();
  }
}

function lost(why: string, cause?: Error): ColobusError {
  return new ColobusError("connection-lost", why, "", cause === undefined ? undefined : { cause });
}
