import { asColobusError, ColobusError } from "../proto/errors.ts";
import { runHook, type Hook, type HookOptions } from "./hook.ts";

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

/** Runs the command and resolves when it has ended well. Errors: `hook-failed`, after which the promotion stands. */
export async function runFailoverHook(
  vm: PromotedVm,
  hook: Hook,
  host: Pick<HookOptions, "clock" | "output" | "signal">,
): Promise<void> {
  const env = {
    COLOBUS_RUN: vm.run,
    COLOBUS_VM: vm.vm,
    COLOBUS_EPOCH: String(vm.epoch),
    COLOBUS_NBD_URIS: vm.uris.join(" "),
    COLOBUS_VMSTATE_BYTES: vm.vmstateBytes === undefined ? "" : String(vm.vmstateBytes),
  };
  let outcome: number | string;
  try {
    outcome = await runHook(hook, { ...host, env, leavesOthers: true }); // a VM goes on
  } catch (error) {
    throw failed(asColobusError(error).message);
  }
  if (outcome !== 0) throw failed(`ended with ${outcome}`);
}

/** Somebody else may have started the VM: a second one beside it would destroy its disks. */
export function hookNotRun(already: boolean): ColobusError {
  return new ColobusError(
    "hook-failed",
    already
      ? "this side was Primary already, and the command of --exec was not run"
      : "this side is Primary now, and the command of --exec was not run: that of a later failover starts the VM",
    "See whether the VM runs, and start it by hand if not.",
  );
}

function failed(what: string): ColobusError {
  return new ColobusError(
    "hook-failed",
    `this side is Primary now, and the command ${what}`,
    "Start the VM by hand: `colobus vmstate --qmp SOCKET` has it go on from the checkpoint.",
  );
}
