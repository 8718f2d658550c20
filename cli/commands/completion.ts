/** `colobus completion`: the script that makes bash, zsh or fish complete commands and flags. */
import yargs from "yargs";
import { outputFlags } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

export const completionCommand = defineCommand({
  command: "completion",
  describe: "Print the completion script for the shell that SHELL names",
  builder: (builder) => outputFlags(builder).example("$0 completion >> ~/.bashrc", "Complete with the tab key from the next login on"),
  run: (args, host) => {
    host.output.result(args.json, { script: completionScript() }, ({ script }) => script);
  },
});
