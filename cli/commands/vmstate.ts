/** `colobus vmstate`: what to start a VM from, beside its disks. */
import { ColobusError } from "../../proto/errors.ts";
import { writeContent } from "../../shared/host/content-files.ts";
import { agentFlags, clientOf, givenOnce, parseEpoch, timeoutOf } from "../agent-flags.ts";
import { defineCommand, type CommandHost } from "../command.ts";
import { formatBytes } from "../quantities.ts";

export const vmstateCommand = defineCommand({
  command: "vmstate",
  describe: "Write the VM state of a checkpoint to stdout, or to a file",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("epoch", { type: "string", requiresArg: true, describe: "A checkpoint that is kept (the committed one)" })
      .option("output", { type: "string", requiresArg: true, describe: "The file to write; --json needs one (stdout)" })
      .option("force", {
        type: "boolean",
        default: false,
        describe: "Also where the disks may have been written since the failover",
      })
      .example("$0 vmstate > vm.state", "The state of the committed checkpoint")
      .example("$0 vmstate --epoch 41 --output vm.state", "That of a retained one"),
  run: async (args, host) => {
    const epochText = givenOnce("--epoch", args.epoch);
    const output = givenOnce("--output", args.output);
    if (output === undefined && (args.json || host.output.isScreen)) {
      throw new ColobusError(
        "usage",
        args.json ? "--json leaves no room for a VM state on stdout." : "A VM state is nothing to look at.",
        "Say --output FILE, or lead stdout elsewhere.",
      );
    }
    const request = { force: args.force, ...(epochText === undefined ? {} : { epoch: parseEpoch(epochText) }) };
    const call = { timeoutMs: timeoutOf(args), signal: host.interrupted };
    const { epoch, bytes, content } = await clientOf(args, host).storedVmState(request, call);
    try {
      const written = await (output === undefined ? toStdout(content, host) : writeContent(content, output, bytes));
      if (written < bytes) throw broken(undefined);
    } catch (error) {
      throw broken(error);
    } finally {
      content.destroy();
    }
    if (output !== undefined) {
      const result = { epoch, bytes, file: output };
      host.output.result(args.json, result, () => `${formatBytes(bytes)}: the VM state of checkpoint ${epoch}`);
    }
  },
});

async function toStdout(content: AsyncIterable<Uint8Array>, { output }: CommandHost): Promise<number> {
  let written = 0;
  for await (const chunk of content) {
    await output.bytes(chunk);
    written += chunk.length;
  }
  return written;
}

function broken(cause: unknown): ColobusError {
  if (cause instanceof ColobusError) return cause;
  const why = cause instanceof Error ? `: ${cause.message}` : "";
  return new ColobusError(
    "state-corrupt",
    `the VM state broke off before its end${why}`,
    "What has been written is of no use. See the agent's log.",
    { cause },
  );
}
