import { resolve } from "node:path";
import {
  CLUSTER_DEFAULT_BYTES,
  COMMAND_TIMEOUT_DEFAULT_MS,
  DISKS_MAX,
  EXTENT_BYTES,
  FENCE_TIMEOUT_DEFAULT_MS,
  OVERLAY_LIMIT_MIN_BYTES,
  PEER_TIMEOUT_DEFAULT_MS,
  RETAINED_MAX,
  SETTLE_EVERY_MS,
  WINDOW_DEFAULT_BYTES,
} from "../proto/limits.ts";
import type { Role } from "../proto/words.ts";
import { clusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { AgentKeys } from "./agent-keys.ts";
import { parseArbiterAccess, parseArbiters, parseArbiterTtl } from "./arbiter-options.ts";
import { ACK_BY_MODE, refuseContradictions } from "./contradictions.ts";
import { impossible, missing } from "./flag-errors.ts";
import type { Hook } from "./hook.ts";
import { parseNamedImage } from "./named-image.ts";
import type { HostPort, ProcessConfig } from "./process-config.ts";
import { formatBytes, parseDuration, parseJobSpeed, parseSize } from "./quantities.ts";
import { parseQuorum } from "./quorum-options.ts";
import { parseSecondaries } from "./secondaries-options.ts";
import { parseNbdTls, parseTls } from "./tls-options.ts";

/** Names of disks become names of directories and exports. */
const DISK_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$/;
const VM_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
/** The window must hold at least a few of the largest messages. */
const WINDOW_MIN_BYTES = 4 * 1024 * 1024;

/** What an agent is started with, checked. Errors: `usage`, naming the flag. */
export function processConfigOf(
  options: AgentKeys,
  role: Role,
  env: Readonly<Record<string, string | undefined>>,
): ProcessConfig {
  refuseContradictions(options);
  const vm = options.vm ?? "vm";
  if (!VM_NAME.test(vm)) throw impossible("--vm", vm, "Use letters, digits, and `.`, `_`, `-`.");
  const run = options.run ?? env.COLOBUS_RUN;
  if (run === undefined || run === "") throw missing("--run DIR", "The directory gets the agent's sockets.");
  if (options.state === undefined)
    throw missing("--state DIR", "The directory keeps the agent's records and overlays.");
  const disks = parseDisks(options.disk ?? []);
  const peers = (options.peer ?? []).map(parsePeer);
  if (peers.length === 0 && options.listen === undefined) {
    throw role === "Primary"
      ? missing("--peer WS_URL", "It names the secondary agent; or --listen HOST:PORT, where that connects.")
      : missing("--listen HOST:PORT", "It is where the primary connects; or --peer WS_URL, where the primary listens.");
  }
  const tls = parseTls(options, options["token-file"] !== undefined);
  return {
    agent: {
      role,
      vm,
      mode: options.mode ?? "colo",
      stateDirectory: resolve(options.state),
      disks,
      ...(role === "Primary" ? parseQuorum(options, disks, options.mode) : {}),
      peers,
      ...parseSecondaries(options, role),
      ack: options.ack ?? ACK_BY_MODE[options.mode ?? "colo"],
      durability: options.durability ?? "power",
      peerTimeoutMs: positive(
        parseDuration(options["peer-timeout"] ?? `${PEER_TIMEOUT_DEFAULT_MS}ms`, "--peer-timeout"),
        "--peer-timeout",
      ),
      onPeerLoss: options["on-peer-loss"] ?? (options.mode === "shared" ? "freeze" : "continue"),
      onCongestion: options["on-congestion"] ?? "throttle",
      resyncSpeed: parseJobSpeed(options["resync-speed"] ?? "dynamic", "--resync-speed"),
      windowBytes: parseWindow(options.window),
      clusterBytes: parseClusterSize(options["cluster-size"]),
      extentBytes: EXTENT_BYTES,
      settleEveryMs: SETTLE_EVERY_MS,
      secondaryExport: options["secondary-export"] ?? "read-only",
      retain: parseRetain(options.retain),
      overlayLimitBytes: parseOverlayLimit(options["overlay-limit"]),
      ...(options["buffer-memory"] === undefined
        ? {}
        : { bufferMemoryBytes: parseSize(options["buffer-memory"], "--buffer-memory") }),
      ...(options["shared-mark"] === undefined ? {} : { sharedMark: resolve(options["shared-mark"]) }),
      createImages: options.create ?? false,
      assumeInSync: options["assume-in-sync"] ?? false,
      adoptImages: options["adopt-image"] ?? false,
      checkpointEveryMs: optionalDuration(options["checkpoint-every"], "--checkpoint-every"),
      maxCheckpointAgeMs: optionalDuration(options["max-checkpoint-age"], "--max-checkpoint-age"),
      failover: options.failover ?? "manual",
      arbiterTtlMs: parseArbiterTtl(options["arbiter-ttl"]),
    },
    arbiters: parseArbiters(options),
    arbiterAccess: parseArbiterAccess(options),
    runDirectory: resolve(run),
    listen: options.listen === undefined ? undefined : parseHostPort(options.listen, "--listen"),
    nbdListen: options["nbd-listen"] === undefined ? undefined : parseHostPort(options["nbd-listen"], "--nbd-listen"),
    tokenFile: options["token-file"],
    tls,
    ...parseNbdTls(options, tls),
    control: parseControl(options),
    fence: parseHook(options, { flag: "fence-peer", timeout: "fence-timeout", defaultMs: FENCE_TIMEOUT_DEFAULT_MS }),
    onFailover: parseHook(options, {
      flag: "on-failover",
      timeout: "on-failover-timeout",
      defaultMs: COMMAND_TIMEOUT_DEFAULT_MS,
    }),
    insecure: options.insecure ?? false,
    logLevel: options["log-level"] ?? "info",
  };
}
function parseDisks(texts: readonly string[]): { name: string; image: string }[] {
  if (texts.length === 0) throw missing("--disk NAME=IMAGE", "Give one for each disk of the VM.");
  if (texts.length > DISKS_MAX)
    throw impossible("--disk", `${texts.length} times`, `A VM has at most ${DISKS_MAX} disks.`);
  const disks = texts.map((text) => {
    const disk = parseNamedImage("--disk", text, "vda=/var/lib/images/web.img");
    if (DISK_NAME.test(disk.name)) return disk;
    throw impossible(
      "--disk",
      text,
      "Name it with letters, digits, and `.`, `_`, `-`: at most 64, the first a letter, a digit or `_`.",
    );
  });
  for (const key of ["name", "image"] as const) {
    const values = disks.map((disk) => disk[key]);
    const twice = values.find((value, index) => values.indexOf(value) !== index);
    if (twice !== undefined) throw impossible("--disk", twice, `Two disks have the same ${key}.`);
  }
  return disks;
}

function parsePeer(text: string): string {
  if (URL.canParse(text) && ["ws:", "wss:"].includes(new URL(text).protocol)) return text;
  throw impossible("--peer", text, "Write wss://HOST:PORT, or ws://HOST:PORT without TLS.");
}

function parseHostPort(text: string, flag: string): HostPort {
  const match = /^(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d{1,5})$/.exec(text);
  const port = Number(match?.[2]);
  if (match?.[1] === undefined || port > 65_535)
    throw impossible(flag, text, "Write HOST:PORT, such as 127.0.0.1:7000.");
  return { host: match[1].replace(/^\[|\]$/g, ""), port };
}

function parseControl(options: AgentKeys): ProcessConfig["control"] {
  const { "control-listen": listen, "control-token-file": tokenFile } = options;
  if (listen === undefined || listen === "off") return undefined;
  const address = parseHostPort(listen, "--control-listen");
  if (options["tls-cert"] === undefined) {
    throw missing("--tls-cert FILE", "The control API is served over TCP only with TLS.");
  }
  if (tokenFile === undefined) {
    throw missing("--control-token-file FILE", "The control API is served over TCP only to who knows a token.");
  }
  return { address, tokenFile };
}

function parseWindow(text: string | undefined): number {
  if (text === undefined) return WINDOW_DEFAULT_BYTES;
  const bytes = parseSize(text, "--window");
  if (bytes < WINDOW_MIN_BYTES) throw impossible("--window", text, `It has at least ${formatBytes(WINDOW_MIN_BYTES)}.`);
  return bytes;
}

function parseClusterSize(text: string | undefined): number {
  if (text === undefined) return CLUSTER_DEFAULT_BYTES;
  const bytes = parseSize(text, "--cluster-size");
  clusterGeometry(bytes, bytes); // throws what is wrong with it
  return bytes;
}

function parseRetain(text: string | undefined): number {
  const count = text === undefined ? 0 : /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (count <= RETAINED_MAX) return count;
  throw impossible("--retain", text ?? "", `Write a number from 0 to ${RETAINED_MAX}.`);
}

function parseOverlayLimit(text: string | undefined): number | undefined {
  if (text === undefined || text === "none") return undefined;
  const bytes = parseSize(text, "--overlay-limit");
  if (bytes >= OVERLAY_LIMIT_MIN_BYTES) return bytes;
  throw impossible("--overlay-limit", text, `It has at least ${formatBytes(OVERLAY_LIMIT_MIN_BYTES)}, or is "none".`);
}

function parseHook(
  options: AgentKeys,
  names: {
    readonly flag: "fence-peer" | "on-failover";
    readonly timeout: "fence-timeout" | "on-failover-timeout";
    readonly defaultMs: number;
  },
): Hook | undefined {
  const command = options[names.flag];
  const timeout = options[names.timeout];
  const flag = `--${names.timeout}`;
  if (command === undefined) {
    if (timeout !== undefined) throw impossible(flag, timeout, `It goes with --${names.flag}.`);
    return undefined;
  }
  const timeoutMs = timeout === undefined ? names.defaultMs : positive(parseDuration(timeout, flag), flag);
  return { command, timeoutMs };
}

function optionalDuration(text: string | undefined, flag: string): number | undefined {
  if (text === undefined || text === "off") return undefined;
  return positive(parseDuration(text, flag), flag);
}

function positive(ms: number, flag: string): number {
  if (ms > 0) return ms;
  throw impossible(flag, "0", "It must be longer than nothing.");
}
