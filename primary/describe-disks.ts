import type { DiskStatus } from "../proto/control-api.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { DiskHealth } from "./disk-health.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

/** What status says of a primary's disks. `dirtyBytes` is asked by the disk's index. */
export function describePrimaryDisks(
  record: StateRecord,
  disks: readonly ReplicatedDisk[],
  health: DiskHealth,
  dirtyBytes: (disk: number) => number,
): DiskStatus[] {
  return record.disks.map(({ name, image }, index) => {
    const failed = health.has(name) || disks[index]?.child.fault !== undefined;
    return {
      name,
      sizeBytes: disks[index]?.sizeBytes ?? null,
      state: failed ? "Failed" : record.outdated ? "Outdated" : "UpToDate",
      dirtyBytes: dirtyBytes(index),
      hiddenBytes: 0,
      activeBytes: 0,
      bufferBytes: 0,
      image,
      generations: [],
      children: [{ name: "local", kind: "image", path: image, state: failed ? "broken" : "sound" }],
    };
  });
}
