import { asColobusError, ColobusError } from "../../proto/errors.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Log } from "../host/log.ts";
import type { StateFile } from "../journal/state-file.ts";
import type { ImageSource } from "./disk-image.ts";

/**
 * Growth of one disk's image: the record has the plan before the image is touched, and the new size after it is durable. A
 * process that dies in between leaves the plan, and the next one finishes it. So an image that is larger than its disk was
 * made so by nobody else; and what the disk's journals say of a smaller disk holds, because nothing was written behind its end.
 */
type RecordedDisk = StateRecord["disks"][number];

/**
 * Has the image of the recorded disk grown by `grow`, and the record name the size. Done at once where it has that size
 * already. Errors: those of `grow`, after which nothing has changed; `io-error` of the record, and the next process finishes it.
 */
export async function growRecorded(
  state: StateFile,
  name: string,
  sizeBytes: number,
  {
    grow,
    assertMay,
  }: {
    readonly grow: () => Promise<void>;
    /** Throws why what is recorded goes by the present size; from here on nothing else that does is to be recorded. */
    readonly assertMay?: (record: StateRecord) => void;
  },
): Promise<void> {
  const recorded = state.record.disks.find((disk) => disk.name === name);
  if (recorded?.sizeBytes === undefined || recorded.sizeBytes === null || recorded.sizeBytes >= sizeBytes) return;
  await state.update((record) => {
    assertMay?.(record);
    return changed(record, name, (disk) => ({ ...disk, growsTo: sizeBytes }));
  });
  try {
    await grow();
  } catch (error) {
    // Where that cannot be recorded, the next process finds the plan, and comes to the same end.
    await state.update((record) => changed(record, name, withoutPlan)).catch(() => undefined);
    throw error;
  }
  await state.update((record) => grown(record, name));
}

/**
 * Finishes what an earlier process had begun; or gives it up, where the image is as it was, and cannot grow any more. Errors:
 * those of the record; why an image cannot grow that cannot be opened, or has grown: a later start finds the plan again.
 */
export async function finishGrowths(state: StateFile, images: ImageSource, log: Log): Promise<void> {
  for (const disk of state.record.disks) {
    const { name, image, growsTo, quorum } = disk;
    if (growsTo === undefined) continue;
    try {
      await images.grow?.(image, growsTo);
    } catch (error) {
      if (!fitsRecord(disk, images)) throw error;
      log.warn(
        { disk: name, reason: asColobusError(error) },
        "a resize that was begun cannot be finished: it is given up",
      );
      await state.update((record) => changed(record, name, withoutPlan));
      continue;
    }
    for (const child of quorum?.children ?? []) {
      try {
        if (child.image !== null) await images.grow?.(child.image, growsTo);
      } catch (error) {
        log.warn(
          { disk: name, child: child.name, reason: asColobusError(error) },
          "a copy of a disk that was resized cannot be made longer: it is broken until it is",
        );
      }
    }
    await state.update((record) => grown(record, name));
  }
}

/** Whether the image can be opened as what the record has without a plan. */
function fitsRecord(disk: RecordedDisk, images: ImageSource): boolean {
  try {
    images.open({ ...disk, cleanMark: null }).close();
    return true;
  } catch {
    return false;
  }
}

/** Two hosts would have to make it longer at once. */
export function cannotGrow(disk: string): ColobusError {
  return new ColobusError(
    "not-supported",
    `disk ${disk} is a shared one: it cannot be made longer while it is used`,
    'See docs/operations.md, "Grow a disk", for how such an image is made longer.',
  );
}

/** Errors: `job-state`: the disk is about to have another size. */
export function assertNotGrowing({ disks }: StateRecord, name: string): void {
  if (disks.find((disk) => disk.name === name)?.growsTo === undefined) return;
  throw new ColobusError("job-state", `disk ${name} is being resized`, "Try again.");
}

/**
 * To be asked in the change of the record that has something count which was made for `sizeBytes`: until a record is durable
 * nothing else tells that another one has the disk grow. Errors: `job-state`.
 */
export function assertStillOfSize(record: StateRecord, name: string, sizeBytes: number): void {
  assertNotGrowing(record, name);
  if (record.disks.find((disk) => disk.name === name)?.sizeBytes === sizeBytes) return;
  throw new ColobusError(
    "job-state",
    `disk ${name} was resized meanwhile`,
    "Try again, with an image of its new size.",
  );
}

/** The peer has said how large its disks are: those that are as large as here have no former size any more. */
export function sizesAgreed(
  record: StateRecord,
  peer: readonly { readonly name: string; readonly sizeBytes: number | null }[],
): StateRecord {
  const isAgreed = ({ name, sizeBytes, formerSizeBytes }: RecordedDisk): boolean =>
    formerSizeBytes !== undefined && (sizeBytes ?? 0) <= (peer.find((disk) => disk.name === name)?.sizeBytes ?? 0);
  if (!record.disks.some(isAgreed)) return record;
  return { ...record, disks: record.disks.map((disk) => (isAgreed(disk) ? withoutFormerSize(disk) : disk)) };
}

/** A primary's disk has the size that its guests know. */
export function withoutFormerSize(disk: RecordedDisk): RecordedDisk {
  const { formerSizeBytes: _, ...rest } = disk;
  return rest;
}

/** The image is taken as it is. */
export function withoutGrowth(disk: RecordedDisk): RecordedDisk {
  return withoutPlan(withoutFormerSize(disk));
}

function grown(record: StateRecord, name: string): StateRecord {
  return changed(record, name, (disk) => {
    const { growsTo, ...rest } = disk;
    if (growsTo === undefined) return disk;
    const former = record.role === "Secondary" ? (disk.formerSizeBytes ?? disk.sizeBytes) : null;
    return { ...rest, sizeBytes: growsTo, ...(former === null ? {} : { formerSizeBytes: former }) };
  });
}

function withoutPlan(disk: RecordedDisk): RecordedDisk {
  const { growsTo: _, ...rest } = disk;
  return rest;
}

function changed(record: StateRecord, name: string, change: (disk: RecordedDisk) => RecordedDisk): StateRecord {
  return { ...record, disks: record.disks.map((disk) => (disk.name === name ? change(disk) : disk)) };
}
