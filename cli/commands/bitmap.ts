/** `colobus bitmap`: named dirty bitmaps, from which backup tools learn what guests have changed. */
import { BITMAP_VERBS, type BitmapStatus } from "../../proto/control-api.ts";
import { ColobusError } from "../../proto/errors.ts";
import { DIRTY_BITMAP_NAMESPACE } from "../../proto/nbd-protocol.ts";
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import type { Paint } from "../output.ts";
import { formatBytes } from "../quantities.ts";
import { renderTable } from "../render-table.ts";

const COLUMNS = [
  { title: "DISK" },
  { title: "BITMAP" },
  { title: "STATE" },
  { title: "EPOCH" },
  { title: "DIRTY" },
] as const;

export const bitmapCommand = defineCommand({
  command: "bitmap <verb> [disk] [name]",
  describe: "Add, clear, remove or list bitmaps of what guests change, for backups",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("verb", {
        choices: [...BITMAP_VERBS, "list"] as const,
        demandOption: true,
        describe: "add begins to note what is changed; clear begins anew, as after a backup; list needs no name",
      })
      .positional("disk", { type: "string", describe: "The disk; for list: only its bitmaps" })
      .positional("name", { type: "string", describe: "The bitmap" })
      .example(
        "$0 bitmap add vda daily",
        "From now on NBD clients see what has changed since, as qemu:dirty-bitmap:daily",
      ),
  run: async (args, host) => {
    const { verb, disk, name } = args;
    const client = clientOf(args, host);
    if (verb === "list") {
      if (name !== undefined) throw new ColobusError("usage", "bitmap list takes no name.", "Leave it out.");
      const all = await client.bitmaps({ timeoutMs: timeoutOf(args), signal: host.interrupted });
      const bitmaps = all.filter((bitmap) => disk === undefined || bitmap.disk === disk);
      host.output.result(args.json, bitmaps, renderBitmaps);
      return;
    }
    if (disk === undefined || name === undefined) {
      throw new ColobusError(
        "usage",
        `bitmap ${verb} needs a disk and a name.`,
        `Write: colobus bitmap ${verb} DISK NAME`,
      );
    }
    const bitmap = await client.bitmap(verb, { disk, name, timeoutMs: timeoutOf(args) }, host.interrupted);
    host.output.result(args.json, bitmap, (one) => renderOutcome(verb, one));
  },
});

function renderBitmaps(bitmaps: readonly BitmapStatus[], paint: Paint): string {
  if (bitmaps.length === 0) return "no bitmaps";
  const rows = bitmaps.map(({ disk, name, state, fault, epoch, dirtyBytes }) => [
    disk,
    name,
    fault === null ? state : paint("bad", `${state}: ${fault}`),
    String(epoch),
    fault === null ? formatBytes(dirtyBytes) : "",
  ]);
  return renderTable(COLUMNS, rows, paint).join("\n");
}

function renderOutcome(verb: (typeof BITMAP_VERBS)[number], { disk, name, epoch }: BitmapStatus): string {
  if (verb === "remove") return `bitmap ${name} of ${disk} is removed`;
  return `bitmap ${name} of ${disk} has every change after checkpoint ${epoch}: ${DIRTY_BITMAP_NAMESPACE}${name}`;
}
