import { VmStateStore } from "../../secondary/vm-state-store.ts";
import type { MemoryStorage } from "./memory-storage.ts";
import { SilentLog } from "./silent-log.ts";
import { STATE_DIRECTORY } from "./replica-bench.ts";

/** The store of VM states of a secondary in `storage`. */
export function vmStatesOf(storage: MemoryStorage): VmStateStore {
  return new VmStateStore({
    storage,
    log: new SilentLog(),
    stateDirectory: STATE_DIRECTORY,
    durability: () => "power",
  });
}
