/**
 * Turns connections of NBD clients into TLS ones, and judges the clients' certificates. It listens to nothing itself: Node's
 * TLS server is handed connections that are open already, since only it verifies certificates.
 */
import type { Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import { asColobusError } from "../../proto/errors.ts";
import { TLS_HANDSHAKE_TIMEOUT_MS } from "../../proto/limits.ts";
import { admitClient } from "../host/peer-certificate.ts";
import type { RefusalLog } from "../host/refusal-log.ts";
import type { TlsFiles } from "../host/tls-files.ts";

/** Who waits for a handshake. */
type Done = (result: TLSSocket | { readonly fault: string }) => void;

export interface StartTlsOptions {
  /** With a certificate, and an authority for those of the clients. */
  readonly files: TlsFiles;
  readonly refusals: RefusalLog;
}

export class StartTls {
  readonly #server: Server;
  readonly #refusals: RefusalLog;
  /** By the client's address and port, which no two open connections to one listener share. */
  readonly #waiting = new Map<string, Done>();

  constructor({ files, refusals }: StartTlsOptions) {
    this.#refusals = refusals;
    this.#server = createServer({
      ...files.options,
      handshakeTimeout: TLS_HANDSHAKE_TIMEOUT_MS,
      requestCert: true,
      rejectUnauthorized: false,
      allowHalfOpen: true,
    });
    files.onChange((options) => this.#server.setSecureContext(options));
    this.#server.on("secureConnection", (secure) => this.#secured(secure));
    this.#server.on("tlsClientError", (error: NodeJS.ErrnoException, secure) => {
      this.#end(nameOf(secure), { fault: `no TLS handshake: ${error.code ?? "?"}` });
      secure.destroy();
    });
  }

  /**
   * Begins TLS on a connection whose client has been told to. What it has sent meanwhile is the beginning of its handshake,
   * and anything else breaks that. `done` is called once, with a fault when there will be no TLS: the connection ends then.
   */
  upgrade(plain: Socket, done: Done): void {
    const name = nameOf(plain);
    this.#waiting.set(name, done);
    plain.once("close", () => this.#end(name, { fault: "no TLS handshake: the client left" }));
    this.#server.emit("connection", plain);
  }

  #secured(secure: TLSSocket): void {
    const name = nameOf(secure);
    try {
      admitClient(secure, { requiresCertificate: true, names: [] });
    } catch (error) {
      this.#end(name, { fault: asColobusError(error).message });
      secure.destroy();
      return;
    }
    this.#end(name, secure);
  }

  #end(name: string, result: TLSSocket | { readonly fault: string }): void {
    const done = this.#waiting.get(name);
    if (done === undefined) return;
    this.#waiting.delete(name);
    if ("fault" in result) this.#refusals.refused(result.fault, name);
    done(result);
  }
}

function nameOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress}:${remotePort}`;
}
