import { spawn } from "node:child_process";
import { ColobusError } from "../proto/errors.ts";
import type { Clock } from "../shared/host/clock.ts";

/** What a command is told that runs after a failover, as environment variables. */
export interface PromotedVm {
  readonly vm: string;
  readonly run: string;
  readonly epoch: number;
  /** NBD URIs of the exports, in the order of the disks. */
  readonly uris: readonly string[];
  /** Bytes of the VM state that `colobus vmstate` has; undefined: the VM has to boot. */
  readonly vmstateBytes: number | undefined;
}

export interface FailoverHookOptions {
  /** Run by `/bin/sh -c`. */
  readonly command: string;
  readonly timeoutMs: number;
  readonly clock: Clock;
  /** Gets each piece of its output. */
  readonly output: (text: string) => void;
}

/**
 * Runs the command and resolves when it has ended well. Errors: `hook-failed`, after which the promotion stands. One that
 * takes too long is killed with everything that it has started, but for what has left its process group.
 */
export async function runFailoverHook(vm: PromotedVm, options: FailoverHookOptions): Promise<void> {
  const { command, timeoutMs, clock, output } = options;
  const child = spawn("/bin/sh", ["-c", command], {
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
    env: {
      ...process.env,
      COLOBUS_RUN: vm.run,
      COLOBUS_VM: vm.vm,
      COLOBUS_EPOCH: String(vm.epoch),
      COLOBUS_NBD_URIS: vm.uris.join(" "),
      COLOBUS_VMSTATE_BYTES: vm.vmstateBytes === undefined ? "" : String(vm.vmstateBytes),
    },
  });
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", output);
  let isLate = false;
  const timer = clock.after(timeoutMs, () => {
    isLate = true;
    if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
  });
  // Not "close": a VM that it has started may keep its output open for as long as it runs.
  const outcome = await new Promise<number | string>((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("exit", (code, signal) => resolve(code ?? signal ?? "unknown"));
  });
  timer.cancel();
  for (const stream of [child.stdout, child.stderr]) stream.destroy();
  if (outcome === 0) return;
  throw new ColobusError(
    "hook-failed",
    isLate
      ? `this side is Primary now, and the command has not ended within ${timeoutMs} ms`
      : `this side is Primary now, and the command ended with ${outcome}`,
    "Start the VM by hand: `colobus vmstate --qmp SOCKET` has it go on from the checkpoint.",
  );
}
