import { closeSync, openSync, writeSync } from "node:fs";
import { randomFillSync } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { NbdGuest } from "../support/nbd-guest.ts";

/** What is measured: a server, or a pair of them, and the disks that it serves over NBD. */
export interface Contestant {
  readonly name: string;
  /** All its files lie below. */
  readonly directory: string;
  /** An NBD URI for each disk. */
  readonly uris: readonly string[];
  /** The process ids of all that takes part in serving, by what each is. */
  readonly processes: ReadonlyMap<string, number>;
  /** Resolves when every copy has everything that was written. */
  idle(): Promise<void>;
  /** What may tell why something has failed. */
  explain?(): Promise<string>;
  /** Ends the processes and removes the disks. */
  stop(): Promise<void>;
}

/** How long a checkpoint took. */
export interface CheckpointTimes {
  readonly prepareMs: number;
  readonly commitMs: number;
}

/** Who writes to a contestant. */
export interface Guest {
  pause(): void;
  resume(): void;
}

/** A contestant with a second copy that keeps the state of the last checkpoint. */
export interface ReplicatedContestant extends Contestant {
  /** Pauses `guest`, which is writing, where it has to. */
  checkpoint(guest?: Guest): Promise<CheckpointTimes>;
}

/** A pair whose secondary can take over. */
export interface FailoverContestant extends ReplicatedContestant {
  /** The first disk as the secondary serves it, writable for a guest of its own. */
  readonly secondaryExport: SecondaryExport;
  /** Resolves when the primary is gone and the secondary knows. */
  killPrimary(): Promise<void>;
  /** Resolves when the secondary has been made to serve the last checkpoint for good. */
  failover(): Promise<void>;
  /** Resolves when the secondary's image alone holds everything. */
  merged(): Promise<void>;
}

export interface SecondaryExport {
  readonly uri: string;
  readonly socket: string;
  readonly name: string;
}

export function isReplicated(contestant: Contestant): contestant is ReplicatedContestant {
  return "checkpoint" in contestant;
}

const FILL_BYTES = 16 * 1024 * 1024;
/** As the agents write: larger pieces make every contestant's small writes slow on ext4 (`posix.ts`). */
const FILL_PIECE_BYTES = 64 * 1024;

/** Writes a new image of `sizeBytes` without holes. */
export function writeFilledImage(path: string, sizeBytes: number): void {
  const random = randomFillSync(Buffer.allocUnsafe(FILL_BYTES));
  const fd = openSync(path, "w");
  try {
    for (let offset = 0; offset < sizeBytes; offset += FILL_PIECE_BYTES) {
      writeSync(fd, random, offset % random.length, Math.min(FILL_PIECE_BYTES, sizeBytes - offset), offset);
    }
  } finally {
    closeSync(fd);
  }
}

const START_TIMEOUT_MS = 10_000;

/** Resolves when the server on the unix socket at `path` serves its default export. */
export async function untilServing(path: string): Promise<void> {
  const deadlineMs = Date.now() + START_TIMEOUT_MS;
  for (;;) {
    try {
      const guest = await NbdGuest.connect(path, "");
      guest.close();
      return;
    } catch (error) {
      if (Date.now() > deadlineMs) throw error;
      await sleep(5);
    }
  }
}
