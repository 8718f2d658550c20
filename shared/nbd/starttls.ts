/**
 * Turns connections of NBD clients into TLS ones, and judges the clients: by their certificates, or by the pre-shared keys that
 * they hold. It listens to nothing itself: Node's TLS server is handed connections that are open already, since only it
 * verifies certificates.
 *
 * With keys there are no certificates at all, on neither side: what makes a handshake succeed is that both hold the key of the
 * user whom the client names. Who names a user that has none gets a key that nobody holds, so that a name that exists cannot
 * be told from one that does not.
 */
import { createHmac } from "node:crypto";
import type { Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import { asColobusError, ColobusError } from "../../proto/errors.ts";
import { TLS_HANDSHAKE_TIMEOUT_MS } from "../../proto/limits.ts";
import { admitClient } from "../host/peer-certificate.ts";
import type { PskKeys } from "../host/psk-keys.ts";
import type { Random } from "../host/random.ts";
import type { RefusalLog } from "../host/refusal-log.ts";
import { CONNECTION_RULES, type TlsFiles } from "../host/tls-files.ts";

/** Who waits for a handshake. */
type Done = (result: TLSSocket | { readonly fault: string }) => void;

export type StartTlsOptions = { readonly refusals: RefusalLog } & (
  | {
      /** With a certificate, and an authority for those of the clients. */
      readonly files: TlsFiles;
    }
  | { readonly keys: PskKeys; readonly random: Random }
);

/** One way in which clients prove who they are. */
interface Door {
  readonly server: Server;
  /** Judges a client whose handshake is done. Errors: `auth-failed`. */
  readonly admit: (socket: TLSSocket) => void;
  /** Why a handshake has failed. */
  readonly faultOf: (socket: TLSSocket, code: string | undefined) => string;
}

export class StartTls {
  readonly #door: Door;
  readonly #refusals: RefusalLog;
  /** By the client's address and port, which no two open connections to one listener share. */
  readonly #waiting = new Map<string, Done>();

  constructor(options: StartTlsOptions) {
    this.#refusals = options.refusals;
    this.#door = "keys" in options ? doorByKeys(options) : doorByCertificates(options.files);
    const { server } = this.#door;
    server.on("secureConnection", (secure) => this.#secured(secure));
    server.on("tlsClientError", (error: NodeJS.ErrnoException, secure) => {
      this.#end(nameOf(secure), { fault: this.#door.faultOf(secure, error.code) });
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
    this.#door.server.emit("connection", plain);
  }

  #secured(secure: TLSSocket): void {
    const name = nameOf(secure);
    try {
      this.#door.admit(secure);
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

const SERVER_OPTIONS = { handshakeTimeout: TLS_HANDSHAKE_TIMEOUT_MS, allowHalfOpen: true } as const;

function doorByCertificates(files: TlsFiles): Door {
  const server = createServer({ ...SERVER_OPTIONS, ...files.options, requestCert: true, rejectUnauthorized: false });
  files.onChange((options) => server.setSecureContext(options));
  return {
    server,
    admit: (socket) => void admitClient(socket, { requiresCertificate: true, names: [] }),
    faultOf: (_, code) => noHandshake(code),
  };
}

/**
 * An external key of TLS 1.3 goes with SHA-256 (RFC 8446, 4.2.11). That of TLS 1.2 is the one which OpenSSL and GnuTLS share,
 * which is authenticated, and which keeps what was recorded secret from who learns the key later.
 */
const PSK_CIPHERS = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:ECDHE-PSK-CHACHA20-POLY1305";

const UNKNOWN_USER = "the client names a user who has no key";

function doorByKeys({ keys, random }: { readonly keys: PskKeys; readonly random: Random }): Door {
  const decoySecret = random.bytes(32);
  const named = new WeakMap<TLSSocket, string>();
  const server = createServer({
    ...SERVER_OPTIONS,
    ...CONNECTION_RULES,
    ciphers: PSK_CIPHERS,
    pskCallback: (socket, user) => {
      named.set(socket, user);
      return keys.content.get(user) ?? createHmac("sha256", decoySecret).update(user).digest();
    },
  });
  return {
    server,
    admit: (socket) => {
      const user = named.get(socket);
      if (user === undefined || !keys.content.has(user)) throw new ColobusError("auth-failed", UNKNOWN_USER);
    },
    faultOf: (socket, code) => {
      const user = named.get(socket);
      if (user === undefined || code?.startsWith("ERR_SSL_") !== true) return noHandshake(code);
      return keys.content.has(user) ? `the client does not hold the key of user ${JSON.stringify(user)}` : UNKNOWN_USER;
    },
  };
}

function noHandshake(code: string | undefined): string {
  return `no TLS handshake: ${code ?? "?"}`;
}

function nameOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress}:${remotePort}`;
}
