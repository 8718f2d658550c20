import { execFile, type ChildProcess, type ExecFileException } from "node:child_process";
import { promisify } from "node:util";
import { z } from "zod";
import type { Guest } from "./contestant.ts";

const run = promisify(execFile);

const TIMEOUT_MS = 180_000;
/** For what a load takes longer than it was told to. */
const LOAD_GRACE_MS = 60_000;
/** What `parseLoad` reads. */
const REPORT_FLAGS = [
  "--lat_percentiles=1",
  "--clat_percentiles=0",
  "--percentile_list=50:99:99.9",
  "--output-format=json+",
];
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
  ]).stdout;
}

/** Measures writes through the whole disk, once, with `skipBytes` left out after each block. */
export async function writeOnce(options: {
  readonly uri: string;
  readonly directory: string;
  readonly workload: Workload & { readonly pattern: "write"; readonly skipBytes: number };
  readonly diskBytes: number;
}): Promise<Load> {
  const { pattern, blockBytes, depth, skipBytes } = options.workload;
  const { stdout } = fio(options.directory, [
    "--name=once",
    "--ioengine=nbd",
    "--thread",
    `--uri=${options.uri}`,
    skipBytes === 0 ? `--rw=${pattern}` : `--rw=${pattern}:${skipBytes}`,
    `--bs=${blockBytes}`,
    `--iodepth=${depth}`,
    `--io_size=${(options.diskBytes * blockBytes) / (blockBytes + skipBytes)}`,
    ...REPORT_FLAGS,
  ]);
  return parseLoad(await stdout, pattern);
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
  ]).stdout;
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
  readonly maxUs: number;
  /** How many requests took how many microseconds, ascending. */
  readonly latencies: readonly (readonly [us: number, count: number])[];
}

const sideSchema = z.object({
  iops: z.number(),
  bw_bytes: z.number(),
  lat_ns: z.object({
    mean: z.number(),
    max: z.number(),
    percentile: z.record(z.string(), z.number()).optional(),
    bins: z.record(z.string(), z.number()).optional(),
  }),
});
const reportSchema = z.object({ jobs: z.array(z.object({ read: sideSchema, write: sideSchema })).length(1) });

/** A load that runs, and can be paused: its requests then go on, and their answers wait. */
export interface RunningLoad extends Guest {
  readonly finished: Promise<Load>;
}

export interface LoadOptions {
  readonly uris: readonly string[];
  readonly directory: string;
  readonly workload: Workload;
  readonly seconds: number;
  readonly rampSeconds: number;
  readonly seed: number;
}

/**
 * Measures `seconds` of the load, after as many seconds of the same as `rampSeconds` says, on all disks together.
 * `meanwhile` runs beside it; when that fails, the load is ended.
 */
export async function runLoad(
  options: LoadOptions,
  meanwhile?: (running: RunningLoad) => Promise<unknown>,
): Promise<Load> {
  const { pattern, blockBytes, depth } = options.workload;
  const flags = [
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
    ...REPORT_FLAGS,
    ...options.uris.flatMap((uri, index) => [`--name=disk${index}`, `--uri=${uri}`]),
  ];
  const timeoutMs = (options.rampSeconds + options.seconds) * 1000 + LOAD_GRACE_MS;
  const { child, stdout } = fio(options.directory, flags, timeoutMs);
  const running = {
    finished: stdout.then((output) => parseLoad(output, pattern)),
    pause: () => void child.kill("SIGSTOP"),
    resume: () => void child.kill("SIGCONT"),
  };
  try {
    const [load] = await Promise.all([running.finished, meanwhile?.(running)]);
    return load;
  } catch (error) {
    child.kill("SIGKILL");
    await stdout.catch(() => undefined); // it was killed, or is why this failed
    throw error;
  }
}

function parseLoad(output: string, pattern: Workload["pattern"]): Load {
  // The NBD engine says on the same stream that it is connected.
  const [job] = reportSchema.parse(JSON.parse(output.slice(output.indexOf("{")))).jobs;
  const side = job?.[pattern === "randread" ? "read" : "write"];
  if (side === undefined || side.iops === 0) throw new Error(`fio measured no request`);
  const { mean, max, percentile = {}, bins = {} } = side.lat_ns;
  const percentileUs = (key: string): number => (percentile[key] ?? 0) / 1000;
  return {
    requestsPerSecond: side.iops,
    bytesPerSecond: side.bw_bytes,
    meanUs: mean / 1000,
    p50Us: percentileUs("50.000000"),
    p99Us: percentileUs("99.000000"),
    p999Us: percentileUs("99.900000"),
    maxUs: max / 1000,
    latencies: Object.entries(bins)
      .map(([ns, count]) => [Number(ns) / 1000, count] as const)
      .sort(([left], [right]) => left - right),
  };
}

interface Fio {
  readonly child: ChildProcess;
  readonly stdout: Promise<string>;
}

function fio(directory: string, flags: readonly string[], timeoutMs = TIMEOUT_MS): Fio {
  // Asked to end, it waits for its requests, which a server that hangs never answers.
  const limits = { timeout: timeoutMs, killSignal: "SIGKILL", maxBuffer: OUTPUT_MAX_BYTES } as const;
  const ended = run("fio", [...flags], { cwd: directory, ...limits });
  const stdout = ended.then(
    (output) => output.stdout,
    (error: ExecFileException) => {
      if (error.killed !== true) throw error;
      throw new Error(`fio has not ended in ${timeoutMs / 1000} s`, { cause: error });
    },
  );
  return { child: ended.child, stdout };
}
