import type { RecordedChild, RecordedQuorum, StateRecord } from "../proto/state-record.ts";
import type { StateFile } from "../shared/journal/state-file.ts";

/** The name of the copy that is the disk's own image. */
export const LOCAL_CHILD = "local";

/** What is recorded of the copies of a disk; undefined where it has its image alone, and never had another. */
export function quorumOf(record: StateRecord, disk: string): RecordedQuorum | undefined {
  return record.disks.find(({ name }) => name === disk)?.quorum;
}

/** Whether all copies are read, and compared. */
export function comparesReads({ readPattern, blkverify }: Pick<RecordedQuorum, "readPattern" | "blkverify">): boolean {
  return readPattern === "quorum" || blkverify;
}

/** Changes what is recorded of a disk's copies. Durable when the promise resolves. Errors: `io-error`. */
export async function updateQuorum(
  state: StateFile,
  disk: string,
  change: (quorum: RecordedQuorum) => RecordedQuorum,
): Promise<void> {
  await state.update((record) => ({
    ...record,
    disks: record.disks.map((recorded) =>
      recorded.name === disk && recorded.quorum !== undefined
        ? { ...recorded, quorum: change(recorded.quorum) }
        : recorded,
    ),
  }));
}

/** The disk's own image, as it is recorded among its copies to begin with. */
export function newLocalChild(): RecordedChild {
  return { name: LOCAL_CHILD, image: null, sound: true, tracked: false, lostSync: false, cleanMark: null };
}

/** A copy that lacks everything. */
export function newChild(name: string, image: string): RecordedChild & { readonly image: string } {
  return { name, image, sound: false, tracked: false, lostSync: false, cleanMark: null };
}

/** A copy that lacks everything, and takes the place of `former` when it does not any more. */
export function newReplacement(
  { name, bitmap = name }: Pick<RecordedChild, "name" | "bitmap">,
  image: string,
): RecordedChild & { readonly image: string } {
  // No copy can be named so, and of two bitmaps one is always free.
  return { ...newChild(`${name}.new`, image), replaces: name, bitmap: bitmap === name ? `${name}~` : name };
}

/** The record with one more copy of a disk, which has `policy` if it had none but its image before. */
export function withChild(
  record: StateRecord,
  disk: string,
  child: RecordedChild,
  policy: Omit<RecordedQuorum, "children">,
): StateRecord {
  const disks = record.disks.map((recorded) => {
    if (recorded.name !== disk) return recorded;
    const quorum = recorded.quorum ?? { ...policy, children: [newLocalChild()] };
    return { ...recorded, quorum: { ...quorum, children: [...quorum.children, child] } };
  });
  return { ...record, disks };
}

/** The disk's own image is another one, which has everything. */
export function withNewLocal(quorum: RecordedQuorum): RecordedQuorum {
  return { ...quorum, children: quorum.children.map((child) => (child.image === null ? newLocalChild() : child)) };
}

/**
 * The disk's image was changed, or may have been, without its copies being told of it: it alone is believed, and they are
 * copied anew whenever this agent is a primary again.
 */
export function withoutCopies(disk: StateRecord["disks"][number]): StateRecord["disks"][number] {
  if (disk.quorum === undefined) return disk;
  const children = disk.quorum.children.map((child) => ({
    ...child,
    sound: child.image === null,
    tracked: false,
    lostSync: false,
    cleanMark: null,
  }));
  return { ...disk, quorum: { ...disk.quorum, children } };
}

/** The agent runs: what was true of a clean stop is not true any more. */
export function withoutCleanMarks(disk: StateRecord["disks"][number]): StateRecord["disks"][number] {
  if (disk.quorum === undefined) return { ...disk, cleanMark: null };
  const children = disk.quorum.children.map((child) => ({ ...child, cleanMark: null }));
  return { ...disk, cleanMark: null, quorum: { ...disk.quorum, children } };
}

/** Copies that survived the loss of power may lack what their bitmaps do not name: all but one are copied anew. */
export function withUntrackedCopies(disk: StateRecord["disks"][number]): StateRecord["disks"][number] {
  if (disk.quorum === undefined) return disk;
  const children = disk.quorum.children.map((child) => ({ ...child, tracked: false }));
  return { ...disk, quorum: { ...disk.quorum, children } };
}
