/** `colobus vmstate`: what to start a VM from, beside its disks. */
import { ColobusError } from "../../proto/errors.ts";
import { removeSocket, sendContent, writeContent } from "../../shared/host/content-files.ts";
import type { Clock } from "../../shared/host/clock.ts";
import { agentFlags, clientOf, givenOnce, parseEpoch, timeoutOf, vmStateSocketOf } from "../agent-flags.ts";
import { defineCommand, type CommandHost } from "../command.ts";
import { ProtectedVm } from "../protected-vm.ts";
import { formatBytes } from "../quantities.ts";

export const vmstateCommand = defineCommand({
  command: "vmstate",
  describe: "Start a VM from the state of a checkpoint, or write that state out",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("epoch", { type: "string", requiresArg: true, describe: "A checkpoint that is kept (the committed one)" })
      .option("output", { type: "string", requiresArg: true, describe: "The file to write; --json needs one (stdout)" })
      .option("qmp", {
        type: "string",
        requiresArg: true,
        describe: "QMP socket of a QEMU with -incoming defer, which gets the state and runs",
      })
      .option("force", {
        type: "boolean",
        default: false,
        describe: "Also where the disks may have been written since the failover",
      })
      .example("$0 vmstate --qmp /run/web/qmp.sock", "The VM goes on from the committed checkpoint")
      .example("$0 vmstate > vm.state", "The state of the committed checkpoint")
      .example("$0 vmstate --epoch 41 --output vm.state", "That of a retained one"),
  run: async (args, host) => {
    const epochText = givenOnce("--epoch", args.epoch);
    const output = givenOnce("--output", args.output);
    const qmp = givenOnce("--qmp", args.qmp);
    if (qmp !== undefined && output !== undefined) {
      throw new ColobusError("usage", "--qmp and --output both say where it goes.", "Give one of them.");
    }
    if (output === undefined && qmp === undefined && (args.json || host.output.isScreen)) {
      throw new ColobusError(
        "usage",
        args.json ? "--json leaves no room for a VM state on stdout." : "A VM state is nothing to look at.",
        "Say --output FILE, or lead stdout elsewhere.",
      );
    }
    const request = { force: args.force, ...(epochText === undefined ? {} : { epoch: parseEpoch(epochText) }) };
    const call = { timeoutMs: timeoutOf(args), signal: host.interrupted };
    const client = clientOf(args, host);
    const { epoch, bytes, content } = await client.storedVmState(request, call);
    try {
      const written =
        qmp !== undefined
          ? await toVm(content, {
              qmp,
              timeoutMs: call.timeoutMs,
              clock: host.clock,
              socket: vmStateSocketOf(client, "incoming.sock"),
            })
          : await (output === undefined ? toStdout(content, host) : writeContent(content, output, bytes));
      if (written < bytes) throw broken(undefined);
    } catch (error) {
      throw broken(error);
    } finally {
      content.destroy();
    }
    if (output !== undefined || qmp !== undefined) {
      const result = { epoch, bytes, ...(output === undefined ? {} : { file: output }) };
      host.output.result(args.json, result, () => `${formatBytes(bytes)}: the VM state of checkpoint ${epoch}`);
    }
  },
});

/** The VM runs when the promise resolves. */
async function toVm(
  content: Parameters<typeof sendContent>[0],
  to: { readonly qmp: string; readonly socket: string; readonly timeoutMs: number; readonly clock: Clock },
): Promise<number> {
  await removeSocket(to.socket);
  const vm = await ProtectedVm.connect({ ...to, socket: to.qmp });
  let sent = 0;
  try {
    await vm.loadState(to.socket, async () => {
      sent = await sendContent(content, to.socket);
    });
  } finally {
    await vm.release();
    await removeSocket(to.socket);
  }
  return sent;
}

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
