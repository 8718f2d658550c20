import { execFile } from "node:child_process";
import { readdirSync, readFileSync, realpathSync, statfsSync, statSync } from "node:fs";
import { freemem } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Contestant } from "./contestant.ts";
import { pinFiles, touchMemory } from "./resident-memory.ts";
import type { Plot } from "./plot.ts";

const run = promisify(execFile);

/** A directory that the measured disks lie in. */
export interface Place {
  readonly name: "memory" | "disk";
  readonly directory: string;
}

/** What every bench is told. */
export interface Setting {
  readonly place: Place;
  readonly rounds: number;
  /** How long one contestant is measured in one round, after a second of the same load. */
  readonly seconds: number;
}

export interface Row {
  readonly what: string;
  /** By name and unit; the same ones in each row of a table. null: it is not known. */
  readonly figures: Readonly<Record<string, number | null>>;
}

export interface Table {
  readonly title: string;
  readonly rows: readonly Row[];
}

/** A figure that has to keep within bounds on any machine; most are two figures of one run, compared. */
export interface Target {
  readonly what: string;
  readonly value: number;
  /** `times` where two figures are compared. */
  readonly unit: "times" | "ms" | "MiB";
  /** Neither bound: it is for information. */
  readonly atLeast?: number | undefined;
  readonly atMost?: number | undefined;
}

export interface Measured {
  readonly tables: readonly Table[];
  readonly targets: readonly Target[];
  readonly plots: readonly Plot[];
}

export function isKept({ value, atLeast = -Infinity, atMost = Infinity }: Target): boolean {
  return value >= atLeast && value <= atMost;
}

/** NaN of nothing. */
export function median(numbers: readonly number[]): number {
  if (numbers.length === 0) return NaN;
  const sorted = [...numbers].sort((left, right) => left - right);
  const middle = Math.floor(sorted.length / 2);
  const high = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? high : (high + (sorted[middle - 1] ?? 0)) / 2;
}

/** The smallest of the numbers that `share` of them do not exceed. NaN of nothing. */
export function percentile(numbers: readonly number[], share: number): number {
  const sorted = [...numbers].sort((left, right) => left - right);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? NaN;
}

/** The members in another order for each round, so that none is always the first. */
export function rotated<T>(members: readonly T[], round: number): T[] {
  const start = round % members.length;
  return [...members.slice(start), ...members.slice(0, start)];
}

/** What is smaller costs nothing to read. */
const FILE_MIN_BYTES = 1024 ** 2;

/** As much free memory as a turn may fill, with new files and in the page cache. */
const TURN_BYTES = 3 * 1024 ** 3;

/** Lets go of the files of who was measured last. */
let unpin: () => void = () => undefined;

/**
 * Resolves when what was written before is on the device, and does not compete with what is measured next; and when what
 * `contestant` keeps, and its program, is in the page cache, where it is held until the next one is settled. What is free
 * then has just been in use: the host of a virtual machine may have taken the rest.
 */
export async function settle(place: Place, contestant: Contestant | undefined): Promise<void> {
  if (place.name === "disk") {
    await run("sync", ["--file-system", place.directory]);
    unpin();
    if (contestant !== undefined) unpin = await readIn(contestant);
  }
  touchMemory(Math.min(TURN_BYTES, Math.floor(freemem() / 2)));
}

/** Has what it keeps in the page cache, until what it resolves with is called. */
async function readIn({ directory, processes }: Contestant): Promise<() => void> {
  const paths = filledFiles(directory);
  for (const path of paths) {
    // Without the kernel's reading ahead, which would make large folios of it: those make small writes slow on ext4.
    const reading = [
      "--name=cached",
      "--ioengine=psync",
      "--rw=read",
      "--bs=64k",
      "--fadvise_hint=random",
      "--readonly",
    ];
    await run("fio", [...reading, `--filename=${path}`, "--output-format=terse", "--output=/dev/null"]);
  }
  const programs = [...processes].map(([, pid]) => realpathSync(`/proc/${pid}/exe`));
  return pinFiles([...paths, ...new Set(programs)]);
}

/** Those that are large, and mostly data. */
function filledFiles(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => {
      const { size, blocks } = statSync(path);
      return size >= FILE_MIN_BYTES && blocks * 512 >= size / 2;
    });
}

/** What a load may write beside the disks: into overlays, and logs that are not applied yet. */
const LOAD_BYTES = 4 * 1024 ** 3;
const DISK_BYTES_MIN = 64 * 1024 ** 2;

/**
 * How large disks may be of which `copies` lie in the place at once: as `wanted`, or a half, a quarter and so on of it, where
 * a place that runs full would be measured instead. Throws where there is no room for small ones.
 */
export function diskBytesIn(place: Place, copies: number, wanted: number): number {
  const free = freeBytesOf(place);
  let bytes = wanted;
  while (copies * bytes + LOAD_BYTES > free) bytes /= 2;
  const mib = Math.floor(free / 1024 ** 2);
  if (bytes < DISK_BYTES_MIN) throw new Error(`${place.directory} has ${mib} MiB free, too little for ${copies} disks`);
  if (bytes < wanted) {
    process.stderr.write(`bench: ${place.directory} has ${mib} MiB free: disks of ${bytes / 1024 ** 2} MiB\n`);
  }
  return bytes;
}

/** A file system in memory has no more than the memory that is left. */
function freeBytesOf({ name, directory }: Place): number {
  const { bavail, bsize } = statfsSync(directory);
  if (name === "disk") return bavail * bsize;
  const [, kib = "0"] = /^MemAvailable: *(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8")) ?? [];
  return Math.min(bavail * bsize, Number(kib) * 1024);
}

export function progress(bench: string, place: Place, round: number, rounds: number): void {
  process.stderr.write(`${bench}: ${place.name}: round ${round} of ${rounds}\n`);
}
