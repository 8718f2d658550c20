/**
 * The certificate, key and certificate authority that this agent was given as files, as they are now: each new connection
 * takes `options`, and one that is open goes on with what it began with.
 */
import { constants, createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext, type SecureContextOptions } from "node:tls";
import { ColobusError } from "../../proto/errors.ts";
import { CERTIFICATE_WARN_MS } from "../../proto/limits.ts";
import type { Clock } from "./clock.ts";
import type { Log } from "./log.ts";
import { readPrivateFile } from "./private-file.ts";
import { WatchedFiles } from "./watched-files.ts";

export interface TlsPaths {
  /** With `key`: what this side shows. It may be followed by the intermediate certificates. */
  readonly cert: string | undefined;
  readonly key: string | undefined;
  /** Whose certificates are believed; undefined: of the authorities that Node knows. */
  readonly ca: string | undefined;
}

/** What each of the paths is called where the operator names it. */
export const TLS_FLAGS = { cert: "--tls-cert", key: "--tls-key", ca: "--tls-ca" } as const;

/** Of every connection. Each proves anew who it is: what an earlier one has proved may not hold any more. */
export const CONNECTION_RULES = { minVersion: "TLSv1.2", secureOptions: constants.SSL_OP_NO_TICKET } as const;

export interface TlsFilesOptions {
  readonly paths: TlsPaths;
  /** What the paths are called instead. */
  readonly flags?: Readonly<Record<keyof TlsPaths, string>>;
  readonly clock: Clock;
  /** undefined: for one use, by a command. */
  readonly log?: Log | undefined;
}

export class TlsFiles {
  readonly paths: TlsPaths;
  readonly #flags: Readonly<Record<keyof TlsPaths, string>>;
  readonly #clock: Clock;
  readonly #log: Log | undefined;
  readonly #files: WatchedFiles<SecureContextOptions>;

  /** Reads the files. Errors: `usage`, naming the flag and what is wrong. */
  constructor(options: TlsFilesOptions) {
    this.paths = options.paths;
    this.#flags = options.flags ?? TLS_FLAGS;
    this.#clock = options.clock;
    this.#log = options.log;
    const { cert, key, ca } = options.paths;
    const paths = [cert, key, ca].filter((path) => path !== undefined);
    this.#files = new WatchedFiles({ paths, load: () => this.#load(), clock: options.clock, log: options.log });
  }

  /** For the next connection. */
  get options(): SecureContextOptions {
    return this.#files.content;
  }

  /** Calls `listener` with what new connections take, whenever that changes. */
  onChange(listener: (options: SecureContextOptions) => void): void {
    this.#files.onChange(listener);
  }

  /** Begins to look after the files, until `stop`. */
  watch(): void {
    this.#files.watch();
  }

  stop(): void {
    this.#files.stop();
  }

  /** Reads the files again. What cannot be used is logged and changes nothing. */
  reload(): void {
    this.#files.reload();
  }

  #load(): SecureContextOptions {
    const { cert: certPath, key: keyPath, ca: caPath } = this.paths;
    const cert = certPath === undefined ? undefined : read(certPath, this.#flags.cert);
    const key = keyPath === undefined ? undefined : readPrivateFile(keyPath, "key", this.#flags.key);
    const ca = caPath === undefined ? undefined : read(caPath, this.#flags.ca);
    if (cert !== undefined && key !== undefined) this.#assertCertificate(cert, key);
    if (ca !== undefined) parseCertificate(ca, this.#flags.ca, caPath ?? "");
    const options: SecureContextOptions = {
      ...CONNECTION_RULES,
      ...(cert === undefined ? {} : { cert }),
      ...(key === undefined ? {} : { key }),
      ...(ca === undefined ? {} : { ca }),
    };
    try {
      createSecureContext(options);
    } catch (error) {
      throw unusable(this.#flags.cert, certPath ?? caPath ?? "", messageOf(error), error);
    }
    return options;
  }

  #assertCertificate(cert: Buffer, key: Buffer): void {
    const { cert: certPath = "", key: keyPath = "" } = this.paths;
    const own = parseCertificate(cert, this.#flags.cert, certPath);
    let fits: boolean;
    try {
      fits = own.checkPrivateKey(createPrivateKey(key));
    } catch (error) {
      throw unusable(this.#flags.key, keyPath, "it is not a private key in PEM form without a passphrase", error);
    }
    if (!fits) throw unusable(this.#flags.key, keyPath, `it is not the key of ${certPath}`);
    const leftMs = Date.parse(own.validTo) - this.#clock.wallMs();
    if (leftMs <= 0) throw unusable(this.#flags.cert, certPath, `it has expired on ${own.validTo}`);
    if (leftMs < CERTIFICATE_WARN_MS) {
      this.#log?.warn({ path: certPath, validTo: own.validTo }, "the TLS certificate expires soon");
    }
  }
}

function read(path: string, flag: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw unusable(flag, path, messageOf(error), error);
  }
}

function parseCertificate(pem: Buffer, flag: string, path: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (error) {
    throw unusable(flag, path, "it is not a certificate in PEM form", error);
  }
}

function unusable(flag: string, path: string, why: string, cause?: unknown): ColobusError {
  return new ColobusError(
    "usage",
    `${flag} ${path} cannot be used: ${why}`,
    `Check ${flag}; \`colobus certs\` makes certificates.`,
    { cause },
  );
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
