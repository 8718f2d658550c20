#!/usr/bin/env node
/** The program `colobus`. */
import { ALL_COMMANDS } from "./all-commands.ts";
import { createProcessHost } from "./process-host.ts";
import { runCli } from "./run-cli.ts";

process.exitCode = await runCli(process.argv.slice(2), ALL_COMMANDS, createProcessHost());
