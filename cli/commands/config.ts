/** `colobus config check|schema|reload`: the configuration file of an agent. */
import { ColobusError, EXIT } from "../../proto/errors.ts";
import { ROLES, type Role } from "../../proto/words.ts";
import { agentFlags, clientOf, givenOnce, timeoutOf } from "../agent-flags.ts";
import { defineCommand, ReportedFailure, type CommandHost } from "../command.ts";
import type { ConfigFault } from "../config-file.ts";
import type { Paint } from "../output.ts";

const ACTIONS = ["check", "schema", "reload"] as const;
const ROLE_WORDS = ROLES.map((role) => role.toLowerCase());

interface CheckedConfig {
  readonly file: string;
  readonly ok: boolean;
  readonly faults: readonly ConfigFault[];
}

export const configCommand = defineCommand({
  command: "config <action> [file]",
  describe: "Check a configuration file, print its JSON schema, or have a running agent read its file anew",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("action", {
        choices: ACTIONS,
        demandOption: true,
        describe: "check needs a file; reload is for a running agent",
      })
      .positional("file", { type: "string", describe: "The file, for check" })
      .option("role", {
        type: "string",
        requiresArg: true,
        choices: ROLE_WORDS,
        describe: "For check: the command that it is for (secondary where it names no peer)",
      })
      .example("$0 config check /etc/colobus/web.yaml", "Everything that is wrong with it, with its place")
      .example("$0 config schema > colobus.schema.json", "For an editor that completes and checks")
      .example("$0 config reload --run /run/colobus/web", "Take up what can change without a restart"),
  run: async (args, host) => {
    const { action, json } = args;
    if (action !== "check" && (args.file !== undefined || args.role !== undefined)) {
      throw new ColobusError("usage", `config ${action} takes no file and no role.`, "They are for config check.");
    }
    if (action === "check") return check(args.file, roleOf(givenOnce("--role", args.role)), json, host);
    if (action === "schema") {
      const { configJsonSchema } = await import("../config-schema.ts");
      const schema = configJsonSchema();
      if (json) host.output.document(schema);
      else host.output.text(JSON.stringify(schema, null, 2));
      return;
    }
    const answer = await clientOf(args, host).reload({ timeoutMs: timeoutOf(args), signal: host.interrupted });
    host.output.result(json, answer, ({ applied, needsRestart }) =>
      [
        applied.length === 0 ? "nothing has changed that can be taken up" : `taken up: ${applied.join(", ")}`,
        ...(needsRestart.length === 0 ? [] : [`needs a restart of the agent: ${needsRestart.join(", ")}`]),
      ].join("\n"),
    );
  },
});

async function check(
  path: string | undefined,
  role: Role | undefined,
  json: boolean,
  host: CommandHost,
): Promise<void> {
  if (path === undefined) throw new ColobusError("usage", "config check needs a file.", "Name the configuration file.");
  const { ConfigFile, describeFault, readText } = await import("../config-file.ts");
  const file = new ConfigFile(readText(path));
  const faults = [...file.faults];
  if (file.keys !== undefined) {
    const { processConfigOf } = await import("../checked-config.ts");
    const { assertAddressesAllowed } = await import("../tls-options.ts");
    try {
      const ofRole = role ?? (file.keys.peer === undefined ? "Secondary" : "Primary");
      assertAddressesAllowed(processConfigOf(file.keys, ofRole, host.env));
    } catch (error) {
      if (!(error instanceof ColobusError) || error.code !== "usage") throw error;
      faults.push(file.faultOf(error));
    }
  }
  const checked: CheckedConfig = { file: path, ok: faults.length === 0, faults };
  host.output.result(json, checked, (value, paint) => renderChecked(value, describeFault, paint));
  if (!checked.ok) throw new ReportedFailure(EXIT.failed);
}

function renderChecked(
  { file, ok, faults }: CheckedConfig,
  describe: (path: string, fault: ConfigFault) => string,
  paint: Paint,
): string {
  if (ok) return `${file}: ${paint("good", "nothing is wrong")}`;
  return faults.flatMap((fault) => [paint("bad", describe(file, fault)), `  ${fault.action}`]).join("\n");
}

function roleOf(word: string | undefined): Role | undefined {
  return ROLES[ROLE_WORDS.indexOf(word ?? "")];
}
