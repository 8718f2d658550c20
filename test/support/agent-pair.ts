/** A primary and a secondary agent as processes of their own, on scratch images, for black-box tests. */
import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { onTestFailed } from "vitest";
import type { Status } from "../../proto/status.ts";
import { ControlClient } from "../../shared/control/api-client.ts";
import { askColobus, ColobusProcess, MAIN, runColobus, type Answered, type Ended } from "./cli-runner.ts";
import { scratchDirectory } from "./scratch.ts";

const REACHED_WITHIN_MS = 60_000;
const POLL_MS = 20;
const LOG_TAIL_CHARS = 6_000;

/** One agent's command line, and the process that runs it now, if one does. */
export class AgentUnderTest {
  readonly name: string;
  /** The run directory. */
  readonly run: string;
  /** The whole command line after `colobus`. */
  readonly command: string[];
  readonly control: ControlClient;
  /** The program of the release that the next start runs. */
  main = MAIN;
  readonly #launcher: readonly string[];
  #process: ColobusProcess | undefined;

  constructor(name: string, run: string, command: string[], launcher: readonly string[] = []) {
    this.#launcher = launcher;
    this.name = name;
    this.run = run;
    this.command = command;
    this.control = new ControlClient({ kind: "socket", path: join(run, "control.sock") });
    onTestFailed(() => {
      const { stdout, stderr } = this.#process ?? { stdout: "", stderr: "" };
      process.stderr.write(`\n--- the last log lines of ${name}\n${(stdout + stderr).slice(-LOG_TAIL_CHARS)}\n`);
    });
  }

  /** Starts the agent and resolves when it serves. */
  async start(): Promise<void> {
    if (this.isRunning) throw new Error(`${this.name} runs already`);
    this.#process = new ColobusProcess(this.command, this.#launcher, this.main);
    await this.#process.untilPrinted("serves in");
  }

  /** Gives a flag another value for the next start; undefined leaves the flag out. */
  setFlag(flag: string, value: string | undefined): void {
    const at = this.command.indexOf(flag);
    if (at >= 0) this.command.splice(at, 2);
    if (value !== undefined) this.command.push(flag, value);
  }

  get isRunning(): boolean {
    return this.#process !== undefined && !this.#process.hasEnded;
  }

  get pid(): number {
    return this.#running().pid;
  }

  /** What the present process has logged. */
  get log(): string {
    return this.#process?.stderr ?? "";
  }

  /** Resolves when the present process has logged the text. */
  untilLogged(text: string): Promise<void> {
    return this.#running().untilLogged(text);
  }

  /** Ends the agent as a service manager does. */
  async stop(): Promise<Ended> {
    const running = this.#running();
    running.child.kill("SIGTERM");
    return running.ended;
  }

  /** kill -9. */
  async crash(): Promise<void> {
    const running = this.#running();
    running.child.kill("SIGKILL");
    await running.ended;
  }

  /** Resolves when the process has ended, whoever ends it. */
  async untilEnded(): Promise<void> {
    await this.#process?.ended;
  }

  freeze(): void {
    this.#running().child.kill("SIGSTOP");
  }

  thaw(): void {
    this.#running().child.kill("SIGCONT");
  }

  uri(disk = "vda"): string {
    return `nbd+unix:///${disk}?socket=${join(this.run, "nbd.sock")}`;
  }

  /** Runs an operator command against this agent. */
  cli(...args: string[]): Promise<Ended> {
    return runColobus(...args, "--run", this.run);
  }

  /** Runs an operator command with `--json` against this agent. */
  ask<T>(...args: string[]): Promise<Answered<T>> {
    return askColobus<T>(...args, "--run", this.run);
  }

  /** Runs an operator command that must succeed, and returns its answer. */
  async get<T>(...args: string[]): Promise<T> {
    const { code, json } = await this.ask<T>(...args);
    if (code !== 0)
      throw new Error(`colobus ${args.join(" ")} at ${this.name}: exit code ${code}, ${JSON.stringify(json)}`);
    return json;
  }

  status(): Promise<Status> {
    return this.control.status();
  }

  /**
   * Resolves with the status as soon as `isReached` holds for it. Lag, progress and ages change without an event, so the
   * status is asked for again and again. Rejects when the agent ends, or when it takes implausibly long.
   */
  async until(what: string, isReached: (status: Status) => boolean): Promise<Status> {
    const deadline = Date.now() + REACHED_WITHIN_MS;
    for (;;) {
      const status = await this.status();
      if (isReached(status)) return status;
      if (Date.now() > deadline) throw new Error(`${this.name} is not ${what}: ${JSON.stringify(status)}`);
      await new Promise((resolve) => {
        setTimeout(resolve, POLL_MS);
      });
    }
  }

  /** Resolves when everything that the guest has written is stable on the secondary. */
  async untilDrained(): Promise<void> {
    await this.until("drained", ({ peers }) => peers[0]?.replication === "Established" && peers[0].lagBytes === 0);
  }

  #running(): ColobusProcess {
    if (this.#process === undefined || this.#process.hasEnded) throw new Error(`${this.name} does not run`);
    return this.#process;
  }
}

export interface PairOptions {
  /** The content that each disk has on both sides, or its size when it is empty there. Default: vda of 16 MiB. */
  readonly disks?: Readonly<Record<string, number | Buffer>>;
  /** Flags of both agents, of the primary, and of the secondary. */
  readonly flags?: readonly string[];
  readonly primaryFlags?: readonly string[];
  readonly secondaryFlags?: readonly string[];
  /** What `--disk` names where a side's image lies at `path`; default: the path itself. */
  readonly imageOf?: (path: string) => string;
  /** Both sides use the images of side `a`, in mode `shared`, or what `pathOf` says they see of them. */
  readonly shared?: { readonly pathOf?: (side: "a" | "b", image: string) => string };
  /** Where the secondary keeps its state; default: beside its image. */
  readonly secondaryState?: string;
  /** Where each agent runs, and how the other reaches it; default: both here, on loopback. */
  readonly hosts?: Readonly<Record<"a" | "b", AgentHost>>;
}

export interface AgentHost {
  readonly address: string;
  /** What a command line has to begin with to run there. */
  readonly launcher: readonly string[];
}

export const HERE: AgentHost = { address: "127.0.0.1", launcher: [] };

export const MIB = 1024 * 1024;

/** The command lines of a pair that knows each other, its images, and both agents. Nothing runs until it is started. */
export class AgentPair {
  readonly root: string;
  readonly port: number;
  readonly primary: AgentUnderTest;
  readonly secondary: AgentUnderTest;

  private constructor(root: string, port: number, primary: AgentUnderTest, secondary: AgentUnderTest) {
    this.root = root;
    this.port = port;
    this.primary = primary;
    this.secondary = secondary;
  }

  static async create(options: PairOptions = {}): Promise<AgentPair> {
    const root = scratchDirectory();
    const disks = Object.entries(options.disks ?? { vda: 16 * MIB });
    const port = await freePort();
    for (const side of ["a", "b"]) {
      mkdirSync(join(root, "run", side), { recursive: true });
      mkdirSync(join(root, side));
      if (side === "b" && options.shared !== undefined) continue;
      for (const [name, content] of disks) makeImage(join(root, side, `${name}.img`), content);
    }
    const imageOf = (side: "a" | "b", name: string): string => {
      const image = join(root, options.shared === undefined ? side : "a", `${name}.img`);
      return options.shared?.pathOf?.(side, image) ?? options.imageOf?.(image) ?? image;
    };
    const { a, b } = options.hosts ?? { a: HERE, b: HERE };
    const flags = (side: "a" | "b", state: string): string[] => [
      "--run",
      join(root, "run", side),
      "--state",
      state,
      "--vm",
      "test",
      ...disks.flatMap(([name]) => ["--disk", `${name}=${imageOf(side, name)}`]),
      ...(options.shared === undefined ? [] : ["--mode", "shared"]),
      ...(options.flags ?? []),
    ];
    const primaryCommand = [
      "primary",
      ...flags("a", join(root, "a", "state")),
      "--peer",
      `ws://${b.address}:${port}`,
      ...(options.primaryFlags ?? []),
    ];
    const secondaryCommand = [
      "secondary",
      ...flags("b", options.secondaryState ?? join(root, "b", "state")),
      "--listen",
      `${b.address}:${port}`,
      ...(options.secondaryFlags ?? []),
    ];
    const primary = new AgentUnderTest("the primary", join(root, "run", "a"), primaryCommand, a.launcher);
    const secondary = new AgentUnderTest("the secondary", join(root, "run", "b"), secondaryCommand, b.launcher);
    return new AgentPair(root, port, primary, secondary);
  }

  /** A pair that is in sync, with its first checkpoint committed: the VM is protected. */
  static async protected(options: PairOptions = {}): Promise<AgentPair> {
    const pair = await AgentPair.create(options);
    await pair.start();
    return pair;
  }

  /** Starts both agents, and resolves when the VM is protected. */
  async start(): Promise<void> {
    await Promise.all([this.primary.start(), this.secondary.start()]);
    await this.untilProtected();
  }

  async untilProtected(): Promise<void> {
    await this.primary.until("protected", ({ protection }) => protection.state === "Protected");
    await this.secondary.until("protected", ({ protection }) => protection.state === "Protected");
  }

  /** Takes a checkpoint and commits it; returns its epoch. */
  async checkpoint(): Promise<number> {
    const { epoch } = await this.primary.control.checkpoint({ prepare: false, timeoutMs: REACHED_WITHIN_MS });
    return epoch;
  }

  imagePath(side: "a" | "b", disk = "vda"): string {
    return join(this.root, side, `${disk}.img`);
  }

  /** The raw content of one side's image, whatever the overlays say. */
  image(side: "a" | "b", disk = "vda"): Buffer {
    return readFileSync(this.imagePath(side, disk));
  }
}

/** Writes a token into a file that others cannot read, and returns its path. */
export function tokenFile(pair: AgentPair, name: string, token: string): string {
  const path = join(pair.root, name);
  writeFileSync(path, `${token}\n`, { mode: 0o600 });
  return path;
}

/** Makes a raw image with this content, or an empty one of this size. */
export function makeImage(path: string, content: number | Buffer): void {
  if (typeof content !== "number") {
    writeFileSync(path, content);
    return;
  }
  const fd = openSync(path, "w");
  ftruncateSync(fd, content);
  closeSync(fd);
}

let portsTried = 0;

/**
 * A TCP port of this machine that is free. It lies below the ports that the kernel gives to clients: an agent that dials
 * a secondary which is down could otherwise be connected to itself.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    portsTried += 1;
    const port = 12_000 + ((process.pid * 37 + portsTried * 101) % 18_000);
    const isFree = await new Promise<boolean>((resolve) => {
      const server = createServer();
      server.once("error", () => resolve(false));
      server.listen({ host: "127.0.0.1", port }, () => server.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}
