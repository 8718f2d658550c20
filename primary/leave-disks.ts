import { asColobusError, ColobusError } from "../proto/errors.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { WaitsFor } from "../shared/host/waits-for.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { DiskCopies } from "./disk-copies.ts";
import type { Mirrors } from "./mirrors.ts";
import type { NamedBitmaps } from "./named-bitmaps.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { Place } from "./secondaries.ts";

/** How a primary ends. */
export interface Leaving {
  /** It becomes secondary. */
  readonly isDemoted: boolean;
  readonly waitsFor: WaitsFor;
}

export interface LeaveDisksContext extends Leaving {
  readonly state: StateFile;
  readonly disks: readonly ReplicatedDisk[];
  readonly copies: Pick<DiskCopies, "stop" | "close">;
  readonly mirrors: Pick<Mirrors, "stop">;
  readonly bitmaps: Pick<NamedBitmaps, "close">;
  readonly places: readonly Pick<Place, "tracking">[];
  /** This side has learned that it is behind, whatever the record says yet. */
  readonly isOutdated: boolean;
  readonly reason: ColobusError;
  /** What the next process is to find. */
  readonly recorded: (record: StateRecord) => StateRecord;
}

/**
 * Flushes what a primary that ends has written, and closes what it knows of its copies; no guest's request and no session
 * is left. Resolves with the reason where something could not be made durable: then nothing may be relied on but what a
 * crash would leave.
 */
export async function leaveDisks(context: LeaveDisksContext): Promise<ColobusError | undefined> {
  const { state, disks, copies, mirrors, bitmaps, places, isDemoted, isOutdated, reason, recorded, waitsFor } = context;
  let fault: ColobusError | undefined;
  const attempt = async (step: () => Promise<unknown>): Promise<void> => {
    try {
      await step();
    } catch (error) {
      fault ??= asColobusError(error);
    }
  };
  // What this side holds back of a disk that another host writes by now must never get there.
  if (state.record.mode !== "shared" || !(isDemoted || isOutdated)) {
    await attempt(async () => {
      for (const disk of disks) {
        waitsFor(`requests of disk ${disk.name}`);
        await disk.quiet();
      }
      for (const disk of disks) {
        waitsFor(`the image of disk ${disk.name} to be flushed`);
        await disk.child.flush();
      }
    });
  }
  waitsFor("copies, mirrors and bitmaps");
  await attempt(() => copies.stop(reason, isDemoted));
  await attempt(() => mirrors.stop(fault ?? new ColobusError("not-primary", "this side is not Primary any more")));
  await attempt(() => bitmaps.close());
  // What could not be flushed stays dirty.
  for (const { tracking } of places) await attempt(() => tracking.close());
  // All of that has flushed the disks.
  await attempt(() => copies.close(isDemoted));
  if (fault !== undefined) return fault;
  await attempt(() => state.update(recorded));
  return fault;
}
