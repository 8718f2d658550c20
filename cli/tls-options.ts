/** What the TLS flags mean together, and which of an agent's addresses may be used with them. */
import { resolve } from "node:path";
import { ColobusError } from "../proto/errors.ts";
import { parseImageLocation } from "../shared/block/image-location.ts";
import { isLoopback } from "../shared/host/loopback.ts";
import type { ProcessConfig, TlsConfig } from "./process-config.ts";
import { hasLogin } from "./url-login.ts";

interface TlsFlags {
  readonly "tls-cert"?: string | undefined;
  readonly "tls-key"?: string | undefined;
  readonly "tls-ca"?: string | undefined;
  readonly "tls-peer"?: readonly string[] | undefined;
}

/** undefined when no TLS flag is given. Errors: `usage` for flags that mean nothing together. */
export function parseTls(flags: TlsFlags, hasToken: boolean): TlsConfig | undefined {
  const { "tls-cert": cert, "tls-key": key, "tls-ca": ca, "tls-peer": peerNames = [] } = flags;
  if ((cert === undefined) !== (key === undefined)) {
    const [given, missing] = cert === undefined ? ["--tls-key", "--tls-cert"] : ["--tls-cert", "--tls-key"];
    throw new ColobusError("usage", `${given} is given without ${missing}`, "Give both, or neither.");
  }
  if (peerNames.length > 0 && ca === undefined) {
    throw new ColobusError("usage", "--tls-peer is given without --tls-ca", "Nobody vouches for the peer's names.");
  }
  if (cert === undefined && ca === undefined) return undefined;
  if (ca === undefined && !hasToken) {
    throw new ColobusError(
      "usage",
      "--tls-cert is given without --tls-ca and without --token-file",
      "The peer must prove who it is: by a certificate (--tls-ca), or by the token.",
    );
  }
  const absolute = (path: string | undefined): string | undefined => (path === undefined ? undefined : resolve(path));
  return { paths: { cert: absolute(cert), key: absolute(key), ca: absolute(ca) }, peerNames };
}

export const NBD_TLS = ["required", "offered", "off"] as const;

interface NbdTlsFlags {
  readonly "nbd-listen"?: string | undefined;
  readonly "nbd-tls"?: (typeof NBD_TLS)[number] | undefined;
  readonly "nbd-psk-file"?: string | undefined;
}

/**
 * What clients of `--nbd-listen` have to do about TLS, and by what they prove who they are: keys where there is a file of
 * them, else certificates. Errors: `usage` for flags that mean nothing together, or where there is nothing to do it with.
 */
export function parseNbdTls(
  flags: NbdTlsFlags,
  tls: TlsConfig | undefined,
): Pick<ProcessConfig, "nbdTls" | "nbdPskFile"> {
  const { "nbd-listen": listen, "nbd-tls": wanted, "nbd-psk-file": pskFile } = flags;
  if (pskFile !== undefined && listen === undefined) {
    throw new ColobusError("usage", "--nbd-psk-file is given without --nbd-listen", "It is for clients there.");
  }
  if (pskFile !== undefined && wanted === "off") {
    throw new ColobusError("usage", "--nbd-psk-file and --nbd-tls off contradict each other", "Leave one of them out.");
  }
  const isPossible = pskFile !== undefined || (tls?.paths.cert !== undefined && tls.paths.ca !== undefined);
  if (isPossible || wanted === undefined || wanted === "off") {
    return {
      nbdTls: wanted ?? (isPossible ? "required" : "off"),
      nbdPskFile: pskFile === undefined ? undefined : resolve(pskFile),
    };
  }
  throw new ColobusError(
    "usage",
    `--nbd-tls ${wanted} needs a certificate, and an authority for those of the clients; or keys of theirs`,
    "Give --tls-cert, --tls-key and --tls-ca; or --nbd-psk-file.",
  );
}

/** Why a peer's URL may not be dialled; undefined when it may. Errors of it are `usage`. */
export function dialRefusal(
  url: string,
  config: Pick<ProcessConfig, "tls" | "tokenFile" | "insecure">,
): ColobusError | undefined {
  const { protocol, hostname } = new URL(url);
  if (hasLogin(url)) {
    return new ColobusError(
      "usage",
      `the peer's URL at ${hostname} names a user`,
      "Leave that out: agents know each other by certificates, or by a --token-file.",
    );
  }
  if (protocol === "wss:") {
    const shows = config.tls?.paths.cert !== undefined && config.tls.paths.ca !== undefined;
    if (shows || config.tokenFile !== undefined) return undefined;
    return new ColobusError(
      "usage",
      `${url} needs something that proves who this agent is`,
      "Give --tls-cert, --tls-key and --tls-ca; or --token-file.",
    );
  }
  if (config.insecure || isLoopback(hostname)) return undefined;
  return new ColobusError(
    "usage",
    `${url} is not encrypted and leaves this machine`,
    "Use wss://; or keep the link within a protected network and say --insecure, together with --token-file.",
  );
}

/** Only `--insecure` lets anything unencrypted cross a network. Errors: `usage`. */
export function assertAddressesAllowed(config: ProcessConfig): void {
  for (const url of config.agent.peers) {
    const refusal = dialRefusal(url, config);
    if (refusal !== undefined) throw refusal;
  }
  if (config.insecure) return;
  const arbiter = config.arbiters.find((url) => url.startsWith("http:") && !isLoopback(new URL(url).hostname));
  if (arbiter !== undefined) {
    throw new ColobusError(
      "usage",
      `${arbiter} is not encrypted and leaves this machine`,
      "Use https://; or keep the way to the arbiter within a protected network and say --insecure.",
    );
  }
  const { disks, children = [] } = config.agent;
  for (const { image } of [...disks, ...children]) assertImageAllowed(image, config);
  for (const [flag, address, isEncrypted] of [
    ["--listen", config.listen, config.tls?.paths.cert !== undefined],
    ["--nbd-listen", config.nbdListen, config.nbdTls === "required"],
  ] as const) {
    if (address === undefined || isEncrypted || isLoopback(address.host)) continue;
    throw new ColobusError(
      "usage",
      `${flag} ${address.host}:${address.port} is open to the network and not encrypted`,
      "Listen on a loopback address, use TLS, or keep it within a protected network and say --insecure.",
    );
  }
}

/** The same, of one image. */
export function assertImageAllowed(image: string, { insecure }: Pick<ProcessConfig, "insecure">): void {
  const location = parseImageLocation(image);
  if (insecure || location.kind !== "nbd" || location.address.kind === "unix") return;
  if (isLoopback(location.address.host)) return;
  throw new ColobusError(
    "usage",
    `${image} is not encrypted and leaves this machine`,
    "Keep the way to the server within a protected network and say --insecure.",
  );
}
