#!/usr/bin/env node
/** The program `colobus`. */
import { keepRunning } from "../shared/host/keep-running.ts";
import { ALL_COMMANDS } from "./all-commands.ts";
import { createProcessHost } from "./process-host.ts";
import { runCli } from "./run-cli.ts";

process.exitCode = await keepRunning(runCli(process.argv.slice(2), ALL_COMMANDS, createProcessHost()));
