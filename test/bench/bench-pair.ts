import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { statusSchema, type Status } from "../../proto/control-api.ts";
import type { Durability, WaitCondition } from "../../proto/words.ts";
import { ControlClient } from "../../shared/control/api-client.ts";
import { writeFilledImage, type CheckpointTimes, type FailoverContestant, type SecondaryExport } from "./contestant.ts";
import { endProcess, endsEarly, makeDirectory, removeDirectory, startProcess } from "./leftovers.ts";

const CLI = new URL("../../dist/cli/main.js", import.meta.url).pathname;
const COMMAND_TIMEOUT_MS = 300_000;

export interface PairOptions {
  /** The pair's directory is made in it. */
  readonly parent: string;
  readonly sizeBytes: number;
  readonly durability: Durability;
  /** How many disks. Default 1. */
  readonly disks?: number;
  /** Images without holes. Default false: they are empty. */
  readonly isFilled?: boolean;
  /** Default `read-only`. */
  readonly secondaryExport?: "read-only" | "read-write";
}

type Side = "a" | "b";

/** A primary and a secondary agent as two processes on this machine, for measurements. */
export class BenchPair implements FailoverContestant {
  readonly name: string;
  readonly directory: string;
  readonly #options: PairOptions;
  readonly #port: number;
  readonly #disks: readonly string[];
  readonly #agents = new Map<Side, ChildProcess>();

  private constructor(options: PairOptions, port: number) {
    this.name = options.durability === "power" ? "Colobus, power" : "Colobus";
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
      await pair.#wait("a", "committed");
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
    const names = { a: "primary", b: "secondary" } as const;
    return new Map([...this.#agents].map(([side, agent]) => [names[side], agent.pid ?? 0]));
  }

  /** Resolves when the secondary has everything, and has acknowledged it as stable. */
  async idle(): Promise<void> {
    for (;;) {
      const [peer] = (await this.status()).peers;
      if (peer?.replication === "Established" && peer.lagBytes === 0) return;
      await sleep(5);
    }
  }

  /** Measured in the agent. */
  async checkpoint(): Promise<CheckpointTimes> {
    const answer = await this.#client("a").checkpoint({ prepare: false, timeoutMs: COMMAND_TIMEOUT_MS });
    return { prepareMs: answer.prepareMs, commitMs: answer.commitMs ?? 0 };
  }

  async status(side: Side = "a"): Promise<Status> {
    return statusSchema.parse(await this.#client(side).status());
  }

  /** Starts the primary, and resolves when it serves. */
  startPrimary(): Promise<void> {
    return this.#spawn("a", ["primary", "--peer", `ws://127.0.0.1:${this.#port}`]);
  }

  /** Starts the secondary, and resolves when it serves. */
  startSecondary(): Promise<void> {
    const access = ["--secondary-export", this.#options.secondaryExport ?? "read-only"];
    return this.#spawn("b", ["secondary", "--listen", `127.0.0.1:${this.#port}`, "--create", ...access]);
  }

  stopSecondary(): Promise<void> {
    return this.#end("b", "SIGTERM");
  }

  async killPrimary(): Promise<void> {
    await this.#end("a", "SIGKILL");
    while ((await this.status("b")).peers.some(({ connection }) => connection === "Connected")) await sleep(5);
  }

  async failover(): Promise<void> {
    const asked = { force: false, dryRun: false, discardActive: false, timeoutMs: COMMAND_TIMEOUT_MS };
    await this.#client("b").failover(asked);
  }

  merged(): Promise<void> {
    return this.#wait("b", "merged");
  }

  async stop(): Promise<void> {
    for (const side of ["a", "b"] as const) await this.#end(side, "SIGTERM");
    removeDirectory(this.directory);
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
    const run = join(this.directory, side);
    const disks = this.#disks.flatMap((disk) => ["--disk", `${disk}=${this.#imageOf(side, disk)}`]);
    const places = ["--run", run, "--state", join(run, "state"), ...disks];
    const common = ["--durability", this.#options.durability, "--log-level", "error"];
    const agent = startProcess(process.execPath, [CLI, role, ...places, ...flags, ...common], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.#agents.set(side, agent);
    const ended = endsEarly(agent, `the ${role} agent`);
    ended.catch(() => undefined); // once it serves, its end is the caller's doing
    if (agent.stdout !== null) await Promise.race([once(agent.stdout, "data"), ended]);
  }

  #client(side: Side): ControlClient {
    return new ControlClient({ kind: "socket", path: join(this.directory, side, "control.sock") });
  }

  #imageOf(side: Side, disk: string): string {
    return join(this.directory, `${side}-${disk}.img`);
  }

  #nbdSocket(side: Side): string {
    return join(this.directory, side, "nbd.sock");
  }

  #uriOf(side: Side, disk: string): string {
    return `nbd+unix:///${disk}?socket=${this.#nbdSocket(side)}`;
  }
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
