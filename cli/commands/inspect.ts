import { outputFlags } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

export const inspectCommand = defineCommand({
  command: "inspect <file>",
  describe: "Print a state record, a journal or a log of a state directory",
  builder: (yargs) =>
    outputFlags(yargs).positional("file", {
      type: "string",
      demandOption: true,
      describe: "The file: `state`, or a `*.journal` or `buffer.*.log` of an overlay",
    }),
  run: async ({ file, json }, { output }) => {
    const { inspectFile, renderInspection } = await import("../inspection.ts");
    output.result(json, inspectFile(file), renderInspection);
  },
});
