#!/usr/bin/env node
/** The program `colobus`. */
import { primaryCommand, secondaryCommand } from "./commands/agent-commands.ts";
import { demoCommand } from "./commands/demo.ts";
import { certsCommand } from "./commands/certs.ts";
import { inspectCommand } from "./commands/inspect.ts";
import { OPERATOR_COMMANDS } from "./operator-commands.ts";
import { createProcessHost } from "./process-host.ts";
import { runCli } from "./run-cli.ts";

const COMMANDS = [primaryCommand, secondaryCommand, demoCommand, ...OPERATOR_COMMANDS, inspectCommand, certsCommand];

process.exitCode = await runCli(process.argv.slice(2), COMMANDS, createProcessHost());
