/** The ways in which `colobus protect` treats the guest while a checkpoint is taken. */
import { BACKGROUND_TRIES } from "../proto/limits.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { freezeGuest, type GuestAgentOptions } from "./guest-agent.ts";
import type { ProtectedVm } from "./protected-vm.ts";
import type { GuestControl } from "./protection.ts";

/** `--background-snapshot`: whether the VM runs while its memory is written. */
export type BackgroundChoice = "auto" | "on" | "off";

export const BACKGROUND_CHOICES = ["auto", "on", "off"] as const satisfies readonly BackgroundChoice[];

/** Why a VM's state is not to be had now. */
const UNTIL_IT_RUNS = "the VM is paused, and QEMU writes its state again only when it has run";
const UNTIL_IT_WAKES = "the guest sleeps, and QEMU could not wake it any more behind its state";

const nothing = (): Promise<void> => Promise.resolve();

/** The guest is not paused, and its memory is left out. */
export function disksAlone(): GuestControl {
  return { pause: () => Promise.resolve(nothing), state: undefined };
}

/** The guest agent has the file systems frozen for the moment of the barrier. */
export function disksFrozen(options: GuestAgentOptions): GuestControl {
  return { pause: () => freezeGuest(options), state: undefined };
}

export interface WithMemoryOptions {
  /** The socket on which the agent takes a VM's state. */
  readonly socket: string;
  readonly background: BackgroundChoice;
  readonly warn: (text: string) => void;
}

/**
 * The guest is paused until its memory is written; or, in the background, until it is only kept as it is, for which QEMU
 * and the host have to be capable. Errors: `vm-refused` where they are not and the choice is "on".
 */
export async function withMemory(vm: ProtectedVm, options: WithMemoryOptions): Promise<GuestControl> {
  const { socket, background, warn } = options;
  let isBackground = background !== "off";
  /** How often in a row a state could not be begun in the background. */
  let refused = 0;

  const refuse = (error: unknown): void => {
    const { code, message } = asColobusError(error);
    if (code !== "vm-refused") throw error;
    if (background === "on")
      throw new ColobusError(code, message, "See docs/qemu.md for what it needs, or leave out --background-snapshot.");
    isBackground = false;
    warn(
      `the VM is paused for as long as its state is written, since the background snapshot is not possible: ${message}`,
    );
  };
  const beginInBackground = async (): Promise<void> => {
    try {
      await vm.beginSave(socket);
      refused = 0;
    } catch (error) {
      refused += 1;
      if (refused === BACKGROUND_TRIES) refuse(error);
      throw error;
    }
  };

  if (isBackground) await vm.setBackground(true).catch(refuse);
  let inBackground = false;
  return {
    pause: async () => {
      await vm.recover();
      await vm.untilIdle();
      const paused = await vm.pause();
      if (paused === "asleep") return UNTIL_IT_WAKES;
      if (paused === "written") return UNTIL_IT_RUNS;
      // A VM that somebody else has paused must stay so, and QEMU 7.2 would let it run.
      inBackground = isBackground && paused === "here";
      return () => vm.resume();
    },
    state: {
      begin: async () => {
        await vm.setBackground(inBackground);
        await (inBackground ? beginInBackground() : vm.beginSave(socket));
      },
      finish: () => (inBackground ? vm.finishSave() : nothing()),
      // In the background it goes on to its end, which the agent takes: see `untilIdle`.
      cancel: () => (inBackground ? nothing() : vm.cancelSave()),
    },
  };
}
