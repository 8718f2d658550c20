import { DIFFERS_RUNS_MAX } from "../../proto/limits.ts";
import type { Message } from "../../proto/replication-messages.ts";
import { clusterRuns, type ClusterBitmap, type ClusterRun } from "../block/cluster-bitmap.ts";

type DiffersMessage = Extract<Message, { type: "differs" }>;

/** The messages that name the clusters of each disk, in the order of the disks. */
export function* differsMessages(disks: readonly ClusterBitmap[]): Generator<DiffersMessage> {
  for (const [disk, clusters] of disks.entries()) {
    let runs: number[] = [];
    for (const { first, end } of clusterRuns(clusters)) {
      runs.push(first, end - first);
      if (runs.length < 2 * DIFFERS_RUNS_MAX) continue;
      yield { type: "differs", disk, runs };
      runs = [];
    }
    if (runs.length > 0) yield { type: "differs", disk, runs };
  }
}

/** The clusters that one of them names. */
export function runsOf({ runs: pairs }: DiffersMessage): ClusterRun[] {
  const runs: ClusterRun[] = [];
  for (let index = 0; index + 1 < pairs.length; index += 2) {
    const first = pairs[index] ?? 0;
    runs.push({ first, end: first + (pairs[index + 1] ?? 0) });
  }
  return runs;
}
