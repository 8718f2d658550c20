/**
 * A certificate authority for trying TLS out, or for a pair that has none of its own, and certificates that it signs: one
 * for each host, good as server and as client, and one for each other client.
 *
 * In the directory: `ca-cert.pem`, `ca-key.pem`, and for each host or client a directory of its name, to be copied to where
 * it is used, with `ca-cert.pem` and the certificate and key under the names that QEMU and libnbd look for
 * (`server-cert.pem`, `server-key.pem`, and the same as `client-…`). Keys have mode 0600. Nothing that is there is
 * overwritten, unless it is to be renewed: the subject stays the same then. Node can sign, but not make a certificate; the
 * `openssl` program does.
 */
import { execFile } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { isIP } from "node:net";
import { join } from "node:path";
import { ColobusError } from "../../proto/errors.ts";
import { makeDirectory } from "./make-directory.ts";
import { withUmask } from "./umask.ts";

const CA_CERT = "ca-cert.pem";
const CA_KEY = "ca-key.pem";
const CA_DAYS = 3650;
const NAME = /^[A-Za-z0-9_*][A-Za-z0-9._*-]{0,62}$/;

/** Whom a certificate is for: the first name is its subject and the name of its directory. */
export interface CertificateHolder {
  readonly kind: "host" | "client";
  readonly names: readonly [string, ...string[]];
}

export interface MakeCertificatesOptions {
  readonly directory: string;
  readonly holders: readonly CertificateHolder[];
  /** How long the holders' certificates last. */
  readonly days: number;
  /** Replace certificates and keys that are there; the authority stays. */
  readonly renew: boolean;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

export interface MadeCertificates {
  readonly caCert: string;
  /** false: the authority that was there has signed. */
  readonly caMade: boolean;
  readonly made: readonly { readonly kind: "host" | "client"; readonly name: string; readonly directory: string }[];
}

/**
 * Makes what is missing. Errors: `usage` (a name that no certificate can have, one that is there already), `not-supported`
 * (no openssl), `timed-out`, `io-error`.
 */
export async function makeCertificates(options: MakeCertificatesOptions): Promise<MadeCertificates> {
  const { directory, holders, renew } = options;
  for (const { names } of holders) for (const name of names) assertName(name);
  for (const { names } of holders) {
    const taken = join(directory, directoryNameOf(names[0]));
    if (renew || !existsSync(taken)) continue;
    throw new ColobusError(
      "usage",
      `${taken} exists already`,
      "Give --renew to replace what is in it, or name another host.",
    );
  }
  try {
    makeDirectory(directory);
    const caMade = !existsSync(join(directory, CA_KEY));
    if (caMade) await makeAuthority(options);
    const made = [];
    for (const holder of holders) made.push(await makeFor(holder, options));
    return { caCert: join(directory, CA_CERT), caMade, made };
  } catch (error) {
    if (error instanceof ColobusError) throw error;
    const why = error instanceof Error ? error.message : String(error);
    throw new ColobusError("io-error", `the certificates cannot be made: ${why}`, `Check ${directory}.`, {
      cause: error,
    });
  }
}

async function makeAuthority(options: MakeCertificatesOptions): Promise<void> {
  const { directory } = options;
  const [key, cert] = [join(directory, CA_KEY), join(directory, CA_CERT)];
  const extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"];
  await sign({ subject: "Colobus CA", extensions, days: CA_DAYS, key: `${key}.new`, cert, signer: [] }, options);
  renameSync(`${key}.new`, key); // last: with the key the authority is there
}

async function makeFor(
  { kind, names }: CertificateHolder,
  options: MakeCertificatesOptions,
): Promise<MadeCertificates["made"][number]> {
  const [name] = names;
  const directory = join(options.directory, directoryNameOf(name));
  makeDirectory(directory);
  const usage = kind === "host" ? "serverAuth,clientAuth" : "clientAuth";
  const extensions = [
    "basicConstraints=critical,CA:FALSE",
    "keyUsage=critical,digitalSignature",
    `extendedKeyUsage=${usage}`,
    `subjectAltName=${names.map((one) => `${isIP(one) === 0 ? "DNS" : "IP"}:${one}`).join(",")}`,
  ];
  const signer = ["-CA", join(options.directory, CA_CERT), "-CAkey", join(options.directory, CA_KEY)];
  const [key, cert] = [join(directory, "new-key.pem"), join(directory, "new-cert.pem")];
  await sign({ subject: name, extensions, days: options.days, key, cert, signer }, options);
  copyFileSync(join(options.directory, CA_CERT), join(directory, CA_CERT));
  for (const role of kind === "host" ? ["client", "server"] : ["client"]) {
    place(key, join(directory, `${role}-key.pem`), 0o600);
    place(cert, join(directory, `${role}-cert.pem`), 0o644);
  }
  rmSync(key);
  rmSync(cert);
  return { kind, name, directory };
}

/** Puts a copy in place at once: who reads meanwhile sees the old file or the new one. */
function place(from: string, to: string, mode: number): void {
  copyFileSync(from, `${to}.new`);
  chmodSync(`${to}.new`, mode);
  renameSync(`${to}.new`, to);
}

interface Signing {
  readonly subject: string;
  readonly extensions: readonly string[];
  readonly days: number;
  readonly key: string;
  readonly cert: string;
  /** Who signs; nobody: the certificate itself. */
  readonly signer: readonly string[];
}

/** Makes a key and its certificate. openssl's own configuration has no say in it. */
async function sign(signing: Signing, options: MakeCertificatesOptions): Promise<void> {
  const { subject, extensions, days, key, cert, signer } = signing;
  const config = [
    "[req]",
    "distinguished_name=subject",
    "x509_extensions=extensions",
    "prompt=no",
    "[subject]",
    `CN=${subject}`,
    "[extensions]",
    "subjectKeyIdentifier=hash",
    ...(signer.length === 0 ? [] : ["authorityKeyIdentifier=keyid"]),
    ...extensions,
    "",
  ].join("\n");
  const made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert];
  const configPath = `${cert}.conf`;
  writeFileSync(configPath, config);
  try {
    await openssl(["req", "-x509", "-config", configPath, "-days", String(days), ...made, ...signer], options);
  } finally {
    rmSync(configPath);
  }
  chmodSync(key, 0o600);
}

function openssl(args: readonly string[], options: MakeCertificatesOptions): Promise<void> {
  const { timeoutMs, signal } = options;
  return new Promise((resolve, reject) => {
    // What is written before its mode is set must not be open to others either.
    withUmask(0o077, () =>
      execFile("openssl", [...args], { timeout: timeoutMs, signal }, (error, _out, stderr) => {
        if (error === null) resolve();
        else reject(opensslError(error, stderr));
      }),
    );
  });
}

function opensslError(error: Error & { code?: unknown; killed?: boolean }, stderr: string): ColobusError {
  if (error.code === "ENOENT") {
    return new ColobusError(
      "not-supported",
      "certificates are made by the program openssl, which is not installed",
      "Install it (Debian and others: the package `openssl`), or bring certificates of your own authority.",
      { cause: error },
    );
  }
  if (error.killed === true || error.name === "AbortError") {
    return new ColobusError("timed-out", "openssl has not finished in time", "Try again with a longer --timeout.");
  }
  const [said = error.message] = stderr.split("\n").filter((line) => /error|unable/i.test(line));
  return new ColobusError("io-error", `openssl has failed: ${said}`, "Check the directory and the free space.", {
    cause: error,
  });
}

function directoryNameOf(name: string): string {
  return name.replaceAll(":", "-").replaceAll("*", "any");
}

function assertName(name: string): void {
  if (NAME.test(name) || isIP(name) !== 0) return;
  throw new ColobusError(
    "usage",
    `${JSON.stringify(name)} is neither a host name nor an address`,
    "Write letters, digits, and `.`, `_`, `-`, at most 63 of them; or an IP address.",
  );
}
