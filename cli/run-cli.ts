/**
 * Runs one command line: parses it, runs the command, and turns what it throws into a message and an exit code.
 *
 * yargs only parses here. What a command does begins after the parser has returned, so that a failure of the command
 * and a complaint of the parser cannot be taken for each other.
 */
import yargs, { type Argv } from "yargs";
import { asColobusError, ColobusError, EXIT } from "../proto/errors.ts";
import { AGENT_VERSION } from "../proto/versions.ts";
import { ReportedFailure, type Command, type CommandHost, type RunCommand } from "./command.ts";
import { usageError } from "./usage-error.ts";

const HELP_COLUMNS_MAX = 110;
export const PROGRAM_MEANING = "keeps a second host ready to take over a virtual machine's disks";
const COMMAND_HELP = "colobus COMMAND --help has a command's flags and examples.";
export const EXIT_CODE_MEANINGS =
  "Exit codes: 0 done, 1 refused or failed, 2 usage, 3 agent not reachable, 4 timed out or outcome unknown.";

/** Runs `argv` (without the interpreter and the script) and resolves with the exit code. It never rejects. */
export async function runCli(
  argv: readonly string[],
  commands: readonly Command[],
  host: CommandHost,
): Promise<number> {
  const json = asksForJson(argv);
  try {
    const parsed = parseCommandLine(argv, commands, host);
    if (parsed.output !== "") {
      if (json) host.output.document({ text: parsed.output });
      else host.output.text(parsed.output);
    }
    return (await parsed.run?.(host)) ?? EXIT.done;
  } catch (thrown) {
    if (thrown instanceof ReportedFailure) return thrown.exit;
    const error = asColobusError(thrown);
    host.output.failure(json, error);
    if (error.code === "internal" && thrown instanceof Error) host.output.remark(thrown.stack ?? "");
    return error.row.exit;
  }
}

/**
 * Leaves the parser when it has called a command's handler. Behind that it would lay out the command's help text, in case
 * that the handler fails, which takes longer than all that it has done till then.
 */
class CommandChosen extends Error {
  readonly run: RunCommand;

  constructor(run: RunCommand) {
    super("the command line is parsed");
    this.run = run;
  }
}

interface ParsedCommandLine {
  /** Help, version or completions: text that the parser itself answers with. */
  readonly output: string;
  readonly run: RunCommand | undefined;
}

function parseCommandLine(argv: readonly string[], commands: readonly Command[], host: CommandHost): ParsedCommandLine {
  let output = "";
  let usage: string | undefined;
  let parser: Argv = yargs([]);
  const complain = (message: string | undefined, thrown: unknown): never => {
    if (thrown instanceof ColobusError || thrown instanceof CommandChosen) throw thrown;
    const flags = parser.parsed === false ? [] : Object.keys(parser.parsed.aliases);
    throw usageError(message ?? String(thrown), { argv, commands: commands.map(({ name }) => name), usage, flags });
  };
  parser
    .scriptName("colobus")
    .locale("en")
    .usage(`$0 COMMAND: ${PROGRAM_MEANING}`)
    .parserConfiguration({
      "parse-numbers": false,
      "parse-positional-numbers": false,
      "boolean-negation": false,
      "dot-notation": false,
    })
    .strict()
    .demandCommand(1)
    .version(AGENT_VERSION)
    .help()
    .alias("help", "h")
    .wrap(Math.min(HELP_COLUMNS_MAX, host.output.columns))
    .example("$0 demo", "Both agents on this machine, to try everything with")
    .example("$0 status --run /run/colobus/web", "Whether the VM is protected, and what to do if not")
    .epilogue(`${COMMAND_HELP}\n${EXIT_CODE_MEANINGS}`)
    .exitProcess(false)
    .fail(complain);
  for (const command of commands) {
    command.install(
      parser,
      (inner) => {
        parser = inner;
        usage = command.usage;
      },
      (run) => {
        throw new CommandChosen(run);
      },
    );
  }
  try {
    void parser.parse([...argv], {}, (_error, _args, text) => {
      output = text;
    });
    return { output, run: undefined };
  } catch (thrown) {
    if (thrown instanceof CommandChosen) return { output, run: thrown.run };
    throw thrown;
  }
}

/** Read before the parser, since its complaints too must be JSON. */
function asksForJson(argv: readonly string[]): boolean {
  const end = argv.indexOf("--");
  const flags = end === -1 ? argv : argv.slice(0, end);
  return flags.includes("--json") || flags.includes("--json=true");
}
