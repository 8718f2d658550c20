/** The flags about an arbiter, and what they exclude. */
import { ColobusError } from "../proto/errors.ts";
import { LEASE_TTL_MIN_MS } from "../proto/limits.ts";
import type { FailoverKind } from "../proto/words.ts";
import { formatDuration, parseDuration } from "./quantities.ts";

export interface ArbiterOptions {
  readonly "arbiter"?: readonly string[] | undefined;
  readonly "arbiter-ttl"?: string | undefined;
  readonly "failover"?: FailoverKind | undefined;
}

/** The URLs of the arbiter's members. Errors: `usage`. */
export function parseArbiters(options: ArbiterOptions): string[] {
  const urls = options.arbiter ?? [];
  for (const url of urls) {
    if (URL.canParse(url) && ["http:", "https:"].includes(new URL(url).protocol)) continue;
    throw new ColobusError(
      "usage",
      `--arbiter ${JSON.stringify(url)} is not possible`,
      "Write the client URL of an etcd member, such as http://127.0.0.1:2379.",
    );
  }
  if (urls.length > 0) return [...urls];
  if (options.failover === "automatic") {
    throw new ColobusError(
      "usage",
      "--failover automatic needs --arbiter",
      "Two agents alone cannot tell a dead peer from a lost network: give both an etcd that they can reach.",
    );
  }
  if (options["arbiter-ttl"] !== undefined) {
    throw new ColobusError("usage", "--arbiter-ttl goes with --arbiter", "Leave it out, or name the arbiter.");
  }
  return [];
}

/** undefined: the default. Errors: `usage`. */
export function parseArbiterTtl(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const ms = parseDuration(text, "--arbiter-ttl");
  if (ms >= LEASE_TTL_MIN_MS && Number.isInteger(ms / 1000)) return ms;
  throw new ColobusError(
    "usage",
    `--arbiter-ttl ${JSON.stringify(text)} is not possible`,
    `It is a number of whole seconds, at least ${formatDuration(LEASE_TTL_MIN_MS)}.`,
  );
}
