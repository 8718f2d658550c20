import { outputFlags } from "../agent-flags.ts";
import { defineCommand, untilAborted } from "../command.ts";
import { parseSize } from "../quantities.ts";

const SIZE_DEFAULT = "256MiB";

export const demoCommand = defineCommand({
  command: "demo",
  describe: "Run both agents on this machine, on scratch disks",
  builder: (yargs) =>
    outputFlags(yargs)
      // Not "--dir": the loader of the roaring addon reads the command line, and takes that for its own.
      .option("keep-in", {
        type: "string",
        requiresArg: true,
        describe: "Keep everything in this directory (default: a scratch one)",
      })
      .option("size", { type: "string", requiresArg: true, default: SIZE_DEFAULT, describe: "Size of the disk" })
      .example("$0 demo", "Prints what to try next, in another terminal; Ctrl-C ends it, and nothing is left"),
  run: async ({ keepIn, size, json }, host) => {
    const sizeBytes = parseSize(size, "--size");
    const { Demo } = await import("../demo.ts");
    const demo = await Demo.start(keepIn, sizeBytes, host.terminated);
    if (json) host.output.document(demo.places);
    else host.output.text(demo.describe());
    await untilAborted(host.terminated);
    await demo.stop();
  },
});
