import assert from "node:assert/strict";
import type { Operation } from "../proto/replication-messages.ts";
import type { BufferedChange } from "./buffer-log.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

/** What a batch changes on each disk, in order. */
export function collectBuffered(
  batch: readonly Operation[],
  diskOf: (operation: Operation) => ReplicaDisk,
): Map<ReplicaDisk, BufferedChange[]> {
  const buffered = new Map<ReplicaDisk, BufferedChange[]>();
  for (const operation of batch) {
    assert(isChange(operation), "push has checked the kind");
    const disk = diskOf(operation);
    const changes = buffered.get(disk);
    if (changes === undefined) buffered.set(disk, [operation]);
    else changes.push(operation);
  }
  return buffered;
}

function isChange(operation: Operation): operation is Operation & BufferedChange {
  return operation.kind !== "original" && operation.kind !== "zero-original";
}
