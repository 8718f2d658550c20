/** Certificates for tests, made by the program's own command where it can, and by openssl where they must be wrong. */
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { makeCertificates, type CertificateHolder } from "../../shared/host/make-certificates.ts";

const HERE = ["localhost", "127.0.0.1", "::1"];

/** The files that an agent or client is given. */
export interface CertificateFiles {
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
}

/** Makes an authority in `directory`, or takes the one there, and certificates for this machine, one for each name. */
export async function makeHosts(directory: string, ...hosts: readonly string[]): Promise<CertificateFiles[]> {
  const holders = hosts.map((name): CertificateHolder => ({ kind: "host", names: [name, ...HERE] }));
  await certify(directory, holders);
  return hosts.map((name) => filesOf(join(directory, name)));
}

/** The certificate of a host that is not this machine. */
export async function makeForeignHost(directory: string, name: string): Promise<CertificateFiles> {
  await certify(directory, [{ kind: "host", names: [name] }]);
  return filesOf(join(directory, name));
}

/** A certificate for a client only. */
export async function makeClient(directory: string, name: string): Promise<CertificateFiles> {
  await certify(directory, [{ kind: "client", names: [name] }]);
  const at = join(directory, name);
  return { cert: join(at, "client-cert.pem"), key: join(at, "client-key.pem"), ca: join(at, "ca-cert.pem") };
}

/** New certificates of the same names under the same authority. */
export async function renewHosts(directory: string, ...hosts: readonly string[]): Promise<void> {
  const holders = hosts.map((name): CertificateHolder => ({ kind: "host", names: [name, ...HERE] }));
  await certify(directory, holders, true);
}

/** A certificate of the authority in `directory` that has expired a day ago. */
export function makeExpired(directory: string, name: string): CertificateFiles {
  const at = join(directory, name);
  mkdirSync(at);
  const [cert, key, request] = [join(at, "server-cert.pem"), join(at, "server-key.pem"), join(at, "request.pem")];
  const san = HERE.map((one) => `${one === "localhost" ? "DNS" : "IP"}:${one}`).join(",");
  const subject = ["-subj", `/CN=${name}`, "-addext", `subjectAltName=${san}`];
  openssl(
    "req",
    "-new",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-keyout",
    key,
    "-out",
    request,
    ...subject,
  );
  const authority = ["-CA", join(directory, "ca-cert.pem"), "-CAkey", join(directory, "ca-key.pem")];
  openssl("x509", "-req", "-in", request, ...authority, "-days", "-1", "-copy_extensions", "copyall", "-out", cert);
  copyFileSync(join(directory, "ca-cert.pem"), join(at, "ca-cert.pem"));
  return filesOf(at);
}

/** The flags with which an agent uses the files. */
export function tlsFlags({ cert, key, ca }: CertificateFiles): string[] {
  return ["--tls-cert", cert, "--tls-key", key, "--tls-ca", ca];
}

function filesOf(at: string): CertificateFiles {
  return { cert: join(at, "server-cert.pem"), key: join(at, "server-key.pem"), ca: join(at, "ca-cert.pem") };
}

async function certify(directory: string, holders: readonly CertificateHolder[], renew = false): Promise<void> {
  const signal = new AbortController().signal;
  await makeCertificates({ directory, holders, days: 30, renew, timeoutMs: 30_000, signal });
}

function openssl(...args: string[]): void {
  const done = spawnSync("openssl", args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`openssl ${args.join(" ")}: ${done.stderr}`);
}
