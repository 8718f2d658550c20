/** `colobus protect`: checkpoints of a VM with its memory, for as long as it runs. */
import { PROTECT_INTERVAL_DEFAULT_MS } from "../../proto/limits.ts";
import { ColobusError } from "../../proto/errors.ts";
import { agentFlags, clientOf, givenOnce, timeoutOf, vmStateSocketOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";
import { impossible } from "../flag-errors.ts";
import { BACKGROUND_CHOICES, disksAlone, disksFrozen, withMemory } from "../guest-controls.ts";
import { assertEpochs } from "../no-epochs.ts";
import { ProtectedVm } from "../protected-vm.ts";
import { Protection, type GuestControl, type ProtectionRound } from "../protection.ts";
import { formatBytes, formatDuration, parseDuration } from "../quantities.ts";

export const protectCommand = defineCommand({
  command: "protect",
  describe: "Take checkpoints of a running QEMU with its memory, every so often",
  builder: (yargs) =>
    agentFlags(yargs)
      .option("qmp", { type: "string", requiresArg: true, describe: "QEMU's QMP socket, for this command alone" })
      .option("interval", {
        type: "string",
        requiresArg: true,
        describe: `From the beginning of one checkpoint to the next (${formatDuration(PROTECT_INTERVAL_DEFAULT_MS)})`,
      })
      .option("background-snapshot", {
        choices: BACKGROUND_CHOICES,
        describe:
          "Whether the VM runs while its memory is written (off); auto: where QEMU and the host are capable of it. An agent that dies meanwhile leaves the VM hanging",
      })
      .option("disks-only", { type: "boolean", default: false, describe: "Leave the memory out, and the VM running" })
      .option("qga", {
        type: "string",
        requiresArg: true,
        describe: "With --disks-only: socket of the guest agent, which freezes the file systems meanwhile",
      })
      .example("$0 protect --qmp /run/web/qmp.sock --interval 5s", "Memory and disks, every 5 s")
      .example("$0 protect --disks-only --qga /run/web/qga.sock --interval 30s", "Disks with sound file systems"),
  run: async (args, host) => {
    const qmp = givenOnce("--qmp", args.qmp);
    const qga = givenOnce("--qga", args.qga);
    const { disksOnly, backgroundSnapshot } = args;
    assertSense(qmp, qga, disksOnly);
    if (disksOnly && backgroundSnapshot !== undefined) {
      throw new ColobusError(
        "usage",
        "--background-snapshot is about memory, which --disks-only leaves out.",
        "Leave out one of them.",
      );
    }
    const intervalMs = parseInterval(givenOnce("--interval", args.interval));
    const timeoutMs = timeoutOf(args);
    const control = clientOf(args, host);
    try {
      assertEpochs((await control.status({ timeoutMs, signal: host.interrupted })).mode, "protect");
    } catch (error) {
      if (host.interrupted.aborted) return; // it was asked to end, and nothing is begun
      throw error;
    }
    const warn = (text: string): void => host.output.remark(`colobus: ${text}`);
    const protect = async (guest: GuestControl): Promise<void> => {
      await new Protection({
        intervalMs,
        timeoutMs,
        control,
        clock: host.clock,
        guest,
        tell: (round) => host.output.result(args.json, round, renderRound),
        warn,
        signal: host.interrupted,
      }).run();
    };
    const ofVm = { clock: host.clock, timeoutMs };
    if (qmp === undefined) return protect(qga === undefined ? disksAlone() : disksFrozen({ ...ofVm, socket: qga }));
    const socket = vmStateSocketOf(control);
    const vm = await ProtectedVm.connect({ ...ofVm, socket: qmp });
    try {
      await protect(await withMemory(vm, { socket, background: backgroundSnapshot ?? "off", warn }));
    } finally {
      await vm.release();
    }
  },
});

function parseInterval(text: string | undefined): number {
  const intervalMs = text === undefined ? PROTECT_INTERVAL_DEFAULT_MS : parseDuration(text, "--interval");
  if (intervalMs > 0) return intervalMs;
  throw impossible("--interval", text ?? "", "It must be longer than nothing: 5s, 500ms.");
}

function assertSense(qmp: string | undefined, qga: string | undefined, disksOnly: boolean): void {
  if (disksOnly && qmp === undefined) return;
  if (!disksOnly && qmp !== undefined && qga === undefined) return;
  throw new ColobusError(
    "usage",
    disksOnly ? "--disks-only leaves the VM running, and needs no --qmp." : "protect needs the VM's QMP socket alone.",
    "Say --qmp SOCKET, or --disks-only with or without --qga SOCKET.",
  );
}

function renderRound(round: ProtectionRound): string {
  switch (round.state) {
    case "waiting":
      return `waiting: ${round.reason}`;
    case "failed":
      return `${round.epoch === null ? "a checkpoint" : `checkpoint ${round.epoch}`} failed, and the one before stands: ${round.error.message}`;
    case "committed": {
      const state = round.vmstateBytes === null ? "" : `, VM state ${formatBytes(round.vmstateBytes)}`;
      return `checkpoint ${round.epoch} committed in ${formatDuration(round.totalMs)}: pause ${formatDuration(round.pauseMs)}${state}`;
    }
  }
}
