/**
 * What became of an agent in the last minutes, for whoever shows it to people: figures taken from one status after another,
 * and the checkpoints that its events have told of. The agent keeps no history; this is its reader's, and begins with it.
 *
 * Time is given with each observation and never goes back. What is older than `keptMs` is forgotten.
 */
import type { AgentEvent, Status } from "../../proto/status.ts";
import type { MetricName } from "../../proto/metrics.ts";

export interface Sample {
  readonly atMs: number;
  /** What the secondary has not made stable, or has applied since the committed checkpoint. */
  readonly lagBytes: number;
  /** What guests have written since the sample before; null where that is not known. */
  readonly writtenPerSecond: number | null;
  /** Age of the checkpoint that a failover would return to; null where there is none. */
  readonly checkpointAgeMs: number | null;
}

export interface CheckpointSign {
  readonly epoch: number;
  /** When it was committed, by the agent's clock: milliseconds since 1970. */
  readonly atMs: number;
  /** From the barrier to the acknowledged commit, without what lies between prepare and commit. */
  readonly tookMs: number;
}

/** More were not seen by anybody. */
const CHECKPOINTS_KEPT = 1000;
const MS_PER_SECOND = 1000;
const WRITTEN: MetricName = "colobus_device_written_bytes_total";

export class VitalSigns {
  readonly #keptMs: number;
  readonly #samples: Sample[] = [];
  readonly #checkpoints: CheckpointSign[] = [];
  /** Prepared, and neither committed nor withdrawn: how long that took, by epoch. */
  readonly #prepared = new Map<number, number>();
  #written: { readonly atMs: number; readonly bytes: number } | undefined;

  constructor(keptMs: number) {
    this.#keptMs = keptMs;
  }

  /** Oldest first. */
  get samples(): readonly Sample[] {
    return this.#samples;
  }

  /** Those that were committed while somebody looked, or were still known then; oldest first. */
  get checkpoints(): readonly CheckpointSign[] {
    return this.#checkpoints;
  }

  /** Takes note of a status, and of the metrics of the same moment. */
  observe(status: Status, metrics: string, atMs: number): void {
    const bytes = writtenBytes(metrics);
    const before = this.#written;
    this.#written = { atMs, bytes };
    // An agent that was started again counts from 0.
    const isKnown = before !== undefined && atMs > before.atMs && bytes >= before.bytes;
    this.#samples.push({
      atMs,
      lagBytes: status.peers.reduce((sum, { lagBytes }) => sum + lagBytes, 0),
      writtenPerSecond: isKnown ? ((bytes - before.bytes) / (atMs - before.atMs)) * MS_PER_SECOND : null,
      checkpointAgeMs: status.recoverable?.ageMs ?? null,
    });
    while ((this.#samples[0]?.atMs ?? atMs) < atMs - this.#keptMs) this.#samples.shift();
  }

  /** Takes note of an event; events come in the order of their numbers. */
  hear({ type, data, at }: AgentEvent): void {
    const { epoch } = data;
    if (typeof epoch !== "number") return;
    if (type === "checkpoint-prepared" && typeof data.prepareMs === "number") this.#prepared.set(epoch, data.prepareMs);
    if (type !== "checkpoint-committed" || typeof data.commitMs !== "number") return;
    const prepareMs = this.#prepared.get(epoch) ?? 0;
    for (const prepared of this.#prepared.keys()) if (prepared <= epoch) this.#prepared.delete(prepared);
    this.#checkpoints.push({ epoch, atMs: Date.parse(at), tookMs: prepareMs + data.commitMs });
    if (this.#checkpoints.length > CHECKPOINTS_KEPT) this.#checkpoints.shift();
  }
}

/** What guests have written to all disks. */
function writtenBytes(metrics: string): number {
  let bytes = 0;
  for (const line of metrics.split("\n")) {
    if (line.startsWith(`${WRITTEN}{`)) bytes += Number(line.slice(line.lastIndexOf(" ") + 1));
  }
  return bytes;
}
