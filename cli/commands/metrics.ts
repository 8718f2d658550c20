/** `colobus metrics`: what Prometheus reads, for node_exporter's textfile collector and for a look. */
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

export const metricsCommand = defineCommand({
  command: "metrics",
  describe: "Show the agent's metrics in Prometheus' text format",
  builder: (yargs) =>
    agentFlags(yargs).example("$0 metrics --run /run/colobus/vm1", "As a scrape of /metrics has them"),
  run: async (args, host) => {
    const text = await clientOf(args, host).metrics({ timeoutMs: timeoutOf(args), signal: host.interrupted });
    if (args.json) host.output.document({ text });
    else host.output.text(text.trimEnd());
  },
});
