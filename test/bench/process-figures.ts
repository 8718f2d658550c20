import { readFileSync } from "node:fs";
import { WINDOW_DEFAULT_BYTES } from "../../proto/limits.ts";

/** The unit of /proc's times, the same on every Linux of today (`getconf CLK_TCK`). */
const TICKS_PER_SECOND = 100;
const KIB = 1024;
const MIB = 1024 * KIB;

/** What an agent may take for disks of any size: so much, and its windows. */
export const AGENT_MEMORY_MAX_MIB = 256 + WINDOW_DEFAULT_BYTES / MIB;

/** Seconds of CPU that these processes have used so far, in user mode and in the kernel. */
export function cpuSeconds(pids: Iterable<number>): number {
  let ticks = 0;
  for (const pid of pids) {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The second field is the program's name in parentheses, and may hold spaces: count from behind it.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    ticks += Number(fields[11]) + Number(fields[12]);
  }
  return ticks / TICKS_PER_SECOND;
}

/** The most memory that a process ever had resident, in bytes. */
export function peakBytes(pid: number): number {
  const [, kibibytes] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1")) ?? [];
  if (kibibytes === undefined) throw new Error(`process ${pid} has ended`);
  return Number(kibibytes) * KIB;
}

/** Bytes that these processes have passed to the kernel so far, for files and pipes. */
export function bytesWritten(pids: Iterable<number>): number {
  let bytes = 0;
  for (const pid of pids) bytes += Number(/^wchar: (\d+)$/m.exec(readFileSync(`/proc/${pid}/io`, "latin1"))?.[1]);
  return bytes;
}
