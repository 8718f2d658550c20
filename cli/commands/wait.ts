/** `colobus wait CONDITION`: for scripts that need a state to be reached before they go on. */
import { WAIT_CONDITIONS } from "../../proto/words.ts";
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

export const waitCommand = defineCommand({
  command: "wait <condition>",
  describe: `Wait until the agent is ${WAIT_CONDITIONS.join(", ").replace(/, (?=\w+$)/, " or ")}`,
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("condition", { choices: WAIT_CONDITIONS, demandOption: true, describe: "What to wait for" })
      .example("$0 wait synced --timeout 10m", "Exit code 0 when in sync, 4 when not within 10 minutes"),
  run: async (args, host) => {
    const request = { condition: args.condition, timeoutMs: timeoutOf(args) };
    host.output.result(
      args.json,
      await clientOf(args, host).wait(request, host.interrupted),
      ({ condition }) => condition,
    );
  },
});
