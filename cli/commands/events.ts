/** `colobus events`: what has happened to the agent, and with --follow what happens. */
import { ColobusError } from "../../proto/errors.ts";
import { EVENTS_KEPT } from "../../proto/limits.ts";
import { agentFlags, clientOf, givenOnce, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { withoutControlCharacters } from "../output.ts";
import { renderEvent } from "../render-events.ts";

export const eventsCommand = defineCommand({
  command: "events",
  describe: `Show the agent's last events (at most ${EVENTS_KEPT}), oldest first`,
  builder: (yargs) =>
    agentFlags(yargs)
      .option("follow", { type: "boolean", default: false, describe: "Go on with every later event" })
      .option("after", { type: "string", requiresArg: true, describe: "Begin after the event of this number" })
      .example("$0 events --follow", "Everything that is kept, and then what happens")
      .example("$0 events --json", "One JSON document a line"),
  run: async (args, host) => {
    const after = parseEventNumber(givenOnce("--after", args.after));
    const call = { timeoutMs: timeoutOf(args), signal: host.interrupted };
    const client = clientOf(args, host);
    const events = args.follow ? client.follow(after, call) : await client.events(after, call);
    const show = async (): Promise<void> => {
      for await (const event of events) {
        if (args.json) host.output.document(event);
        else host.output.text(renderEvent(withoutControlCharacters(event), host.output.paint));
      }
    };
    await (args.follow ? host.whileRead(show) : show());
  },
});

function parseEventNumber(text: string | undefined): number {
  if (text === undefined) return 0;
  const number = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isSafeInteger(number)) return number;
  throw new ColobusError(
    "usage",
    `--after ${JSON.stringify(text)} is not the number of an event.`,
    "Write a whole number.",
  );
}
