/** `colobus child`: the copies of a disk on the primary's side. */
import { CHILD_VERBS, type ChildAnswer } from "../../proto/control-api.ts";
import { ColobusError } from "../../proto/errors.ts";
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { parseNamedImage } from "../named-image.ts";

export const childCommand = defineCommand({
  command: "child <verb> <disk> <child>",
  describe: "Add, remove or replace a copy of a disk beside its image",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("verb", {
        choices: CHILD_VERBS,
        demandOption: true,
        describe: "replace puts another image in the place of the copy of that name",
      })
      .positional("disk", { type: "string", demandOption: true, describe: "The disk" })
      .positional("child", {
        type: "string",
        demandOption: true,
        describe: "NAME=IMAGE to add or replace, NAME to remove",
      })
      .option("create", { type: "boolean", default: false, describe: "Make the image, if it is not there" })
      .example("$0 child add vda b=/mnt/b/web.img --create", "A second copy, which is brought everything")
      .example("$0 child remove vda b", "Take it out again"),
  run: async (args, host) => {
    const { verb, disk, child, create } = args;
    const timeoutMs = timeoutOf(args);
    if (verb === "remove" && create) {
      throw new ColobusError("usage", "child remove makes no image.", "Leave --create out.");
    }
    const named = verb === "remove" ? { name: child } : parseNamedImage("CHILD", child);
    const answer = await clientOf(args, host).changeChild(
      { verb, disk, ...named, create, timeoutMs },
      host.interrupted,
    );
    host.output.result(args.json, answer, renderChildren);
  },
});

function renderChildren({ disk, children }: ChildAnswer): string {
  if (children.length === 0) return `${disk}: its image is the only copy`;
  return children.map(({ name, state, path }) => `${disk}  ${name}  ${state}  ${path}`).join("\n");
}
