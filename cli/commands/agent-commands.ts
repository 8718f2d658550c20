import { constants } from "node:os";
import { agentOptions, readAgentKeys, type AgentArguments } from "../agent-options.ts";
import { processConfigOf } from "../checked-config.ts";
import type { OutputFlags } from "../agent-flags.ts";
import { defineCommand, untilAborted, type CommandHost } from "../command.ts";
import { asColobusError } from "../../proto/errors.ts";
import type { Role } from "../../proto/words.ts";

const END_SIGNALS = ["SIGINT", "SIGTERM"] as const;
/** With the signal's number added, what shells have as the exit code of a process that a signal has ended. */
const SIGNAL_EXIT_BASE = 128;

/** Says so when a second signal ends the agent before its stop is done. */
function tellOfSecondSignal({ terminated, output }: CommandHost): void {
  terminated.addEventListener("abort", () => {
    const end = (signal: NodeJS.Signals): void => {
      for (const name of END_SIGNALS) process.off(name, end);
      output.remark(`colobus: a second signal (${signal}) ends the agent at once, as a crash would.`);
      process.kill(process.pid, signal); // nobody handles it any more
      // The kernel spares the first process of a container.
      process.exit(SIGNAL_EXIT_BASE + constants.signals[signal]);
    };
    for (const name of END_SIGNALS) process.on(name, end);
  });
}

/** Runs one agent in the foreground until SIGTERM or SIGINT. SIGHUP has certificates and the configuration file read anew. */
async function runAgent(args: AgentArguments & OutputFlags, role: Role, host: CommandHost): Promise<void> {
  tellOfSecondSignal(host);
  const keys = await readAgentKeys(args);
  const config = processConfigOf(keys, role, host.env);
  // Loaded here, so that the commands of operators and hooks start without the engine.
  const { AgentProcess } = await import("../agent-process.ts");
  const { createLogger } = await import("../../shared/host/log.ts");
  const log = createLogger({ level: config.logLevel, name: config.agent.vm });
  const read = async () => {
    const now = await readAgentKeys(args);
    return { keys: now, config: processConfigOf(now, role, host.env) };
  };
  const source = {
    keys,
    read,
    setLogLevel: (level: string): void => {
      log.level = level;
    },
  };
  const agentProcess = await AgentProcess.start(config, log, args.config === undefined ? undefined : source);
  const { agent } = agentProcess;
  log.info({ role: agent.role, run: config.runDirectory }, "the agent serves");
  process.on("SIGHUP", () => {
    if (args.config === undefined) {
      agentProcess.reloadCertificates();
      return;
    }
    agent.reload().catch((error: unknown) => {
      log.error({ reason: asColobusError(error) }, "the configuration was not read anew");
    });
  });
  const started = { role: agent.role, vm: config.agent.vm, run: config.runDirectory };
  host.output.result(args.json, started, ({ role, vm, run }) => `${role} agent of VM ${vm} serves in ${run}`);
  await untilAborted(host.terminated);
  await agentProcess.stop();
}

export const primaryCommand = defineCommand({
  command: "primary",
  describe: "Run the agent that serves the VM's disks and forwards their writes",
  builder: (yargs) => agentOptions(yargs, "Primary"),
  run: (args, host) => runAgent(args, "Primary", host),
});

export const secondaryCommand = defineCommand({
  command: "secondary",
  describe: "Run the agent that keeps the last checkpoint, ready to take over",
  builder: (yargs) => agentOptions(yargs, "Secondary"),
  run: (args, host) => runAgent(args, "Secondary", host),
});
