/**
 * What `colobus doctor` looks at of a directory that keeps overlays or images: whether it can be written, how fast and
 * how durably, what its file system can do, and how much room is left.
 *
 * It writes one file of PROBE_BYTES under a name of its own, and removes it whatever happens.
 */
import { closeSync, constants, fstatSync, fsyncSync, openSync, rmSync, statfsSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { Clock } from "../shared/host/clock.ts";
import { fallocate, FALLOCATE } from "../shared/host/posix.ts";
import { failed, ok, warning, type Finding } from "./finding.ts";
import { formatBytes, formatDuration, formatRate } from "./quantities.ts";

const PROBE_BYTES = 8 * 1024 * 1024;
const SYNCS = 8;
const SYNC_BYTES = 4096;
/** With durability `power` every acknowledgement waits for such a sync. */
const SLOW_SYNC_MS = 20;
/** No more syncs are tried after this time. */
const SYNCS_MAX_MS = 2_000;
const STAT_BLOCK_BYTES = 512;

export interface DirectoryCheck {
  /** What it is, such as `state`. */
  readonly name: string;
  readonly path: string;
  readonly clock: Clock;
  /** What may be needed in it at worst; 0: nothing. */
  readonly neededBytes: number;
  readonly needsDirect: boolean;
}

export function checkDirectory(check: DirectoryCheck): Finding[] {
  const { name, path } = check;
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) {
    return [failed(name, `${path} is not a directory`, "Create it, for the user that runs the agent.")];
  }
  const space = checkSpace(check);
  const probe = join(path, `.colobus-doctor-${process.pid}`);
  let fd: number;
  try {
    fd = openSync(probe, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return [
      failed(name, `no file can be written to ${path}: ${why}`, "Let the user that runs the agent write there."),
      space,
    ];
  }
  try {
    return [...probeFile(fd, check), ...(check.needsDirect ? [checkDirect(probe, check)] : []), space];
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return [failed(name, `${path} cannot be written: ${why}`, "Look at the file system, and its disk."), space];
  } finally {
    closeSync(fd);
    rmSync(probe, { force: true });
  }
}

function probeFile(fd: number, { name, path, clock }: DirectoryCheck): Finding[] {
  const content = Buffer.alloc(PROBE_BYTES, 0xc0);
  const startedMs = clock.nowMs();
  let written = 0;
  while (written < PROBE_BYTES) written += writeSync(fd, content, written, PROBE_BYTES - written, written);
  fsyncSync(fd);
  const tookMs = Math.max(clock.nowMs() - startedMs, 0.001);
  const rate = formatRate(Math.round((PROBE_BYTES * 1000) / tookMs));
  const findings = [checkSyncs(fd, { name, path, clock }, rate)];
  const before = fstatSync(fd).blocks;
  const errno = fallocate(fd, FALLOCATE.punchHole, 0, PROBE_BYTES / 2);
  const freed = (before - fstatSync(fd).blocks) * STAT_BLOCK_BYTES;
  findings.push(
    errno >= 0 && freed >= PROBE_BYTES / 4
      ? ok(`${name} holes`, `${path} frees what is trimmed`)
      : warning(
          `${name} holes`,
          `the file system of ${path} keeps what is trimmed`,
          "It works, but takes the room of everything that was ever written. Use ext4, XFS, Btrfs or tmpfs.",
        ),
  );
  return findings;
}

function checkSyncs(
  fd: number,
  { name, path, clock }: Pick<DirectoryCheck, "name" | "path" | "clock">,
  rate: string,
): Finding {
  const content = Buffer.alloc(SYNC_BYTES, 0xc1);
  const begunMs = clock.nowMs();
  const times: number[] = [];
  while (times.length < SYNCS && clock.nowMs() - begunMs < SYNCS_MAX_MS) {
    const startedMs = clock.nowMs();
    writeSync(fd, content, 0, SYNC_BYTES, times.length * SYNC_BYTES);
    fsyncSync(fd);
    times.push(clock.nowMs() - startedMs);
  }
  const medianMs = times.sort((one, other) => one - other)[times.length >> 1] ?? 0;
  const message = `${path}: ${rate}, a synced write takes ${formatDuration(medianMs)}`;
  if (medianMs < SLOW_SYNC_MS) return ok(`${name} speed`, message);
  return warning(
    `${name} speed`,
    message,
    "With durability `power` checkpoints wait for that: put it on a faster disk, or one with a protected cache.",
  );
}

function checkDirect(probe: string, { name, path }: DirectoryCheck): Finding {
  try {
    closeSync(openSync(probe, constants.O_RDONLY | constants.O_DIRECT));
    return ok(`${name} direct`, `${path} can be read past the page cache`);
  } catch {
    return failed(
      `${name} direct`,
      `${path} cannot be read past the page cache (O_DIRECT), which mode shared needs`,
      "Put the shared disk on a block device, or on a file system that has O_DIRECT.",
    );
  }
}

function checkSpace({ name, path, neededBytes }: DirectoryCheck): Finding {
  const { bavail, bsize } = statfsSync(path);
  const freeBytes = bavail * bsize;
  const message = `${path} has ${formatBytes(freeBytes)} left`;
  if (neededBytes === 0 || freeBytes >= neededBytes) return ok(`${name} space`, message);
  return warning(
    `${name} space`,
    `${message}; a resync that replaces everything needs ${formatBytes(neededBytes)} for the originals`,
    "Give it more room, take checkpoints more often, or set --overlay-limit; a resync that does not fit pauses.",
  );
}
