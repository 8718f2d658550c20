/** `colobus failover`: make a secondary the primary, from its last committed checkpoint. */
import type { FailoverAnswer } from "../../proto/control-api.ts";
import type { ControlClient } from "../../shared/control/api-client.ts";
import { agentFlags, clientOf, givenOnce, runDirectoryOfAgent, timeoutOf } from "../agent-flags.ts";
import { defineCommand, type CommandHost } from "../command.ts";
import { describeFailover } from "../describe-failover.ts";
import { hookNotRun, runFailoverHook } from "../failover-hook.ts";

export const failoverCommand = defineCommand({
  command: "failover",
  describe: "Make this secondary the primary, from its last committed checkpoint",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("force", {
        type: "boolean",
        default: false,
        describe: "Also while the primary is connected, or this side outdated",
      })
      .option("dry-run", { type: "boolean", default: false, describe: "Only say what it would return to, and lose" })
      .option("discard-active", {
        type: "boolean",
        default: false,
        describe: "Leave out what the secondary's own VM has written",
      })
      .option("fenced", {
        type: "boolean",
        default: false,
        describe: "The peer surely serves no more; mode shared wants this said, or a --fence-peer command",
      })
      .option("exec", {
        type: "string",
        requiresArg: true,
        describe: "Command that starts the VM once this side is Primary; --timeout is for it as well",
      })
      .example("$0 failover --dry-run", "Epoch, age and loss")
      .example("$0 failover", "Serve the last committed checkpoint, now"),
  run: async (args, host) => {
    const request = {
      force: args.force,
      dryRun: args.dryRun,
      discardActive: args.discardActive,
      ...(args.fenced ? { fenced: true } : {}),
      ...(args.exec === undefined ? {} : { startsVm: true }),
      timeoutMs: timeoutOf(args),
    };
    const command = givenOnce("--exec", args.exec);
    const client = clientOf(args, host);
    const answer = await client.failover(request, host.interrupted);
    if (command !== undefined && !answer.dryRun) {
      if (!answer.startsVm) throw hookNotRun(answer.already);
      await startVm(command, client, answer, host, request);
    }
    host.output.result(args.json, answer, (result) => describeFailover(result).join("\n"));
  },
});

async function startVm(
  command: string,
  client: ControlClient,
  { epoch }: FailoverAnswer,
  host: CommandHost,
  { timeoutMs }: { readonly timeoutMs: number },
): Promise<void> {
  const { vm, exports, vmstate } = await client.status({ timeoutMs });
  const run = runDirectoryOfAgent(client);
  const uris = exports.map(({ uri }) => uri);
  await runFailoverHook(
    { vm, run, epoch, uris, vmstateBytes: vmstate?.bytes },
    { command, timeoutMs },
    { clock: host.clock, output: (line) => host.output.remark(line), signal: host.terminated },
  );
}
