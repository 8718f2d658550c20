import { asColobusError } from "../proto/errors.ts";
import type { Log } from "../shared/host/log.ts";
import type { WaitsFor } from "../shared/host/waits-for.ts";
import type { ReplicaDisk } from "./replica-disk.ts";
import type { VmStateStore } from "./vm-state-store.ts";

/**
 * The clean marks of the disks of which nothing is left to chance, nor of the VM states that belong to their checkpoints:
 * what cannot be flushed ends like a crash. `waitsFor` is told what is waited for.
 */
export async function flushDisks(
  disks: readonly ReplicaDisk[],
  vmStates: VmStateStore,
  log: Log,
  waitsFor: WaitsFor,
): Promise<ReadonlyMap<string, string>> {
  const marks = new Map<string, string>();
  waitsFor("VM states to be flushed");
  try {
    await vmStates.flush();
  } catch (error) {
    log.warn({ reason: asColobusError(error) }, "the VM states cannot be flushed");
    return marks;
  }
  for (const disk of disks) {
    waitsFor(`the image of disk ${disk.name} and its overlays to be flushed`);
    try {
      await disk.base.flush();
      await disk.epochs.flush();
      await disk.active.flush();
      marks.set(disk.name, await disk.base.changeMark());
    } catch (error) {
      log.warn({ disk: disk.name, reason: asColobusError(error) }, "the disk cannot be flushed");
    }
  }
  return marks;
}
