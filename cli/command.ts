/**
 * What a command of the command line is: its yargs declaration, and a function that runs it with the host's output,
 * clock and interruption. A command succeeds by returning and fails by throwing a ColobusError, whose row in the error
 * table gives the exit code; or it returns the exit code, where its result itself says that something is wrong.
 */
import type { ArgumentsCamelCase, Argv } from "yargs";
import type { Clock } from "../shared/host/clock.ts";
import type { Output } from "./output.ts";

/** As yargs names them. */
const ARGUMENTS = "Positionals:";
const OWN_OPTIONS = "Options:";
/** Of the options that many commands have. */
export const COMMON_OPTIONS = "Common options:";

/** What the process gives to a command. */
export interface CommandHost {
  readonly output: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly clock: Clock;
  /** Aborts at the first SIGINT or SIGTERM: what runs until it is stopped waits for this. */
  readonly terminated: AbortSignal;
  /** Aborts at the first SIGINT or SIGTERM, and when nobody reads stdout any more. */
  readonly interrupted: AbortSignal;
  /**
   * Does what follows something that may be silent for long: meanwhile `interrupted` aborts also when the reader of stdout
   * goes away while nothing is written.
   */
  readonly whileRead: (follow: () => Promise<void>) => Promise<void>;
  /** For what takes the whole screen: as `followJobControl`. */
  readonly followJobControl: (leave: () => void, enter: () => void) => () => void;
}

export interface CommandDeclaration<U> {
  /** In yargs' form: `commit <epoch>`. */
  readonly command: string;
  readonly describe: string;
  readonly builder: (yargs: Argv) => Argv<U>;
  readonly run: (args: ArgumentsCamelCase<U>, host: CommandHost) => Promise<number | void> | void;
}

export interface Command {
  readonly name: string;
  /** The command with its positional arguments, as usage messages show it. */
  readonly usage: string;
  /** Adds the command to `yargs`; when a command line is parsed that names it, calls `chosen` with what is to be run, which throws. */
  install(yargs: Argv, building: (yargs: Argv) => void, chosen: (run: RunCommand) => never): void;
}

/** A command has told itself what is wrong, as its result: only the exit code is left. */
export class ReportedFailure extends Error {
  readonly exit: number;

  constructor(exit: number) {
    super("the result tells what is wrong");
    this.exit = exit;
  }
}

/** Resolves when the signal aborts. */
export function untilAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

export type RunCommand = (host: CommandHost) => Promise<number | void> | void;

export function defineCommand<U>(declaration: CommandDeclaration<U>): Command {
  const { command, describe, builder, run } = declaration;
  return {
    name: command.split(" ", 1)[0] ?? command,
    usage: command,
    install: (yargs, building, chosen) => {
      yargs.command<U>(
        command,
        describe,
        (inner) => {
          building(inner);
          // Before any other group: what is a command's own is listed first.
          return builder(inner.group([], ARGUMENTS).group([], OWN_OPTIONS));
        },
        (args) => chosen((host) => run(args, host)),
      );
    },
  };
}
