/** The manual page colobus(1): what `--help` says, of all commands, in man's markup. */
import { agentFlags } from "../cli/agent-flags.ts";
import { ALL_COMMANDS } from "../cli/all-commands.ts";
import { describeCommand, describeFlags, type CommandDescription, type Described } from "../cli/describe-commands.ts";
import { EXIT_CODE_MEANINGS, PROGRAM_MEANING } from "../cli/run-cli.ts";
import { AGENT_VERSION } from "../proto/versions.ts";

export function manPage(): string {
  const commands = ALL_COMMANDS.map(describeCommand);
  const [agents, others] = [commands.filter(isAgent), commands.filter((command) => !isAgent(command))];
  const ofBothRoles = common(agents.map(({ options }) => options));
  const ofAllCommands = describeFlags(agentFlags).options;
  return [
    `.TH COLOBUS 1 "" "Colobus ${AGENT_VERSION}" "User Commands"`,
    ".ad l",
    ".nh",
    ".SH NAME",
    `colobus \\- ${text(PROGRAM_MEANING)}`,
    ".SH SYNOPSIS",
    `.B colobus\n.I COMMAND\n.RI [ ARGUMENTS ]`,
    ".SH AGENTS",
    ...agents.flatMap((command) => commandSection(command, ofBothRoles, "options of both agents")),
    ".SS Options of both agents",
    ...ofBothRoles.filter(({ group }) => group === undefined).map(optionEntry),
    ...groupsOf(ofBothRoles).flatMap((title) => [
      `.SS ${text(title.replace(/:$/, ""))}`,
      ...ofBothRoles.filter(({ group }) => group === title).map(optionEntry),
    ]),
    ".SH COMMANDS",
    ...others.flatMap((command) => commandSection(command, ofAllCommands, "common options")),
    ".SH COMMON OPTIONS",
    ...ofAllCommands.map(optionEntry),
    ".SH EXIT STATUS",
    text(EXIT_CODE_MEANINGS),
    "",
  ].join("\n");
}

function isAgent({ options }: CommandDescription): boolean {
  return options.some(({ name }) => name === "disk");
}

function groupsOf(options: readonly Described[]): string[] {
  return [...new Set(options.flatMap(({ group }) => group ?? []))];
}

/** Options that all of the lists have. */
function common([first = [], ...others]: readonly (readonly Described[])[]): readonly Described[] {
  return first.filter(({ name }) => others.every((options) => options.some((option) => option.name === name)));
}

/** A command; options that stand in `shared` are told of there, where it has all of them. */
function commandSection(
  { usage, describe, positionals, options, examples }: CommandDescription,
  shared: readonly Described[],
  sharedName: string,
): string[] {
  const has = (name: string): boolean => options.some((option) => option.name === name);
  const hasShared = shared.every(({ name }) => has(name));
  const own = hasShared ? options.filter(({ name }) => !shared.some((option) => option.name === name)) : options;
  const [word = "", ...parameters] = usage.split(" ");
  return [
    ".TP",
    [`\\fB${text(word)}\\fR`, ...parameters.map(parameter)].join(" "),
    `${text(describe)}.${hasShared ? ` It takes the ${sharedName}.` : ""}`,
    ...(positionals.length + own.length + examples.length === 0 ? [] : [".RS"]),
    ...positionals.map(argumentEntry),
    ...own.map(optionEntry),
    ...examples.flatMap(({ command, describe: what }) => [
      ".TP",
      text(command),
      what === "" ? "An example." : `${text(what)}.`,
    ]),
    ...(positionals.length + own.length + examples.length === 0 ? [] : [".RE"]),
  ];
}

/** Of a usage: `<epoch>` has to be given, `[disk]` may be left out. */
function parameter(word: string): string {
  const name = `\\fI${text(word.slice(1, -1).toUpperCase())}\\fR`;
  return word.startsWith("[") ? `[${name}]` : name;
}

function optionEntry(option: Described): string {
  const value = option.isSwitch ? "" : ` \\fI${option.choices?.map(text).join("\\fR|\\fI") ?? "VALUE"}\\fR`;
  return [".TP", `\\fB${text(`--${option.name}`)}\\fR${value}`, meaning(option)].join("\n");
}

function argumentEntry(argument: Described): string {
  const words = argument.choices === undefined ? "" : ` One of: ${text(argument.choices.join(", "))}.`;
  return [".TP", `\\fI${text(argument.name.toUpperCase())}\\fR`, meaning(argument) + words].join("\n");
}

function meaning({ describe, byDefault }: Described): string {
  const sentence = `${text(describe)}.`;
  return byDefault === undefined ? sentence : `${sentence} Default: ${text(byDefault)}.`;
}

/** Text as man shows it: no character of it is markup, and a hyphen is what a shell takes. */
function text(plain: string): string {
  const escaped = plain.replaceAll("\\", "\\e").replaceAll("-", "\\-").replaceAll("…", "\\[u2026]");
  return /^[.']/.test(escaped) ? `\\&${escaped}` : escaped;
}
