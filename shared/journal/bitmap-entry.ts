import type { StateRecord } from "../../proto/state-record.ts";
import type { BitmapFault } from "../../proto/words.ts";

/** What the record says of one named bitmap. */
export type BitmapEntry = NonNullable<StateRecord["bitmaps"]>[number];

/** The record, in which no bitmap that counted so far is to be believed any more. */
export function bitmapsLost(record: StateRecord, fault: BitmapFault): StateRecord {
  if (record.bitmaps === undefined || record.bitmaps.length === 0) return record;
  return { ...record, bitmaps: record.bitmaps.map((entry) => ({ ...entry, fault: entry.fault ?? fault })) };
}
