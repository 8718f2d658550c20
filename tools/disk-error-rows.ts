/**
 * What happens when a file below an agent fails, one row for each file, call and error: `docs/disk-errors.md` lists them,
 * and `test/sim/disk-errors.test.ts` makes each of them happen.
 */
import type { EventType, ProtectionReason } from "../proto/words.ts";
import { markdownTable } from "./markdown-table.ts";

export interface DiskErrorRow {
  readonly what: string;
  readonly error: "EIO" | "ENOSPC";
  /** What the client that asked sees: a guest, the secondary's VM, a reader of the export, or the operator. */
  readonly client: "nothing" | "EIO" | "ENOSPC" | "exit code 1";
  /** Why the VM is not protected, as each side says; null: it says nothing of it. */
  readonly primary: ProtectionReason | null;
  readonly secondary: ProtectionReason | null;
  /** On the side whose file fails; null: none. */
  readonly event: EventType | null;
  /** How all is well again once the fault is gone. */
  readonly heals: "by itself" | "the client tries again" | "with the next commit" | "by a switchover";
  readonly notes: string;
}

const row = (
  what: string,
  error: DiskErrorRow["error"],
  client: DiskErrorRow["client"],
  [primary, secondary]: readonly [ProtectionReason | null, ProtectionReason | null],
  event: EventType | null,
  heals: DiskErrorRow["heals"],
  notes: string,
): DiskErrorRow => ({ what, error, client, primary, secondary, event, heals, notes });

const FAILED = "disk-failed";
const FULL = "overlay-full";

export const DISK_ERRORS = {
  // The primary
  "primary-read": row(
    "primary's image, read",
    "EIO",
    "nothing",
    [FAILED, null],
    "disk-error",
    "by itself",
    "The secondary is read instead (event `read-from-secondary`). The range is tried here every 5 s. If the device is dying: `colobus switchover`.",
  ),
  "primary-read-alone": row(
    "primary's image, read where no secondary has the range",
    "EIO",
    "EIO",
    [FAILED, null],
    "disk-error",
    "by itself",
    "None is connected, or it takes no writes for now, lacks one there, or cannot read it either; always so in mode `shared`, and where copies are compared (`--read-pattern quorum`, `--blkverify`). The range is tried every 5 s.",
  ),
  "primary-resync-read": row(
    "primary's image, read by a resync",
    "EIO",
    "nothing",
    [FAILED, "resync"],
    "disk-error",
    "by itself",
    "The resync's job is paused, and tries the same range every 5 s. New writes to what is in sync go on.",
  ),
  "primary-write": row(
    "primary's image, write",
    "EIO",
    "EIO",
    [FAILED, null],
    "disk-error",
    "by itself",
    "What the range holds now is read back and sent: both copies stay equal. It is tried every 5 s.",
  ),
  "primary-full": row(
    "primary's image, write",
    "ENOSPC",
    "ENOSPC",
    [null, null],
    "disk-error",
    "the client tries again",
    "QEMU pauses the VM until `cont`. The pair stays protected, and both copies equal.",
  ),
  "primary-flush": row(
    "primary's image, flush",
    "EIO",
    "EIO",
    [FAILED, null],
    "disk-error",
    "by a switchover",
    "Every later flush fails too, also one that is only tried again, and also after a restart of the agent: the kernel has forgotten which writes it lost. The secondary has them.",
  ),
  "primary-record": row(
    "primary's state record, for a checkpoint",
    "EIO",
    "exit code 1",
    [FAILED, null],
    "state-error",
    "by itself",
    "Guests go on. Most checkpoints need no record on the primary: epoch numbers are reserved in blocks.",
  ),
  "primary-record-alone": row(
    "primary's state record, secondary lost",
    "EIO",
    "EIO",
    [FAILED, null],
    "state-error",
    "by itself",
    "No write is acknowledged before it is recorded that the two histories part.",
  ),
  "primary-bitmap-write": row(
    "primary's dirty bitmap, write",
    "EIO",
    "nothing",
    [null, null],
    "state-error",
    "by itself",
    "It is kept in memory. Should the agent die meanwhile, everything is sent.",
  ),
  "primary-bitmap-full": row(
    "primary's dirty bitmap, write",
    "ENOSPC",
    "nothing",
    [null, null],
    "state-error",
    "by itself",
    "The same.",
  ),
  "primary-bitmap-sync": row(
    "primary's dirty bitmap, fsync",
    "EIO",
    "nothing",
    [null, null],
    "state-error",
    "by itself",
    "The same.",
  ),

  // The secondary
  "secondary-read": row(
    "secondary's base, read of an original",
    "EIO",
    "nothing",
    [FAILED, FAILED],
    "disk-error",
    "by itself",
    "The session ends. Later ones are paused for 5 s, and try again; writes are dirty meanwhile. The checkpoint stays whole, but its export cannot be read there either.",
  ),
  "secondary-write": row(
    "secondary's base, write",
    "EIO",
    "nothing",
    [FAILED, FAILED],
    "disk-error",
    "by itself",
    "The same, and the checkpoint can be read: the originals are saved.",
  ),
  "secondary-full": row(
    "secondary's base, write",
    "ENOSPC",
    "nothing",
    [FULL, FULL],
    "overlay-full",
    "by itself",
    "As with full overlays: writes are dirty until 16 MiB are free. Retained checkpoints are not given up for it.",
  ),
  "secondary-flush": row(
    "secondary's base, fsync",
    "EIO",
    "nothing",
    [FAILED, FAILED],
    "disk-error",
    "by itself",
    "What the fsync may have lost is sent again, and written again even where it seems equal.",
  ),
  "hidden-write": row(
    "hidden disk, write of an original",
    "EIO",
    "nothing",
    [FAILED, FAILED],
    "disk-error",
    "by itself",
    "The base is not overwritten where an original is not saved.",
  ),
  "hidden-full": row(
    "hidden disk, write of an original",
    "ENOSPC",
    "nothing",
    [FULL, FULL],
    "overlay-full",
    "by itself",
    "Retained checkpoints go first. Then writes are dirty until there is room.",
  ),
  "hidden-sync": row(
    "hidden disk, fsync of originals",
    "EIO",
    "nothing",
    [FAILED, FAILED],
    "disk-error",
    "by itself",
    "They are written again.",
  ),
  "hidden-journal-write": row(
    "hidden disk's journal, write",
    "EIO",
    "nothing",
    [FAILED, FAILED],
    "disk-error",
    "by itself",
    "",
  ),
  "hidden-journal-full": row(
    "hidden disk's journal, write",
    "ENOSPC",
    "nothing",
    [FULL, FULL],
    "overlay-full",
    "by itself",
    "",
  ),
  "hidden-journal-sync": row(
    "hidden disk's journal, fsync",
    "EIO",
    "nothing",
    [FAILED, FAILED],
    "disk-error",
    "by itself",
    "What no fsync has covered is written again before anything relies on it.",
  ),
  "active-write": row(
    "active disk, write of the secondary's VM",
    "EIO",
    "EIO",
    [null, null],
    null,
    "the client tries again",
    "",
  ),
  "active-full": row(
    "active disk, write of the secondary's VM",
    "ENOSPC",
    "ENOSPC",
    [null, null],
    null,
    "the client tries again",
    "",
  ),
  "active-sync": row(
    "active disk, flush of the secondary's VM",
    "EIO",
    "EIO",
    [null, null],
    null,
    "with the next commit",
    "Every later flush fails too, also after a restart of the agent, until a commit empties the active disk, or, after a failover, the merge.",
  ),
  "secondary-record-prepare": row(
    "secondary's state record, at prepare",
    "EIO",
    "exit code 1",
    [null, FAILED],
    "state-error",
    "by itself",
    "The checkpoint is not prepared; the committed one stands. The record is tried every 2 s.",
  ),
  "secondary-record-commit": row(
    "secondary's state record, at commit",
    "EIO",
    "exit code 1",
    [null, FAILED],
    "state-error",
    "by itself",
    "It stays prepared, and can be committed again.",
  ),
  "secondary-record-promotion": row(
    "secondary's state record, at a failover",
    "EIO",
    "exit code 1",
    [null, FAILED],
    "state-error",
    "the client tries again",
    "It is still Secondary: `colobus failover` again.",
  ),

  // After a failover
  "merge-read": row(
    "overlays, read by the merge",
    "EIO",
    "nothing",
    [null, null],
    "job-changed",
    "by itself",
    "The merge's job is paused with the error, and tries again every 5 s. The export is served meanwhile.",
  ),
  "merge-write": row(
    "base, write of the merge",
    "EIO",
    "nothing",
    [null, null],
    "job-changed",
    "by itself",
    "The same.",
  ),
  "merge-full": row(
    "base, write of the merge",
    "ENOSPC",
    "nothing",
    [null, null],
    "job-changed",
    "by itself",
    "The same.",
  ),
  "merge-sync": row(
    "base, fsync of the merge",
    "EIO",
    "nothing",
    [null, null],
    "job-changed",
    "by itself",
    "The same: what it had put there is put there again. A guest's flush of that image fails from then on, as in the first table.",
  ),
  "merge-journal-write": row(
    "merge journal, write",
    "EIO",
    "nothing",
    [null, null],
    "job-changed",
    "by itself",
    "The same. For ENOSPC space is set aside beforehand.",
  ),
  "merge-journal-sync": row(
    "merge journal, fsync",
    "EIO",
    "nothing",
    [null, null],
    "job-changed",
    "by itself",
    "The next fsync writes it again first. Until one succeeds, a guest's flush of that disk fails.",
  ),
  "kept-read": row(
    "kept checkpoint, read",
    "EIO",
    "EIO",
    [null, null],
    null,
    "the client tries again",
    "The checkpoint is kept.",
  ),
} as const satisfies Record<string, DiskErrorRow>;

export type DiskErrorId = keyof typeof DISK_ERRORS;

export function diskErrorTable(): string {
  const reason = (word: ProtectionReason | null): string => (word === null ? "–" : `\`${word}\``);
  return markdownTable(
    ["what fails", "error", "the client sees", "primary", "secondary", "event", "heals", "notes"],
    Object.values(DISK_ERRORS).map((entry: DiskErrorRow) => [
      entry.what,
      entry.error,
      entry.client,
      reason(entry.primary),
      reason(entry.secondary),
      entry.event === null ? "–" : `\`${entry.event}\``,
      entry.heals,
      entry.notes,
    ]),
  );
}
