import { ColobusError } from "../proto/errors.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { CopyBeforeWrite } from "./copy-before-write.ts";
import type { DiskHealth } from "./disk-health.ts";
import type { GuestGate } from "./guest-gate.ts";
import { markedBoth, type NamedBitmaps } from "./named-bitmaps.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import { comparesReads, quorumOf } from "./recorded-quorum.ts";
import type { Forwarding } from "./replicated-disk.ts";
import type { Secondaries } from "./secondaries.ts";

interface AnyForwarding {
  /** Of the disk. */
  readonly name: string;
  readonly bitmaps: Pick<NamedBitmaps, "mark">;
  readonly health: Pick<DiskHealth, "failed" | "readBy">;
}

export interface ChangeForwarding extends AnyForwarding {
  readonly state: Pick<StateFile, "record">;
  readonly checkpoints: Pick<PrimaryCheckpoints, "countWrite">;
  readonly secondaries: () => Secondaries;
}

/** The changes of the disk with this index go into the stream. */
export function changesOf(disk: number, options: ChangeForwarding): Forwarding {
  const { name, state, bitmaps, checkpoints, secondaries, health } = options;
  return {
    mark: (offset, length) => markedBoth(secondaries(), bitmaps, disk, offset, length),
    forward: (kind, offset, length, payload) => {
      checkpoints.countWrite(length);
      return secondaries().forward(kind, disk, offset, length, payload);
    },
    room: () => secondaries().room(),
    flush: () => secondaries().flush(),
    failed: (offset, length, error) => {
      secondaries().sendAgain(disk, offset, length);
      health.failed(name, { during: "write", offset, length }, error);
    },
    refused: (during, offset, length, error) => health.failed(name, { during, offset, length }, error),
    readElsewhere: (target, offset, error) => {
      const quorum = quorumOf(state.record, name);
      // Where the copies here are compared one more that is not is no answer.
      if (quorum !== undefined && comparesReads(quorum)) return undefined;
      if (!(error instanceof ColobusError) || error.row.nbd !== "EIO") return undefined;
      return secondaries()
        .reads.read(disk, target, offset)
        .then((agentId) => {
          if (agentId !== undefined) health.readBy(name, agentId);
          return agentId !== undefined;
        });
    },
  };
}

export interface OriginalForwarding extends AnyForwarding {
  readonly child: CopyBeforeWrite;
  readonly gate: GuestGate;
}

/** Nothing of a shared disk is forwarded but originals, and those by its child itself. */
export function originalsOf(disk: number, options: OriginalForwarding): Forwarding {
  const { name, child, bitmaps, gate, health } = options;
  return {
    mark: (offset, length) => {
      child.prepare(offset, length);
      return bitmaps.mark(disk, offset, length);
    },
    forward: () => undefined,
    room: () => undefined,
    flush: () => undefined,
    failed: (offset, length, error) => {
      // A change that was refused while it waited for the secondary says nothing about the disk.
      if (gate.state !== "refusing") health.failed(name, { during: "write", offset, length }, error);
    },
    refused: (during, offset, length, error) => health.failed(name, { during, offset, length }, error),
  };
}
