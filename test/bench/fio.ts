import { execFile, type PromiseWithChild } from "node:child_process";
import { promisify } from "node:util";
import { z } from "zod";
import type { Guest } from "./contestant.ts";

const run = promisify(execFile);

const TIMEOUT_MS = 300_000;
const OUTPUT_MAX_BYTES = 64 * 1024 * 1024;

/** Writes `bytes` at random offsets of the export, in blocks of `blockBytes`, `depth` at a time, each block once. */
export async function randomWrites(options: {
  readonly uri: string;
  readonly directory: string;
  readonly bytes: number;
  readonly blockBytes: number;
  readonly depth: number;
  readonly seed: number;
}): Promise<void> {
  await fio(options.directory, [
    "--name=randwrite",
    "--ioengine=nbd",
    `--uri=${options.uri}`,
    "--rw=randwrite",
    `--bs=${options.blockBytes}`,
    `--iodepth=${options.depth}`,
    `--io_size=${options.bytes}`,
    `--randseed=${options.seed}`,
    "--norandommap=0",
  ]);
}

/** Writes random data over the whole export, and flushes it. */
export async function fill(options: {
  readonly uri: string;
  readonly directory: string;
  readonly seed: number;
}): Promise<void> {
  await fio(options.directory, [
    "--name=fill",
    "--ioengine=nbd",
    `--uri=${options.uri}`,
    "--rw=write",
    "--bs=1m",
    "--iodepth=4",
    "--refill_buffers",
    `--randseed=${options.seed}`,
    "--end_fsync=1",
  ]);
}

/** Requests that follow each other, `depth` at a time on each disk. */
export interface Workload {
  readonly pattern: "randwrite" | "write" | "randread";
  readonly blockBytes: number;
  readonly depth: number;
}

/** What requests took. Percentiles and `latencies` count from the submission to the completion. */
export interface Load {
  readonly requestsPerSecond: number;
  readonly bytesPerSecond: number;
  readonly meanUs: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly p999Us: number;
  /** How many requests took how many microseconds, ascending. */
  readonly latencies: readonly (readonly [us: number, count: number])[];
}

const sideSchema = z.object({
  iops: z.number(),
  bw_bytes: z.number(),
  lat_ns: z.object({
    mean: z.number(),
    percentile: z.record(z.string(), z.number()).optional(),
    bins: z.record(z.string(), z.number()).optional(),
  }),
});
const reportSchema = z.object({ jobs: z.array(z.object({ read: sideSchema, write: sideSchema })).length(1) });

/** A load that runs, and can be paused: its requests then go on, and their answers wait. */
export interface RunningLoad extends Guest {
  readonly finished: Promise<Load>;
}

/** Measures `seconds` of the load, after as many seconds of the same as `rampSeconds` says, on all disks together. */
export function startLoad(options: {
  readonly uris: readonly string[];
  readonly directory: string;
  readonly workload: Workload;
  readonly seconds: number;
  readonly rampSeconds: number;
  readonly seed: number;
}): RunningLoad {
  const { pattern, blockBytes, depth } = options.workload;
  const running = fio(options.directory, [
    "--ioengine=nbd",
    "--thread",
    `--rw=${pattern}`,
    `--bs=${blockBytes}`,
    `--iodepth=${depth}`,
    `--runtime=${options.seconds}`,
    `--ramp_time=${options.rampSeconds}`,
    "--time_based",
    `--randseed=${options.seed}`,
    "--norandommap",
    "--group_reporting",
    "--lat_percentiles=1",
    "--clat_percentiles=0",
    "--percentile_list=50:99:99.9",
    "--output-format=json+",
    ...options.uris.flatMap((uri, index) => [`--name=disk${index}`, `--uri=${uri}`]),
  ]);
  return {
    finished: running.then(({ stdout }) => parseLoad(stdout, pattern)),
    pause: () => void running.child.kill("SIGSTOP"),
    resume: () => void running.child.kill("SIGCONT"),
  };
}

function parseLoad(output: string, pattern: Workload["pattern"]): Load {
  // The NBD engine says on the same stream that it is connected.
  const [job] = reportSchema.parse(JSON.parse(output.slice(output.indexOf("{")))).jobs;
  const side = job?.[pattern === "randread" ? "read" : "write"];
  if (side === undefined || side.iops === 0) throw new Error(`fio measured no request`);
  const { mean, percentile = {}, bins = {} } = side.lat_ns;
  const percentileUs = (key: string): number => (percentile[key] ?? 0) / 1000;
  return {
    requestsPerSecond: side.iops,
    bytesPerSecond: side.bw_bytes,
    meanUs: mean / 1000,
    p50Us: percentileUs("50.000000"),
    p99Us: percentileUs("99.000000"),
    p999Us: percentileUs("99.900000"),
    latencies: Object.entries(bins)
      .map(([ns, count]) => [Number(ns) / 1000, count] as const)
      .sort(([left], [right]) => left - right),
  };
}

function fio(directory: string, flags: readonly string[]): PromiseWithChild<{ readonly stdout: string }> {
  return run("fio", [...flags], { cwd: directory, timeout: TIMEOUT_MS, maxBuffer: OUTPUT_MAX_BYTES });
}
