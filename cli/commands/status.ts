/** `colobus status`: the agent's state, once, or with --watch whenever something has happened. */
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { renderStatus } from "../render-status.ts";
import { watchStatus } from "../watch-status.ts";

/** On a screen, figures that no event announces (ages, lag, progress) are brought up to date this often. */
const SCREEN_REFRESH_MS = 2_000;

export const statusCommand = defineCommand({
  command: "status",
  describe: "Show whether the VM is protected, and the state of peers, disks, epochs and jobs",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("watch", { type: "boolean", default: false, describe: "Show it again whenever something has happened" })
      .example("$0 status --run /run/colobus/vm1", "The state of one agent")
      .example("$0 status --json", "All figures: sizes in bytes, times in milliseconds"),
  run: async (args, host) => {
    const { output, clock, interrupted } = host;
    const timeoutMs = timeoutOf(args);
    const client = clientOf(args, host);
    if (!args.watch) {
      output.result(args.json, await client.status({ timeoutMs, signal: interrupted }), renderStatus);
      return;
    }
    await watchStatus({
      client,
      clock,
      timeoutMs,
      interrupted,
      refreshMs: output.isScreen && !args.json ? SCREEN_REFRESH_MS : undefined,
      show: (status) => {
        if (args.json) output.document(status);
        else output.redraw(status, renderStatus);
      },
    });
  },
});
