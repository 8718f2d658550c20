import { ColobusError } from "../proto/errors.ts";
import { CHILDREN_MAX } from "../proto/limits.ts";
import { fitsStateSlot, type StateRecord } from "../proto/state-record.ts";
import { assertNotGrowing } from "../shared/block/growth.ts";
import type { DiskCopy } from "./disk-copy.ts";
import type { QuorumPolicy } from "./quorum.ts";
import { openMirrors } from "./mirror-record.ts";
import { LOCAL_CHILD, quorumOf } from "./recorded-quorum.ts";

type Policy = Pick<QuorumPolicy, "voteThreshold" | "blkverify">;

interface WantedChild {
  readonly disk: string;
  readonly name: string;
  readonly image: string;
  readonly record: StateRecord;
  readonly policy: Policy;
}

/** Errors: `child-refused`: why the disk gets no such copy. */
export function assertAddable({ disk, name, image, record, policy }: WantedChild): void {
  assertNotGrowing(record, disk);
  const children = quorumOf(record, disk)?.children ?? [];
  if (name === LOCAL_CHILD || children.some((child) => child.name === name)) {
    throw refused(`disk ${disk} has a copy ${name} already`, "Choose another name.");
  }
  if (policy.blkverify) throw compared(disk);
  if (children.length >= CHILDREN_MAX) {
    throw refused(`disk ${disk} has ${CHILDREN_MAX} copies`, "Remove one first: `colobus child remove`.");
  }
  assertUnused(record, image);
}

/** Errors: `child-unknown`, `child-refused`: why the named copy gets no such one in its place. */
export function assertReplaceable({ disk, name, image, record, policy }: WantedChild): void {
  assertNotGrowing(record, disk);
  const children = quorumOf(record, disk)?.children ?? [];
  const child = children.find((other) => other.name === name);
  if (child === undefined) throw unknownChild(disk, name);
  if (name === LOCAL_CHILD) {
    throw refused(
      `${LOCAL_CHILD} is the disk's own image`,
      `Mirror the disk to the new one: \`colobus mirror ${disk}\`.`,
    );
  }
  if (policy.blkverify) throw compared(disk);
  const other = children.find(({ replaces }) => replaces === name);
  if (other !== undefined) throw beingReplaced(disk, name, other.name);
  assertUnused(record, image);
}

/** Errors: `child-refused`: why the disk cannot do without the copy. */
export function assertRemovable(wanted: {
  readonly disk: string;
  readonly copy: Pick<DiskCopy, "name" | "state"> & { readonly replacement: string | undefined };
  readonly others: readonly Pick<DiskCopy, "name" | "state">[];
  readonly policy: Policy;
}): void {
  const { disk, copy, others, policy } = wanted;
  const { voteThreshold, blkverify } = policy;
  if (copy.name === LOCAL_CHILD) throw refused(`${LOCAL_CHILD} is the disk's own image`, "Remove another copy.");
  if (blkverify) throw compared(disk);
  if (copy.replacement !== undefined) throw beingReplaced(disk, copy.name, copy.replacement);
  if (others.length < voteThreshold) {
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

/** Errors: `child-unknown`. */
export function unknownChild(disk: string, name: string): ColobusError {
  return new ColobusError("child-unknown", `disk ${disk} has no copy ${name}`, "See `colobus status`.");
}

/** Errors: `child-refused`: why the copies cannot grow. */
export function assertGrowable(disk: string, copies: readonly Pick<DiskCopy, "name" | "state">[]): void {
  const broken = copies.find(({ state }) => state === "broken");
  if (broken === undefined) return;
  throw refused(
    `copy ${broken.name} of disk ${disk} is broken, and cannot be made longer`,
    "Wait until it is back (`colobus status`), or take it out: `colobus child remove`.",
  );
}

/** Errors: `child-refused`: there is no room for what is to be recorded. */
export function assertRoom(record: StateRecord): void {
  if (!fitsStateSlot(record)) throw refused("the state record has no room for another copy", "Use shorter paths.");
}

/** Whether the record names the image: as that of a disk, as a copy of one, or as a mirror's target. */
export function isUsed({ disks, mirrors }: StateRecord, image: string): boolean {
  return (
    disks.some((other) => other.image === image || other.quorum?.children.some((child) => child.image === image)) ||
    openMirrors({ mirrors }).some(({ target }) => target === image)
  );
}

/** Errors: `child-refused`: nothing else in this agent is to be written there. */
function assertUnused(record: StateRecord, image: string): void {
  if (isUsed(record, image)) throw refused(`${image} is used by this agent already`, "Name another image.");
}

function beingReplaced(disk: string, name: string, replacement: string): ColobusError {
  return refused(
    `copy ${name} of disk ${disk} is being replaced`,
    `Wait until it is (\`colobus jobs\`), or give that up: \`colobus child remove ${disk} ${replacement}\`.`,
  );
}

function compared(disk: string): ColobusError {
  return refused(`the copies of disk ${disk} are compared by twos (blkverify)`, "Start a new agent without it.");
}

function refused(what: string, action: string): ColobusError {
  return new ColobusError("child-refused", what, action);
}
