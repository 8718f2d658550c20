/** `colobus rejoin`, `connect`, `start-alone` and `switchover`: who of the two is Primary, and what becomes of the other. */
import type { ConnectAnswer } from "../../proto/control-api.ts";
import { agentFlags, clientOf, givenOnce, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { formatBytes } from "../quantities.ts";

export const rejoinCommand = defineCommand({
  command: "rejoin",
  describe: "Make this outdated primary the secondary of the agent that was promoted",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("peer", {
        type: "string",
        demandOption: true,
        requiresArg: true,
        describe: "URL of the promoted agent: wss://HOST:PORT, or ws:// without TLS",
      })
      .example("$0 rejoin --peer ws://192.0.2.2:7000", "After a failover, on the old primary's host"),
  run: async (args, host) => {
    const request = { peer: args.peer, timeoutMs: timeoutOf(args) };
    host.output.result(args.json, await clientOf(args, host).rejoin(request, host.interrupted), (answer) =>
      answer.already ? "already Secondary" : `now Secondary of ${answer.peer}`,
    );
  },
});

export const connectCommand = defineCommand({
  command: "connect",
  describe: "Speak to the peer now; say what the two would do, or resolve that they do not come together",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("dry-run", { type: "boolean", default: false, describe: "Only explain: rule, direction, bytes" })
      .option("discard-my-data", {
        type: "boolean",
        default: false,
        describe: "Give up what this side has and the peer has not, and become its secondary",
      })
      .option("accept-new-peer", {
        type: "boolean",
        default: false,
        describe: "On a primary: another agent takes the place of the peer, which is lost, and gets everything",
      })
      .option("peer", {
        type: "string",
        requiresArg: true,
        describe:
          "With --accept-new-peer: where the new one is, wss://HOST:PORT, if this side dials. With --discard-my-data: whose secondary it becomes, if it is not whom this side dials",
      })
      .option("instead-of", {
        type: "string",
        requiresArg: true,
        describe:
          "With --accept-new-peer, of several secondaries the one that is lost: its agent id, or the URL dialled",
      })
      .example("$0 connect --dry-run", "Why the two do, or do not, come together")
      .example("$0 connect --discard-my-data", "Resolve a split brain, on the side whose changes go"),
  run: async (args, host) => {
    const { dryRun, discardMyData, acceptNewPeer, peer, insteadOf } = args;
    const request = {
      dryRun,
      discardMyData,
      ...(acceptNewPeer ? { acceptNewPeer } : {}),
      ...(peer === undefined ? {} : { peer }),
      ...(insteadOf === undefined ? {} : { insteadOf }),
      timeoutMs: timeoutOf(args),
    };
    host.output.result(args.json, await clientOf(args, host).connect(request, host.interrupted), renderVerdict);
  },
});

export const startAloneCommand = defineCommand({
  command: "start-alone",
  describe: "Let guests go on that wait for the peer, which is lost: only where it was not promoted",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("force", {
        type: "boolean",
        default: false,
        describe: "Also in a split brain, when the other side is gone for good",
      })
      .example("$0 start-alone", "When the peer is surely not Primary"),
  run: async (args, host) => {
    const call = { timeoutMs: timeoutOf(args), signal: host.interrupted };
    host.output.result(args.json, await clientOf(args, host).startAlone({ force: args.force }, call), ({ released }) =>
      released ? "guests go on" : "no guest was held",
    );
  },
});

export const switchoverCommand = defineCommand({
  command: "switchover",
  describe: "Swap the roles with the secondary, losing nothing",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("close-clients", {
        type: "boolean",
        default: false,
        describe: "Also while clients that may write are connected: they are sent away",
      })
      .option("peer", {
        type: "string",
        requiresArg: true,
        describe: "Of several secondaries, the one to take over: its agent id, or the URL that this side dials",
      })
      .example("$0 switchover", "Before maintenance of this host"),
  run: async (args, host) => {
    const peer = givenOnce("--peer", args.peer);
    const request = {
      closeClients: args.closeClients,
      timeoutMs: timeoutOf(args),
      ...(peer === undefined ? {} : { peer }),
    };
    host.output.result(
      args.json,
      await clientOf(args, host).switchover(request, host.interrupted),
      () => "now Secondary: the peer is Primary",
    );
  },
});

function renderVerdict({ connected, verdict }: ConnectAnswer): string {
  const { here, there } = verdict.changedBytes;
  return [
    connected ? "connected" : "not connected",
    `verdict  ${verdict.kind} (${verdict.rule})`,
    `         ${verdict.meaning}`,
    `changed  ${formatBytes(here)} here, ${formatBytes(there)} on the peer`,
  ].join("\n");
}
