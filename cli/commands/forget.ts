/** `colobus forget`: one of several secondaries is gone for good. */
import type { ForgetAnswer } from "../../proto/control-api.ts";
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

export const forgetCommand = defineCommand({
  command: "forget <peer>",
  describe: "Give one of several secondaries up for good: it is not waited for, and refused",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("peer", {
        type: "string",
        demandOption: true,
        describe: "Its agent id, or the URL that this side dials for it; see `colobus status`",
      })
      .example("$0 forget wss://192.0.2.3:7000", "Its host is lost, and none is to take its place"),
  run: async (args, host) => {
    const request = { peer: args.peer, timeoutMs: timeoutOf(args) };
    host.output.result(args.json, await clientOf(args, host).forget(request, host.interrupted), renderForgotten);
  },
});

function renderForgotten({ agentId, url }: ForgetAnswer): string {
  return agentId === null
    ? `${url} is not dialled any more: no secondary was met there`
    : `${agentId} is given up: its place is free, and it is refused from now on`;
}
