/** NBD clients of other projects, for black-box tests: each call is a run of the real program. */
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished } from "vitest";
import { scratchDirectory } from "./scratch.ts";

const WORKER = fileURLToPath(new URL("libnbd-worker.py", import.meta.url));

export interface ToolResult {
  readonly code: number | null;
  readonly stdout: Buffer;
  readonly stderr: string;
}

/** Runs a program to its end, in a directory of its own. It is killed when the test has finished, if it still runs. */
export function runTool(program: string, args: readonly string[]): Promise<ToolResult> {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], cwd: scratchDirectory() });
  onTestFinished(() => void child.kill("SIGKILL"));
  const stdout: Buffer[] = [];
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout: Buffer.concat(stdout), stderr }));
  });
}

/** Runs a program that must succeed, and returns what it printed. */
export async function tool(program: string, ...args: string[]): Promise<Buffer> {
  const { code, stdout, stderr } = await runTool(program, args);
  if (code !== 0) throw new Error(`${program} ${args.join(" ")}: exit code ${code}\n${stdout.toString()}${stderr}`);
  return stdout;
}

/** Runs commands of qemu-io, all of which must succeed, patterns included; as a reader where all of them only read. */
export async function qemuIo(uri: string, ...commands: string[]): Promise<string> {
  const access = commands.every((command) => command.startsWith("read")) ? ["-r"] : [];
  const out = await tool("qemu-io", "-f", "raw", ...access, ...commands.flatMap((command) => ["-c", command]), uri);
  return out.toString();
}

/** The whole content of an export, copied out by nbdcopy. */
export async function readDisk(uri: string): Promise<Buffer> {
  const path = join(scratchDirectory(), "copy");
  closeSync(openSync(path, "w"));
  await tool("nbdcopy", uri, path);
  return readFileSync(path);
}

/** Fails with the first difference, and does not print disks. */
export function expectSame(actual: Buffer, expected: Buffer): void {
  expect(firstDifference(actual, expected)).toBeUndefined();
}

/** Where and how two disks differ first; undefined: they are the same. */
export function firstDifference(actual: Buffer, expected: Buffer): string | undefined {
  if (actual.equals(expected)) return undefined;
  if (actual.length !== expected.length) return `${actual.length} bytes instead of ${expected.length}`;
  let at = 0;
  while (at < actual.length && actual[at] === expected[at]) at += 1;
  return `byte ${at} is 0x${actual[at]?.toString(16)} instead of 0x${expected[at]?.toString(16)}`;
}

type Ask = (request: unknown) => Promise<Record<string, unknown>>;

interface Range {
  readonly offset: number;
  readonly length: number;
}

/** One connection of libnbd that stays open. Requests are done one after the other; an error rejects with an NbdFault. */
export class NbdClient {
  readonly #ask: Ask;
  sizeBytes = 0;
  readOnly = false;

  private constructor(ask: Ask) {
    this.#ask = ask;
  }

  static async connect(uri: string): Promise<NbdClient> {
    const child = spawn("/usr/bin/python3", [WORKER], { stdio: ["pipe", "pipe", "inherit"] });
    onTestFinished(() => void child.kill("SIGKILL"));
    const waiting: ((line: string | undefined) => void)[] = [];
    createInterface({ input: child.stdout })
      .on("line", (line) => waiting.shift()?.(line))
      .on("close", () => {
        for (const wake of waiting.splice(0)) wake(undefined);
      });
    // A worker that has died is seen by the end of its output.
    child.stdin.on("error", () => undefined);
    const client = new NbdClient(async (request) => {
      const line = await new Promise<string | undefined>((resolve) => {
        waiting.push(resolve);
        child.stdin.write(`${JSON.stringify(request)}\n`);
      });
      if (line === undefined) throw new Error("the NBD client has died");
      const reply = JSON.parse(line) as Record<string, unknown>;
      if (reply.error !== undefined) throw new NbdFault(JSON.stringify(reply.error));
      return reply;
    });
    const { sizeBytes, readOnly } = await client.#ask({ operation: "connect", uri });
    client.sizeBytes = sizeBytes as number;
    client.readOnly = readOnly as boolean;
    return client;
  }

  async read(offset: number, length: number): Promise<Buffer> {
    const { data } = await this.#ask({ operation: "read", offset, length });
    return Buffer.from(data as string, "base64");
  }

  /** Writes a byte, or a pattern, as often as it fits into the range. */
  async write({ offset, length }: Range, pattern: number | Buffer, flags: { fua?: boolean } = {}): Promise<void> {
    const bytes = typeof pattern === "number" ? Buffer.of(pattern) : pattern;
    await this.#ask({ operation: "write", offset, length, pattern: bytes.toString("base64"), ...flags });
  }

  async zero(range: Range, flags: { fua?: boolean; noHole?: boolean } = {}): Promise<void> {
    await this.#ask({ operation: "zero", ...range, ...flags });
  }

  async trim(range: Range): Promise<void> {
    await this.#ask({ operation: "trim", ...range });
  }

  async flush(): Promise<void> {
    await this.#ask({ operation: "flush" });
  }

  async extents(range: Range): Promise<{ length: number; state: number }[]> {
    const { extents } = await this.#ask({ operation: "extents", ...range });
    return extents as { length: number; state: number }[];
  }

  async close(): Promise<void> {
    await this.#ask({ operation: "close" });
  }
}

/** What the server, or the end of the connection, said to a request: `message` is the name of the errno. */
export class NbdFault extends Error {}
