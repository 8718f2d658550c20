/** yargs' complaints in the words of this command line: what is wrong, what was probably meant, where to read on. */
import { ColobusError } from "../proto/errors.ts";
import { nearestWord } from "./nearest-word.ts";

export interface UsageContext {
  /** The command line that was given. */
  readonly argv: readonly string[];
  /** Names of all commands. */
  readonly commands: readonly string[];
  /** The command that was named, with its positional arguments; undefined when none was recognised. */
  readonly usage: string | undefined;
  /** Names of the flags that would be known at this point, without dashes. */
  readonly flags: readonly string[];
}

export function usageError(message: string, context: UsageContext): ColobusError {
  const command = context.usage?.split(" ", 1)[0];
  const help = command === undefined ? "See colobus --help." : `See colobus ${command} --help.`;
  const fail = (what: string, meant?: string): ColobusError =>
    new ColobusError("usage", what, meant === undefined ? help : `Did you mean ${meant}? ${help}`);

  const unknown = /^Unknown (?:argument|command)s?: (.*)$/s.exec(message)?.[1];
  if (unknown !== undefined) return unknownArguments(unknown.split(", "), context, fail);

  if (message.startsWith("Not enough non-option arguments")) {
    return fail(
      context.usage === undefined ? "No command is given." : `An argument is missing: colobus ${context.usage}.`,
    );
  }
  const withoutValue = /^(?:Not enough arguments following|Missing argument values?): (.*)$/s.exec(message)?.[1];
  if (withoutValue !== undefined) return fail(`${asFlags(withoutValue)} needs a value.`);

  const missing = /^Missing required arguments?: (.*)$/s.exec(message)?.[1];
  if (missing !== undefined) return fail(`${asFlags(missing)} is required.`);

  const choice = /Argument: (.*?), Given: (.*), Choices: (.*?)$/m.exec(message);
  if (choice !== null) {
    const [, name = "", given = "", choices = ""] = choice;
    const words = [...choices.matchAll(/"([^"]*)"/g)].map((match) => match[1] ?? "");
    const subject = context.flags.includes(name) && hasFlag(context.argv, name) ? `--${name}` : name.toUpperCase();
    return fail(
      `${subject} ${given} is not one of ${words.join(", ")}.`,
      nearestWord(given.replaceAll('"', ""), words),
    );
  }
  return fail(/[.?!]$/.test(message) ? message : `${message}.`);
}

function unknownArguments(
  names: readonly string[],
  { argv, commands, usage, flags }: UsageContext,
  fail: (what: string, meant?: string) => ColobusError,
): ColobusError {
  // Before a command is known, no flag is: the word that should have been one is what is wrong.
  const misnamed = usage === undefined ? names.find((name) => !hasFlag(argv, name)) : undefined;
  if (misnamed !== undefined) {
    return fail(`${JSON.stringify(misnamed)} is not a command of colobus.`, nearestWord(misnamed, commands));
  }
  const typed = names.find((name) => hasFlag(argv, name));
  if (typed !== undefined) {
    const known = flags.filter((flag) => flag.length > 1 && !names.includes(flag) && !/[A-Z]/.test(flag));
    const near = typed.length === 1 ? undefined : nearestWord(typed, known);
    const what = `${typed.length === 1 ? "-" : "--"}${typed} is not a flag of colobus${usage === undefined ? "" : ` ${usage.split(" ", 1)[0]}`}.`;
    return fail(what, near === undefined ? undefined : `--${near}`);
  }
  const [word = ""] = names;
  return fail(`${JSON.stringify(word)} is one argument too many.`);
}

function hasFlag(argv: readonly string[], name: string): boolean {
  return argv.some((word) => {
    const flag = /^--?([^=]+)/.exec(word)?.[1];
    return flag !== undefined && (flag === name || (word[1] !== "-" && flag.includes(name)));
  });
}

function asFlags(names: string): string {
  return names
    .split(", ")
    .map((name) => `--${name}`)
    .join(", ");
}
