/** `colobus wait CONDITION`: for scripts that need a state to be reached before they go on. */
import { WAIT_CONDITIONS } from "../../proto/words.ts";
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

const CONDITIONS =
  "connected: there is a session with the peer; synced: no copy lacks anything; merged: nothing is left to do of a failover; committed: there is a checkpoint to return to";

export const waitCommand = defineCommand({
  command: "wait <condition>",
  describe: `Wait until the agent is ${WAIT_CONDITIONS.join(", ").replace(/, (?=\w+$)/, " or ")}`,
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("condition", { choices: WAIT_CONDITIONS, demandOption: true, describe: CONDITIONS })
      .example("$0 wait synced --timeout 10m", "Exit code 0 when in sync, 4 when not within 10 minutes")
      .example("$0 wait committed --timeout 1h", "After the first start: from then on the VM is protected"),
  run: async (args, host) => {
    const request = { condition: args.condition, timeoutMs: timeoutOf(args) };
    host.output.result(
      args.json,
      await clientOf(args, host).wait(request, host.interrupted),
      ({ condition }) => condition,
    );
  },
});
