/**
 * A Docker engine that a test starts and ends itself, with images and layers of its own that stay from run to run. It
 * begins in the machine's network, where a build reaches the package registries, and goes on in a network namespace without
 * any way out: the containers reach each other, and nothing of the machine's network or its packet filter is touched.
 */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { onTestFinished } from "vitest";
import { leaveOut, missingPeers, requirePeers } from "./peers.ts";
import { scratchDirectory } from "./scratch.ts";
import { accepts } from "./tool-process.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const DATA = process.env["COLOBUS_TEST_ENGINE"] ?? "/var/cache/colobus-test-engine";
/** What setup-peers makes. */
const BASE_ARCHIVE = process.env["COLOBUS_TEST_BASE_IMAGE"] ?? "/var/cache/colobus-test-base-image.tar";
const BASE_IMAGE = "colobus-test-base";
/** Images that no build has used for this long are removed. */
const UNUSED_FOR = "until=240h";

/** Whether an engine can be started here: for `describe.runIf(…)`. */
export function requireEngine(): boolean {
  if (process.getuid?.() === 0)
    return requirePeers("dockerd", "docker", "docker-compose", "nsenter", "ip", BASE_ARCHIVE);
  const missing = missingPeers("dockerd", "docker", "docker-compose").join(", ");
  const why = missing === "" ? "" : ` Not installed: ${missing}.`;
  return leaveOut(`No container engine is started but by root.${why}`);
}

export interface Finished {
  readonly code: number | null;
  readonly output: string;
}

export class ContainerEngine {
  readonly #socket: string;
  readonly #exec: string;
  readonly #namespace = `colobus-${process.pid}-engine`;
  #daemon: ChildProcess | undefined;

  private constructor() {
    const scratch = scratchDirectory();
    this.#socket = join(scratch, "docker.sock");
    this.#exec = join(scratch, "exec");
    onTestFinished(() => this.#end());
  }

  /** An engine that has built the image `tag` of this repository. It ends with the test. */
  static async withImage(tag: string): Promise<ContainerEngine> {
    const engine = new ContainerEngine();
    await engine.#start([]);
    if ((await engine.run("docker", "image", "inspect", BASE_IMAGE)).code !== 0) {
      await engine.must("docker", "import", BASE_ARCHIVE, BASE_IMAGE);
    }
    const base = ["--build-arg", `NODE_IMAGE=${BASE_IMAGE}`];
    await engine.must("docker", "build", "--network", "host", ...base, "--tag", tag, ROOT);
    await engine.must("docker", "image", "prune", "--force", "--filter", UNUSED_FOR);
    await engine.#end();
    runNow("ip", "netns", "add", engine.#namespace);
    onTestFinished(() => runNow("ip", "netns", "delete", engine.#namespace));
    runNow("ip", "-n", engine.#namespace, "link", "set", "lo", "up");
    // Not `ip netns exec`: it hides the control groups.
    await engine.#start(["nsenter", `--net=/run/netns/${engine.#namespace}`]);
    return engine;
  }

  /** Runs a program with this engine for its Docker. */
  run(program: string, ...args: string[]): Promise<Finished> {
    const { NODE_OPTIONS: _, ...env } = process.env;
    const child = spawn(program, args, {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...env, DOCKER_HOST: `unix://${this.#socket}`, DOCKER_BUILDKIT: "0" },
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => (output += text));
    }
    return new Promise((resolve, reject) => {
      child.on("error", reject);
      child.on("close", (code) => resolve({ code, output }));
    });
  }

  /** Runs a program that must succeed, and returns what it printed. */
  async must(program: string, ...args: string[]): Promise<string> {
    const { code, output } = await this.run(program, ...args);
    if (code !== 0) throw new Error(`${program} ${args.join(" ")}: exit code ${code}\n${output.slice(-4000)}`);
    return output;
  }

  async #start(launcher: readonly string[]): Promise<void> {
    const log = join(this.#exec, "..", "dockerd.log");
    const directories = ["--data-root", DATA, "--exec-root", this.#exec, "--pidfile", `${this.#exec}.pid`];
    const network = ["--bridge=none", "--iptables=false", "--ip-forward=false"];
    const line = [...launcher, "dockerd", ...directories, ...network, "--host", `unix://${this.#socket}`];
    const fd = openSync(log, "a");
    const [program = "", ...args] = line;
    const daemon = spawn(program, args, { stdio: ["ignore", fd, fd] });
    closeSync(fd);
    this.#daemon = daemon;
    while (!existsSync(this.#socket) || !(await accepts(this.#socket))) {
      if (daemon.exitCode !== null) throw new Error(`dockerd has ended:\n${readFileSync(log, "utf8").slice(-4000)}`);
      await new Promise((resolve) => {
        setTimeout(resolve, 50);
      });
    }
  }

  /** An engine that is told to end stops its containers first. */
  async #end(): Promise<void> {
    const daemon = this.#daemon;
    if (daemon === undefined || daemon.exitCode !== null) return;
    const ended = new Promise((resolve) => {
      daemon.once("close", resolve);
    });
    daemon.kill("SIGTERM");
    await ended;
    // It may leave its own network mounted.
    const mounts = readFileSync("/proc/self/mountinfo", "utf8").split(/\s+/);
    for (const mounted of mounts.filter((word) => word.startsWith(`${this.#exec}/`))) runNow("umount", mounted);
  }
}

function runNow(program: string, ...args: string[]): void {
  const done = spawnSync(program, args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${program} ${args.join(" ")}: ${done.stderr ?? String(done.error)}`);
}
