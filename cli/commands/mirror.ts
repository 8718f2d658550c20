/** `colobus mirror`: copies a disk of the primary to another image while guests use it. */
import type { MirrorRequest } from "../../proto/control-api.ts";
import { ColobusError } from "../../proto/errors.ts";
import { COPY_MODES, JOB_ERROR_POLICIES, MIRROR_SYNCS } from "../../proto/words.ts";
import { resolve } from "node:path";
import { formatImageLocation, parseImageLocation } from "../../shared/block/image-location.ts";
import { agentFlags, clientOf, givenOnce, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { followJob } from "../follow-job.ts";
import { parseJobSpeed, parseSize } from "../quantities.ts";
import { renderJob } from "../render-jobs.ts";

export const mirrorCommand = defineCommand({
  command: "mirror <disk>",
  describe: "Copy a disk of the primary to another image, and follow its writes",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("disk", { type: "string", demandOption: true, describe: "The disk, as the status names it" })
      .option("to", {
        type: "string",
        requiresArg: true,
        demandOption: true,
        describe: "The target, as --disk names images: PATH, FORMAT:PATH or an NBD URI",
      })
      .option("sync", {
        choices: MIRROR_SYNCS,
        default: "full" as const,
        describe: "What is copied first: everything, what the top layer has, or nothing but new writes",
      })
      .option("copy-mode", {
        choices: COPY_MODES,
        default: "background" as const,
        describe: "write-blocking: guests' writes wait for the target too, so that the copy converges",
      })
      .option("speed", {
        type: "string",
        requiresArg: true,
        describe: "Bytes per second at most; 0 is no limit, dynamic yields to guests (default 0)",
      })
      .option("granularity", {
        type: "string",
        requiresArg: true,
        describe: "What a write makes dirty at least, a power of two",
      })
      .option("no-unmap", {
        type: "boolean",
        default: false,
        describe: "Write zeroes, where the target's space would be freed",
      })
      .option("on-source-error", {
        choices: JOB_ERROR_POLICIES,
        default: "report" as const,
        describe: "report: the job fails; ignore: it tries again later; stop: it pauses",
      })
      .option("on-target-error", { choices: JOB_ERROR_POLICIES, default: "report" as const, describe: "The same" })
      .option("create", { type: "boolean", default: false, describe: "Make the target, if there is none" })
      .option("wait", { type: "boolean", default: false, describe: "Show the progress until the job is ready" })
      .example("$0 mirror vda --to /images/new.img --create --wait", "Then: colobus job complete mirror-1")
      .example("$0 mirror vda --to qcow2:/images/new.qcow2 --speed 50MiB", "At most 50 MiB in a second"),
  run: async (args, host) => {
    const timeoutMs = timeoutOf(args);
    const granularity = givenOnce("--granularity", args.granularity);
    const speed = givenOnce("--speed", args.speed);
    const request: MirrorRequest = {
      disk: args.disk,
      target: targetOf(givenOnce("--to", args.to)),
      sync: args.sync,
      copyMode: args.copyMode,
      speed: speed === undefined ? 0 : parseJobSpeed(speed, "--speed"),
      ...(granularity === undefined ? {} : { granularityBytes: parseSize(granularity, "--granularity") }),
      unmap: !args.noUnmap,
      onSourceError: args.onSourceError,
      onTargetError: args.onTargetError,
      create: args.create,
      timeoutMs,
    };
    const client = clientOf(args, host);
    const startedMs = host.clock.nowMs();
    const job = await client.mirror(request, host.interrupted);
    if (!args.wait) {
      host.output.result(args.json, job, renderJob);
      return;
    }
    const leftMs = timeoutMs - (host.clock.nowMs() - startedMs);
    const { json } = args;
    const ready = await followJob({
      client,
      host,
      id: job.id,
      timeoutMs: leftMs,
      json,
      until: "ready",
      outcomes: ["completed", "pivoted"], // it was ready before
    });
    host.output.result(json, ready, renderJob);
  },
});

/** A path of this command's directory, as the agent has to name it. */
function targetOf(text: string | undefined): string {
  if (text === undefined) throw new ColobusError("usage", "--to is missing.", "Name the target.");
  const location = parseImageLocation(text);
  return formatImageLocation(location.kind === "nbd" ? location : { ...location, path: resolve(location.path) });
}
