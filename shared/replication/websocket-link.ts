import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { isIP, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { TLSSocket } from "node:tls";
import { WebSocket, WebSocketServer } from "ws";
import { ColobusError, ERRORS, oneLine, type ErrorCode } from "../../proto/errors.ts";
import {
  HANDSHAKE_REFUSAL_MAX_BYTES,
  HANDSHAKE_TIMEOUT_MS,
  HTTP_HEADERS_MAX,
  HTTP_HEADERS_MAX_BYTES,
  LINK_CLOSE_TIMEOUT_MS,
  LINK_CONNECTIONS_MAX,
  MESSAGE_MAX_BYTES,
  TLS_HANDSHAKE_TIMEOUT_MS,
  UNAUTHENTICATED_BYTES_MAX,
} from "../../proto/limits.ts";
import { admitClient, certificateFault, identify, type PeerIdentity } from "../host/peer-certificate.ts";
import type { RefusalLog } from "../host/refusal-log.ts";
import type { TlsFiles } from "../host/tls-files.ts";
import type { Dialer, Link, LinkHandlers } from "./link.ts";
import { OutgoingMessages } from "./outgoing-messages.ts";

/** RFC 6455, 5.5: a close frame has room for this many bytes of reason. */
const CLOSE_REASON_MAX_BYTES = 123;
const NORMAL_CLOSURE = 1000;
/** RFC 8446, 5.1: the first byte of what a client of TLS sends. */
const TLS_HANDSHAKE_RECORD = 0x16;

const CODE_OF_CLOSE = new Map<number, ErrorCode>(
  (Object.keys(ERRORS) as ErrorCode[]).map((code) => [ERRORS[code].close, code]),
);

/** A Link over one WebSocket (RFC 6455). Client frames carry a zero mask, which costs neither side anything. */
class WebSocketLink implements Link {
  readonly peerAddress: string;
  readonly dialled: boolean;
  readonly #socket: WebSocket;
  readonly #outgoing = new OutgoingMessages();
  readonly peerIdentity: PeerIdentity | undefined;
  readonly #connection: Duplex;
  readonly #count: (chunk: Buffer) => void;
  #handlers: LinkHandlers | undefined;
  #fault: ColobusError | undefined;

  /** `connection` is what lies under the socket. */
  constructor(socket: WebSocket, connection: Duplex, other: Pick<Link, "peerAddress" | "dialled" | "peerIdentity">) {
    this.#socket = socket;
    this.#connection = connection;
    this.peerAddress = other.peerAddress;
    this.dialled = other.dialled;
    this.peerIdentity = other.peerIdentity;
    socket.pause();
    let unprovedBytes = 0;
    this.#count = (chunk) => {
      unprovedBytes += chunk.length;
      if (unprovedBytes <= UNAUTHENTICATED_BYTES_MAX) return;
      this.#fault ??= new ColobusError("protocol-error", "the peer sent much before the handshake was done");
      socket.terminate();
    };
    connection.on("data", this.#count);
    socket.on("error", (error) => {
      this.#fault ??= new ColobusError(
        "connection-lost",
        `the link to ${this.peerAddress} failed: ${error.message}`,
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
      this.#handlers?.closed(this.#fault ?? closeReason(this.peerAddress, code, reason.toString("utf8")));
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

  proved(): void {
    this.#connection.off("data", this.#count);
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
  if (code !== undefined) {
    return new ColobusError(
      code,
      `the peer ends the link: ${oneLine(text)}`,
      "See the peer's log for the whole reason.",
    );
  }
  return new ColobusError("connection-lost", `the link to ${peerAddress} ended (close code ${closeCode})`, TRIED_AGAIN);
}

const SOCKET_OPTIONS = {
  perMessageDeflate: false,
  maxPayload: MESSAGE_MAX_BYTES,
  skipUTF8Validation: true,
  /** Of a peer that cannot be reached any more: until then the socket keeps the process from ending. */
  closeTimeout: LINK_CLOSE_TIMEOUT_MS,
} as const;

/** How a dialler proves itself, and whom it believes. */
export interface DialSecurity {
  readonly files: TlsFiles;
  /** Of these names the peer's certificate must have one, beside that of the URL; none: that of the URL will do. */
  readonly peerNames: readonly string[];
}

/** Opens WebSocket links to `url` (`ws://HOST:PORT`, or `wss://` with TLS). */
export class WebSocketDialer implements Dialer {
  readonly url: string;
  readonly #security: DialSecurity | undefined;

  constructor(url: string, security?: DialSecurity) {
    this.url = url;
    this.#security = security;
  }

  /** Errors beside those of the interface: `auth-failed` when one of the two does not accept the other's certificate. */
  dial(signal: AbortSignal): Promise<Link> {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(this.url, {
        ...SOCKET_OPTIONS,
        ...this.#security?.files.options,
        handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
        generateMask: (mask) => mask.fill(0),
      });
      let connection: Socket | undefined;
      const abort = (): void => socket.terminate();
      const fail = (error: Error): void => {
        signal.removeEventListener("abort", abort);
        reject(error instanceof ColobusError ? error : this.#dialError(error));
      };
      socket.on("error", fail);
      socket.once("upgrade", (response) => {
        connection = response.socket;
      });
      socket.once("unexpected-response", (request, response) => {
        void readRefusal(response).then((refusal) => {
          fail(refusal ?? this.#lost(`it answers with status ${response.statusCode}`));
          request.destroy();
        });
      });
      socket.once("open", () => {
        signal.removeEventListener("abort", abort);
        if (connection === undefined) return; // there is no link without the event before
        try {
          const peerIdentity = this.#identify(connection);
          socket.off("error", fail);
          resolve(new WebSocketLink(socket, connection, { peerAddress: this.url, dialled: true, peerIdentity }));
        } catch (error) {
          reject(error instanceof Error ? error : new Error(String(error)));
          socket.terminate();
        }
      });
      if (signal.aborted) abort();
      else signal.addEventListener("abort", abort, { once: true });
    });
  }

  #identify(connection: Socket): PeerIdentity | undefined {
    const certificate = connection instanceof TLSSocket ? connection.getPeerX509Certificate() : undefined;
    return certificate === undefined ? undefined : identify(certificate, this.#security?.peerNames ?? []);
  }

  #dialError(error: NodeJS.ErrnoException): ColobusError {
    const fault = certificateFault(error.code);
    if (fault !== undefined) {
      return new ColobusError(
        "auth-failed",
        `the certificate of ${this.url} ${fault}`,
        "Check --tls-ca here, and --tls-cert there: it must name the host as the URL does.",
      );
    }
    if (error.code === "ERR_SSL_WRONG_VERSION_NUMBER" || error.code === "ERR_SSL_PACKET_LENGTH_TOO_LONG") {
      return this.#lost("it does not speak TLS: give its agent --tls-cert and --tls-key, or dial ws://");
    }
    if (error.code?.startsWith("ERR_SSL_") === true) return this.#lost(`TLS failed (${error.code})`);
    const isWrongProtocol = error.code === "ECONNRESET" || error.message === "socket hang up";
    const instead = this.url.startsWith("ws:") ? "expects TLS, dial wss://" : "speaks no TLS, give it --tls-cert";
    const hint = isWrongProtocol ? `: if its agent ${instead}` : "";
    return this.#lost(`${error.message || "refused"}${hint}`);
  }

  #lost(why: string): ColobusError {
    return new ColobusError("connection-lost", `no link to ${this.url}: ${why}`, TRIED_AGAIN);
  }
}

/** The reason that a listener of ours gives for refusing a handshake; undefined when it is not one. */
async function readRefusal(response: IncomingMessage): Promise<ColobusError | undefined> {
  if (response.headers[REFUSAL_HEADER] !== "auth-failed") return undefined;
  let text = "";
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      text += chunk.toString("utf8");
      if (text.length >= HANDSHAKE_REFUSAL_MAX_BYTES) break;
    }
  } catch {
    // What has arrived of the reason is more than nothing.
  }
  const said = text
    .slice(0, HANDSHAKE_REFUSAL_MAX_BYTES)
    .replace(/[^\x20-\x7e]+/g, " ")
    .trim();
  return new ColobusError(
    "auth-failed",
    `the peer refuses this agent: ${said}`,
    "Check --tls-cert, --tls-key and --tls-ca.",
  );
}

const REFUSAL_HEADER = "colobus-refusal";

/** How a listener proves itself, and whom it takes. */
export interface ListenSecurity {
  readonly files: TlsFiles;
  /** A client without a certificate is refused: nothing else proves who it is. */
  readonly requiresCertificate: boolean;
  /** Of these names a peer's certificate must have one; none: any of the authority will do. */
  readonly peerNames: readonly string[];
}

export interface ListenerOptions {
  /** undefined: without TLS. */
  readonly tls?: ListenSecurity | undefined;
  readonly refusals?: RefusalLog | undefined;
}

/**
 * Accepts WebSocket links on a TCP port. It asks nothing of a client but the WebSocket handshake: the session
 * authenticates. Requests with an Origin come from a web page and are refused.
 */
export class WebSocketListener {
  readonly #server: Server;
  readonly #webSockets = new WebSocketServer({ noServer: true, ...SOCKET_OPTIONS });
  readonly #tls: ListenSecurity | undefined;

  constructor(accept: (link: Link) => void, { tls, refusals }: ListenerOptions = {}) {
    this.#tls = tls;
    this.#server = this.#createServer();
    this.#server.maxConnections = LINK_CONNECTIONS_MAX;
    this.#server.maxHeadersCount = HTTP_HEADERS_MAX;
    this.#server.on("clientError", (error: ClientError, socket) => {
      refusals?.refused(clientFault(error, tls !== undefined), (socket as Socket).remoteAddress);
      socket.destroy();
    });
    // A connection that cannot be accepted (no memory, no descriptor) is its client's to try again.
    this.#server.on("error", () => undefined);
    this.#server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      socket.on("error", () => socket.destroy());
      if (request.headers.origin !== undefined) {
        answerAndClose(socket, "HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n");
        return;
      }
      const { remoteAddress = "unknown", remotePort = 0 } = request.socket;
      let peerIdentity: PeerIdentity | undefined;
      try {
        if (tls !== undefined)
          peerIdentity = admitClient(request.socket as TLSSocket, { ...tls, names: tls.peerNames });
      } catch (error) {
        if (!(error instanceof ColobusError)) throw error;
        refusals?.refused(error.message, remoteAddress);
        refuseHandshake(socket, error);
        return;
      }
      const peerAddress = `${isIP(remoteAddress) === 6 ? `[${remoteAddress}]` : remoteAddress}:${remotePort}`;
      this.#webSockets.handleUpgrade(request, socket, head, (webSocket) => {
        accept(new WebSocketLink(webSocket, socket, { peerAddress, dialled: false, peerIdentity }));
      });
    });
  }

  #createServer(): Server {
    const limits = {
      requestTimeout: HANDSHAKE_TIMEOUT_MS,
      headersTimeout: HANDSHAKE_TIMEOUT_MS,
      connectionsCheckingInterval: HANDSHAKE_TIMEOUT_MS / 4,
      maxHeaderSize: HTTP_HEADERS_MAX_BYTES,
    };
    const answer = (_: IncomingMessage, response: ServerResponse): void => {
      response.writeHead(426, { "connection": "close", "content-type": "text/plain" });
      response.end("This port speaks the Colobus replication protocol over WebSocket.\n");
    };
    const tls = this.#tls;
    if (tls === undefined) return createServer(limits, answer);
    const { files } = tls;
    const asked = files.paths.ca !== undefined;
    // Who shows no certificate, or a wrong one, is told so after the handshake of TLS; `admitClient` judges.
    const server = createTlsServer(
      {
        ...limits,
        ...files.options,
        handshakeTimeout: TLS_HANDSHAKE_TIMEOUT_MS,
        requestCert: asked,
        rejectUnauthorized: false,
      },
      answer,
    );
    files.onChange((options) => server.setSecureContext(options));
    return server;
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

type ClientError = NodeJS.ErrnoException & { readonly rawPacket?: Buffer };

/** What a client that came to no WebSocket has done wrong. */
function clientFault(error: ClientError, isTls: boolean): string {
  if (!isTls) {
    const speaksTls = error.rawPacket?.[0] === TLS_HANDSHAKE_RECORD;
    return speaksTls ? "the client speaks TLS, and this port does not" : "no WebSocket handshake";
  }
  if (error.code === "ERR_SSL_HTTP_REQUEST") return "the client speaks no TLS, and this port does";
  return error.code?.startsWith("HPE_") === true ? "no WebSocket handshake" : `no TLS handshake: ${error.code ?? "?"}`;
}

/** Answers a handshake with why it is refused. */
function refuseHandshake(socket: Duplex, reason: ColobusError): void {
  const body = `${reason.message}. ${reason.action}\n`;
  answerAndClose(
    socket,
    `HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: text/plain\r\n${REFUSAL_HEADER}: ${reason.code}\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

/** A client that does not close its side must not keep its place. */
function answerAndClose(socket: Duplex, answer: string): void {
  socket.once("finish", () => socket.destroy());
  socket.end(answer);
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
