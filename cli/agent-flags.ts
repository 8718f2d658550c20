/** The flags that every operator command has, and what they mean: which agent, how long, in which form. */
import { basename, dirname, join, resolve } from "node:path";
import type { Argv } from "yargs";
import { ColobusError } from "../proto/errors.ts";
import { COMMAND_TIMEOUT_DEFAULT_MS, COMMAND_TIMEOUT_MAX_MS } from "../proto/limits.ts";
import { ControlClient } from "../shared/control/api-client.ts";
import type { ControlAddress } from "../shared/control/control-exchange.ts";
import { CONTROL_SOCKET_NAME, findAgentDirectories } from "../shared/host/run-directory.ts";
import { NodeClock } from "../shared/host/node-clock.ts";
import { readBearerToken } from "../shared/host/token-file.ts";
import { TlsFiles } from "../shared/host/tls-files.ts";
import { COMMON_OPTIONS, type CommandHost } from "./command.ts";
import { formatDuration, parseDuration } from "./quantities.ts";

/** Where agents are looked for when neither --run nor COLOBUS_RUN says so. */
export const RUN_DIRECTORY_DEFAULT = "/run/colobus";

export interface OutputFlags {
  json: boolean;
}

export interface AgentFlags extends OutputFlags {
  "run": string | undefined;
  "control": string | undefined;
  "token-file": string | undefined;
  "tls-ca": string | undefined;
  "tls-cert": string | undefined;
  "tls-key": string | undefined;
  "timeout": string | undefined;
}

export function outputFlags<T>(yargs: Argv<T>): Argv<T & OutputFlags> {
  return yargs.option("json", {
    group: COMMON_OPTIONS,
    type: "boolean",
    default: false,
    describe: "Write JSON, and nothing else, to stdout",
  });
}

export function agentFlags<T>(yargs: Argv<T>): Argv<T & AgentFlags> {
  const text = (describe: string) => ({ group: COMMON_OPTIONS, type: "string", requiresArg: true, describe }) as const;
  return outputFlags(yargs)
    .option("run", text(`The agent's run directory, or one above it (COLOBUS_RUN; ${RUN_DIRECTORY_DEFAULT})`))
    .option("control", text("The agent's control API instead: unix:PATH or https://HOST:PORT"))
    .option("token-file", text("For https: file with the agent's control token (COLOBUS_TOKEN_FILE)"))
    .option("tls-ca", text("For https: certificate of the authority that signs the agent's"))
    .option("tls-cert", text("For https: certificate that the agent is shown"))
    .option("tls-key", text("For https: the key of that certificate"))
    .option("timeout", text(`How long to wait, with a unit (default ${COMMAND_TIMEOUT_DEFAULT_MS / 1000}s)`));
}

/** Milliseconds that --timeout allows. */
export function timeoutOf(flags: Pick<AgentFlags, "timeout">): number {
  const text = givenOnce("--timeout", flags.timeout);
  if (text === undefined) return COMMAND_TIMEOUT_DEFAULT_MS;
  const timeoutMs = parseDuration(text, "--timeout");
  if (timeoutMs > 0 && timeoutMs <= COMMAND_TIMEOUT_MAX_MS) return timeoutMs;
  throw new ColobusError(
    "usage",
    `--timeout ${JSON.stringify(text)} is not above 0 and at most ${formatDuration(COMMAND_TIMEOUT_MAX_MS)}.`,
    "Write a number and a unit: 500ms, 30s, 5m.",
  );
}

/** The value of a flag that may be given once: yargs makes a list of a repeated one. */
export function givenOnce(name: string, value: string | undefined): string | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== "string") throw new ColobusError("usage", `${name} is given more than once.`, "Give it once.");
  if (value === "") throw new ColobusError("usage", `${name} is empty.`, "Give it a value, or leave it out.");
  return value;
}

/** An epoch as the operator wrote it. */
export function parseEpoch(text: string): number {
  const epoch = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isSafeInteger(epoch) && epoch > 0) return epoch;
  throw new ColobusError(
    "usage",
    `EPOCH ${JSON.stringify(text)} is not the number of a checkpoint.`,
    "colobus status lists the prepared checkpoints.",
  );
}

/** The run directory that is meant: --run, else COLOBUS_RUN, else the default. */
export function runDirectoryOf(flags: Pick<AgentFlags, "run">, host: Pick<CommandHost, "env">): string {
  const fromEnvironment = host.env.COLOBUS_RUN;
  return (
    givenOnce("--run", flags.run) ??
    (fromEnvironment === undefined || fromEnvironment === "" ? RUN_DIRECTORY_DEFAULT : fromEnvironment)
  );
}

/** A client of the one agent that the flags name. Errors: `usage`, `agent-unreachable` (no control socket there). */
export function clientOf(flags: AgentFlags, host: Pick<CommandHost, "env">): ControlClient {
  return new ControlClient(addressOf(flags, host));
}

/** The agent's run directory; empty for one that is named by a URL. */
export function runDirectoryOfAgent({ address }: ControlClient): string {
  return address.kind === "socket" ? dirname(address.path) : "";
}

/** The socket `name` beside the agent's control socket, into which a hypervisor migrates by default. Errors: `usage` for one of another host. */
export function vmStateSocketOf({ address }: ControlClient, name = "vmstate.sock"): string {
  // QEMU, which opens it, has another working directory.
  if (address.kind === "socket") return resolve(dirname(address.path), name);
  throw new ColobusError("usage", "A VM migrates into a socket of its own host.", "Name the agent with --run.");
}

function addressOf(flags: AgentFlags, host: Pick<CommandHost, "env">): ControlAddress {
  const control = givenOnce("--control", flags.control);
  if (control !== undefined) {
    if (flags.run !== undefined) {
      throw new ColobusError("usage", "--run and --control both say where the agent is.", "Give one of them.");
    }
    return parseControlUrl(control, flags, host);
  }
  const directory = runDirectoryOf(flags, host);
  const agents = findAgentDirectories(directory);
  const [agent] = agents;
  if (agent === undefined) {
    throw new ColobusError(
      "agent-unreachable",
      `There is no agent's ${CONTROL_SOCKET_NAME} in ${directory}, or in a directory below it.`,
      "Start an agent with colobus primary or colobus secondary, or name its run directory with --run or COLOBUS_RUN.",
    );
  }
  if (agents.length > 1) {
    const names = agents.map((path) => basename(path)).join(", ");
    throw new ColobusError(
      "usage",
      `There are several agents in ${directory}: ${names}.`,
      `Name the one that is meant: --run ${agent}`,
    );
  }
  return { kind: "socket", path: join(agent, CONTROL_SOCKET_NAME) };
}

function parseControlUrl(text: string, flags: AgentFlags, host: Pick<CommandHost, "env">): ControlAddress {
  if (text.startsWith("unix:")) return { kind: "socket", path: text.slice("unix:".length) };
  const protocol = URL.canParse(text) ? new URL(text).protocol : "";
  if (protocol === "http:") return { kind: "url", url: text };
  if (protocol === "https:") return { kind: "url", url: text, ...controlSecurity(flags, host) };
  throw new ColobusError(
    "usage",
    `--control ${JSON.stringify(text)} is not the address of a control API.`,
    "Write unix:PATH or https://HOST:PORT.",
  );
}

/** What proves who the operator is, and the agent. The token is never in a flag: others can read those. */
function controlSecurity(
  flags: AgentFlags,
  { env }: Pick<CommandHost, "env">,
): Omit<Extract<ControlAddress, { kind: "url" }>, "kind" | "url"> {
  const tokenFile = givenOnce("--token-file", flags["token-file"]) ?? env.COLOBUS_TOKEN_FILE;
  const token = tokenFile === undefined || tokenFile === "" ? undefined : readBearerToken(tokenFile, "--token-file");
  const paths = {
    cert: givenOnce("--tls-cert", flags["tls-cert"]),
    key: givenOnce("--tls-key", flags["tls-key"]),
    ca: givenOnce("--tls-ca", flags["tls-ca"]),
  };
  if ((paths.cert === undefined) !== (paths.key === undefined)) {
    throw new ColobusError("usage", "--tls-cert and --tls-key go together.", "Give both, or neither.");
  }
  return { token: token?.toString("utf8"), tls: new TlsFiles({ paths, clock: new NodeClock() }).options };
}
