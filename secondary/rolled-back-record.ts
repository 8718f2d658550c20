import type { StateRecord } from "../proto/state-record.ts";
import { rolledBack } from "../shared/replication/lineage.ts";

export interface RolledBack {
  /** The retained checkpoint that is the committed one again. */
  readonly epoch: number;
  /** Under which the secondary goes on. */
  readonly lineage: string;
  /** The record's peer is the one that the dirty bitmaps count from, and they have what was rolled back. */
  readonly isPeerTracked: boolean;
}

/** The secondary's record once one of its retained checkpoints is the committed one again. Later checkpoints are no more. */
export function rolledBackRecord(record: StateRecord, { epoch, lineage, isPeerTracked }: RolledBack): StateRecord {
  const target = record.retained.find((retained) => retained.epoch === epoch);
  if (target === undefined) throw new RangeError(`checkpoint ${epoch} is not retained`);
  return {
    ...rolledBack(record, lineage, isPeerTracked),
    committed: target,
    prepared: [],
    retained: record.retained.filter((retained) => retained.epoch < epoch),
  };
}
