/**
 * The control API's door to the network: HTTPS, and nothing gets behind it without the token. It owns the listening socket
 * and its connections; what a request means is the business of whoever is given it.
 *
 * The token comes as `Authorization: Bearer …` with each request, and is looked at before anything of the body is read. A
 * client's certificate is asked for where there is an authority for it; one that is shown must be sound. Requests of web
 * pages are refused, but those of the status page, whose own files need no token.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import { ColobusError } from "../../proto/errors.ts";
import {
  CONTROL_CONNECTIONS_MAX,
  CONTROL_REQUEST_TIMEOUT_MS,
  HTTP_HEADERS_MAX,
  HTTP_HEADERS_MAX_BYTES,
  TLS_HANDSHAKE_TIMEOUT_MS,
} from "../../proto/limits.ts";
import { admitClient } from "../host/peer-certificate.ts";
import type { RefusalLog } from "../host/refusal-log.ts";
import type { TlsFiles } from "../host/tls-files.ts";
import { isForPage } from "./status-page.ts";
import { pageRefusal } from "./web-page-requests.ts";

export interface ControlTlsListenerOptions {
  readonly files: TlsFiles;
  /** The secret that clients must know. */
  readonly token: Buffer;
  readonly refusals: RefusalLog;
  /** Answers a request that may be made. */
  readonly answer: (request: IncomingMessage, response: ServerResponse) => void;
  /** Answers, or closes, what is no HTTP. */
  readonly malformed: (error: NodeJS.ErrnoException, socket: Socket) => void;
}

export class ControlTlsListener {
  readonly #options: ControlTlsListenerOptions;
  readonly #server: Server;
  readonly #tokenDigest: Buffer;

  constructor(options: ControlTlsListenerOptions) {
    this.#options = options;
    this.#tokenDigest = digestOf(options.token);
    const { files, refusals } = options;
    this.#server = createServer(
      {
        ...files.options,
        handshakeTimeout: TLS_HANDSHAKE_TIMEOUT_MS,
        requestCert: files.paths.ca !== undefined,
        rejectUnauthorized: false,
        maxHeaderSize: HTTP_HEADERS_MAX_BYTES,
        headersTimeout: CONTROL_REQUEST_TIMEOUT_MS,
        // A VM state may take long.
        requestTimeout: 0,
      },
      (request, response) => this.#receive(request, response),
    );
    this.#server.maxConnections = CONTROL_CONNECTIONS_MAX;
    this.#server.maxHeadersCount = HTTP_HEADERS_MAX;
    this.#server.on("clientError", (error: NodeJS.ErrnoException, socket) => {
      const { remoteAddress } = socket as Socket;
      if (error.code?.startsWith("HPE_") === true || error.code === "ERR_HTTP_REQUEST_TIMEOUT") {
        options.malformed(error, socket as Socket);
        return;
      }
      const isPlain = error.code === "ERR_SSL_HTTP_REQUEST";
      refusals.refused(
        isPlain ? "the client speaks no TLS, and this port does" : `no TLS handshake: ${error.code ?? "?"}`,
        remoteAddress,
      );
      socket.destroy();
    });
    // A connection that cannot be accepted (no memory, no descriptor) is its client's to try again.
    this.#server.on("error", () => undefined);
    files.onChange((contextOptions) => this.#server.setSecureContext(contextOptions));
  }

  /** Starts to listen and resolves with the port. Errors: `address-in-use`, `permission-denied`, `io-error`. */
  listen(host: string, port: number): Promise<number> {
    return new Promise((resolve, reject) => {
      const failed = (error: NodeJS.ErrnoException): void => reject(listenError(error, host, port));
      this.#server.once("error", failed);
      this.#server.listen({ host, port }, () => {
        this.#server.off("error", failed);
        resolve((this.#server.address() as AddressInfo).port);
      });
    });
  }

  /** Accepts nothing more. */
  stop(): void {
    if (this.#server.listening) this.#server.close();
  }

  /** Ends every connection. */
  closeConnections(): void {
    this.#server.closeAllConnections();
  }

  #receive(request: IncomingMessage, response: ServerResponse): void {
    const refusal = this.#refusalOf(request);
    if (refusal === undefined) {
      this.#options.answer(request, response);
      return;
    }
    this.#options.refusals.refused(refusal.message, request.socket.remoteAddress);
    const body = JSON.stringify({ error: refusal.toJSON() });
    response.writeHead(refusal.row.http, {
      "connection": "close",
      "content-type": "application/json",
      "content-length": Buffer.byteLength(body),
      "www-authenticate": "Bearer",
    });
    // What is left of the request is not read.
    response.end(body, () => request.socket.destroySoon());
  }

  #refusalOf(request: IncomingMessage): ColobusError | undefined {
    try {
      admitClient(request.socket as TLSSocket, { requiresCertificate: false, names: [] });
    } catch (error) {
      if (error instanceof ColobusError) return error;
      throw error;
    }
    if (isForPage(request.method, request.url)) return undefined;
    const foreign = pageRefusal(request.headers);
    if (foreign !== undefined) return foreign;
    const [, shown] = /^Bearer (\S+)$/.exec(request.headers.authorization ?? "") ?? [];
    if (shown === undefined) {
      return new ColobusError(
        "auth-failed",
        "the request has no token",
        "Give --token-file, or COLOBUS_TOKEN_FILE, with what the agent has as --control-token-file.",
      );
    }
    if (timingSafeEqual(digestOf(Buffer.from(shown, "utf8")), this.#tokenDigest)) return undefined;
    return new ColobusError(
      "auth-failed",
      "the request has another token than the agent",
      "Give the content of the agent's --control-token-file.",
    );
  }
}

/** Of equal length, whatever was sent. */
function digestOf(token: Buffer): Buffer {
  return createHash("sha256").update(token).digest();
}

function listenError(error: NodeJS.ErrnoException, host: string, port: number): ColobusError {
  const code =
    error.code === "EADDRINUSE" ? "address-in-use" : error.code === "EACCES" ? "permission-denied" : "io-error";
  return new ColobusError(
    code,
    `the control API cannot listen on ${host}:${port}: ${error.message}`,
    "Check --control-listen.",
    { cause: error },
  );
}
