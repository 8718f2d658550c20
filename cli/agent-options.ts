/** The flags of `colobus primary` and `colobus secondary`, the same keys in the configuration file, and their defaults. */
import type { Argv } from "yargs";
import { z } from "zod";
import { ColobusError } from "../proto/errors.ts";
import {
  BUFFER_MEMORY_DEFAULT_BYTES,
  CLUSTER_DEFAULT_BYTES,
  COMMAND_TIMEOUT_DEFAULT_MS,
  FENCE_TIMEOUT_DEFAULT_MS,
  LEASE_TTL_DEFAULT_MS,
  PEER_TIMEOUT_DEFAULT_MS,
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
  type Role,
} from "../proto/words.ts";
import { givenOnce, outputFlags, type OutputFlags } from "./agent-flags.ts";
import { agentKeysSchema, type AgentKey, type AgentKeys } from "./agent-keys.ts";
import { formatBytes, formatDuration } from "./quantities.ts";
import { quorumFlags, quorumOptionsShape } from "./quorum-options.ts";
import { NBD_TLS } from "./tls-options.ts";

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
    .option("adopt-image", flag("As primary: take images other than recorded, or changed meanwhile, as they are"))
    .option(
      "secondary-export",
      word(SECONDARY_EXPORTS, "As secondary: access to the committed view before a failover (read-only)"),
    )
    .option("insecure", flag("Allow unencrypted links beyond this machine"))
    .option("log-level", word(LOG_LEVELS, "Least severe lines to log (info)"));
  const isOfRole = (key: AgentKey): boolean => role === "Primary" || !(key in quorumOptionsShape);
  for (const [title, keys] of Object.entries(GROUPS)) {
    const own = keys.filter(isOfRole);
    if (own.length > 0) shared.group(own, title);
  }
  return role === "Primary"
    ? quorumFlags(shared)
        .option("assume-in-sync", flag("The images are identical as of this start: skip the first sync"))
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
