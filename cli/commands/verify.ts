/** `colobus verify`: compares the secondary's copy with this side's, and says where they differ. */
import type { JobStatus } from "../../proto/status.ts";
import { EXIT } from "../../proto/errors.ts";
import { agentFlags, clientOf, givenOnce, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import type { Paint } from "../output.ts";
import { formatBytes, parseJobSpeed } from "../quantities.ts";
import { renderJob } from "../render-jobs.ts";

/** Ranges that people are shown. */
const SHOWN_MAX = 20;

export const verifyCommand = defineCommand({
  command: "verify [disk]",
  describe: "Compare the secondary's copy with the primary's, while guests write",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("disk", { type: "string", describe: "One disk; all of them without it" })
      .option("repair", { type: "boolean", default: false, describe: "Send again what differs" })
      .option("speed", {
        type: "string",
        requiresArg: true,
        describe: "Bytes per second read on each side; 0 is no limit, dynamic (the default) yields to guests",
      })
      .option("peer", {
        type: "string",
        requiresArg: true,
        describe: "Of several secondaries, the one to compare: its agent id, or the URL that this side dials",
      })
      .option("wait", {
        type: "boolean",
        default: false,
        describe: "Until it is over; exit code 1 when anything differs",
      })
      .example("$0 verify --wait --timeout 6h", "Whether both hosts have the same")
      .example("$0 verify vda --repair --speed 100MiB", "Mend one disk of the secondary, slowly"),
  run: async (args, host) => {
    const { disk, repair, wait } = args;
    const speed = parseJobSpeed(givenOnce("--speed", args.speed) ?? "dynamic", "--speed");
    const peer = givenOnce("--peer", args.peer);
    const request = {
      repair,
      speed,
      wait,
      timeoutMs: timeoutOf(args),
      ...(disk === undefined ? {} : { disk }),
      ...(peer === undefined ? {} : { peer }),
    };
    const job = await clientOf(args, host).verify(request, host.interrupted);
    host.output.result(args.json, job, renderVerify);
    if (!wait) return EXIT.done;
    return job.error === null && job.verify?.ranges === 0 ? EXIT.done : EXIT.failed;
  },
});

function renderVerify(job: JobStatus, paint: Paint): string {
  const { differences, ranges, repairs } = job.verify ?? { differences: [], ranges: 0, repairs: false };
  const shown = differences.slice(0, SHOWN_MAX);
  const lines = shown.map(
    ({ disk, offset, length }) => `  ${disk}: ${formatBytes(length)} at ${offset} (length ${length})`,
  );
  if (ranges > shown.length) lines.push(`  and ${ranges - shown.length} more`);
  if (ranges > 0)
    lines.push(
      repairs ? "  they are sent again: see colobus jobs" : "  to have them sent again: colobus verify --repair",
    );
  return [renderJob(job, paint), ...lines].join("\n");
}
