import pino from "pino";
import type { LogLevel } from "../../proto/words.ts";

/** What the code that logs needs of a logger: a constant phrase, and the particulars in fields. */
export type Log = Pick<pino.Logger, "info" | "warn" | "error" | "debug">;

/** The agent's log itself, whose level can be changed. */
export type LeveledLog = Log & { level: string };

const STDERR = 2;
/** What a reader of the log that has stopped reading may leave unread. Lines beyond are lost. */
const UNREAD_MAX_BYTES = 1024 * 1024;

/**
 * The agent's log: one JSON object a line, on stderr unless `destination` says otherwise. Lines are written behind, so
 * that a reader that hangs cannot stop the agent; at the exit of the process what is left is written out.
 */
export function createLogger(options: {
  readonly level: LogLevel;
  /** Stands in each line, as the agents of several VMs may share a journal. */
  readonly name: string;
  readonly destination?: pino.DestinationStream;
}): LeveledLog {
  return pino(
    {
      level: options.level,
      base: { pid: process.pid, name: options.name },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    options.destination ?? pino.destination({ dest: STDERR, sync: false, maxLength: UNREAD_MAX_BYTES }),
  );
}
