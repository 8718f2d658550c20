import type { Command } from "./command.ts";
import { primaryCommand, secondaryCommand } from "./commands/agent-commands.ts";
import { certsCommand } from "./commands/certs.ts";
import { demoCommand } from "./commands/demo.ts";
import { inspectCommand } from "./commands/inspect.ts";
import { OPERATOR_COMMANDS } from "./operator-commands.ts";

/** Every command, in the order in which help lists them. */
export const ALL_COMMANDS: readonly Command[] = [
  primaryCommand,
  secondaryCommand,
  demoCommand,
  ...OPERATOR_COMMANDS,
  inspectCommand,
  certsCommand,
];
