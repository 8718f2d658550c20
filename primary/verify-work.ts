import type { JobStatus, VerifyResult } from "../proto/status.ts";
import { DISK_RETRY_MS, JOB_CHUNK_BYTES, VERIFY_HOLE_BYTES, VERIFY_STEP_PIECES } from "../proto/limits.ts";
import type { EventType, JobState } from "../proto/words.ts";
import type { ClusterRun } from "../shared/block/cluster-bitmap.ts";
import { clusterEndOffset, firstClusterOf, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import { CHECKSUM_OF_ZEROES, checksumOf } from "../shared/block/content-checksum.ts";
import type { JobWork } from "../shared/jobs/job.ts";
import type { ReplicatedDisk, SyncContent } from "./replicated-disk.ts";
import type { SourceSession } from "./source-session.ts";
import { stepBytes } from "./sync-pieces.ts";
import { VerifyFindings } from "./verify-findings.ts";

/** How many clusters are looked at again side by side. */
const SECOND_LOOKS = 16;

export interface VerifyWorkOptions {
  /** The one disk to be compared; null: all of them. */
  readonly disk: string | null;
  readonly disks: readonly ReplicatedDisk[];
  readonly geometries: readonly ClusterGeometry[];
  readonly repairs: boolean;
  /** The session in whose stream the secondary gets everything. Errors: why there is none now. */
  readonly session: () => Pick<SourceSession, "checksum">;
  /** Tells the secondary whether it is being compared. */
  readonly tell: (isActive: boolean) => void;
  /** Has these clusters sent again. It is durable that they must be when the promise resolves. */
  readonly sendAgain: (ranges: Iterable<readonly [disk: number, run: ClusterRun]>) => Promise<void>;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
}

/** A stretch of one disk. */
interface Piece {
  readonly disk: number;
  readonly offset: number;
  readonly length: number;
}

interface Comparison {
  readonly differing: readonly Piece[];
  readonly readBytes: number;
}

/**
 * Compares the secondary's copy with this side's by checksums, while guests write. A stretch is read under the range lock,
 * and the question put into the stream before it is released: both sides tell what the stretch held at one place in the
 * stream, so that a write in flight is on both sides of the comparison or on neither. What differs is looked at once more,
 * cluster by cluster, when no write to it is under way, and reported only if it differs again.
 *
 * It asks only while the secondary has everything. A session that is lost, or a resync that begins, fails the step: the
 * job pauses with the reason, and goes on from where it was when the two are in sync again.
 */
export class VerifyWork implements JobWork {
  readonly type = "verify";
  readonly disk: string | null;
  readonly cancellable = true;
  readonly retryMs = DISK_RETRY_MS;
  readonly #options: VerifyWorkOptions;
  readonly #findings: VerifyFindings;
  /** Indexes of the disks to be compared. */
  readonly #chosen: readonly number[];
  readonly #totalBytes: number;
  #checkedBytes = 0;
  /** Where the next step begins: in a disk of the chosen ones. */
  #next = { position: 0, offset: 0 };
  #requestsSeen: number;

  constructor(options: VerifyWorkOptions) {
    this.#options = options;
    this.disk = options.disk;
    const { disks, geometries } = options;
    this.#chosen = [...disks.keys()].filter(
      (index) => options.disk === null || this.#disk(index).name === options.disk,
    );
    this.#totalBytes = this.#chosen.reduce((sum, index) => sum + this.#disk(index).sizeBytes, 0);
    this.#findings = new VerifyFindings(
      geometries.map((geometry, index) => ({ name: this.#disk(index).name, geometry })),
      (difference) => options.emit("verify-difference", difference),
    );
    this.#requestsSeen = this.guestRequests();
  }

  progress(): { doneBytes: number; totalBytes: number } {
    return { doneBytes: this.#checkedBytes, totalBytes: this.#totalBytes };
  }

  guestRequests(): number {
    return this.#options.disks.reduce((sum, disk) => sum + disk.requests, 0);
  }

  report(): Pick<JobStatus, "verify"> {
    return { verify: this.#result() };
  }

  stateChanged(state: JobState): void {
    this.#options.tell(state === "running");
    if (state !== "concluded") return;
    this.#findings.close();
    const { ranges, differingBytes, checkedBytes } = this.#result();
    const isComplete = checkedBytes === this.#totalBytes;
    this.#options.emit("verify-finished", { disk: this.disk, isComplete, checkedBytes, ranges, differingBytes });
  }

  async step(bytesMax: number): Promise<number | undefined> {
    const requests = this.guestRequests();
    const besideGuests = requests !== this.#requestsSeen;
    this.#requestsSeen = requests;
    this.#options.session();
    const { pieces, next } = await this.#nextPieces(stepBytes(bytesMax, besideGuests));
    if (pieces.length === 0) {
      if (this.#options.repairs) await this.#options.sendAgain(this.#findings.runs());
      return undefined;
    }
    let bytes = 0;
    const differing: Piece[] = [];
    for (const comparison of await this.#compareAll(pieces)) {
      bytes += comparison.readBytes;
      for (const suspect of comparison.differing) differing.push(...(await this.#lookAgain(suspect)));
    }
    for (const { disk, offset } of differing) this.#findings.add(disk, firstClusterOf(this.#geometry(disk), offset));
    this.#checkedBytes += pieces.reduce((sum, { length }) => sum + length, 0);
    this.#next = next;
    return bytes;
  }

  /** The next stretches, `bytesMax` together or a little more, and holes between them, which take nothing of that. */
  async #nextPieces(bytesMax: number): Promise<{ pieces: Piece[]; next: { position: number; offset: number } }> {
    const pieces: Piece[] = [];
    let bytes = 0;
    let { position, offset } = this.#next;
    for (; position < this.#chosen.length; position += 1, offset = 0) {
      const disk = this.#chosen[position] ?? 0;
      const { clusterBytes, sizeBytes } = this.#geometry(disk);
      const chunkMax = Math.min(JOB_CHUNK_BYTES, bytesMax);
      const chunkBytes = Math.max(1, Math.floor(chunkMax / clusterBytes)) * clusterBytes;
      while (offset < sizeBytes) {
        if (bytes >= bytesMax || pieces.length >= VERIFY_STEP_PIECES) return { pieces, next: { position, offset } };
        const left = sizeBytes - offset;
        const isHole = await this.#disk(disk).startsWithHole(offset, Math.min(left, chunkBytes));
        const length = Math.min(left, isHole ? VERIFY_HOLE_BYTES : chunkBytes);
        pieces.push({ disk, offset, length });
        if (!isHole) bytes += length;
        offset += length;
      }
    }
    return { pieces, next: { position, offset } };
  }

  /** All of them settle before a failure is reported: nothing is under way behind a job that has paused. */
  async #compareAll(pieces: readonly Piece[]): Promise<Comparison[]> {
    const comparisons: Comparison[] = [];
    for (const outcome of await Promise.allSettled(pieces.map((piece) => this.#compare(piece)))) {
      if (outcome.status === "rejected") throw outcome.reason;
      comparisons.push(outcome.value);
    }
    return comparisons;
  }

  /** Which parts of a piece differ: it is compared as one, unless it turns out to begin with a hole. */
  async #compare({ disk, offset, length }: Piece): Promise<Comparison> {
    const differing: Piece[] = [];
    let readBytes = 0;
    for (let at = offset; at < offset + length;) {
      let content: SyncContent = 0;
      let theirs: Promise<Uint8Array> | undefined;
      const covered = await this.#disk(disk).readForSync(
        at,
        offset + length - at,
        (bytes) => Buffer.allocUnsafeSlow(Math.min(bytes, JOB_CHUNK_BYTES)),
        this.#geometry(disk).clusterBytes,
        (found) => {
          content = found;
          const foundBytes = typeof found === "number" ? found : found.length;
          theirs = this.#options.session().checksum(disk, at, foundBytes);
        },
      );
      // While the secondary reads its own.
      const own = ownChecksum(content);
      readBytes += typeof content === "number" ? 0 : covered;
      if (theirs === undefined || !own.equals(await theirs)) differing.push({ disk, offset: at, length: covered });
      at += covered;
    }
    return { differing, readBytes };
  }

  /** The clusters of a stretch that differs which differ by themselves, now that no write to them is under way. */
  async #lookAgain({ disk, offset, length }: Piece): Promise<Piece[]> {
    const geometry = this.#geometry(disk);
    const differing: Piece[] = [];
    for (let at = offset; at < offset + length;) {
      const clusters: Piece[] = [];
      for (; at < offset + length && clusters.length < SECOND_LOOKS; at += geometry.clusterBytes) {
        const end = clusterEndOffset(geometry, firstClusterOf(geometry, at) + 1);
        clusters.push({ disk, offset: at, length: end - at });
      }
      for (const comparison of await this.#compareAll(clusters)) differing.push(...comparison.differing);
    }
    return differing;
  }

  #result(): VerifyResult {
    return { ...this.#findings.describe(), checkedBytes: this.#checkedBytes, repairs: this.#options.repairs };
  }

  #disk(index: number): ReplicatedDisk {
    const disk = this.#options.disks[index];
    if (disk === undefined) throw new RangeError(`there is no disk ${index}`);
    return disk;
  }

  #geometry(index: number): ClusterGeometry {
    const geometry = this.#options.geometries[index];
    if (geometry === undefined) throw new RangeError(`there is no disk ${index}`);
    return geometry;
  }
}

function ownChecksum(content: SyncContent): Buffer {
  return typeof content === "number" ? CHECKSUM_OF_ZEROES : checksumOf(content);
}
