import type { StateRecord } from "../proto/state-record.ts";
import { toldNothing } from "../shared/replication/lineage.ts";

/**
 * The secondary's record once its retained checkpoint `epoch` is the committed one again. Later checkpoints are no more.
 *
 * Its copies hold what came after `epoch`, under originals that lead back. A primary that connects again must not take
 * that for what it once acknowledged: under a new agent id nothing that it remembers of this side means anything, and
 * everything is compared. The lineage stays: a checkpoint of the same history is still what this side shows, and the
 * failover that follows mints the next one. On a shared disk nothing is compared: without a pairing a primary has the
 * checkpoint given up, and the mark names this side by its id.
 */
export function rolledBackRecord(record: StateRecord, epoch: number, newAgentId: string): StateRecord {
  const target = record.retained.find((retained) => retained.epoch === epoch);
  if (target === undefined) throw new RangeError(`checkpoint ${epoch} is not retained`);
  return {
    ...toldNothing(record),
    agentId: record.mode === "shared" ? record.agentId : newAgentId,
    pairing: null,
    committed: target,
    prepared: [],
    retained: record.retained.filter((retained) => retained.epoch < epoch),
  };
}
