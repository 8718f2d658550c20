/** `colobus list`: the agents under the run directory, and what each says of itself, a line each. */
import { basename, join, resolve } from "node:path";
import type { Status } from "../../proto/status.ts";
import { asColobusError, type ErrorCode } from "../../proto/errors.ts";
import { ControlClient } from "../../shared/control/api-client.ts";
import { CONTROL_SOCKET_NAME, findAgentDirectories } from "../../shared/host/run-directory.ts";
import { outputFlags, runDirectoryOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { describeProtection } from "../describe-protection.ts";
import type { Paint } from "../output.ts";
import { renderTable } from "../render-table.ts";

/** An agent that hangs delays the list by this much at most. */
const ANSWER_TIMEOUT_MAX_MS = 2_000;

interface ListedAgent {
  readonly name: string;
  readonly run: string;
  readonly reachable: boolean;
  readonly vm: string | null;
  readonly role: Status["role"] | null;
  readonly protection: Status["protection"] | null;
  readonly epoch: Status["epoch"] | null;
  readonly error: { code: ErrorCode; message: string; action: string } | null;
}

const COLUMNS = [
  { title: "AGENT" },
  { title: "VM" },
  { title: "ROLE" },
  { title: "PROTECTION" },
  { title: "COMMITTED", align: "right" },
  { title: "REACHABLE" },
] as const;

export const listCommand = defineCommand({
  command: "list",
  describe: "Show the agents under the run directory, a line each",
  builder: (yargs) =>
    outputFlags(yargs)
      .option("run", {
        type: "string",
        requiresArg: true,
        describe: "The directory with the agents' run directories (COLOBUS_RUN)",
      })
      .option("timeout", {
        type: "string",
        requiresArg: true,
        describe: "How long to wait for the agents, at most 2 s",
      })
      .example("$0 list --run /run/colobus", "Every agent below /run/colobus"),
  run: async (args, host) => {
    const timeoutMs = Math.min(timeoutOf(args), ANSWER_TIMEOUT_MAX_MS);
    const directory = resolve(runDirectoryOf(args, host));
    const agents = await Promise.all(
      findAgentDirectories(directory).map((run) => ask(run, timeoutMs, host.interrupted)),
    );
    host.output.result(args.json, agents, (listed, paint) => renderList(listed, directory, paint));
  },
});

async function ask(run: string, timeoutMs: number, signal: AbortSignal): Promise<ListedAgent> {
  const agent = { name: basename(run), run };
  try {
    const client = new ControlClient({ kind: "socket", path: join(run, CONTROL_SOCKET_NAME) });
    const { vm, role, protection, epoch } = await client.status({ timeoutMs, signal });
    return { ...agent, reachable: true, vm, role, protection, epoch, error: null };
  } catch (error) {
    const reason = asColobusError(error).toJSON();
    return { ...agent, reachable: false, vm: null, role: null, protection: null, epoch: null, error: reason };
  }
}

function renderList(agents: readonly ListedAgent[], directory: string, paint: Paint): string {
  if (agents.length === 0) return `no agents in ${directory}`;
  const rows = agents.map((agent) => [
    agent.name,
    agent.vm ?? "-",
    agent.role ?? "-",
    renderProtection(agent.protection, paint),
    agent.epoch === null ? "-" : String(agent.epoch.committed),
    agent.reachable ? "yes" : paint("bad", `no (${agent.error?.code})`),
  ]);
  return renderTable(COLUMNS, rows, paint).join("\n");
}

function renderProtection(protection: Status["protection"] | null, paint: Paint): string {
  if (protection === null) return "-";
  return paint(protection.state === "Protected" ? "good" : "bad", describeProtection(protection));
}
