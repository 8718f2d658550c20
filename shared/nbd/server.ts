/**
 * The NBD server: owns the listening sockets and the clients' sockets, and joins each to an `NbdConnection`, where
 * everything of the protocol is. Any number of sockets (unix and TCP) serve one directory of exports; all clients share
 * one byte budget. On TCP a client may be made to use TLS (STARTTLS), with a certificate of its own or a pre-shared key.
 *
 * Invariants: an error of a socket ends that connection and nothing else; a half-closed client still gets its replies;
 * after `close` no socket of this server is open.
 */
import { createServer } from "node:net";
import type { AddressInfo, Server, Socket } from "node:net";
import assert from "node:assert/strict";
import { ColobusError } from "../../proto/errors.ts";
import {
  NBD_CLOSE_TIMEOUT_MS,
  NBD_GUARANTEED_BYTES_PER_CLIENT,
  NBD_HANDSHAKE_GRACE_MS,
  NBD_LINGER_FLUSHED_MS,
  NBD_LINGER_MS,
  NBD_MAX_IN_FLIGHT_BYTES,
  NBD_MAX_IN_FLIGHT_BYTES_PER_CLIENT,
  NBD_STALLED_CLIENT_MS,
  NBD_TCP_CONNECTIONS_MAX,
} from "../../proto/limits.ts";
import type { Clock, Timer } from "../host/clock.ts";
import type { Log } from "../host/log.ts";
import { listenOnUnixSocket } from "../host/unix-socket.ts";
import { ByteBudget } from "./byte-budget.ts";
import { NbdConnection } from "./connection.ts";
import type { NbdTransport } from "./connection.ts";
import type { NbdExportDirectory } from "./export.ts";
import { InputBufferPool } from "./input-buffers.ts";
import { readIntoPool } from "./pooled-socket.ts";
import { ReplyArenaPool } from "./reply-writer.ts";
import { StartTls, type StartTlsOptions } from "./starttls.ts";

/** A TCP client that has vanished without a word is noticed after this silence. */
const KEEP_ALIVE_DELAY_MS = 30_000;

/** TLS of the clients on TCP. */
export type NbdTls = StartTlsOptions & {
  /** `offered`: clients may do without. */
  readonly offer: "offered" | "required";
};

interface Offer {
  readonly offer: NbdTls["offer"];
  readonly startTls: StartTls;
}

export interface NbdServerOptions {
  readonly directory: NbdExportDirectory;
  readonly clock: Clock;
  readonly log: Log;
}

export class NbdServer {
  readonly #directory: NbdExportDirectory;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #budget: ByteBudget;
  readonly #arenas = new ReplyArenaPool();
  readonly #inputBuffers: InputBufferPool;
  readonly #listeners: Server[] = [];
  readonly #connections = new Set<NbdConnection>();
  #clientsSeen = 0;
  #isClosing = false;
  #closed: Promise<void> | undefined;
  #whenEmpty: (() => void) | undefined;

  constructor(options: NbdServerOptions) {
    this.#directory = options.directory;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#inputBuffers = new InputBufferPool(options.clock);
    this.#budget = new ByteBudget(
      {
        totalBytes: NBD_MAX_IN_FLIGHT_BYTES,
        perHolderBytes: NBD_MAX_IN_FLIGHT_BYTES_PER_CLIENT,
        guaranteedBytes: NBD_GUARANTEED_BYTES_PER_CLIENT,
        stalledMs: NBD_STALLED_CLIENT_MS,
      },
      options.clock,
    );
  }

  /** Clients that are connected, or whose requests are still in flight. */
  get connectionCount(): number {
    return this.#connections.size;
  }

  /**
   * Serves clients at `path`, which only this user may connect to. A socket left by a killed process is replaced; one that
   * is `inherited`, as a descriptor, is taken over.
   * Errors: `address-in-use` when a process answers there; `permission-denied`, `not-found`, `usage`, `io-error`.
   */
  async listenUnix(path: string, inherited?: number): Promise<void> {
    const listener = this.#createListener("unix");
    await listenOnUnixSocket(listener, path, inherited);
    this.#listening(listener);
    this.#log.info({ path }, "NBD server listens");
  }

  /** Serves clients at a TCP address; port 0 chooses one. Errors: `address-in-use`, `permission-denied`, `io-error`. */
  async listenTcp(host: string, port: number, tls?: NbdTls): Promise<{ port: number }> {
    const listener = this.#createListener(
      "tcp",
      tls === undefined ? undefined : { offer: tls.offer, startTls: new StartTls(tls) },
    );
    listener.maxConnections = NBD_TCP_CONNECTIONS_MAX;
    await new Promise<void>((resolve, reject) => {
      const failed = (error: NodeJS.ErrnoException): void => reject(listenError(error, host, port));
      listener.once("error", failed);
      listener.listen({ host, port }, () => {
        listener.off("error", failed);
        resolve();
      });
    });
    this.#listening(listener);
    const bound = (listener.address() as AddressInfo).port;
    this.#log.info({ host, port: bound }, "NBD server listens");
    return { port: bound };
  }

  /**
   * Stops accepting, answers the options of negotiating clients with ERR_SHUTDOWN, finishes and answers the requests in
   * flight, and ends all connections; within NBD_CLOSE_TIMEOUT_MS, after which connections are cut. Requests that a disk
   * still holds then are not waited for.
   */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  /** Sends away the clients that have opened an export, once their requests in flight are answered. New ones are welcome. */
  dropClients(): void {
    for (const connection of this.#connections) if (connection.isTransmitting) connection.shutDown();
  }

  async #close(): Promise<void> {
    this.#isClosing = true;
    for (const listener of this.#listeners) listener.close();
    if (this.#connections.size === 0) return;
    await new Promise<void>((resolve) => {
      const destroyNegotiating = this.#clock.after(NBD_HANDSHAKE_GRACE_MS, () => {
        for (const connection of this.#connections) if (!connection.isTransmitting) connection.destroy();
      });
      const deadline = this.#clock.after(NBD_CLOSE_TIMEOUT_MS, () => {
        this.#log.warn({ connections: this.#connections.size }, "NBD connections were cut at shutdown");
        for (const connection of this.#connections) connection.destroy();
        resolve();
      });
      this.#whenEmpty = () => {
        destroyNegotiating.cancel();
        deadline.cancel();
        resolve();
      };
      for (const connection of this.#connections) connection.shutDown();
    });
  }

  #createListener(kind: "unix" | "tcp", tls?: Offer): Server {
    // Half-closed clients still get their replies, hence allowHalfOpen.
    const options = { allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_DELAY_MS };
    return createServer(options, (socket) => this.#accept(socket, kind, tls));
  }

  #listening(listener: Server): void {
    listener.on("error", (error) => this.#log.warn({ err: error }, "NBD server could not accept a client"));
    this.#listeners.push(listener);
    if (this.#isClosing) listener.close();
  }

  #accept(accepted: Socket, kind: "unix" | "tcp", tls: Offer | undefined): void {
    if (this.#isClosing) {
      accepted.destroy();
      return;
    }
    this.#clientsSeen += 1;
    const { remoteAddress, remotePort } = accepted;
    const clientName = kind === "unix" ? `unix#${this.#clientsSeen}` : `${remoteAddress}:${remotePort}`;
    const pool = tls === undefined ? this.#inputBuffers : undefined; // what is decrypted comes in memory of its own
    const transport = new SocketTransport(accepted, this.#clock, { tls: tls?.startTls, pool });
    const connection: NbdConnection = new NbdConnection({
      transport,
      directory: this.#directory,
      budget: this.#budget,
      arenas: this.#arenas,
      clock: this.#clock,
      log: this.#log,
      tls: tls?.offer,
      clientName,
      onGone: () => {
        this.#connections.delete(connection);
        if (this.#connections.size === 0) this.#whenEmpty?.();
      },
    });
    this.#connections.add(connection);
    transport.attach(connection);
    // A broken connection is the end of a client, however it came about; "close" follows.
    transport.onError((error) => this.#log.debug({ client: clientName, err: error }, "NBD socket failed"));
  }
}

interface TransportOptions {
  readonly tls: StartTls | undefined;
  /** undefined: everything is received in memory of its own. */
  readonly pool: InputBufferPool | undefined;
}

class SocketTransport implements NbdTransport {
  /** It hands in what it reads, instead of having it listened for. */
  readonly #readsIntoPool: boolean;
  #socket: Socket;
  readonly #clock: Clock;
  readonly #tls: StartTls | undefined;
  #connection: NbdConnection | undefined;
  #onTransmitted: ((error?: Error | null) => void) | undefined;
  #hasEnded = false;
  #lingerTimer: Timer | undefined;

  constructor(accepted: Socket, clock: Clock, { tls, pool }: TransportOptions) {
    this.#clock = clock;
    this.#tls = tls;
    const pooled =
      pool === undefined
        ? undefined
        : readIntoPool(accepted, pool, (chunk, buffer) => {
            if (!this.#hasEnded) this.#connection?.receive(chunk, buffer);
          });
    this.#readsIntoPool = pooled !== undefined;
    this.#socket = pooled ?? accepted;
  }

  onError(handle: (error: Error) => void): void {
    this.#socket.on("error", handle);
  }

  attach(connection: NbdConnection): void {
    this.#connection = connection;
    this.#onTransmitted = (error) => {
      // After an error the socket is closed, and the connection hears of that.
      if (!error) connection.sent();
    };
    this.#listen(connection);
  }

  #listen(connection: NbdConnection): void {
    const socket = this.#socket;
    if (this.#readsIntoPool) socket.resume();
    else {
      socket.on("data", (chunk: Buffer) => {
        if (!this.#hasEnded) connection.receive(chunk);
      });
    }
    socket.on("end", () => connection.endOfInput());
    socket.on("close", () => {
      this.#lingerTimer?.cancel();
      connection.closed();
    });
  }

  startTls(done: (fault: string | undefined) => void): void {
    const plain = this.#socket;
    const connection = this.#connection;
    assert(this.#tls !== undefined && connection !== undefined, "TLS is offered");
    plain.removeAllListeners("data");
    plain.removeAllListeners("end");
    this.#tls.upgrade(plain, (result) => {
      if ("fault" in result) {
        done(result.fault);
        return;
      }
      this.#socket = result;
      result.on("error", () => undefined); // "close" follows
      this.#listen(connection);
      done(undefined);
    });
  }

  transmit(parts: readonly Buffer[]): void {
    const socket = this.#socket;
    const last = parts.length - 1;
    if (last > 0) socket.cork();
    for (const [index, part] of parts.entries()) {
      if (index === last) socket.write(part, this.#onTransmitted);
      else socket.write(part);
    }
    if (last > 0) socket.uncork();
  }

  pauseInput(): void {
    this.#socket.pause();
  }

  resumeInput(): void {
    this.#socket.resume();
  }

  end(): void {
    this.#hasEnded = true;
    this.#lingerTimer = this.#clock.after(NBD_LINGER_MS, () => this.#socket.destroy());
    this.#socket.end(() => {
      // The kernel has every reply. An idle client may not notice the end before the connection is closed.
      this.#lingerTimer?.cancel();
      this.#lingerTimer = this.#clock.after(NBD_LINGER_FLUSHED_MS, () => this.#socket.destroy());
    });
    // Closing with unread input would make the kernel throw away replies that the client has not read yet.
    this.#socket.resume();
  }

  destroy(): void {
    this.#socket.destroy();
  }
}

function listenError(error: NodeJS.ErrnoException, host: string, port: number): ColobusError {
  const options = { cause: error };
  const what = `Cannot listen on ${host}:${port}`;
  switch (error.code) {
    case "EADDRINUSE":
      return new ColobusError(
        "address-in-use",
        `${what}: it is taken.`,
        "Stop the other process, or use another port.",
        options,
      );
    case "EACCES":
      return new ColobusError("permission-denied", `${what}: access is denied.`, "Use a port above 1023.", options);
    default:
      return new ColobusError("io-error", `${what}: ${error.message}.`, "Check the address.", options);
  }
}
