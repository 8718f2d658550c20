import { ColobusError } from "../proto/errors.ts";
import { DISK_RETRY_MS, JOB_CHUNK_BYTES } from "../proto/limits.ts";
import { clusterEndOffset, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { JobWork } from "../shared/jobs/job.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { Replicator } from "./replicator.ts";
import type { SourceSession } from "./source-session.ts";

/** Holes are sent in pieces of at most this length, so that a job can be paused within one. */
const HOLE_MAX_BYTES = 64 * 1024 * 1024;

/**
 * Sends the clusters that the secondary may lack, with their present content, until none is left. The job belongs to
 * one session: when that is lost, the job ends, and the next session starts another with what is left.
 */
export class SyncWork implements JobWork {
  readonly disk = null;
  readonly cancellable = false;
  readonly retryMs = DISK_RETRY_MS;
  readonly type: "full-sync" | "resync";
  readonly #replicator: Replicator;
  readonly #session: SourceSession;
  readonly #disks: readonly ReplicatedDisk[];
  readonly #geometries: readonly ClusterGeometry[];

  constructor(
    type: "full-sync" | "resync",
    replicator: Replicator,
    disks: readonly ReplicatedDisk[],
    geometries: readonly ClusterGeometry[],
  ) {
    this.type = type;
    this.#replicator = replicator;
    this.#session = replicator.session;
    this.#disks = disks;
    this.#geometries = geometries;
  }

  progress(): { doneBytes: number; totalBytes: number } {
    return this.#replicator.syncProgress;
  }

  async step(): Promise<number | undefined> {
    const room = this.#session.room();
    if (room !== undefined) await room;
    const next = this.#replicator.nextDirty((disk) => this.#clusters(disk, HOLE_MAX_BYTES));
    if (next === undefined) return this.#replicator.tryFinishSync(this.#session) ? undefined : this.#lost();
    const { disk, run } = next;
    const geometry = this.#geometries[disk];
    const source = this.#disks[disk];
    if (geometry === undefined || source === undefined) throw new RangeError(`there is no disk ${disk}`);
    const offset = run.first * geometry.clusterBytes;
    const length = clusterEndOffset(geometry, run.end) - offset;
    return source.readForSync(offset, length, JOB_CHUNK_BYTES, geometry.clusterBytes, (content) => {
      if (!this.#replicator.sendSynced(this.#session, disk, offset, content)) this.#lost();
    });
  }

  #clusters(disk: number, bytes: number): number {
    return Math.max(1, Math.floor(bytes / (this.#geometries[disk]?.clusterBytes ?? bytes)));
  }

  #lost(): never {
    throw new ColobusError(
      "connection-lost",
      "the session with the secondary ended before everything was sent",
      "Nothing: the next session sends what is left.",
    );
  }
}
