import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { statusSchema, type CheckpointAnswer, type Status } from "../../proto/control-api.ts";
import type { Durability } from "../../proto/words.ts";
import { ControlClient } from "../../shared/control/api-client.ts";

const CLI = new URL("../../dist/cli/main.js", import.meta.url).pathname;

/** A primary and a secondary agent as two processes on this machine, for measurements. */
export class BenchPair {
  readonly directory: string;
  readonly #port: number;
  readonly #durability: Durability;
  readonly #agents = new Map<"a" | "b", ChildProcess>();

  private constructor(directory: string, port: number, durability: Durability) {
    this.directory = directory;
    this.#port = port;
    this.#durability = durability;
  }

  /** A pair in a new directory below `parent`, with one empty disk of `sizeBytes`. None of its agents runs yet. */
  static async create(parent: string, sizeBytes: number, durability: Durability): Promise<BenchPair> {
    const pair = new BenchPair(mkdtempSync(join(parent, "colobus-bench-")), await freePort(), durability);
    writeFileSync(pair.image, "");
    truncateSync(pair.image, sizeBytes);
    for (const side of ["a", "b"]) mkdirSync(join(pair.directory, side));
    return pair;
  }

  /** Such a pair, when its first checkpoint is committed. */
  static async start(parent: string, sizeBytes: number, durability: Durability): Promise<BenchPair> {
    const pair = await BenchPair.create(parent, sizeBytes, durability);
    try {
      await pair.startSecondary();
      await pair.startPrimary();
      await pair.#client("a").wait({ condition: "committed", timeoutMs: 60_000 });
    } catch (error) {
      await pair.stop();
      throw error;
    }
    return pair;
  }

  /** The primary's image. */
  get image(): string {
    return join(this.directory, "a.img");
  }

  get uri(): string {
    return `nbd+unix:///vda?socket=${join(this.directory, "a", "nbd.sock")}`;
  }

  /** Resolves when the secondary has everything, and has acknowledged it as stable. */
  async idle(): Promise<void> {
    for (;;) {
      const [peer] = (await this.status()).peers;
      if (peer?.replication === "Established" && peer.lagBytes === 0) return;
      await this.#turn();
    }
  }

  async checkpoint(): Promise<CheckpointAnswer> {
    return this.#client("a").checkpoint({ prepare: false, timeoutMs: 60_000 });
  }

  async status(): Promise<Status> {
    return statusSchema.parse(await this.#client("a").status());
  }

  /** Starts the primary, and resolves when it serves. */
  startPrimary(): Promise<void> {
    return this.#spawn("a", ["primary", "--peer", `ws://127.0.0.1:${this.#port}`]);
  }

  /** Starts the secondary, and resolves when it serves. */
  startSecondary(): Promise<void> {
    return this.#spawn("b", ["secondary", "--listen", `127.0.0.1:${this.#port}`, "--create"]);
  }

  stopSecondary(): Promise<void> {
    return this.#end("b");
  }

  async stop(): Promise<void> {
    for (const side of ["a", "b"] as const) await this.#end(side);
    rmSync(this.directory, { recursive: true, force: true });
  }

  async #end(side: "a" | "b"): Promise<void> {
    const agent = this.#agents.get(side);
    if (agent === undefined || agent.exitCode !== null || agent.signalCode !== null) return;
    agent.kill("SIGTERM");
    await once(agent, "exit");
  }

  /** Starts an agent and waits for its ready line. */
  async #spawn(side: "a" | "b", [role = "", ...flags]: readonly string[]): Promise<void> {
    const run = join(this.directory, side);
    const disk = `vda=${join(this.directory, `${side}.img`)}`;
    const places = ["--run", run, "--state", join(run, "state"), "--disk", disk];
    const common = ["--durability", this.#durability, "--log-level", "error"];
    const agent = spawn(process.execPath, [CLI, role, ...places, ...flags, ...common], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.#agents.set(side, agent);
    const ready = once(agent.stdout, "data");
    const ended = once(agent, "exit").then(([code]) => {
      throw new Error(`the ${role} agent ended with ${String(code)}`);
    });
    await Promise.race([ready, ended]);
    ended.catch(() => undefined); // from here on its end is the caller's doing
  }

  #client(side: "a" | "b"): ControlClient {
    return new ControlClient({ kind: "socket", path: join(this.directory, side, "control.sock") });
  }

  #turn(): Promise<void> {
    return new Promise((resolve) => {
      setTimeout(resolve, 5);
    });
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
