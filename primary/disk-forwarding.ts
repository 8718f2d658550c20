import { ColobusError } from "../proto/errors.ts";
import type { CopyBeforeWrite } from "./copy-before-write.ts";
import type { FailedAccess } from "./disk-health.ts";
import type { GuestGate } from "./guest-gate.ts";
import { markedBoth, type NamedBitmaps } from "./named-bitmaps.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import type { Forwarding } from "./replicated-disk.ts";
import type { Secondaries } from "./secondaries.ts";

type Failed = (access: FailedAccess, error: unknown) => void;

export interface ChangeForwarding {
  readonly bitmaps: Pick<NamedBitmaps, "mark">;
  readonly checkpoints: Pick<PrimaryCheckpoints, "countWrite">;
  readonly secondaries: () => Secondaries;
  /** As `SecondaryReads.read`, of this disk. */
  readonly readFromSecondary: (target: Uint8Array, offset: number) => Promise<string | undefined>;
  /** Reads are decided by a vote of the disk's copies: a secondary has none. */
  readonly isVoted: () => boolean;
  /** A guest has read from that secondary what could not be read here. */
  readonly readBy: (agentId: string) => void;
  readonly failed: Failed;
}

/** The changes of the disk with this index go into the stream. */
export function changesOf(disk: number, options: ChangeForwarding): Forwarding {
  const { bitmaps, checkpoints, secondaries, failed, readFromSecondary, isVoted, readBy } = options;
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
      failed({ during: "write", offset, length }, error);
    },
    refused: (during, offset, length, error) => failed({ during, offset, length }, error),
    readElsewhere: (target, offset, error) => {
      if (!(error instanceof ColobusError) || error.row.nbd !== "EIO" || isVoted()) return undefined;
      return readFromSecondary(target, offset).then((agentId) => {
        if (agentId !== undefined) readBy(agentId);
        return agentId !== undefined;
      });
    },
  };
}

export interface OriginalForwarding {
  readonly child: CopyBeforeWrite;
  readonly bitmaps: Pick<NamedBitmaps, "mark">;
  readonly gate: GuestGate;
  readonly failed: Failed;
}

/** Nothing of a shared disk is forwarded but originals, and those by its child itself. */
export function originalsOf(disk: number, { child, bitmaps, gate, failed }: OriginalForwarding): Forwarding {
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
      if (gate.state !== "refusing") failed({ during: "write", offset, length }, error);
    },
    refused: (during, offset, length, error) => failed({ during, offset, length }, error),
  };
}
