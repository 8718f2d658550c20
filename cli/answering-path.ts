import { spawn } from "node:child_process";
import { ColobusError } from "../proto/errors.ts";
import type { Clock } from "../shared/host/clock.ts";
import { formatDuration } from "./quantities.ts";

interface Patience {
  readonly clock: Clock;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

/** Reads a byte of a file; in a directory it syncs one of a file that has no name any more. */
const TRY = `
  const fs = require("node:fs");
  const path = process.argv[1];
  const fd = fs.openSync(path, "r");
  if (!fs.fstatSync(fd).isDirectory()) fs.readSync(fd, Buffer.alloc(1));
  else {
    const probe = require("node:path").join(path, ".colobus-doctor-" + process.pid);
    const out = fs.openSync(probe, "wx", 0o600);
    fs.unlinkSync(probe);
    fs.writeSync(out, "x");
    fs.fsyncSync(out);
  }
`;

/**
 * Makes sure that what is at `path` answers, with an error too: whoever asks a file system that hangs (NFS, iSCSI) hangs
 * with it, and hears no signal, so another process asks first. Errors: `timed-out`; `outcome-unknown` when interrupted.
 */
export async function assertAnswers(path: string, { clock, timeoutMs, signal }: Patience): Promise<void> {
  const asking = spawn(process.execPath, ["--eval", TRY, path], { stdio: "ignore" });
  const outcome = await new Promise<"answered" | "late" | "interrupted">((resolve, reject) => {
    const end = (how: "answered" | "late" | "interrupted"): void => {
      timer.cancel();
      signal.removeEventListener("abort", abort);
      resolve(how);
    };
    const abort = (): void => end("interrupted");
    const timer = clock.after(timeoutMs, () => end("late"));
    signal.addEventListener("abort", abort, { once: true });
    asking.once("exit", () => end("answered"));
    asking.once("error", (error) => {
      reject(error);
      end("late");
    });
    if (signal.aborted) abort();
  });
  if (outcome === "answered") return;
  // It ends when the file system lets it.
  asking.kill("SIGKILL");
  asking.unref();
  if (outcome === "interrupted") throw new ColobusError("outcome-unknown", `interrupted while ${path} was looked at`);
  throw new ColobusError(
    "timed-out",
    `${path} has not answered in ${formatDuration(timeoutMs)}`,
    "Look at the file system, and at the network or disk below it: what uses it hangs as well.",
  );
}
