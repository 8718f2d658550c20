import type { ScriptedPair } from "./scripted-pair.ts";

/** What the stages in which a secondary dies have the guest do, on two disks of a few clusters. */
export const CLUSTER_BYTES = 4096;
export const GUEST_DISKS = [
  { name: "vda", sizeBytes: 3 * CLUSTER_BYTES + 1536 },
  { name: "vdb", sizeBytes: 4 * CLUSTER_BYTES },
];

export const GUEST_OPERATIONS = ["write", "part", "zero", "trim"] as const;
type GuestOperation = (typeof GUEST_OPERATIONS)[number];

/** The ranges overlap each other across clusters and operations, and begin and end within clusters and at their edges. */
export async function performGuest(scripted: ScriptedPair, operation: GuestOperation): Promise<void> {
  switch (operation) {
    case "write":
      await Promise.all([0, 1].map((disk) => scripted.guestWrite(disk, CLUSTER_BYTES, CLUSTER_BYTES, "bytes")));
      break;
    case "part":
      await scripted.guestWrite(0, CLUSTER_BYTES + 1024, CLUSTER_BYTES, "bytes");
      break;
    case "zero":
      await scripted.guestWrite(1, CLUSTER_BYTES + 512, 2 * CLUSTER_BYTES, "zero");
      break;
    case "trim":
      await scripted.guestWrite(0, CLUSTER_BYTES, 2 * CLUSTER_BYTES, "discard");
      break;
  }
}
