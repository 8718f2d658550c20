#!/usr/bin/env node
/** The program `colobus`. */
import { OPERATOR_COMMANDS } from "./operator-commands.ts";
import { createProcessHost } from "./process-host.ts";
import { runCli } from "./run-cli.ts";

process.exitCode = await runCli(process.argv.slice(2), OPERATOR_COMMANDS, createProcessHost());
