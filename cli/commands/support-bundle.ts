/** `colobus support-bundle`: what whoever helps would ask for, in one file. */
import { agentFlags, givenOnce } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { examinationOf } from "./doctor.ts";

export const supportBundleCommand = defineCommand({
  command: "support-bundle [file]",
  describe: "Collect status, events, jobs, configuration, record and doctor's findings in a tar.gz, without secrets",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("file", { type: "string", default: "colobus-support.tar.gz", describe: "What to write" })
      .option("config", { type: "string", requiresArg: true, describe: "The agent's configuration file" })
      .option("state", { type: "string", requiresArg: true, describe: "Its state directory (that of --config)" })
      .option("log", {
        type: "string",
        requiresArg: true,
        describe: "The file that its log goes to: the end of it is taken",
      })
      .example("$0 support-bundle --run /run/colobus/web --config /etc/colobus/web.yaml", "What to send to who helps"),
  run: async (args, host) => {
    const configFile = givenOnce("--config", args.config);
    const { readConfigFile } = await import("../config-file.ts");
    const { collectBundle } = await import("../support-bundle.ts");
    const keys = configFile === undefined ? undefined : readConfigFile(configFile);
    const bundle = await collectBundle({
      ...(await examinationOf(args, configFile, host)),
      file: args.file,
      keys,
      stateDirectory: givenOnce("--state", args.state) ?? keys?.state,
      log: givenOnce("--log", args.log),
    });
    host.output.result(args.json, bundle, ({ file, entries }) => `${file}: ${entries.join(", ")}`);
  },
});
