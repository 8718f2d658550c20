import type { ChildStatus, DiskStatus } from "../proto/status.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { DiskHealth } from "./disk-health.ts";
import { LOCAL_CHILD } from "./recorded-quorum.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

/** What status says of a primary's disks. `asked` is asked by the disk's index. */
export function describePrimaryDisks(
  record: StateRecord,
  disks: readonly ReplicatedDisk[],
  health: DiskHealth,
  asked: {
    /** What the secondary lacks. */
    readonly dirtyBytes: (disk: number) => number;
    /** Its copies on this side; empty where its image is the only one. */
    readonly children: (disk: number) => readonly ChildStatus[];
  },
): DiskStatus[] {
  return record.disks.map(({ name, image }, index) => {
    const children = asked.children(index);
    const failed = health.has(name) || disks[index]?.child.fault !== undefined;
    return {
      name,
      sizeBytes: disks[index]?.sizeBytes ?? null,
      state: failed ? "Failed" : record.outdated ? "Outdated" : "UpToDate",
      dirtyBytes: asked.dirtyBytes(index),
      hiddenBytes: 0,
      activeBytes: 0,
      bufferBytes: 0,
      image,
      generations: [],
      children:
        children.length > 0
          ? [...children]
          : [{ name: LOCAL_CHILD, kind: "image", path: image, state: failed ? "broken" : "sound" }],
    };
  });
}
