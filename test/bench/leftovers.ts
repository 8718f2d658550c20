/**
 * The processes, directories and links of a run. However it ends, by a signal or an error nobody caught, the processes are
 * killed and the rest removed: the directories hold gigabytes, some of them in memory.
 */
import { spawn, type ChildProcess, type SpawnOptions } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { removeLinks } from "./links.ts";

const running = new Set<ChildProcess>();
const directories = new Set<string>();

/** From here on this process takes all that it has left along. */
export function clearAtExit(): void {
  process.on("exit", () => {
    for (const child of running) child.kill("SIGKILL");
    for (const directory of directories) removeDirectory(directory);
    removeLinks();
  });
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(1));
}

/** A new directory below `parent`. */
export function makeDirectory(parent: string): string {
  const directory = mkdtempSync(join(parent, "colobus-bench-"));
  directories.add(directory);
  return directory;
}

export function removeDirectory(directory: string): void {
  rmSync(directory, { recursive: true, force: true, maxRetries: 10 });
  directories.delete(directory);
}

/** A child process that does not outlive this one. */
export function startProcess(program: string, args: readonly string[], options: SpawnOptions): ChildProcess {
  const child = spawn(program, args, options);
  running.add(child);
  child.on("exit", () => running.delete(child));
  return child;
}

/** Longer than an agent takes to leave its session. */
const END_TIMEOUT_MS = 30_000;

/** Sends the signal, and resolves when the process has ended; at once where it ended before. One that hangs is killed. */
export async function endProcess(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill(signal);
  const timer = setTimeout(() => child.kill("SIGKILL"), END_TIMEOUT_MS);
  await ended;
  clearTimeout(timer);
}

/** Rejects when the process ends before it is asked to. The caller races it with what it waits for. */
export async function endsEarly(child: ChildProcess, name: string): Promise<never> {
  const [code, signal] = (await once(child, "exit")) as [number | null, string | null];
  throw new Error(`${name} ended with ${String(code ?? signal)}`);
}
