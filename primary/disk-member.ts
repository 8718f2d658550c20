import { asColobusError, ColobusError } from "../proto/errors.ts";
import { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import type { Log } from "../shared/host/log.ts";
import type { ChildRecovery } from "./child-recovery.ts";
import type { CopyIdentity, RecordedCopy } from "./children-record.ts";
import type { DiskCopy } from "./disk-copy.ts";
import type { LateImage } from "./late-image.ts";
import type { StateWords } from "./recorded-state.ts";

/** One of the copies of a disk, and what becomes of it. */
export interface Member extends RecordedCopy {
  identity: CopyIdentity;
  readonly copy: DiskCopy;
  /** undefined: the disk's own image. */
  readonly late: LateImage | undefined;
  recovery: ChildRecovery | undefined;
  /** It lacks nothing, and is being recorded as sound. */
  isFinishing: boolean;
  /** Its bitmap cannot be written, and is being recorded as worth nothing. */
  isLosingTrack: boolean;
  /** Its bitmap is being made. */
  tracking: Promise<void> | undefined;
}

/** What the record is to say of a copy. */
export function wordsOf({ copy, isFinishing, isLosingTrack }: Member): StateWords {
  const isSound = copy.state === "sound" || (isFinishing && copy.state === "syncing" && copy.isClean);
  const tracked = copy.tracker !== undefined && !isLosingTrack;
  return { sound: isSound, tracked, lostSync: copy.hasLostWrites && !(isFinishing && isSound) };
}

/** Resolves when nothing is written to the copy any more; its image is closed then, unless it is the disk's own. */
export async function forsake({ recovery, copy, late }: Member): Promise<void> {
  recovery?.stop(new ColobusError("child-refused", "the copy was taken out"));
  await recovery?.settled();
  copy.close();
  late?.close();
}

/** Ends a copy's part in the role. Resolves with what tells a change of its image, where it is sound and was flushed. */
export async function leave(
  { copy, late }: Member,
  { log, disk }: { readonly log: Log; readonly disk: string },
): Promise<string | undefined> {
  let mark: string | undefined;
  try {
    if (copy.state !== "broken") {
      await copy.tracker?.settleAll({
        inFlight: () => new ClusterBitmap(),
        flush: async () => {
          const fault = await copy.flush();
          if (fault !== undefined) throw fault;
        },
      });
      if (copy.state === "sound") mark = await late?.opened?.changeMark();
    }
  } catch (error) {
    log.warn({ disk, child: copy.name, reason: asColobusError(error) }, "a copy could not be left in good order");
  }
  copy.close();
  late?.close();
  return mark;
}
