/** `colobus status`: the agent's state, once, or with --watch whenever something has happened. */
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { renderStatus } from "../render-status.ts";
import { showLiveView } from "../live-view.ts";
import { watchAgent } from "../watch-status.ts";

export const statusCommand = defineCommand({
  command: "status",
  describe: "Show whether the VM is protected, and the state of peers, disks, epochs and jobs",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("watch", {
        type: "boolean",
        default: false,
        describe: "Show it live, on a terminal with what became of it; else again whenever something has happened",
      })
      .example("$0 status --run /run/colobus/vm1", "The state of one agent")
      .example("$0 status --watch", "A live view; Ctrl-C ends it")
      .example("$0 status --json", "All figures: sizes in bytes, times in milliseconds"),
  run: async (args, host) => {
    const { output, clock, interrupted } = host;
    const timeoutMs = timeoutOf(args);
    const client = clientOf(args, host);
    if (!args.watch) {
      output.result(args.json, await client.status({ timeoutMs, signal: interrupted }), renderStatus);
      return;
    }
    const watched = { client, clock, timeoutMs, interrupted };
    if (output.canDraw && !args.json) {
      await showLiveView(output, watched);
      return;
    }
    await watchAgent({
      ...watched,
      refreshMs: undefined,
      look: async (call) => {
        const status = await client.status(call);
        if (args.json) output.document(status);
        else output.result(false, status, (shown, paint) => `${renderStatus(shown, paint)}\n`);
      },
    });
  },
});
