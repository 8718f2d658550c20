/**
 * The certificate, key and certificate authority that this agent was given as files, as they are now: each new connection
 * takes `context`, and one that is open goes on with what it began with.
 *
 * The files are read again when they change and when `reload` is called (SIGHUP). What cannot be used then is logged, and
 * what was read before stays in force.
 */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { createSecureContext, type SecureContext, type SecureContextOptions } from "node:tls";
import { ColobusError } from "../../proto/errors.ts";
import { CERTIFICATE_WARN_MS, TLS_FILES_LOOK_EVERY_MS } from "../../proto/limits.ts";
import type { Clock, Timer } from "./clock.ts";
import type { Log } from "./log.ts";

export interface TlsPaths {
  /** With `key`: what this side shows. It may be followed by the intermediate certificates. */
  readonly cert: string | undefined;
  readonly key: string | undefined;
  /** Whose certificates are believed; undefined: of the authorities that Node knows. */
  readonly ca: string | undefined;
}

/** What each of the paths is called where the operator names it. */
export const TLS_FLAGS = { cert: "--tls-cert", key: "--tls-key", ca: "--tls-ca" } as const;

interface Loaded {
  readonly options: SecureContextOptions;
  readonly context: SecureContext;
  readonly stamp: string;
}

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
  readonly #listeners: ((options: SecureContextOptions) => void)[] = [];
  #loaded: Loaded;
  /** The files that could not be used, so that they are told of once. */
  #refusedStamp: string | undefined;
  #timer: Timer | undefined;

  /** Reads the files. Errors: `usage`, naming the flag and what is wrong. */
  constructor(options: TlsFilesOptions) {
    this.paths = options.paths;
    this.#flags = options.flags ?? TLS_FLAGS;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#loaded = this.#load(this.#stamp());
  }

  /** For the next connection. */
  get context(): SecureContext {
    return this.#loaded.context;
  }

  /** The same for a server that makes its own. */
  get options(): SecureContextOptions {
    return this.#loaded.options;
  }

  /** Calls `listener` with what new connections take, whenever that changes. */
  onChange(listener: (options: SecureContextOptions) => void): void {
    this.#listeners.push(listener);
  }

  /** Begins to look after the files, until `stop`. */
  watch(): void {
    this.#timer = this.#clock.after(TLS_FILES_LOOK_EVERY_MS, () => {
      const stamp = this.#stamp();
      if (stamp !== this.#loaded.stamp && stamp !== this.#refusedStamp) this.reload();
      this.watch();
    });
  }

  stop(): void {
    this.#timer?.cancel();
  }

  /** Reads the files again. What cannot be used is logged and changes nothing. */
  reload(): void {
    const stamp = this.#stamp();
    try {
      this.#loaded = this.#load(stamp);
    } catch (error) {
      if (!(error instanceof ColobusError)) throw error;
      this.#refusedStamp = stamp;
      this.#log?.error({ reason: error }, "the changed TLS files cannot be used: the old ones stay in force");
      return;
    }
    this.#refusedStamp = undefined;
    this.#log?.info({ ...this.paths }, "TLS files were read again");
    for (const listener of this.#listeners) listener(this.#loaded.options);
  }

  /** Tells a file that was changed, or replaced. */
  #stamp(): string {
    return Object.values(this.paths)
      .map((path: string | undefined) => {
        const stat = path === undefined ? undefined : statSync(path, { throwIfNoEntry: false });
        return stat === undefined ? "none" : `${stat.ino}:${stat.size}:${stat.mtimeMs}`;
      })
      .join(" ");
  }

  #load(stamp: string): Loaded {
    const { cert: certPath, key: keyPath, ca: caPath } = this.paths;
    const cert = certPath === undefined ? undefined : read(certPath, this.#flags.cert);
    const key = keyPath === undefined ? undefined : readKey(keyPath, this.#flags.key);
    const ca = caPath === undefined ? undefined : read(caPath, this.#flags.ca);
    if (cert !== undefined && key !== undefined) this.#assertCertificate(cert, key);
    if (ca !== undefined) parseCertificate(ca, this.#flags.ca, caPath ?? "");
    const options: SecureContextOptions = {
      minVersion: "TLSv1.2",
      ...(cert === undefined ? {} : { cert }),
      ...(key === undefined ? {} : { key }),
      ...(ca === undefined ? {} : { ca }),
    };
    try {
      return { options, context: createSecureContext(options), stamp };
    } catch (error) {
      throw unusable(this.#flags.cert, certPath ?? caPath ?? "", messageOf(error), error);
    }
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

function readKey(path: string, flag: string): Buffer {
  const key = read(path, flag);
  if ((statSync(path).mode & 0o007) === 0) return key;
  throw new ColobusError("usage", `the key ${path} is accessible to others`, `Run \`chmod 600 ${path}\`.`);
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
