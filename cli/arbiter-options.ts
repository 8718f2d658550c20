/** The flags about an arbiter, and what they exclude. */
import { ColobusError } from "../proto/errors.ts";
import { LEASE_TTL_MIN_MS } from "../proto/limits.ts";
import type { FailoverKind } from "../proto/words.ts";
import type { EtcdAccess } from "../shared/arbiter/etcd-gateway.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import { TlsFiles, type TlsPaths } from "../shared/host/tls-files.ts";
import { readLogin } from "../shared/host/token-file.ts";
import { impossible } from "./flag-errors.ts";
import { formatDuration, parseDuration } from "./quantities.ts";
import { hasLogin } from "./url-login.ts";

export interface ArbiterOptions {
  readonly "arbiter"?: readonly string[] | undefined;
  readonly "arbiter-ttl"?: string | undefined;
  readonly "arbiter-user-file"?: string | undefined;
  readonly "arbiter-tls-ca"?: string | undefined;
  readonly "arbiter-tls-cert"?: string | undefined;
  readonly "arbiter-tls-key"?: string | undefined;
  readonly "failover"?: FailoverKind | undefined;
}

const WITH_ARBITER = [
  "arbiter-ttl",
  "arbiter-user-file",
  "arbiter-tls-ca",
  "arbiter-tls-cert",
  "arbiter-tls-key",
] as const satisfies readonly (keyof ArbiterOptions)[];

/** How the arbiter is spoken to, by files that are still to be read. */
export interface ArbiterAccess {
  readonly userFile: string | undefined;
  readonly tls: TlsPaths;
}

const ARBITER_TLS_FLAGS = { cert: "--arbiter-tls-cert", key: "--arbiter-tls-key", ca: "--arbiter-tls-ca" } as const;

/** Errors: `usage`: a certificate without its key, or the other way round. */
export function parseArbiterAccess(options: ArbiterOptions): ArbiterAccess {
  const { "arbiter-tls-cert": cert, "arbiter-tls-key": key, "arbiter-tls-ca": ca } = options;
  if ((cert === undefined) !== (key === undefined)) {
    throw new ColobusError("usage", "--arbiter-tls-cert and --arbiter-tls-key go together", "Give both, or neither.");
  }
  return { userFile: options["arbiter-user-file"], tls: { cert, key, ca } };
}

/** Reads the files. Errors: `usage`, naming the flag. */
export function openArbiterAccess(
  { userFile, tls: paths }: ArbiterAccess,
  clock: Clock,
  log: Log,
): EtcdAccess & { readonly tls: TlsFiles | undefined } {
  const isPlain = paths.cert === undefined && paths.ca === undefined;
  return {
    login: userFile === undefined ? undefined : readLogin(userFile, "--arbiter-user-file"),
    tls: isPlain ? undefined : new TlsFiles({ paths, flags: ARBITER_TLS_FLAGS, clock, log }),
  };
}

/** The URLs of the arbiter's members. Errors: `usage`. */
export function parseArbiters(options: ArbiterOptions): string[] {
  const urls = options.arbiter ?? [];
  for (const url of urls) {
    if (hasLogin(url)) {
      throw new ColobusError(
        "usage",
        "a URL of --arbiter names a user",
        "Others can read a command line: put NAME:PASSWORD into a file, and name that with --arbiter-user-file.",
      );
    }
    if (URL.canParse(url) && ["http:", "https:"].includes(new URL(url).protocol)) continue;
    throw impossible("--arbiter", url, "Write the client URL of an etcd member, such as http://127.0.0.1:2379.");
  }
  if (urls.length > 0) return [...urls];
  if (options.failover === "automatic") {
    throw new ColobusError(
      "usage",
      "--failover automatic needs --arbiter",
      "Two agents alone cannot tell a dead peer from a lost network: give both an etcd that they can reach.",
    );
  }
  for (const flag of WITH_ARBITER) {
    if (options[flag] === undefined) continue;
    throw new ColobusError("usage", `--${flag} goes with --arbiter`, "Leave it out, or name the arbiter.");
  }
  return [];
}

/** undefined: the default. Errors: `usage`. */
export function parseArbiterTtl(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const ms = parseDuration(text, "--arbiter-ttl");
  if (ms >= LEASE_TTL_MIN_MS && Number.isInteger(ms / 1000)) return ms;
  throw impossible(
    "--arbiter-ttl",
    text,
    `It is a number of whole seconds, at least ${formatDuration(LEASE_TTL_MIN_MS)}.`,
  );
}
