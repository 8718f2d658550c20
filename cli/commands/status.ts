/** `colobus status`: the agent's state, once, or with --watch whenever something has happened. */
import type { Status } from "../../proto/control-api.ts";
import type { ControlClient } from "../../shared/control/api-client.ts";
import type { Clock } from "../../shared/host/clock.ts";
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand, type CommandHost } from "../command.ts";
import { renderStatus } from "../render-status.ts";

const REDRAW_MIN_MS = 500;
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
    const client = clientOf(args, host);
    const timeoutMs = timeoutOf(args);
    if (args.watch) {
      await watchStatus(client, host, timeoutMs, (status) => {
        if (args.json) host.output.document(status);
        else host.output.redraw(status, renderStatus);
      });
    } else {
      host.output.result(args.json, await client.status({ timeoutMs, signal: host.interrupted }), renderStatus);
    }
  },
});

/** Shows the status now and after events, until interrupted. Throws when the agent goes away. */
async function watchStatus(
  client: ControlClient,
  host: CommandHost,
  timeoutMs: number,
  show: (status: Status) => void,
): Promise<void> {
  const ended = new AbortController();
  const signal = AbortSignal.any([host.interrupted, ended.signal]);
  const call = { timeoutMs, signal };
  const changes = new ChangeFlag(host.clock);
  try {
    const lastEvent = (await client.events(0, call)).at(-1);
    const following = followChanges(client.follow(lastEvent?.sequence ?? 0, call), changes);
    while (!host.interrupted.aborted) {
      changes.clear();
      show(await client.status(call));
      await Promise.race([changes.pause(REDRAW_MIN_MS, signal), following]);
      const refresh = host.output.isScreen ? changes.pause(SCREEN_REFRESH_MS - REDRAW_MIN_MS, signal) : changes.aborted(signal);
      await Promise.race([changes.raised(), refresh, following]);
    }
  } catch (error) {
    if (!host.interrupted.aborted) throw error;
  } finally {
    ended.abort();
  }
}
