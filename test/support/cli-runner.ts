/**
 * The command line: the only way in which end-to-end tests give orders. Agents, and whatever runs until it is stopped, are
 * processes of the built program; an order that is given and answered runs the same command inside the test, since there
 * are thousands of them, and starting Node costs more than most of what they do.
 */
import { spawn, type ChildProcessByStdio } from "node:child_process";
import { existsSync } from "node:fs";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { onTestFinished } from "vitest";
import { inspectCommand } from "../../cli/commands/inspect.ts";
import { OPERATOR_COMMANDS } from "../../cli/operator-commands.ts";
import { Output } from "../../cli/output.ts";
import { runCli } from "../../cli/run-cli.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";

export const MAIN = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

/** A `colobus` process with what it has written so far. */
export class ColobusProcess {
  readonly child: ChildProcessByStdio<null, Readable, Readable>;
  readonly ended: Promise<Ended>;
  stdout = "";
  stderr = "";
  #ended = false;

  /**
   * Starts `colobus ARGS`, behind the words of `launcher`, which replace themselves by it; `main` is that of another
   * release. The process is killed when the test has finished, if it still runs.
   */
  constructor(args: readonly string[], launcher: readonly string[] = [], main = MAIN) {
    if (!existsSync(main)) throw new Error(`${main} is missing: run "npm run build" first.`);
    const { COLOBUS_RUN: _, ...env } = process.env;
    const [program = process.execPath, ...words] = [...launcher, process.execPath, main, ...args];
    this.child = spawn(program, words, { stdio: ["ignore", "pipe", "pipe"], env });
    this.child.stdout.setEncoding("utf8").on("data", (text: string) => (this.stdout += text));
    this.child.stderr.setEncoding("utf8").on("data", (text: string) => (this.stderr += text));
    this.ended = new Promise((resolve, reject) => {
      this.child.on("error", reject);
      this.child.on("close", (code, signal) => {
        this.#ended = true;
        resolve({ code, signal, stdout: this.stdout, stderr: this.stderr });
      });
    });
    onTestFinished(async () => {
      if (this.#ended) return;
      this.child.kill("SIGKILL");
      await this.ended;
    });
  }

  get hasEnded(): boolean {
    return this.#ended;
  }

  get pid(): number {
    if (this.child.pid === undefined) throw new Error("the process was not started");
    return this.child.pid;
  }

  /** Resolves when `text` has come on stdout, from this character on; rejects when the process ends before. */
  untilPrinted(text: string, fromChar = 0): Promise<void> {
    return this.#until("stdout", text, fromChar);
  }

  /** The same on stderr. */
  untilLogged(text: string): Promise<void> {
    return this.#until("stderr", text, 0);
  }

  async #until(stream: "stdout" | "stderr", text: string, fromChar: number): Promise<void> {
    let look = (): void => undefined;
    const printed = new Promise<void>((resolve, reject) => {
      look = () => {
        if (this[stream].includes(text, fromChar)) resolve();
      };
      this.child[stream].on("data", look);
      void this.ended.then(({ code, signal, stderr }) =>
        reject(new Error(`colobus ended with ${code ?? signal} before it printed "${text}":\n${stderr}`)),
      );
      look();
    });
    await printed.finally(() => this.child[stream].off("data", look));
  }
}

export interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

const ORDERS = [...OPERATOR_COMMANDS, inspectCommand];
/** Reads the standard input of its process. */
const STDIN = "-";

/** Runs `colobus ARGS` to its end. */
export function runColobus(...args: string[]): Promise<Ended> {
  const isOrder = ORDERS.some(({ name }) => name === args[0]) && !args.includes(STDIN);
  return isOrder ? runHere(args) : new ColobusProcess(args).ended;
}

async function runHere(args: readonly string[]): Promise<Ended> {
  const written = { stdout: "", stderr: "" };
  const sink = (name: keyof typeof written) => ({
    write: (text: string | Uint8Array, done?: () => void) => {
      written[name] += typeof text === "string" ? text : Buffer.from(text).toString();
      done?.();
    },
    on: () => undefined,
  });
  const { COLOBUS_RUN: _, ...env } = process.env;
  const output = new Output(sink("stdout"), sink("stderr"), env);
  const { signal } = new AbortController();
  const host = {
    output,
    env,
    clock: new NodeClock(),
    terminated: signal,
    interrupted: signal,
    whileRead: (follow: () => Promise<void>) => follow(),
    followJobControl: () => () => {},
  };
  const code = await runCli(args, ORDERS, host);
  return { code, signal: null, ...written };
}

export interface Answered<T> {
  readonly code: number | null;
  readonly json: T;
  readonly stderr: string;
}

/** Runs `colobus ARGS --json`, whose stdout must be one line with one JSON document. */
export async function askColobus<T>(...args: string[]): Promise<Answered<T>> {
  const { code, stdout, stderr } = await runColobus(...args, "--json");
  if (!/^[^\n]+\n$/.test(stdout)) {
    throw new Error(`colobus ${args.join(" ")} printed no JSON document but ${JSON.stringify(stdout)}; ${stderr}`);
  }
  return { code, json: JSON.parse(stdout) as T, stderr };
}

/** What a failed command prints with `--json`. */
export interface ErrorDocument {
  readonly error: { readonly code: string; readonly message: string; readonly action: string };
}
