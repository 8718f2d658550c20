/** `colobus resync` and `rollback`: what an operator decides when the overlays are full, or a checkpoint was the wrong one. */
import type { ResyncAnswer, RollbackAnswer } from "../../proto/control-api.ts";
import { agentFlags, clientOf, parseEpoch, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

export const resyncCommand = defineCommand({
  command: "resync",
  describe: "Let a paused resync go on; or, where the overlays have no room for it, give the checkpoint up",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("give-up-checkpoint", {
        type: "boolean",
        default: false,
        describe: "On a secondary: free its overlays. There is nothing to fail over to until the next commit",
      })
      .example("$0 resync", "On the primary: resume a paused resync")
      .example(
        "$0 resync --give-up-checkpoint",
        "On the secondary: be Inconsistent, and take the resync without overlays",
      ),
  run: async (args, host) => {
    const request = { giveUpCheckpoint: args.giveUpCheckpoint, timeoutMs: timeoutOf(args) };
    host.output.result(args.json, await clientOf(args, host).resync(request, host.interrupted), renderResync);
  },
});

export const rollbackCommand = defineCommand({
  command: "rollback <epoch>",
  describe: "Make a retained checkpoint the committed one",
  builder: (yargs) =>
    agentFlags(yargs)
      .positional("epoch", { type: "string", demandOption: true, describe: "A retained checkpoint" })
      .example("$0 rollback 41", "A failover returns to checkpoint 41 from now on"),
  run: async (args, host) => {
    const request = { epoch: parseEpoch(args.epoch), timeoutMs: timeoutOf(args) };
    host.output.result(args.json, await clientOf(args, host).rollback(request, host.interrupted), renderRollback);
  },
});

function renderResync({ outcome, job, givenUpEpoch }: ResyncAnswer): string {
  switch (outcome) {
    case "nothing-to-do":
      return "nothing to do";
    case "running":
      return `${job ?? "a resync"} is under way`;
    case "resumed":
      return `${job ?? "the resync"} goes on`;
    case "given-up":
      return `checkpoint ${givenUpEpoch ?? ""} given up: there is nothing to fail over to until the next commit`;
  }
}

function renderRollback({ epoch, fromEpoch }: RollbackAnswer): string {
  if (epoch === fromEpoch) return `checkpoint ${epoch} is the committed one already: nothing to do`;
  return `rolled back from checkpoint ${fromEpoch} to ${epoch}: the next session compares everything`;
}
