import { outputFlags } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

export const inspectCommand = defineCommand({
  command: "inspect <file>",
  describe: "Print a state record, a journal or a log of a state directory",
  builder: (yargs) =>
    outputFlags(yargs)
      .positional("file", {
        type: "string",
        demandOption: true,
        describe:
          "The file: `state`, a `*.journal` or `buffer.*.log` of an overlay, a VM state, the mark of a shared disk",
      })
      .example("$0 inspect /var/lib/colobus/web/state", "What the agent has recorded: role, lineage, epochs, disks")
      .example(
        "$0 inspect /var/lib/colobus/web/disks/vda/hidden.3.journal",
        "What an overlay holds, and whether it is sound",
      ),
  run: async ({ file, json }, { output }) => {
    const { inspectFile, renderInspection } = await import("../inspection.ts");
    output.result(json, inspectFile(file), renderInspection);
  },
});
