import type { StoredVmState, StoredVmStateRequest } from "../proto/control-api.ts";
import type { Status } from "../proto/status.ts";
import { ColobusError } from "../proto/errors.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { VmStateStore } from "../secondary/vm-state-store.ts";

export interface StoredVmStatesOptions {
  readonly store: VmStateStore;
  readonly record: () => StateRecord;
  /** Whether the disks are surely as they were at the committed checkpoint: always so on a secondary. */
  readonly isUntouched: () => boolean;
}

/** The VM states that this side can start a VM from: only with the disks as they were then. */
export class StoredVmStates {
  readonly #options: StoredVmStatesOptions;

  constructor(options: StoredVmStatesOptions) {
    this.#options = options;
  }

  /** That of the committed checkpoint, if it has one and the disks fit it. */
  describe(): Status["vmstate"] {
    const { epoch, vmstate } = this.#options.record().committed;
    return vmstate === undefined || !this.#options.isUntouched() ? null : { epoch, bytes: vmstate.bytes };
  }

  /** Errors: `vmstate-missing`, `epoch-unknown`, `vmstate-stale`. */
  open({ epoch, force }: StoredVmStateRequest): StoredVmState {
    const { role, committed, retained } = this.#options.record();
    if (role === "Primary" && committed.epoch === 0) {
      throw new ColobusError(
        "vmstate-missing",
        "VM states are stored on the secondary: this agent is Primary, and has none",
        "Ask the secondary's agent: `colobus vmstate` with its --run directory.",
      );
    }
    const checkpoint =
      epoch === undefined ? committed : [committed, ...retained].find((candidate) => candidate.epoch === epoch);
    if (checkpoint === undefined) {
      throw new ColobusError(
        "epoch-unknown",
        `checkpoint ${epoch} is neither the committed one (${committed.epoch}) nor retained`,
        "See `colobus status`.",
      );
    }
    const mark = checkpoint.vmstate;
    if (mark === undefined) {
      throw new ColobusError(
        "vmstate-missing",
        committed.epoch === 0
          ? "no checkpoint was ever committed here"
          : `no VM state is stored with checkpoint ${checkpoint.epoch}: it is one of the disks`,
        "Start the VM from its disks; `colobus protect` takes checkpoints with the VM's state.",
      );
    }
    if (!force && !this.#options.isUntouched()) {
      throw new ColobusError(
        "vmstate-stale",
        `the disks were written, or may have been, since they were as the VM state of checkpoint ${checkpoint.epoch} knows them`,
        "Start the VM from its disks. Say --force only when you are sure that no VM has used them since the failover.",
      );
    }
    return {
      epoch: checkpoint.epoch,
      bytes: mark.bytes,
      content: this.#options.store.read(checkpoint.epoch, mark),
    };
  }
}
