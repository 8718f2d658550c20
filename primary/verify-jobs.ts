import type { VerifyRequest } from "../proto/control-api.ts";
import { ColobusError } from "../proto/errors.ts";
import type { EventType } from "../proto/words.ts";
import { clusterEndOffset, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { ClusterRun } from "../shared/block/cluster-bitmap.ts";
import type { Job } from "../shared/jobs/job.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { Replicator } from "./replicator.ts";
import type { SourceSession } from "./source-session.ts";
import { VerifyWork } from "./verify-work.ts";

/** Ranges that are made durably dirty before they are sent again, together. */
const REPAIR_RANGES = 1024;

export interface VerifyJobsOptions {
  readonly jobs: JobList;
  /** The disks are the secondary's own as well: there is one copy. */
  readonly sharesDisks: boolean;
  readonly disks: readonly ReplicatedDisk[];
  readonly geometries: readonly ClusterGeometry[];
  readonly tracking: Pick<PeerTracking, "mark">;
  readonly replicator: Pick<Replicator, "session" | "isConnected" | "establishedSession" | "sendAgain">;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
}

/** The comparisons of one primary with its secondary, one at a time. */
export class VerifyJobs {
  readonly #options: VerifyJobsOptions;
  #job: Job | undefined;

  constructor(options: VerifyJobsOptions) {
    this.#options = options;
  }

  /** Whether the two are being compared now. */
  get isRunning(): boolean {
    return this.#job?.state === "running";
  }

  /** Errors: `not-supported` in mode `shared`, `not-found` for an unknown disk, `job-state` for a second one, `no-peer`, `not-in-sync`. */
  start({ disk, repair, speed }: Pick<VerifyRequest, "disk" | "repair" | "speed">): Job {
    const { jobs, sharesDisks, disks, geometries, replicator, emit } = this.#options;
    if (sharesDisks) {
      throw new ColobusError(
        "not-supported",
        "in mode shared both hosts use one disk: there is no second copy to compare",
        "Check the file system on it from inside the VM.",
      );
    }
    if (disk !== undefined && !disks.some(({ name }) => name === disk)) {
      throw new ColobusError("not-found", `there is no disk "${disk}"`, "See `colobus status`.");
    }
    const job = this.#job;
    if (job !== undefined && job.state !== "concluded") {
      throw new ColobusError(
        "job-state",
        `${job.id} is under way`,
        `Wait for it, or end it with \`colobus job cancel ${job.id}\`.`,
      );
    }
    this.#session();
    const work = new VerifyWork({
      disk: disk ?? null,
      disks,
      geometries,
      repairs: repair,
      session: () => this.#session(),
      tell: (active) => {
        if (replicator.isConnected) replicator.session.tell({ type: "verify", active });
      },
      sendAgain: (ranges) => this.#sendAgain(ranges),
      emit,
    });
    this.#job = jobs.start(work, { speed });
    return this.#job;
  }

  /** The role ends, and the comparison with it. */
  end(reason: ColobusError): void {
    this.#job?.conclude(reason);
  }

  /** The session of a secondary that has everything. Errors: `no-peer`, `not-in-sync`. */
  #session(): SourceSession {
    const { session, establishedSession } = this.#options.replicator;
    if (session === establishedSession) return session;
    throw new ColobusError(
      "not-in-sync",
      "the secondary does not have everything yet: there is nothing to compare",
      "Wait: `colobus wait synced`; `colobus jobs` shows how far it is.",
    );
  }

  async #sendAgain(ranges: Iterable<readonly [disk: number, run: ClusterRun]>): Promise<void> {
    const marked: (() => void)[] = [];
    const send = (): void => {
      for (const add of marked.splice(0)) add();
    };
    for (const [disk, { first, end }] of ranges) {
      const geometry = this.#options.geometries[disk];
      if (geometry === undefined) throw new RangeError(`there is no disk ${disk}`);
      const offset = first * geometry.clusterBytes;
      const length = clusterEndOffset(geometry, end) - offset;
      const marking = this.#options.tracking.mark(disk, offset, length);
      if (marking !== undefined) await marking;
      marked.push(() => this.#options.replicator.sendAgain(disk, offset, length));
      if (marked.length >= REPAIR_RANGES) send();
    }
    send();
  }
}
