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
  /** Aborts when this process is to end. */
  readonly signal: AbortSignal;
}

/**
 * Runs the command, and resolves with its exit code, or with what else has ended it. One that takes too long, or that the
 * end of this process comes before, is killed with everything that it has started, but for what has left its process group,
 * or belongs to another user. Errors: `timed-out` or `shutting-down` then.
 */
export async function runHook({ command, timeoutMs }: Hook, options: HookOptions): Promise<number | string> {
  const { env, clock, output, leavesOthers, signal } = options;
  if (signal.aborted) throw new ColobusError("shutting-down", "was not begun, since it would have to end at once");
  const child = spawn("/bin/sh", ["-c", command], {
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
    env: { ...process.env, ...env },
  });
  const streams = [child.stdout, child.stderr];
  for (const stream of streams) createInterface({ input: stream }).on("line", output);
  const outcome = await new Promise<number | string | ColobusError>((resolve) => {
    const cut = (code: "timed-out" | "shutting-down", what: string): void => {
      const left = killGroup(child) ? "" : "; it may run still, since it belongs to another user";
      child.unref(); // what goes on does not keep this process
      ended(new ColobusError(code, `${what}${left}`));
    };
    const stopped = (): void => cut("shutting-down", "was ended before its time");
    const timer = clock.after(timeoutMs, () => cut("timed-out", `has not ended within ${timeoutMs} ms`));
    const ended = (how: number | string | ColobusError): void => {
      timer.cancel();
      signal.removeEventListener("abort", stopped);
      resolve(how);
    };
    signal.addEventListener("abort", stopped);
    child.once("error", (error) => ended(error.message));
    child.once(leavesOthers ? "exit" : "close", (code, by) => ended(code ?? by ?? "unknown"));
  });
  const isCut = outcome instanceof ColobusError;
  if (leavesOthers || isCut) for (const stream of streams) stream.destroy();
  if (isCut) throw outcome;
  return outcome;
}
