import { execFile } from "node:child_process";
import { promisify } from "node:util";

const run = promisify(execFile);

/** Writes `bytes` at random offsets of the export, in blocks of `blockBytes`, `depth` at a time. */
export async function randomWrites(options: {
  readonly uri: string;
  readonly directory: string;
  readonly bytes: number;
  readonly blockBytes: number;
  readonly depth: number;
  readonly seed: number;
}): Promise<void> {
  await run(
    "fio",
    [
      "--name=randwrite",
      "--ioengine=nbd",
      `--uri=${options.uri}`,
      "--rw=randwrite",
      `--bs=${options.blockBytes}`,
      `--iodepth=${options.depth}`,
      `--io_size=${options.bytes}`,
      `--randseed=${options.seed}`,
      "--norandommap=0",
      "--output-format=json",
    ],
    { cwd: options.directory, timeout: 300_000 },
  );
}

/** Writes random data over the whole export, and flushes it. */
export async function fill(options: {
  readonly uri: string;
  readonly directory: string;
  readonly seed: number;
}): Promise<void> {
  await run(
    "fio",
    [
      "--name=fill",
      "--ioengine=nbd",
      `--uri=${options.uri}`,
      "--rw=write",
      "--bs=1m",
      "--iodepth=4",
      "--refill_buffers",
      `--randseed=${options.seed}`,
      "--end_fsync=1",
    ],
    { cwd: options.directory, timeout: 300_000 },
  );
}
