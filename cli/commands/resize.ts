/** `colobus resize`: makes a disk longer on both sides. */
import type { ResizeAnswer } from "../../proto/control-api.ts";
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { formatBytes, parseSize } from "../quantities.ts";

export const resizeCommand = defineCommand({
  command: "resize <disk> <size>",
  describe: "Make a disk longer, here and on the secondary",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("disk", { type: "string", demandOption: true, describe: "The disk" })
      .positional("size", { type: "string", demandOption: true, describe: "Its new size, not below the present one" })
      .option("close-clients", {
        type: "boolean",
        default: false,
        describe: "Send the disks' NBD clients away: they see the new size when they connect again",
      })
      .example("$0 resize vda 40GiB", "Then have the VM notice: QEMU's block_resize"),
  run: async (args, host) => {
    const { disk, size, closeClients } = args;
    const request = { disk, sizeBytes: parseSize(size, "SIZE"), closeClients, timeoutMs: timeoutOf(args) };
    host.output.result(args.json, await clientOf(args, host).resize(request, host.interrupted), renderResize);
  },
});

function renderResize({ disk, sizeBytes, formerSizeBytes, grownPeers }: ResizeAnswer): string {
  if (sizeBytes === formerSizeBytes) return `${disk} has ${formatBytes(sizeBytes)} already: nothing to do`;
  const grown = grownPeers === 1 ? "1 secondary has" : `${grownPeers} secondaries have`;
  const peers =
    grownPeers === 0
      ? "a secondary follows when it connects"
      : `${grown} grown as well, and any other follows when it connects`;
  return `${disk} has ${formatBytes(sizeBytes)}, and had ${formatBytes(formerSizeBytes)}; ${peers}`;
}
