/** `colobus completion`: the script that makes bash, zsh or fish complete commands and flags. */
import yargs from "yargs";
import { outputFlags } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

export const completionCommand = defineCommand({
  command: "completion",
  describe: "Print the completion script for the shell that SHELL names",
  builder: (builder) =>
    outputFlags(builder).example("$0 completion >> ~/.bashrc", "Complete with the tab key from the next login on"),
  run: (args, host) => {
    const script = completionScript();
    if (args.json) host.output.document({ script });
    else host.output.text(script);
  },
});

/** yargs' own script, which asks `colobus --get-yargs-completions` for the words. */
function completionScript(): string {
  let script = "";
  void yargs([])
    .scriptName("colobus")
    .completion("completion")
    .parse(["completion"], {}, (_error, _args, output) => {
      script = output;
    });
  return script;
}
