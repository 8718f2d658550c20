/** The process as commands see it: its streams, its environment, and the signals that interrupt it. */
import { EXIT } from "../proto/errors.ts";
import { followJobControl } from "../shared/host/job-control.ts";
import { NodeClock } from "../shared/host/node-clock.ts";
import type { CommandHost } from "./command.ts";
import { Output } from "./output.ts";

/** The first SIGINT or SIGTERM interrupts the command; a second one ends the process as signals do. */
export function createProcessHost(): CommandHost {
  const output = new Output(process.stdout, process.stderr, process.env);
  const signalled = new AbortController();
  const interrupt = (): void => {
    process.off("SIGINT", interrupt);
    process.off("SIGTERM", interrupt);
    signalled.abort();
  };
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    // A reader that has seen enough is not a failure; output that is lost is one, whatever the command itself did.
    if (error.code === "EPIPE") return;
    output.remark(`colobus: Cannot write the output: ${error.message}.`);
    process.once("exit", () => {
      process.exitCode = EXIT.failed;
    });
  });
  process.on("SIGINT", interrupt);
  process.on("SIGTERM", interrupt);
  return {
    output,
    env: process.env,
    clock: new NodeClock(),
    terminated: signalled.signal,
    interrupted: AbortSignal.any([signalled.signal, output.readerGone]),
    followJobControl,
  };
}
