import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { ColobusError } from "../proto/errors.ts";
import type { Clock } from "../shared/host/clock.ts";
import { killGroup } from "../shared/host/process-group.ts";

/** A command of the operator's that an agent, or the command line, runs. */
export interface Hook {
  /** Run by `/bin/sh -c`. */
  readonly command: string;
  readonly timeoutMs: number;
}

export interface HookOptions {
  /** Beside the environment of this process. */
  readonly env: Readonly<Record<string, string>>;
  readonly clock: Clock;
  /** Gets each line of its output. */
  readonly output: (line: string) => void;
  /** What it has started may keep its output open: it is not waited for. */
  readonly leavesOthers: boolean;
}

/**
 * Runs the command, and resolves with its exit code, or with what else has ended it. One that takes too long is killed with
 * everything that it has started, but for what has left its process group, or belongs to another user. Errors: `timed-out` then.
 */
export async function runHook({ command, timeoutMs }: Hook, options: HookOptions): Promise<number | string> {
  const { env, clock, output, leavesOthers } = options;
  const child = spawn("/bin/sh", ["-c", command], {
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
    env: { ...process.env, ...env },
  });
  const streams = [child.stdout, child.stderr];
  for (const stream of streams) createInterface({ input: stream }).on("line", output);
  const late = { is: false, isKilled: true };
  const outcome = await new Promise<number | string>((resolve) => {
    const timer = clock.after(timeoutMs, () => {
      late.is = true;
      resolve("late");
      late.isKilled = killGroup(child);
      child.unref(); // what goes on does not keep this process
    });
    const ended = (how: number | string): void => {
      timer.cancel();
      resolve(how);
    };
    child.once("error", (error) => ended(error.message));
    child.once(leavesOthers ? "exit" : "close", (code, signal) => ended(code ?? signal ?? "unknown"));
  });
  if (leavesOthers || late.is) for (const stream of streams) stream.destroy();
  if (late.is) {
    const left = late.isKilled ? "" : "; it may run still, since it belongs to another user";
    throw new ColobusError("timed-out", `has not ended within ${timeoutMs} ms${left}`);
  }
  return outcome;
}
