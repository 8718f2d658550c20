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
  readonly #agents: ChildProcess[] = [];

  private constructor(directory: string) {
    this.directory = directory;
  }

  /** Starts a pair in a new directory below `parent`, with one disk of `sizeBytes`, and waits for the first checkpoint. */
  static async start(parent: string, sizeBytes: number, durability: Durability): Promise<BenchPair> {
    const pair = new BenchPair(mkdtempSync(join(parent, "colobus-bench-")));
    try {
      await pair.#start(sizeBytes, durability);
    } catch (error) {
      await pair.stop();
      throw error;
    }
    return pair;
  }

  get uri(): string {
    return `nbd+unix:///vda?socket=${join(this.directory, "a", "nbd.sock")}`;
  }

  /** Resolves when the secondary has acknowledged everything as stable. */
  async idle(): Promise<void> {
    while ((await this.status()).peers[0]?.lagBytes !== 0) await this.#turn();
  }

  async checkpoint(): Promise<CheckpointAnswer> {
    return this.#client("a").checkpoint({ prepare: false, timeoutMs: 60_000 });
  }

  async status(): Promise<Status> {
    return statusSchema.parse(await this.#client("a").status());
  }

  async stop(): Promise<void> {
    for (const agent of this.#agents.reverse()) {
      if (agent.exitCode === null && agent.signalCode === null) {
        agent.kill("SIGTERM");
        await once(agent, "exit");
      }
    }
    rmSync(this.directory, { recursive: true, force: true });
  }

  async #start(sizeBytes: number, durability: Durability): Promise<void> {
    const image = join(this.directory, "a.img");
    writeFileSync(image, "");
    truncateSync(image, sizeBytes);
    const port = await freePort();
    const common = ["--durability", durability, "--log-level", "error"];
    await this.#spawn(["secondary", ...this.#directories("b"), "--listen", `127.0.0.1:${port}`, "--create", ...common]);
    await this.#spawn(["primary", ...this.#directories("a"), "--peer", `ws://127.0.0.1:${port}`, ...common]);
    await this.#client("a").wait({ condition: "committed", timeoutMs: 60_000 });
  }

  #directories(side: "a" | "b"): string[] {
    const run = join(this.directory, side);
    mkdirSync(run);
    return ["--run", run, "--state", join(run, "state"), "--disk", `vda=${join(this.directory, `${side}.img`)}`];
  }

  /** Starts an agent and waits for its ready line. */
  async #spawn(args: readonly string[]): Promise<void> {
    const agent = spawn(process.execPath, [CLI, ...args], { stdio: ["ignore", "pipe", "inherit"] });
    this.#agents.push(agent);
    const ready = once(agent.stdout, "data");
    const ended = once(agent, "exit").then(([code]) => {
      throw new Error(`the ${args[0] ?? ""} agent ended with ${String(code)}`);
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

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port was given");
  return address.port;
}
