/** `colobus doctor`: what may be wrong with a machine, a configuration and an agent, and what to do. */
import { asColobusError, EXIT } from "../../proto/errors.ts";
import type { Role } from "../../proto/words.ts";
import type { ControlClient } from "../../shared/control/api-client.ts";
import { agentFlags, clientOf, givenOnce, timeoutOf, type AgentFlags } from "../agent-flags.ts";
import { defineCommand, ReportedFailure, type CommandHost } from "../command.ts";
import type { Examination } from "../doctor.ts";
import type { Finding, FindingState } from "../finding.ts";
import type { Paint } from "../output.ts";

const TONES = { ok: "good", warning: "warn", failed: "bad" } as const satisfies Record<FindingState, string>;
const SIGNS = { ok: "ok", warning: "warning", failed: "FAILED" } as const satisfies Record<FindingState, string>;
const SIGN_WIDTH = 8;

export const doctorCommand = defineCommand({
  command: "doctor",
  describe: "Look for what may be wrong with this machine, a configuration and an agent, and say what to do",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("config", {
        type: "string",
        requiresArg: true,
        describe: "The agent's configuration file: its directories, secrets and peer are looked at as well",
      })
      .example("$0 doctor --run /run/colobus/web --config /etc/colobus/web.yaml", "Everything that can be looked at")
      .example("$0 doctor --config /etc/colobus/web.yaml", "Before the agent is started"),
  run: async (args, host) => {
    const { examine } = await import("../doctor.ts");
    const findings = await examine(await examinationOf(args, givenOnce("--config", args.config), host));
    const isWell = findings.every(({ state }) => state !== "failed");
    host.output.result(args.json, { ok: isWell, findings }, ({ findings: all }, paint) => renderFindings(all, paint));
    if (!isWell) throw new ReportedFailure(EXIT.failed);
  },
});

/** What a doctor of these flags looks at. Errors: `usage`, of a configuration that cannot be read. */
export async function examinationOf(
  flags: AgentFlags,
  configFile: string | undefined,
  host: Pick<CommandHost, "env" | "clock" | "interrupted">,
): Promise<Examination> {
  const examination = { clock: host.clock, timeoutMs: timeoutOf(flags), signal: host.interrupted };
  const config = configFile === undefined ? undefined : await readConfig(configFile, host.env);
  let client: ControlClient;
  try {
    const run = flags.run ?? config?.runDirectory;
    client = clientOf({ ...flags, run: flags.control === undefined ? run : flags.run }, host);
  } catch (error) {
    const unreachable = asColobusError(error);
    if (unreachable.code !== "agent-unreachable") throw error;
    return { ...examination, config, client: undefined, unreachable };
  }
  return { ...examination, config, client, unreachable: undefined };
}

async function readConfig(
  path: string,
  env: Readonly<Record<string, string | undefined>>,
): Promise<NonNullable<Examination["config"]>> {
  const { readConfigFile } = await import("../config-file.ts");
  const { processConfigOf } = await import("../checked-config.ts");
  const keys = readConfigFile(path);
  const role: Role = keys.peer === undefined ? "Secondary" : "Primary";
  return processConfigOf(keys, role, env);
}

function renderFindings(findings: readonly Finding[], paint: Paint): string {
  return findings
    .flatMap(({ check, state, message, action }) => [
      `${paint(TONES[state], SIGNS[state].padEnd(SIGN_WIDTH))} ${check}: ${message}`,
      ...(action === "" ? [] : [`${" ".repeat(SIGN_WIDTH)} ${action}`]),
    ])
    .join("\n");
}
