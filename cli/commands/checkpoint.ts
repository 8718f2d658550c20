/** `colobus checkpoint`, `commit` and `discard`: the hook of a hypervisor, and of people. */
import type { CheckpointAnswer, CommitAnswer, DiscardAnswer } from "../../proto/control-api.ts";
import { ColobusError } from "../../proto/errors.ts";
import { openContent } from "../../shared/host/content-files.ts";
import { agentFlags, clientOf, givenOnce, parseEpoch, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { formatBytes, formatDuration } from "../quantities.ts";

export const checkpointCommand = defineCommand({
  command: "checkpoint",
  describe: "Take a checkpoint of all disks and commit it",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("prepare", { type: "boolean", default: false, describe: "Stop before the commit" })
      .option("vmstate", {
        type: "string",
        requiresArg: true,
        describe: "File with the VM's state, which is part of the checkpoint; -: stdin",
      })
      .option("await-vmstate", {
        type: "boolean",
        default: false,
        describe: "With --prepare: the VM's state follows, into vmstate.sock",
      })
      .example("$0 checkpoint", "Take and commit; succeeds only when the secondary has committed")
      .example("$0 checkpoint --vmstate - < vm.state", "With the state of the VM, which is paused")
      .example("$0 checkpoint --prepare --json", "Take, and commit or discard the printed epoch later"),
  run: async (args, host) => {
    const vmstate = givenOnce("--vmstate", args.vmstate);
    if (args.awaitVmstate && (vmstate !== undefined || !args.prepare)) {
      throw new ColobusError(
        "usage",
        "--await-vmstate is for a checkpoint that is prepared, and whose state comes later.",
        "Say it with --prepare, and without --vmstate.",
      );
    }
    const request = {
      prepare: args.prepare,
      timeoutMs: timeoutOf(args),
      ...(args.awaitVmstate ? { vmstate: true } : {}),
    };
    const client = clientOf(args, host);
    const answer =
      vmstate === undefined
        ? await client.checkpoint(request, host.interrupted)
        : await client.checkpointWithVmState(request, openContent(vmstate), host.interrupted);
    host.output.result(args.json, answer, renderCheckpoint);
  },
});

export const commitCommand = defineCommand({
  command: "commit <epoch>",
  describe: "Commit a prepared checkpoint, and every earlier one with it",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("epoch", {
        type: "string",
        demandOption: true,
        describe: "The epoch that checkpoint --prepare printed",
      })
      .example("$0 commit 42", "Checkpoint 42 is what a failover returns to from now on"),
  run: async (args, host) => {
    const request = { epoch: parseEpoch(args.epoch), timeoutMs: timeoutOf(args) };
    host.output.result(args.json, await clientOf(args, host).commit(request, host.interrupted), renderCommit);
  },
});

export const discardCommand = defineCommand({
  command: "discard [epoch]",
  describe: "Withdraw a prepared checkpoint, or all of them (never data)",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("epoch", { type: "string", describe: "The epoch; without it, every prepared one" })
      .example("$0 discard 42", "Withdraw checkpoint 42")
      .example("$0 discard", "Withdraw every prepared checkpoint"),
  run: async (args, host) => {
    const timeoutMs = timeoutOf(args);
    const request = args.epoch === undefined ? { timeoutMs } : { epoch: parseEpoch(args.epoch), timeoutMs };
    host.output.result(args.json, await clientOf(args, host).discard(request, host.interrupted), renderDiscard);
  },
});

function renderCheckpoint({ epoch, state, prepareMs, commitMs, vmstateBytes }: CheckpointAnswer): string {
  const vmstate = vmstateBytes === undefined ? "" : `, VM state ${formatBytes(vmstateBytes)}`;
  const commit = commitMs === null ? "" : `, commit ${formatDuration(commitMs)}`;
  return `checkpoint ${epoch} ${state} (prepare ${formatDuration(prepareMs)}${commit}${vmstate})`;
}

function renderCommit({ epoch, commitMs }: CommitAnswer): string {
  return `checkpoint ${epoch} committed (commit ${formatDuration(commitMs)})`;
}

function renderDiscard({ discarded }: DiscardAnswer): string {
  if (discarded.length === 0) return "no checkpoint was prepared";
  return `${discarded.length === 1 ? "checkpoint" : "checkpoints"} ${discarded.join(", ")} discarded`;
}
