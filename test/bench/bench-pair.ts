import { execFile, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, renameSync, rmSync, statfsSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { statusSchema, type Status } from "../../proto/status.ts";
import type { AckPolicy, Durability, Mode, WaitCondition } from "../../proto/words.ts";
import { ControlClient } from "../../shared/control/api-client.ts";
import type { DelayFigures } from "../../shared/host/event-loop-delay.ts";
import { writeFilledImage, type CheckpointTimes, type FailoverContestant, type SecondaryExport } from "./contestant.ts";
import { beginProbe, endProbe, PROBE_FLAGS } from "./event-loop-probe.ts";
import { endProcess, endsEarly, makeDirectory, removeDirectory, startProcess } from "./leftovers.ts";
import { LOOPBACK, type NetworkLink } from "./links.ts";

const CLI = new URL("../../dist/cli/main.js", import.meta.url).pathname;
const COMMAND_TIMEOUT_MS = 300_000;

export interface PairOptions {
  /** The pair's directory is made in it. */
  readonly parent: string;
  readonly sizeBytes: number;
  readonly durability: Durability;
  /** Default `colo`. In `shared` both sides have one image. */
  readonly mode?: Mode;
  /** Default: the mode's. */
  readonly ack?: AckPolicy;
  /** How many disks. Default 1. */
  readonly disks?: number;
  /** Images without holes. Default false: they are empty. */
  readonly isFilled?: boolean;
  /** Of the images, behind format servers of the agents. Default `raw`. */
  readonly format?: BenchFormat;
  /** Default `read-only`. */
  readonly secondaryExport?: "read-only" | "read-write";
  /** What both agents are joined by. Default: loopback. */
  readonly link?: NetworkLink;
  /** Whether the delay of the agents' event loops can be asked for. Default false. */
  readonly isProbed?: boolean;
}

type Side = "a" | "b";
type BenchFormat = "raw" | "qcow2";
const run = promisify(execFile);

/** What a pair is called in tables. */
export function pairName(
  durability: Durability,
  mode: Mode = "colo",
  format: BenchFormat = "raw",
  ack?: AckPolicy,
): string {
  const words = [
    ...(mode === "colo" ? [] : [mode]),
    ...(format === "raw" ? [] : [format]),
    ...(ack === undefined ? [] : [ack]),
    ...(durability === "power" ? ["power"] : []),
  ];
  return ["Colobus", ...words].join(", ");
}

/** A primary and a secondary agent as two processes on this machine, for measurements. */
export class BenchPair implements FailoverContestant {
  readonly name: string;
  readonly directory: string;
  readonly #options: PairOptions;
  readonly #port: number;
  readonly #disks: readonly string[];
  readonly #agents = new Map<Side, ChildProcess>();

  private constructor(options: PairOptions, port: number) {
    this.name = pairName(options.durability, options.mode, options.format, options.ack);
    this.directory = makeDirectory(options.parent);
    this.#options = options;
    this.#port = port;
    this.#disks = Array.from({ length: options.disks ?? 1 }, (_, index) => `disk${index}`);
  }

  /** A pair in a new directory. None of its agents runs yet. */
  static async create(options: PairOptions): Promise<BenchPair> {
    const pair = new BenchPair(options, await freePort());
    for (const disk of pair.#disks) {
      const image = pair.#imageOf("a", disk);
      if (options.isFilled === true) {
        writeFilledImage(image, options.sizeBytes);
      } else {
        writeFileSync(image, "");
        truncateSync(image, options.sizeBytes);
      }
      if (options.format === "qcow2") await convertToQcow2(image);
    }
    for (const side of ["a", "b"]) mkdirSync(join(pair.directory, side));
    return pair;
  }

  /** Such a pair, when its first checkpoint is committed. */
  static async start(options: PairOptions): Promise<BenchPair> {
    const pair = await BenchPair.create(options);
    try {
      await pair.startSecondary();
      await pair.startPrimary();
      await pair.#until("a", "protected", ({ protection }) => protection.state === "Protected");
    } catch (error) {
      await pair.stop();
      throw error;
    }
    return pair;
  }

  /** The primary's image of the first disk. */
  get image(): string {
    return this.#imageOf("a", "disk0");
  }

  /** The first disk at the primary. */
  get uri(): string {
    return this.#uriOf("a", "disk0");
  }

  get uris(): readonly string[] {
    return this.#disks.map((disk) => this.#uriOf("a", disk));
  }

  get secondaryExport(): SecondaryExport {
    return { uri: this.#uriOf("b", "disk0"), socket: this.#nbdSocket("b"), name: "disk0" };
  }

  get processes(): ReadonlyMap<string, number> {
    return new Map([...this.#running()].map(([name, agent]) => [name, agent.pid ?? 0]));
  }

  /** Resolves when the secondary has everything, and has acknowledged it as stable. */
  idle(): Promise<void> {
    return this.#until("a", "idle", ({ peers: [peer] }) => peer?.replication === "Established" && peer.lagBytes === 0);
  }

  /** What each agent says, and how much room there is. */
  async explain(): Promise<string> {
    const said = await Promise.all((["a", "b"] as const).map((side) => this.#describe(side)));
    const { bavail, bsize } = statfsSync(this.directory);
    return `${said.join("; ")}; ${Math.floor((bavail * bsize) / (1024 * 1024))} MiB are free in ${this.directory}`;
  }

  /** Measured in the agent. */
  async checkpoint(): Promise<CheckpointTimes> {
    const answer = await this.#client("a").checkpoint({ prepare: false, timeoutMs: COMMAND_TIMEOUT_MS });
    return { prepareMs: answer.prepareMs, commitMs: answer.commitMs ?? 0 };
  }

  async status(side: Side = "a"): Promise<Status> {
    return statusSchema.parse(await this.#client(side).status());
  }

  /** Measures the delay of the agents' event loops from now on. */
  beginDelays(): void {
    for (const agent of this.#running().values()) beginProbe(agent);
  }

  /** The delays since then, by what each agent was started as. */
  async endDelays(): Promise<ReadonlyMap<string, DelayFigures>> {
    const figures = new Map<string, DelayFigures>();
    for (const [name, agent] of this.#running()) figures.set(name, await endProbe(agent));
    return figures;
  }

  /** Starts the primary, and resolves when it serves. */
  startPrimary(): Promise<void> {
    return this.#spawn("a", ["primary", "--peer", `ws://127.0.0.1:${this.#port}`]);
  }

  /** Starts the secondary, and resolves when it serves. */
  startSecondary(): Promise<void> {
    const access = ["--secondary-export", this.#options.secondaryExport ?? "read-only"];
    const create = this.#options.mode === "shared" ? [] : ["--create"];
    return this.#spawn("b", ["secondary", "--listen", `127.0.0.1:${this.#port}`, ...create, ...access]);
  }

  stopSecondary(): Promise<void> {
    return this.#end("b", "SIGTERM");
  }

  async killPrimary(): Promise<void> {
    await this.#end("a", "SIGKILL");
    await this.#until("b", "alone", ({ peers }) => peers.every(({ connection }) => connection !== "Connected"));
  }

  async failover(): Promise<void> {
    const asked = { force: false, dryRun: false, discardActive: false, timeoutMs: COMMAND_TIMEOUT_MS };
    await this.#client("b").failover(asked);
  }

  /** Resolves with the id of the job that runs on this side, once it is paused. */
  async pauseJob(side: Side): Promise<string> {
    let id: string | undefined;
    await this.#until(side, "at work on a job", ({ jobs }) => {
      id = jobs.find(({ state }) => state === "running")?.id;
      return id !== undefined;
    });
    const job = await this.#client(side).job(id ?? "", "pause");
    return job.id;
  }

  async resumeJob(side: Side, id: string): Promise<void> {
    await this.#client(side).job(id, "resume");
  }

  merged(): Promise<void> {
    return this.#wait("b", "merged");
  }

  async stop(): Promise<void> {
    for (const side of ["a", "b"] as const) await this.#end(side, "SIGTERM");
    removeDirectory(this.directory);
  }

  async #until(side: Side, what: string, isReached: (status: Status) => boolean): Promise<void> {
    const deadlineMs = performance.now() + COMMAND_TIMEOUT_MS;
    for (;;) {
      const status = await this.status(side);
      if (isReached(status)) return;
      const isFull = status.protection.reason === "overlay-full"; // nobody will make room
      if (!isFull && performance.now() < deadlineMs) await sleep(5);
      else throw new Error(`${this.name} has not become ${what}: ${await this.#describe(side)}`);
    }
  }

  async #describe(side: Side): Promise<string> {
    const { role, protection, peers } = await this.status(side);
    const [peer] = peers;
    const why = protection.reason === null ? protection.state : `${protection.state}, ${protection.reason}`;
    const error = peer?.lastError === undefined || peer.lastError === null ? "" : `, ${peer.lastError.message}`;
    return `${role}: ${why}, ${peer?.replication ?? "no peer"}, ${peer?.lagBytes ?? 0} bytes behind${error}`;
  }

  async #wait(side: Side, condition: WaitCondition): Promise<void> {
    await this.#client(side).wait({ condition, timeoutMs: COMMAND_TIMEOUT_MS });
  }

  async #end(side: Side, signal: NodeJS.Signals): Promise<void> {
    const agent = this.#agents.get(side);
    if (agent !== undefined) await endProcess(agent, signal);
  }

  /** Starts an agent and waits for its ready line. */
  async #spawn(side: Side, [role = "", ...flags]: readonly string[]): Promise<void> {
    const directory = join(this.directory, side);
    const disks = this.#disks.flatMap((disk) => ["--disk", `${disk}=${this.#locationOf(side, disk)}`]);
    const places = ["--run", directory, "--state", join(directory, "state"), ...disks];
    const { isProbed = false, durability, mode = "colo", ack } = this.#options;
    const acks = ack === undefined ? [] : ["--ack", ack];
    const common = ["--mode", mode, "--durability", durability, ...acks, "--log-level", "error"];
    const nodeFlags = isProbed ? PROBE_FLAGS : [];
    const { launcher } = this.#options.link ?? LOOPBACK;
    const command = [...launcher, process.execPath, ...nodeFlags, CLI, role, ...places, ...flags, ...common];
    const agent = startProcess(command[0] ?? "", command.slice(1), {
      stdio: ["ignore", "pipe", "inherit", ...(isProbed ? ["ipc" as const] : [])],
    });
    this.#agents.set(side, agent);
    const ended = endsEarly(agent, `the ${role} agent`);
    ended.catch(() => undefined); // once it serves, its end is the caller's doing
    if (agent.stdout !== null) await Promise.race([once(agent.stdout, "data"), ended]);
  }

  /** The agents that have not ended, by what each was started as. */
  #running(): ReadonlyMap<string, ChildProcess> {
    const names = { a: "primary", b: "secondary" } as const;
    const running = [...this.#agents].filter(
      ([, { exitCode, signalCode }]) => exitCode === null && signalCode === null,
    );
    return new Map(running.map(([side, agent]) => [names[side], agent]));
  }

  #client(side: Side): ControlClient {
    return new ControlClient({ kind: "socket", path: join(this.directory, side, "control.sock") });
  }

  #imageOf(side: Side, disk: string): string {
    return join(this.directory, `${this.#options.mode === "shared" ? "shared" : side}-${disk}.img`);
  }

  #locationOf(side: Side, disk: string): string {
    const prefix = this.#options.format === "qcow2" ? "qcow2:" : "";
    return `${prefix}${this.#imageOf(side, disk)}`;
  }

  #nbdSocket(side: Side): string {
    return join(this.directory, side, "nbd.sock");
  }

  #uriOf(side: Side, disk: string): string {
    return `nbd+unix:///${disk}?socket=${this.#nbdSocket(side)}`;
  }
}

async function convertToQcow2(image: string): Promise<void> {
  const raw = `${image}.raw`;
  renameSync(image, raw);
  await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, image]);
  rmSync(raw);
}

export async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port was given");
  return address.port;
}
