import { ColobusError } from "../proto/errors.ts";
import { CHILDREN_MAX } from "../proto/limits.ts";
import type { StateRecord } from "../proto/state-record.ts";
import { assertNotGrowing } from "../shared/block/growth.ts";
import type { DiskCopy } from "./disk-copy.ts";
import type { QuorumPolicy } from "./quorum.ts";
import { LOCAL_CHILD, quorumOf } from "./recorded-quorum.ts";

type Policy = Pick<QuorumPolicy, "voteThreshold" | "blkverify">;

/** Errors: `child-refused`: why the disk gets no such copy. */
export function assertAddable(wanted: {
  readonly disk: string;
  readonly name: string;
  readonly image: string;
  readonly record: StateRecord;
  readonly policy: Policy;
}): void {
  const { disk, name, image, record, policy } = wanted;
  assertNotGrowing(record, disk);
  const children = quorumOf(record, disk)?.children ?? [];
  if (name === LOCAL_CHILD || children.some((child) => child.name === name)) {
    throw refused(`disk ${disk} has a copy ${name} already`, "Choose another name.");
  }
  if (policy.blkverify) throw compared(disk);
  if (children.length >= CHILDREN_MAX) {
    throw refused(`disk ${disk} has ${CHILDREN_MAX} copies`, "Remove one first: `colobus child remove`.");
  }
  const isUsed = record.disks.some(
    (other) => other.image === image || other.quorum?.children.some((child) => child.image === image) === true,
  );
  if (isUsed) throw refused(`${image} is a disk's image, or a copy, already`, "Name another image.");
}

/** Errors: `child-refused`: why the disk cannot do without the copy. With `isReplaced` another takes its place at once. */
export function assertRemovable(wanted: {
  readonly disk: string;
  readonly copy: Pick<DiskCopy, "name" | "state">;
  readonly others: readonly Pick<DiskCopy, "name" | "state">[];
  readonly policy: Policy;
  readonly isReplaced: boolean;
}): void {
  const { disk, copy, others, policy, isReplaced } = wanted;
  const { voteThreshold, blkverify } = policy;
  if (copy.name === LOCAL_CHILD) throw refused(`${LOCAL_CHILD} is the disk's own image`, "Remove another copy.");
  if (blkverify) throw compared(disk);
  if (!isReplaced && others.length < voteThreshold) {
    throw refused(
      `the number of copies of disk ${disk} cannot be lower than the vote threshold ${voteThreshold}`,
      "Add another copy first: `colobus child add`.",
    );
  }
  const sound = others.filter(({ state }) => state === "sound").length;
  if (sound === 0 || (copy.state === "sound" && sound < voteThreshold)) {
    throw refused(`too few of the other copies of disk ${disk} are sound`, "Wait until they are: `colobus jobs`.");
  }
}

function compared(disk: string): ColobusError {
  return refused(`the copies of disk ${disk} are compared by twos (blkverify)`, "Start a new agent without it.");
}

function refused(what: string, action: string): ColobusError {
  return new ColobusError("child-refused", what, action);
}
