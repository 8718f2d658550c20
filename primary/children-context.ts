import type { JobSpeed } from "../proto/status.ts";
import type { RecordedQuorum } from "../proto/state-record.ts";
import type { EventType } from "../proto/words.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import type { StateFile } from "../shared/journal/state-file.ts";

/** What the copies of all disks of an agent are made with. */
export interface ChildrenContext {
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly state: StateFile;
  readonly jobs: JobList;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly stateDirectory: string;
  readonly extentBytes: number;
  readonly settleEveryMs: number;
  readonly dirtyFileMinBytes: number | undefined;
  readonly timeoutMs: number;
  readonly speed: JobSpeed;
  /** The rules of a disk that gets its first further copy. */
  readonly policy: Omit<RecordedQuorum, "children">;
  /** Opens the image of a copy. Errors: those of opening it; `image-changed` when it is not as the mark says. */
  readonly open: (
    disk: string,
    child: { readonly name: string; readonly image: string; readonly cleanMark: string | null },
  ) => DiskImage;
  /** Finds out how large an image is for a disk, as `ImageSource.measureFor`, after making it where that is asked for. */
  readonly measure: (image: string, diskBytes: number, options: { readonly create: boolean }) => Promise<number>;
  /** Gives back what that has opened, where it was not taken over. */
  readonly release: (image: string) => void;
  /** What flushes of the disk's own image have lost is made up for. */
  readonly localMended: (disk: string) => void;
}
