/** The process as commands see it: its streams, its environment, and the signals that interrupt it. */
import { EXIT } from "../proto/errors.ts";
import { followJobControl } from "../shared/host/job-control.ts";
import { every } from "../shared/host/every.ts";
import { NodeClock } from "../shared/host/node-clock.ts";
import type { CommandHost } from "./command.ts";
import { Output } from "./output.ts";

/** A reader that has gone is noticed after so long at most. */
const READER_LOOK_MS = 500;

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
  const clock = new NodeClock();
  return {
    output,
    env: process.env,
    clock,
    terminated: signalled.signal,
    interrupted: AbortSignal.any([signalled.signal, output.readerGone]),
    whileRead: async (follow) => {
      const { isReaderGone } = await import("../shared/host/posix.ts");
      const looking = every(clock, READER_LOOK_MS, () => {
        if (isReaderGone(process.stdout.fd)) output.loseReader();
      });
      try {
        await follow();
      } finally {
        looking.cancel();
      }
    },
    followJobControl,
  };
}
