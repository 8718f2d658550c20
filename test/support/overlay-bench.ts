import { SeededRandom } from "../sim/seeded-random.ts";
import { SimDisk } from "../sim/sim-disk.ts";
import { SimRandom } from "../sim/sim-random.ts";
import type { Durability } from "../../proto/words.ts";
import { clusterGeometry } from "../../shared/block/cluster-geometry.ts";
import type { OverlayContext } from "../../secondary/overlay-files.ts";
import { MemoryStorage } from "./memory-storage.ts";

export const CLUSTER_BYTES = 4096;

/** A storage whose reads must sometimes be waited for, as `seed` has it. */
export function seededStorage(seed: number, coldProbability = 0): MemoryStorage {
  return new MemoryStorage(new SimDisk(new SeededRandom(seed), { coldProbability }));
}

/** Where the overlays of one disk of `sizeBytes` lie, in an empty, durable directory. */
export function overlaysOn(
  storage: MemoryStorage,
  sizeBytes: number,
  durability: Durability = "process",
): OverlayContext {
  const directory = "/state/disks/vda";
  storage.disk.addDirectory(directory);
  return {
    storage,
    random: new SimRandom(new SeededRandom(7)),
    directory,
    geometry: clusterGeometry(sizeBytes, CLUSTER_BYTES),
    durability,
  };
}

/** `length` bytes that are a function of `seed`, none of them zero. */
export function pattern(length: number, seed: number): Buffer {
  const bytes = new SeededRandom(seed).bytes(length);
  for (let index = 0; index < length; index += 1) bytes[index] = (bytes[index] ?? 0) | 1;
  return bytes;
}
