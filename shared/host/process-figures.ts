import { readdirSync } from "node:fs";
import { performance } from "node:perf_hooks";

/** What the operating system says of this process. */
export interface ProcessFigures {
  readonly cpuSeconds: number;
  readonly residentBytes: number;
  /** undefined where the system does not tell. */
  readonly openFiles: number | undefined;
  /** Milliseconds since 1970. */
  readonly startedAtMs: number;
}

export function readProcessFigures(): ProcessFigures {
  const { user, system } = process.cpuUsage();
  return {
    cpuSeconds: (user + system) / 1_000_000,
    residentBytes: process.memoryUsage.rss(),
    openFiles: countOpenFiles(),
    startedAtMs: performance.timeOrigin,
  };
}

function countOpenFiles(): number | undefined {
  try {
    return readdirSync("/proc/self/fd").length - 1; // but for the one of this look
  } catch {
    return undefined; // a system without /proc tells nobody
  }
}
