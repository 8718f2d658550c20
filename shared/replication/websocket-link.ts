import { createServer, type IncomingMessage, type Server } from "node:http";
import { isIP } from "node:net";
import type { Duplex } from "node:stream";
import { WebSocket, WebSocketServer } from "ws";
import { ColobusError, ERRORS, type ErrorCode } from "../../proto/errors.ts";
import { HANDSHAKE_TIMEOUT_MS, LINK_CLOSE_TIMEOUT_MS, MESSAGE_MAX_BYTES } from "../../proto/limits.ts";
import type { Dialer, Link, LinkHandlers } from "./link.ts";
import { OutgoingMessages } from "./outgoing-messages.ts";

/** RFC 6455, 5.5: a close frame has room for this many bytes of reason. */
const CLOSE_REASON_MAX_BYTES = 123;
const NORMAL_CLOSURE = 1000;

const CODE_OF_CLOSE = new Map<number, ErrorCode>(
  (Object.keys(ERRORS) as ErrorCode[]).map((code) => [ERRORS[code].close, code]),
);

/** A Link over one WebSocket (RFC 6455). Client frames carry a zero mask, which costs neither side anything. */
class WebSocketLink implements Link {
  readonly peerAddress: string;
  readonly #socket: WebSocket;
  readonly #outgoing = new OutgoingMessages();
  #handlers: LinkHandlers | undefined;
  #fault: ColobusError | undefined;

  constructor(socket: WebSocket, peerAddress: string) {
    this.#socket = socket;
    this.peerAddress = peerAddress;
    socket.pause();
    socket.on("error", (error) => {
      this.#fault ??= new ColobusError(
        "connection-lost",
        `the link to ${peerAddress} failed: ${error.message}`,
        TRIED_AGAIN,
      );
    });
    socket.on("message", (data, isBinary) => {
      if (!isBinary || !Buffer.isBuffer(data)) {
        this.close(new ColobusError("protocol-error", "the peer sent a text message"));
        return;
      }
      this.#handlers?.message(data);
    });
    socket.on("close", (code, reason) => {
      this.#handlers?.closed(this.#fault ?? closeReason(peerAddress, code, reason.toString("utf8")));
      this.#handlers = undefined;
    });
  }

  get queuedBytes(): number {
    return this.#socket.bufferedAmount;
  }

  start(handlers: LinkHandlers): void {
    if (this.#socket.readyState === WebSocket.CLOSED) {
      handlers.closed(this.#fault ?? closeReason(this.peerAddress, NORMAL_CLOSURE, ""));
      return;
    }
    this.#handlers = handlers;
    this.#socket.resume();
  }

  send(parts: readonly Uint8Array[]): void {
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    const [only] = parts;
    if (parts.length === 1 && only !== undefined) {
      this.#socket.send(only, { binary: true });
      return;
    }
    const joined = this.#outgoing.join(parts);
    this.#socket.send(joined.message, { binary: true }, joined.sent);
  }

  close(reason: ColobusError): void {
    this.#fault ??= reason;
    const text = Buffer.from(reason.message)
      .subarray(0, CLOSE_REASON_MAX_BYTES)
      .toString("utf8")
      .replace(/\uFFFD+$/u, "");
    this.#socket.close(ERRORS[reason.code].close, text);
    this.#socket.resume(); // a paused socket would never read the peer's answer to the close frame
  }
}

const TRIED_AGAIN = "Check the peer's host and the network between the two; the connection is tried again by itself.";

function closeReason(peerAddress: string, closeCode: number, text: string): ColobusError {
  const code = CODE_OF_CLOSE.get(closeCode);
  if (code !== undefined) return new ColobusError(code, text, "See the peer's log for the whole reason.");
  return new ColobusError("connection-lost", `the link to ${peerAddress} ended (close code ${closeCode})`, TRIED_AGAIN);
}

const SOCKET_OPTIONS = {
  perMessageDeflate: false,
  maxPayload: MESSAGE_MAX_BYTES,
  skipUTF8Validation: true,
  /** Of a peer that cannot be reached any more: until then the socket keeps the process from ending. */
  closeTimeout: LINK_CLOSE_TIMEOUT_MS,
} as const;

/** Opens WebSocket links to `url` (`ws://HOST:PORT`). */
export class WebSocketDialer implements Dialer {
  readonly url: string;

  constructor(url: string) {
    this.url = url;
  }

  dial(signal: AbortSignal): Promise<Link> {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(this.url, {
        ...SOCKET_OPTIONS,
        handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
        generateMask: (mask) => mask.fill(0),
      });
      const abort = (): void => socket.terminate();
      const fail = (error: Error): void => {
        signal.removeEventListener("abort", abort);
        reject(
          new ColobusError("connection-lost", `no link to ${this.url}: ${error.message || "refused"}`, TRIED_AGAIN),
        );
      };
      socket.once("error", fail);
      socket.once("open", () => {
        signal.removeEventListener("abort", abort);
        socket.off("error", fail);
        resolve(new WebSocketLink(socket, this.url));
      });
      if (signal.aborted) abort();
      else signal.addEventListener("abort", abort, { once: true });
    });
  }
}

/**
 * Accepts WebSocket links on a TCP port. It asks nothing of a client but the WebSocket handshake: the session
 * authenticates. Requests with an Origin come from a web page and are refused.
 */
export class WebSocketListener {
  readonly #server: Server;
  readonly #webSockets = new WebSocketServer({ noServer: true, ...SOCKET_OPTIONS });

  constructor(accept: (link: Link) => void) {
    this.#server = createServer(
      { requestTimeout: HANDSHAKE_TIMEOUT_MS, headersTimeout: HANDSHAKE_TIMEOUT_MS },
      (_, response) => {
        response.writeHead(426, { "connection": "close", "content-type": "text/plain" });
        response.end("This port speaks the Colobus replication protocol over WebSocket.\n");
      },
    );
    this.#server.on("clientError", (_, socket) => socket.destroy());
    // A connection that cannot be accepted (no memory, no descriptor) is its client's to try again.
    this.#server.on("error", () => undefined);
    this.#server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      socket.on("error", () => socket.destroy());
      if (request.headers.origin !== undefined) {
        socket.end("HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n");
        return;
      }
      this.#webSockets.handleUpgrade(request, socket, head, (webSocket) => {
        const { remoteAddress = "unknown", remotePort = 0 } = request.socket;
        accept(
          new WebSocketLink(
            webSocket,
            `${isIP(remoteAddress) === 6 ? `[${remoteAddress}]` : remoteAddress}:${remotePort}`,
          ),
        );
      });
    });
  }

  /** Starts to listen and resolves with the port. Errors: `address-in-use`, `permission-denied`, `io-error`. */
  listen(host: string, port: number): Promise<number> {
    return new Promise((resolve, reject) => {
      const failed = (error: NodeJS.ErrnoException): void => reject(listenError(error, host, port));
      this.#server.once("error", failed);
      this.#server.listen({ host, port }, () => {
        this.#server.off("error", failed);
        const address = this.#server.address();
        resolve(typeof address === "object" && address !== null ? address.port : port);
      });
    });
  }

  /** Stops to listen and ends every link that is left. */
  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
      for (const client of this.#webSockets.clients) client.terminate();
    });
  }
}

function listenError(error: NodeJS.ErrnoException, host: string, port: number): ColobusError {
  if (error.code === "EADDRINUSE") {
    return new ColobusError(
      "address-in-use",
      `${host}:${port} is taken by another process`,
      "Stop that process, or choose another port with --listen.",
      { cause: error },
    );
  }
  const code = error.code === "EACCES" ? "permission-denied" : "io-error";
  return new ColobusError(code, `cannot listen on ${host}:${port}: ${error.message}`, "Check --listen.", {
    cause: error,
  });
}
