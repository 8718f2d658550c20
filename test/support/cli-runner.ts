/** The built command line, run as a process of its own: the only way in which end-to-end tests give orders. */
import { spawn, type ChildProcessByStdio } from "node:child_process";
import { existsSync } from "node:fs";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { onTestFinished } from "vitest";

export const MAIN = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

/** A `colobus` process with what it has written so far. */
export class ColobusProcess {
  readonly child: ChildProcessByStdio<null, Readable, Readable>;
  readonly ended: Promise<Ended>;
  stdout = "";
  stderr = "";
  #ended = false;

  /**
   * Starts `colobus ARGS`, behind the words of `launcher`, which replace themselves by it. The process is killed when the
   * test has finished, if it still runs.
   */
  constructor(args: readonly string[], launcher: readonly string[] = []) {
    if (!existsSync(MAIN)) throw new Error(`${MAIN} is missing: run "npm run build" first.`);
    const { COLOBUS_RUN: _, ...env } = process.env;
    const [program = process.execPath, ...words] = [...launcher, process.execPath, MAIN, ...args];
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

  /** Resolves when `text` has come on stdout; rejects when the process ends before. */
  async untilPrinted(text: string): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const look = (): void => {
        if (this.stdout.includes(text)) resolve();
      };
      this.child.stdout.on("data", look);
      void this.ended.then(({ code, signal, stderr }) =>
        reject(new Error(`colobus ended with ${code ?? signal} before it printed "${text}":\n${stderr}`)),
      );
      look();
    });
  }
}

export interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `colobus ARGS` to its end. */
export function runColobus(...args: string[]): Promise<Ended> {
  return new ColobusProcess(args).ended;
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
