/** `colobus status`: the agent's state, once, or with --watch whenever something has happened. */
import { ColobusError, EXIT } from "../../proto/errors.ts";
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { ailmentOf } from "../agent-health.ts";
import { defineCommand, ReportedFailure } from "../command.ts";
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
      .option("check", {
        type: "boolean",
        default: false,
        describe: "Fail when the agent cannot do its part: for health checks",
      })
      .example("$0 status --run /run/colobus/vm1", "The state of one agent")
      .example("$0 status --watch", "A live view; Ctrl-C ends it, Ctrl-Z stops it until fg")
      .example("$0 status --json", "All figures: sizes in bytes, times in milliseconds"),
  run: async (args, host) => {
    const { output, clock, interrupted } = host;
    const timeoutMs = timeoutOf(args);
    const client = clientOf(args, host);
    if (!args.watch) {
      const status = await client.status({ timeoutMs, signal: interrupted });
      output.result(args.json, status, renderStatus);
      const ailment = args.check ? ailmentOf(status) : undefined;
      if (ailment === undefined) return;
      output.remark(`colobus: ${ailment}`);
      throw new ReportedFailure(EXIT.failed);
    }
    if (args.check) throw new ColobusError("usage", "--check looks once.", "Leave --watch or --check out.");
    if (output.canDraw && !args.json) {
      await showLiveView(host, { client, timeoutMs });
      return;
    }
    const watch = (): Promise<void> =>
      watchAgent({
        client,
        clock,
        timeoutMs,
        interrupted,
        refreshMs: undefined,
        look: async (call) => {
          const status = await client.status(call);
          if (args.json) output.document(status);
          else output.result(false, status, (shown, paint) => `${renderStatus(shown, paint)}\n`);
        },
      });
    await host.whileRead(watch);
  },
});
