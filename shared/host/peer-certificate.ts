/** What a TLS connection says of the other end, and in which words it is refused. */
import type { X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import type { TLSSocket } from "node:tls";
import { ColobusError } from "../../proto/errors.ts";

/** Who the other end of a connection has proved to be, by a certificate that is believed. */
export interface PeerIdentity {
  /** Stays the same when the certificate is renewed: the subject; where that names nobody, with the alternative names. */
  readonly subject: string;
  /** The configuration names it, so it may come in the place of another one. */
  readonly isNamed: boolean;
}

const UNKNOWN_AUTHORITY = "is not signed by the certificate authority that is configured here";
const FAULTS: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "has expired",
  CERT_NOT_YET_VALID: "is not valid yet",
  CERT_REVOKED: "was revoked",
  INVALID_PURPOSE: "is not made for this end of a connection",
  ERR_TLS_CERT_ALTNAME_INVALID: "is of another host",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: UNKNOWN_AUTHORITY,
  UNABLE_TO_GET_ISSUER_CERT: UNKNOWN_AUTHORITY,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: UNKNOWN_AUTHORITY,
  SELF_SIGNED_CERT_IN_CHAIN: UNKNOWN_AUTHORITY,
  DEPTH_ZERO_SELF_SIGNED_CERT: UNKNOWN_AUTHORITY,
  CERT_SIGNATURE_FAILURE: UNKNOWN_AUTHORITY,
  CERT_UNTRUSTED: UNKNOWN_AUTHORITY,
};

/** What is wrong with a certificate, for Node's error code; undefined when the code is not about a certificate. */
export function certificateFault(code: string | undefined): string | undefined {
  return code === undefined ? undefined : FAULTS[code];
}

/** Whose certificates a server takes. */
export interface ClientRules {
  /** A client without a certificate is refused. */
  readonly requiresCertificate: boolean;
  /** Subjects or host names, of which a certificate must have one; none: any of the authority will do. */
  readonly names: readonly string[];
}

/**
 * Who the client of a server's connection is; undefined for one that shows no certificate, and need not. The server asked
 * for one and left the judgement to this. Errors: `auth-failed`.
 */
export function admitClient(socket: TLSSocket, rules: ClientRules): PeerIdentity | undefined {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) {
    if (!rules.requiresCertificate) return undefined;
    throw new ColobusError(
      "auth-failed",
      "the client shows no certificate",
      "Give it one of the same authority: --tls-cert and --tls-key.",
    );
  }
  if (!socket.authorized) {
    const code = String(socket.authorizationError);
    throw new ColobusError(
      "auth-failed",
      `the client's certificate ${certificateFault(code) ?? `is not accepted (${code})`}`,
      "Give it a valid one of the same authority; see --tls-ca on both sides.",
    );
  }
  return identify(certificate, rules.names);
}

/** Who the other end is whose certificate was found to be sound. Errors: `auth-failed` when `names` has none of its names. */
export function identify(certificate: X509Certificate, names: readonly string[]): PeerIdentity {
  const subject = certificate.subject === undefined ? "" : certificate.subject.split("\n").join(", ");
  const commonName = /(?:^|, )CN=([^,]+)/.exec(subject)?.[1];
  const isNamed = names.some((name) => name === commonName || isNameOf(certificate, name));
  if (names.length > 0 && !isNamed) {
    throw new ColobusError(
      "auth-failed",
      "the certificate is of none of those whom this agent takes as its peer",
      "Name the peer with --tls-peer, or connect the right host.",
    );
  }
  if (commonName !== undefined) return { subject, isNamed };
  return { subject: [subject, certificate.subjectAltName ?? ""].filter((part) => part !== "").join(", "), isNamed };
}

function isNameOf(certificate: X509Certificate, name: string): boolean {
  if (isIP(name) !== 0) return certificate.checkIP(name) !== undefined;
  return certificate.checkHost(name, { subject: "never" }) !== undefined;
}
