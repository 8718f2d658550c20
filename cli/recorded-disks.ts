import type { StateRecord } from "../proto/state-record.ts";
import { clusterGeometry, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";

/** A shared disk that was never opened for writing, and so says nothing, was not flushed: it was not left in good order. */
export function cleanMarkOf({ mode }: StateRecord, mark: string | undefined): string | null {
  return mode === "shared" && mark === "" ? null : (mark ?? null);
}

/** The disks whose sizes are known. */
export function namedGeometries({ disks, clusterBytes }: StateRecord): { name: string; geometry: ClusterGeometry }[] {
  return disks.flatMap(({ name, sizeBytes }) =>
    sizeBytes === null ? [] : { name, geometry: clusterGeometry(sizeBytes, clusterBytes) },
  );
}
