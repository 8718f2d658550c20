/** `colobus jobs` and `colobus job VERB ID`: look at, and direct, what takes long. */
import { JOB_VERBS } from "../../proto/control-api.ts";
import type { JobStatus } from "../../proto/status.ts";
import { ColobusError } from "../../proto/errors.ts";
import type { CallOptions, ControlClient } from "../../shared/control/api-client.ts";
import { agentFlags, clientOf, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { parseJobSpeed } from "../quantities.ts";
import { followJob } from "../follow-job.ts";
import { renderJob, renderJobs } from "../render-jobs.ts";

const COMMAND_VERBS = [...JOB_VERBS, "set-speed"] as const;

export const jobsCommand = defineCommand({
  command: "jobs",
  describe: "Show the agent's jobs: syncs, merges, and how far they are",
  builder: (yargs) => agentFlags(yargs).example("$0 jobs", "Every job, concluded ones too"),
  run: async (args, host) => {
    const call = { timeoutMs: timeoutOf(args), signal: host.interrupted };
    const jobs = await clientOf(args, host).jobs(call);
    host.output.result(args.json, jobs, renderJobs);
  },
});

export const jobCommand = defineCommand({
  command: "job <verb> <id> [speed]",
  describe: "Pause, resume, cancel or complete a job, or limit its speed",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("verb", {
        choices: COMMAND_VERBS,
        demandOption: true,
        describe:
          "complete makes a mirror's target the disk's image; cancel ends a verify, or a mirror: where that is ready, with a copy that can be used; syncs and merges end by themselves",
      })
      .positional("id", { type: "string", demandOption: true, describe: "The job, as colobus jobs names it" })
      .option("force", {
        type: "boolean",
        default: false,
        describe: "With cancel: at once, whatever is not copied yet",
      })
      .option("wait", {
        type: "boolean",
        default: false,
        describe: "With cancel and complete: until the job is concluded",
      })
      .positional("speed", {
        type: "string",
        describe: "Bytes per second, for set-speed; 0 is no limit, dynamic yields to guests",
      })
      .example("$0 job pause resync-1", "Stop a job for now")
      .example("$0 job set-speed resync-1 50MiB", "At most 50 MiB in a second")
      .example("$0 job complete mirror-2 --wait", "The mirror's target is the disk's image from then on"),
  run: async (args, host) => {
    const { verb, id, speed, force, wait } = args;
    if (force && verb !== "cancel") {
      throw new ColobusError("usage", `job ${verb} takes no --force.`, "Leave it out, or use job cancel.");
    }
    if (wait && verb !== "cancel" && verb !== "complete") {
      throw new ColobusError("usage", `job ${verb} takes no --wait.`, "Leave it out: it is done at once.");
    }
    const call = { timeoutMs: timeoutOf(args), signal: host.interrupted };
    const ask = verb === "set-speed" ? setSpeed(id, speed) : direct(verb, id, speed, force);
    const client = clientOf(args, host);
    const job = await ask(client, call);
    if (!wait) {
      host.output.result(args.json, job, renderJob);
      return;
    }
    const ended = await followJob({
      client,
      host,
      id,
      timeoutMs: timeoutOf(args),
      json: args.json,
      until: "concluded",
      outcomes: verb === "complete" ? ["pivoted"] : ["cancelled", "completed"],
    });
    host.output.result(args.json, ended, renderJob);
  },
});

type Ask = (client: ControlClient, call: CallOptions) => Promise<JobStatus>;

function setSpeed(id: string, speed: string | undefined): Ask {
  if (speed === undefined) {
    throw new ColobusError(
      "usage",
      "job set-speed needs a speed.",
      "Write bytes per second, such as 50MiB; 0 is no limit, dynamic yields to guests.",
    );
  }
  const parsed = parseJobSpeed(speed, "SPEED");
  return (client, call) => client.setJobSpeed(id, parsed, call);
}

function direct(verb: (typeof JOB_VERBS)[number], id: string, speed: string | undefined, force: boolean): Ask {
  if (speed !== undefined) {
    throw new ColobusError("usage", `job ${verb} takes no speed.`, "Leave it out, or use job set-speed.");
  }
  return (client, call) => client.job(id, verb, { ...call, force });
}
