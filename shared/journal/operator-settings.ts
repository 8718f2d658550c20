import type { OperatorSettings, StateRecord } from "../../proto/state-record.ts";

/** What an operator has set for jobs that a later process goes on with, as the state record has it: nothing where nothing is set. */

/** Nobody has set anything. */
export const NOTHING_SET: OperatorSettings = { isPaused: false };

export function syncSettingsOf({ syncs }: StateRecord, slot: number): OperatorSettings {
  const found = syncs?.find((sync) => sync.slot === slot);
  if (found === undefined) return NOTHING_SET;
  const { slot: _, ...settings } = found;
  return settings;
}

/** `settings` are for the syncs of the peer of a slot. */
export function withSyncSettings(record: StateRecord, slot: number, settings: OperatorSettings): StateRecord {
  const { syncs: before, ...rest } = record;
  const others = before?.filter((sync) => sync.slot !== slot) ?? [];
  const syncs = isSet(settings) ? [...others, { slot, ...settings }] : others;
  return syncs.length === 0 ? rest : { ...rest, syncs };
}

/** Where the merge is done, there is nothing of it to be set. */
export function withMergeSettings(record: StateRecord, settings: OperatorSettings): StateRecord {
  if (record.merge === null) return record;
  const { settings: _, ...merge } = record.merge;
  return { ...record, merge: isSet(settings) ? { ...merge, settings } : merge };
}

function isSet({ speed, isPaused }: OperatorSettings): boolean {
  return isPaused || speed !== undefined;
}
