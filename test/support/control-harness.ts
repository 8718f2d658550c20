/** A fake agent served on a real unix socket, and the command line run in this process against it. */
import { mkdirSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { OPERATOR_COMMANDS } from "../../cli/operator-commands.ts";
import { Output } from "../../cli/output.ts";
import { runCli } from "../../cli/run-cli.ts";
import { ControlServer } from "../../shared/control/api-server.ts";
import type { Clock } from "../../shared/host/clock.ts";
import type { Log } from "../../shared/host/log.ts";
import { FakeAgentControl } from "./fake-agent-control.ts";
import { ManualClock } from "./manual-clock.ts";
import { scratchDirectory } from "./scratch.ts";

export interface LogLine {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly fields: Readonly<Record<string, unknown>>;
  readonly message: string;
}

/** A log that keeps its lines in `lines`. */
export function recordingLog(lines: LogLine[]): Log {
  const at =
    (level: LogLine["level"]) =>
    (fields: unknown, message?: string): void => {
      lines.push({ level, fields: fields as Record<string, unknown>, message: message ?? "" });
    };
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

export interface ServedAgent {
  readonly control: FakeAgentControl;
  readonly server: ControlServer;
  /** The run directory. */
  readonly run: string;
  readonly socketPath: string;
  readonly logLines: LogLine[];
}

/** Serves a fake agent until the test ends. `run`: its run directory, made if missing; else a new one. */
export async function serveFakeAgent(run = scratchDirectory()): Promise<ServedAgent> {
  mkdirSync(run, { recursive: true });
  const control = new FakeAgentControl();
  const logLines: LogLine[] = [];
  const server = new ControlServer({ control, log: recordingLog(logLines) });
  const socketPath = join(run, "control.sock");
  await server.listenUnix(socketPath);
  onTestFinished(() => server.close());
  return { control, server, run, socketPath, logLines };
}

/** Lets what has arrived on sockets be handled. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

export interface RawConnection {
  readonly socket: Socket;
  /** Everything received, when the connection has closed. */
  readonly received: Promise<string>;
}

/** A connection on which the test writes bytes itself. */
export function openRaw(socketPath: string): RawConnection {
  const socket = connect({ path: socketPath });
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  const received = new Promise<string>((resolve) => {
    // A reset is one of the ways in which a server may end a connection; "close" follows.
    socket.on("error", () => {});
    socket.once("close", () => resolve(Buffer.concat(chunks).toString()));
  });
  onTestFinished(() => void socket.destroy());
  return { socket, received };
}

export interface CliResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CliOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** Whether stdout is a terminal. */
  readonly tty?: boolean;
  readonly clock?: Clock;
  readonly interrupted?: AbortSignal;
  /** Sees each piece of stdout when it is written. */
  readonly onStdout?: (text: string) => void;
}

/** Runs one command line in this process. */
export async function runInProcess(argv: readonly string[], options: CliOptions = {}): Promise<CliResult> {
  const env = options.env ?? {};
  const result = { stdout: "", stderr: "" };
  const sink = (name: "stdout" | "stderr", isTTY: boolean) => ({
    isTTY,
    columns: 100,
    on: () => {},
    write: (text: string | Uint8Array, written?: () => void) => {
      result[name] += String(text);
      if (name === "stdout") options.onStdout?.(String(text));
      written?.();
    },
  });
  const output = new Output(sink("stdout", options.tty ?? false), sink("stderr", false), env);
  const interrupted = options.interrupted ?? new AbortController().signal;
  const code = await runCli(argv, OPERATOR_COMMANDS, {
    output,
    env,
    clock: options.clock ?? new ManualClock(),
    terminated: interrupted,
    interrupted,
    whileRead: (follow) => follow(),
    followJobControl: () => () => {},
  });
  return { code, ...result };
}
