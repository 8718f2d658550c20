/** The flags of `colobus primary` and `colobus secondary`, the same keys in the configuration file, and their defaults. */
import { resolve } from "node:path";
import type { Argv } from "yargs";
import { z } from "zod";
import { ColobusError } from "../proto/errors.ts";
import {
  BUFFER_MEMORY_DEFAULT_BYTES,
  CLUSTER_DEFAULT_BYTES,
  COMMAND_TIMEOUT_DEFAULT_MS,
  DISKS_MAX,
  EXTENT_BYTES,
  FENCE_TIMEOUT_DEFAULT_MS,
  LEASE_TTL_DEFAULT_MS,
  OVERLAY_LIMIT_MIN_BYTES,
  PEER_TIMEOUT_DEFAULT_MS,
  RETAINED_MAX,
  SETTLE_EVERY_MS,
  WINDOW_DEFAULT_BYTES,
} from "../proto/limits.ts";
import {
  ACK_POLICIES,
  CONGESTION_POLICIES,
  DURABILITIES,
  FAILOVER_KINDS,
  LOG_LEVELS,
  MODES,
  PEER_LOSS_POLICIES,
  SECONDARY_EXPORTS,
  type AckPolicy,
  type Mode,
  type Role,
} from "../proto/words.ts";
import { clusterGeometry } from "../shared/block/cluster-geometry.ts";
import { formatImageLocation, parseImageLocation, type ImageLocation } from "../shared/block/image-location.ts";
import { givenOnce, outputFlags, type OutputFlags } from "./agent-flags.ts";
import { agentKeysSchema, type AgentKey, type AgentKeys } from "./agent-keys.ts";
import type { HostPort, ProcessConfig } from "./process-config.ts";
import type { Hook } from "./hook.ts";
import { NBD_TLS, parseNbdTls, parseTls } from "./tls-options.ts";
import { parseSecondaries } from "./secondaries-options.ts";
import { parseArbiterAccess, parseArbiters, parseArbiterTtl } from "./arbiter-options.ts";
import { parseQuorum, quorumFlags, quorumOptionsShape } from "./quorum-options.ts";
import { formatBytes, formatDuration, parseDuration, parseJobSpeed, parseSize } from "./quantities.ts";

/** Names of disks become names of directories and exports. */
const DISK_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$/;
const VM_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
/** The window must hold at least a few of the largest messages. */
const WINDOW_MIN_BYTES = 4 * 1024 * 1024;

/** How help lists the flags; what is not here comes first. */
const GROUPS: Readonly<Record<string, readonly AgentKey[]>> = {
  "Link to the peer:": [
    ...(["peer", "listen", "secondaries", "token-file", "tls-cert", "tls-key", "tls-ca", "tls-peer"] as const),
    ...(["insecure", "peer-timeout", "window", "on-peer-loss", "on-congestion", "resync-speed"] as const),
  ],
  "Checkpoints:": [
    ...(["checkpoint-every", "max-checkpoint-age", "retain", "overlay-limit", "buffer-memory"] as const),
    ...(["cluster-size", "secondary-export"] as const),
  ],
  "Failover:": [
    ...(["fence-peer", "fence-timeout", "on-failover", "on-failover-timeout", "shared-mark", "failover"] as const),
    ...([
      "arbiter",
      "arbiter-ttl",
      "arbiter-user-file",
      "arbiter-tls-ca",
      "arbiter-tls-cert",
      "arbiter-tls-key",
    ] as const),
  ],
  "Several copies on this host:": [
    "child",
    "child-timeout",
    "vote-threshold",
    "read-pattern",
    "rewrite-corrupted",
    "blkverify",
  ],
  "Clients over TCP:": ["nbd-listen", "nbd-tls", "control-listen", "control-token-file"],
};

export interface AgentArguments {
  readonly config: string | undefined;
  readonly [flag: string]: unknown;
}

export function agentOptions(yargs: Argv, role: Role): Argv<AgentArguments & OutputFlags> {
  const text = (describe: string) => ({ type: "string", requiresArg: true, describe }) as const;
  const many = (describe: string) => ({ ...text(describe), array: true }) as const;
  const word = (choices: readonly string[], describe: string) => ({ ...text(describe), choices }) as const;
  const flag = (describe: string) => ({ type: "boolean", describe }) as const;
  const shared = outputFlags(yargs)
    .option("config", text("YAML file with the same keys as these flags; flags win"))
    .option("vm", text("Name of the VM (vm)"))
    .option("run", text("Directory for control.sock and nbd.sock (COLOBUS_RUN)"))
    .option("state", text("Directory for the agent's records and overlays"))
    .option("disk", many("A disk as NAME=IMAGE: a path, FORMAT:PATH (qcow2: …) or nbd:// URI; repeat it for each"))
    .option(
      "mode",
      word(
        MODES,
        "colo: checkpoints, by originals that the secondary keeps; mc: by a log there, for many in a second; shared: one disk for both hosts; mirror: no checkpoints, every write on both (colo)",
      ),
    )
    .option(
      "durability",
      word(DURABILITIES, "What a stable write survives: the end of the agent, or a loss of power too (power)"),
    )
    .option(
      "peer-timeout",
      text(`Silence after which the peer is given up (${formatDuration(PEER_TIMEOUT_DEFAULT_MS)})`),
    )
    .option(
      "cluster-size",
      text(`Unit of copy-before-write (${formatBytes(CLUSTER_DEFAULT_BYTES)}); the same on both sides`),
    )
    .option(
      "peer",
      many("URL of the peer that this agent dials: wss://HOST:PORT, or ws:// without TLS; a primary's: one for each"),
    )
    .option("secondaries", text("How many secondaries this agent may have as a primary (as many as --peer)"))
    .option("listen", text("HOST:PORT where the peer connects"))
    .option(
      "ack",
      word(
        ACK_POLICIES,
        "What a guest's write waits for while this side is Primary: nothing of the secondary; that it has it; that it is stable there (async; applied in mode mirror)",
      ),
    )
    .option("window", text(`Bytes under way to the secondary at most (${formatBytes(WINDOW_DEFAULT_BYTES)})`))
    .option("checkpoint-every", text("Take a checkpoint of the disks by itself this often (off)"))
    .option("max-checkpoint-age", text("Older checkpoints count as no protection (off)"))
    .option("on-peer-loss", word(PEER_LOSS_POLICIES, "What guests' writes do without the secondary (continue)"))
    .option(
      "shared-mark",
      text("Mode shared: a file beside the shared disk, on both hosts, that says whether the checkpoint stands"),
    )
    .option("fence-peer", text("Command that runs before a failover here, and makes sure that the peer serves no more"))
    .option("fence-timeout", text(`How long that command may take (${formatDuration(FENCE_TIMEOUT_DEFAULT_MS)})`))
    .option("on-failover", text("Command that starts the VM here, once a failover has made this side Primary"))
    .option(
      "on-failover-timeout",
      text(`How long that command may take (${formatDuration(COMMAND_TIMEOUT_DEFAULT_MS)})`),
    )
    .option("arbiter", many("URL of an etcd member that decides which agent serves; repeat it for each"))
    .option(
      "arbiter-ttl",
      text(
        `How long a lease lasts that is not renewed (${formatDuration(LEASE_TTL_DEFAULT_MS)}); the same on both sides`,
      ),
    )
    .option("arbiter-user-file", text("File with NAME:PASSWORD of the user that etcd knows this agent as"))
    .option("arbiter-tls-ca", text("Certificate authority of https:// members (those that Node knows)"))
    .option("arbiter-tls-cert", text("Certificate that this side shows to https:// members"))
    .option("arbiter-tls-key", text("Key of that certificate"))
    .option("failover", word(FAILOVER_KINDS, "Whether a secondary takes over by itself, with --arbiter (manual)"))
    .option(
      "on-congestion",
      word(CONGESTION_POLICIES, "What guests' writes do when the secondary is too slow (throttle)"),
    )
    .option(
      "resync-speed",
      text("Bytes per second for syncs and merges; 0: no limit; dynamic: yield to guests (dynamic)"),
    )
    .option(
      "overlay-limit",
      text("Bytes that a secondary's overlays may take together (none: the file system's limit)"),
    )
    .option(
      "buffer-memory",
      text(`Mode mc: what a secondary holds in memory beside its logs (${formatBytes(BUFFER_MEMORY_DEFAULT_BYTES)})`),
    )
    .option("retain", text("Committed checkpoints that a secondary keeps beside the last one (0)"))
    .option("control-listen", text("Serve the control API on this HOST:PORT as well, with TLS and a token (off)"))
    .option("control-token-file", text("File with the token that clients of --control-listen must know"))
    .option("nbd-listen", text("Serve the exports on this HOST:PORT as well"))
    .option(
      "nbd-tls",
      word(
        NBD_TLS,
        "TLS of clients there, with a certificate or key (required, where --tls-ca or --nbd-psk-file is given)",
      ),
    )
    .option(
      "nbd-psk-file",
      text("File with the pre-shared keys of clients there, in place of certificates: USER:KEY lines"),
    )
    .option("token-file", text("File with the pre-shared token that both agents hold"))
    .option("tls-cert", text("This agent's certificate (PEM): --listen speaks TLS then, and a wss:// peer is shown it"))
    .option("tls-key", text("The key of that certificate"))
    .option("tls-ca", text("Certificate authority whose certificates are believed"))
    .option("tls-peer", many("Name that the peer's certificate must have; repeat it for each (whom it first met)"))
    .option("insecure", flag("Allow unencrypted links beyond this machine"))
    .option("log-level", word(LOG_LEVELS, "Least severe lines to log (info)"));
  const isOfRole = (key: AgentKey): boolean =>
    role === "Primary" ? key !== "secondary-export" : !(key in quorumOptionsShape);
  for (const [title, keys] of Object.entries(GROUPS)) {
    const own = keys.filter(isOfRole);
    if (own.length > 0) shared.group(own, title);
  }
  return role === "Primary"
    ? quorumFlags(shared)
        .option("assume-in-sync", flag("The images are identical already: skip the first sync"))
        .option("adopt-image", flag("Take images other than recorded, or changed meanwhile, as they are"))
        .example(
          "$0 primary --run /run/colobus/web --state /var/lib/colobus/web --disk vda=/vm/web.img --peer ws://127.0.0.1:7000",
          "Serve an image, and copy it to a secondary on the same machine",
        )
        .example(
          "$0 primary --config /etc/colobus/web.yaml",
          "The same from a file: colobus config check tells what is wrong with it",
        )
    : shared
        .option("create", flag("Make missing images at the primary's size"))
        .option(
          "secondary-export",
          word(SECONDARY_EXPORTS, "Access to the committed view before a failover (read-only)"),
        )
        .example(
          "$0 secondary --run /run/colobus/web-2 --state /var/lib/colobus/web-2 --disk vda=/vm/web-2.img --listen 127.0.0.1:7000 --create",
          "Wait for a primary, and make the image at the size of its own",
        )
        .example(
          "$0 secondary --config /etc/colobus/web.yaml",
          "The same from a file: colobus config check tells what is wrong with it",
        );
}

/** What flags and configuration file say together; flags win. Errors: `usage`, with the place in the file. */
export async function readAgentKeys(args: AgentArguments): Promise<AgentKeys> {
  const path = givenOnce("--config", args.config);
  if (path === undefined) return givenFlags(args);
  const { readConfigFile } = await import("./config-file.ts"); // most starts have no file, and need no parser
  return { ...readConfigFile(path), ...givenFlags(args) };
}

/** What an agent is started with, checked. Errors: `usage`, naming the flag. */
export function processConfigOf(
  options: AgentKeys,
  role: Role,
  env: Readonly<Record<string, string | undefined>>,
): ProcessConfig {
  refuseContradictions(options);
  const vm = options.vm ?? "vm";
  if (!VM_NAME.test(vm)) throw invalid("--vm", vm, "Use letters, digits, and `.`, `_`, `-`.");
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

/** The flags that were given: yargs also lists its own fields, aliases and undefined ones. */
function givenFlags(args: AgentArguments): AgentKeys {
  const given = Object.fromEntries(
    Object.keys(agentKeysSchema.shape)
      .map((key) => [key, args[key]] as const)
      .filter(([, value]) => value !== undefined),
  );
  const checked = agentKeysSchema.safeParse(given);
  if (checked.success) return checked.data;
  throw new ColobusError("usage", z.prettifyError(checked.error), "Give each flag once; see --help.");
}

/** Originals are acknowledged as soon as they are stable; where there are no epochs, what guests are told is what counts. */
const ACK_BY_MODE = { colo: "async", mc: "async", shared: "applied", mirror: "applied" } as const satisfies Record<
  Mode,
  AckPolicy
>;

function refuseContradictions(options: AgentKeys): void {
  if (options.mode === "mirror") refuseOnMirror(options);
  if (options.mode === "shared") refuseOnShared(options);
  else if (options["shared-mark"] !== undefined) {
    throw invalid("--shared-mark", options["shared-mark"], "It is for --mode shared.");
  }
  if (options["buffer-memory"] !== undefined && options.mode !== "mc") {
    throw invalid("--buffer-memory", options["buffer-memory"], "It is for --mode mc.");
  }
  if (options["on-congestion"] !== "detach") return;
  const contradictions: [string, string | undefined, string][] = [
    ["--ack", options.ack ?? ACK_BY_MODE[options.mode ?? "colo"], "async"],
    ["--on-peer-loss", options["on-peer-loss"], "continue"],
  ];
  for (const [flag, value, required] of contradictions) {
    if (value === undefined || value === required) continue;
    throw new ColobusError(
      "usage",
      `--on-congestion detach and ${flag} ${value} contradict each other`,
      `Detaching lets writes go on that ${flag} ${value} has wait: leave one out.`,
    );
  }
}

/** What is about checkpoints means nothing where there are none. */
function refuseOnMirror(options: AgentKeys): void {
  const noCheckpoints = "There are no checkpoints: a failover returns the last write that is stable on the secondary.";
  const refused: [string, boolean, string][] = [
    ["--checkpoint-every", isOn(options["checkpoint-every"]), noCheckpoints],
    ["--max-checkpoint-age", isOn(options["max-checkpoint-age"]), noCheckpoints],
    ["--retain", options.retain !== undefined && options.retain !== "0", noCheckpoints],
    [
      "--secondary-export read-write",
      options["secondary-export"] === "read-write",
      "The export is the disk that the primary writes: read-only, or off.",
    ],
    ["--arbiter", options.arbiter !== undefined, "Nobody takes over by itself in this mode in this release."],
  ];
  for (const [flag, isGiven, why] of refused) {
    if (isGiven) throw new ColobusError("usage", `--mode mirror and ${flag} contradict each other`, why);
  }
}

function isOn(duration: string | undefined): boolean {
  return duration !== undefined && duration !== "off";
}

/** What is about copies of a disk means nothing where there is one disk. */
function refuseOnShared(options: AgentKeys): void {
  const refused: [string, boolean, string][] = [
    ["--ack", options.ack !== undefined, "A write waits until the secondary has the original, and for nothing else."],
    [
      "--on-peer-loss continue without --shared-mark",
      options["on-peer-loss"] === "continue" && options["shared-mark"] === undefined,
      "What is overwritten without the secondary voids its checkpoint, and the mark has to say so: give both agents a --shared-mark.",
    ],
    ["--on-congestion detach", options["on-congestion"] === "detach", "Writes wait for the secondary."],
    ["--create", options.create === true, "The shared disk is there already."],
    ["--assume-in-sync", options["assume-in-sync"] === true, "There is nothing to sync."],
    [
      "--failover automatic without --fence-peer",
      options.failover === "automatic" && options["fence-peer"] === undefined,
      "Two hosts that write one disk destroy it: name the command that powers the other one off, or cuts it off from the disk.",
    ],
    ["--adopt-image", options["adopt-image"] === true, "Start both agents with empty state directories instead."],
  ];
  for (const [flag, isGiven, why] of refused) {
    if (isGiven) throw new ColobusError("usage", `--mode shared and ${flag} contradict each other`, why);
  }
}

function parseDisks(texts: readonly string[]): { name: string; image: string }[] {
  if (texts.length === 0) throw missing("--disk NAME=IMAGE", "Give one for each disk of the VM.");
  if (texts.length > DISKS_MAX)
    throw invalid("--disk", `${texts.length} times`, `A VM has at most ${DISKS_MAX} disks.`);
  const disks = texts.map((text) => {
    const at = text.indexOf("=");
    const name = text.slice(0, at);
    const image = text.slice(at + 1);
    if (at < 0 || !DISK_NAME.test(name) || image === "") {
      throw invalid("--disk", text, "Write NAME=IMAGE, such as vda=/var/lib/images/web.img.");
    }
    const location = parseImage(text, image);
    return { name, image: formatImageLocation(location.kind === "nbd" ? location : absolute(location)) };
  });
  for (const key of ["name", "image"] as const) {
    const values = disks.map((disk) => disk[key]);
    const twice = values.find((value, index) => values.indexOf(value) !== index);
    if (twice !== undefined) throw invalid("--disk", twice, `Two disks have the same ${key}.`);
  }
  return disks;
}

function parseImage(text: string, image: string): ImageLocation {
  try {
    return parseImageLocation(image);
  } catch (error) {
    throw error instanceof ColobusError ? invalid("--disk", text, error.action) : error;
  }
}

/** A path is recorded as it is from anywhere. */
function absolute<T extends { readonly path: string }>(location: T): T {
  return { ...location, path: resolve(location.path) };
}

function parsePeer(text: string): string {
  if (URL.canParse(text) && ["ws:", "wss:"].includes(new URL(text).protocol)) return text;
  throw invalid("--peer", text, "Write wss://HOST:PORT, or ws://HOST:PORT without TLS.");
}

function parseHostPort(text: string, flag: string): HostPort {
  const match = /^(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d{1,5})$/.exec(text);
  const port = Number(match?.[2]);
  if (match?.[1] === undefined || port > 65_535) throw invalid(flag, text, "Write HOST:PORT, such as 127.0.0.1:7000.");
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
  if (bytes < WINDOW_MIN_BYTES) throw invalid("--window", text, `It has at least ${formatBytes(WINDOW_MIN_BYTES)}.`);
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
  throw invalid("--retain", text ?? "", `Write a number from 0 to ${RETAINED_MAX}.`);
}

function parseOverlayLimit(text: string | undefined): number | undefined {
  if (text === undefined || text === "none") return undefined;
  const bytes = parseSize(text, "--overlay-limit");
  if (bytes >= OVERLAY_LIMIT_MIN_BYTES) return bytes;
  throw invalid("--overlay-limit", text, `It has at least ${formatBytes(OVERLAY_LIMIT_MIN_BYTES)}, or is "none".`);
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
    if (timeout !== undefined) throw invalid(flag, timeout, `It goes with --${names.flag}.`);
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
  throw invalid(flag, "0", "It must be longer than nothing.");
}

function missing(flag: string, what: string): ColobusError {
  return new ColobusError("usage", `${flag} is missing`, `${what} See --help.`);
}

function invalid(flag: string, value: string, what: string): ColobusError {
  return new ColobusError("usage", `${flag} ${JSON.stringify(value)} is not possible`, what);
}
