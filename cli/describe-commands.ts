/** What a command declares to yargs, which prints it as help, for whoever else prints it. */
import type { Argv, Options, PositionalOptions } from "yargs";
import type { Command } from "./command.ts";

export interface Described {
  readonly name: string;
  readonly describe: string;
  readonly choices?: readonly string[] | undefined;
  /** As help shows it; undefined: none, or that a switch is off. */
  readonly byDefault?: string | undefined;
  readonly isSwitch: boolean;
  /** The heading that help lists it under; undefined: the first one. */
  readonly group?: string | undefined;
}

export interface CommandDescription {
  /** With its positional arguments. */
  readonly usage: string;
  readonly describe: string;
  readonly positionals: readonly Described[];
  readonly options: readonly Described[];
  readonly examples: readonly { readonly command: string; readonly describe: string }[];
}

/** What `declare` says of flags, arguments and examples. */
export function describeFlags(declare: (yargs: Argv) => unknown): Omit<CommandDescription, "usage" | "describe"> {
  const options = new Map<string, Described>();
  const positionals = new Map<string, Described>();
  const examples: { command: string; describe: string }[] = [];
  const recorder = {
    option: (name: string, declared: Options): unknown => {
      options.set(name, described(name, declared));
      return recorder;
    },
    positional: (name: string, declared: PositionalOptions): unknown => {
      positionals.set(name, described(name, declared));
      return recorder;
    },
    group: (names: string[], title: string): unknown => {
      for (const name of names) {
        const option = options.get(name);
        if (option !== undefined) options.set(name, { ...option, group: title });
      }
      return recorder;
    },
    example: (command: string, describe: string): unknown => {
      examples.push({ command: command.replace("$0", "colobus"), describe });
      return recorder;
    },
  };
  declare(recorder as unknown as Argv);
  return { options: [...options.values()], positionals: [...positionals.values()], examples };
}

export function describeCommand(command: Command): CommandDescription {
  let description: CommandDescription | undefined;
  const recorder = {
    command: (usage: string, describe: string, builder: (yargs: Argv) => unknown): void => {
      description = { usage, describe, ...describeFlags(builder) };
    },
  };
  command.install(
    recorder as unknown as Argv,
    () => undefined,
    () => {
      throw new Error(`${command.name} is only described`);
    },
  );
  if (description === undefined) throw new Error(`${command.name} declares no command`);
  return description;
}

function described(name: string, declared: Options | PositionalOptions): Described {
  const { describe, choices, type } = declared;
  const byDefault: unknown = declared.default;
  return {
    name,
    describe: typeof describe === "string" ? describe : "",
    choices: choices?.map(String),
    byDefault: byDefault === undefined || byDefault === false ? undefined : `${byDefault as string | number | true}`,
    isSwitch: type === "boolean",
  };
}
