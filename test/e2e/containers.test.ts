/**
 * What docs/containers.md tells the reader to type, with an engine and an image that the test makes: a pair on one machine,
 * whose primary is killed, fails over and takes it back. The guest is a process of the machine, as QEMU is.
 */
import { chownSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Status } from "../../proto/status.ts";
import { askColobus } from "../support/cli-runner.ts";
import { ContainerEngine, requireEngine, type Finished } from "../support/container-engine.ts";
import { readSections, sectionOf } from "../support/doc-sections.ts";
import { qemuIo } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

/** With an empty cache of layers, the image's libraries are compiled. */
const LIMIT_MS = 15 * 60_000;
const IMAGE = "colobus-test";
const NODE_USER = 1000;
const SERVICES = ["primary", "secondary"];
const COMPOSE_FILE = fileURLToPath(new URL("../../compose.yaml", import.meta.url));

/** Prints a line each: user, capabilities that it could have, whether it can get others, what the root says to a write. */
const LOOK_AROUND = `id -u; grep -E '^(CapBnd|NoNewPrivs):' /proc/self/status; touch /opt/colobus/new 2>&1;
for compiler in g++ make python3; do command -v $compiler; done; true`;

const sections = readSections("docs/containers.md");

/** The stack of compose.yaml, with its sockets, certificates and project name in a scratch directory. */
class Stack {
  readonly engine: ContainerEngine;
  readonly #root = scratchDirectory();
  readonly #project = "colobus-test";

  constructor(engine: ContainerEngine) {
    this.engine = engine;
    onTestFinished(async ({ task }) => {
      const failed = task.result?.state === "fail";
      if (failed) process.stderr.write((await this.compose("--profile try logs --tail 40")).output);
      await this.compose("--profile try down --volumes --timeout 20");
    });
  }

  /** What a container's status and guests are reached by from outside. */
  run(service: string): string {
    return join(this.#root, service);
  }

  makeRunDirectories(): void {
    for (const service of SERVICES) {
      mkdirSync(this.run(service), { mode: 0o700 });
      chownSync(this.run(service), NODE_USER, NODE_USER);
    }
  }

  /** Runs the words after `docker compose`. */
  compose(line: string): Promise<Finished> {
    const words = line.split(" ").flatMap((word) => (word === "exec" || word === "run" ? [word, "-T"] : [word]));
    const env = [
      `COLOBUS_IMAGE=${IMAGE}`,
      `COLOBUS_TLS_DIR=${join(this.#root, "tls")}`,
      `COLOBUS_PRIMARY_RUN_DIR=${this.run("primary")}`,
      `COLOBUS_SECONDARY_RUN_DIR=${this.run("secondary")}`,
    ];
    const project = ["--file", COMPOSE_FILE, "--project-name", this.#project];
    return this.engine.run("env", ...env, "docker-compose", ...project, ...words);
  }

  async must(line: string): Promise<string> {
    const { code, output } = await this.compose(line);
    if (code !== 0) throw new Error(`docker compose ${line}: exit code ${code}\n${output}`);
    return output;
  }

  /** Runs the commands of one section of the document, but for the build, which has been done. */
  async follow(heading: string, from = 0, to?: number): Promise<void> {
    const { commands } = sectionOf(sections, heading);
    for (const command of commands.slice(from, to)) {
      const [, line] = /^docker compose (.*)$/.exec(command) ?? [];
      if (line === undefined) throw new Error(`a command that the test does not know: ${command}`);
      if (line === "build primary") continue;
      // Debian's compose cannot wait itself.
      await this.must(line.replace(" --wait", ""));
      if (line.includes(" --wait")) await this.untilAnswering(SERVICES);
    }
  }

  async untilAnswering(services: readonly string[]): Promise<void> {
    for (const service of services) {
      const ask = async (): Promise<number | null> => (await askColobus("status", "--run", this.run(service))).code;
      await expect.poll(ask, { timeout: 30_000, message: service }).toBe(0);
    }
  }

  async status(service: string): Promise<Status> {
    const { json } = await askColobus<Status>("status", "--run", this.run(service));
    return json;
  }

  uri(service: string): string {
    return `nbd+unix:///vda?socket=${join(this.run(service), "nbd.sock")}`;
  }

  /** Runs a program in a container. */
  exec(service: string, ...words: string[]): Promise<Finished> {
    return this.engine.run("docker", "exec", this.#container(service), ...words);
  }

  /** How the health check of a container ends now. */
  async health(service: string): Promise<number | null> {
    const inspected = await this.#inspect<{ Config: { Healthcheck: { Test: string[] } } }>(service);
    const [, ...words] = inspected.Config.Healthcheck.Test;
    return (await this.exec(service, ...words)).code;
  }

  async exitCode(service: string): Promise<number> {
    const { State } = await this.#inspect<{ State: { ExitCode: number } }>(service);
    return State.ExitCode;
  }

  async #inspect<T>(service: string): Promise<T> {
    const [inspected] = JSON.parse(await this.engine.must("docker", "inspect", this.#container(service))) as T[];
    if (inspected === undefined) throw new Error(`${service} has no container`);
    return inspected;
  }

  #container(service: string): string {
    return `${this.#project}_${service}_1`;
  }
}

describe.runIf(requireEngine() && requirePeers("qemu-io"))("a pair in containers", () => {
  it(
    "does what docs/containers.md says: it is set up, loses its primary, fails over, and takes it back",
    { timeout: LIMIT_MS },
    async () => {
      const stack = new Stack(await ContainerEngine.withImage(IMAGE));
      stack.makeRunDirectories();
      await stack.follow("Both on one machine");

      // What is promised of the containers themselves.
      const looked = (await stack.exec("primary", "sh", "-c", LOOK_AROUND)).output.trim().split("\n");
      expect(looked.map((line) => line.split(/:\s*/).at(-1))).toEqual([
        String(NODE_USER),
        "0".repeat(16),
        "1",
        "Read-only file system",
      ]);
      for (const service of SERVICES) expect(await stack.health(service), service).toBe(0);

      await qemuIo(stack.uri("primary"), "write -P 7 0 1M", "flush");
      await stack.follow("A failover, rehearsed", 0, 1);
      await qemuIo(stack.uri("primary"), "write -P 8 0 1M", "flush");
      await stack.follow("A failover, rehearsed", 1, 3);
      await qemuIo(stack.uri("secondary"), "read -P 7 0 1M", "write -P 9 1M 1M", "flush");
      expect(await stack.health("secondary")).toBe(0);

      await stack.follow("A failover, rehearsed", 3, 4);
      await expect
        .poll(async () => (await stack.status("primary")).protection.reason, { timeout: 30_000 })
        .toBe("outdated");
      expect(await stack.health("primary")).toBe(1);
      await stack.follow("A failover, rehearsed", 4);
      expect((await stack.status("secondary")).protection.state).toBe("Protected");
      await qemuIo(stack.uri("primary"), "read -P 7 0 1M", "read -P 9 1M 1M");

      await stack.must("--profile try stop");
      expect([await stack.exitCode("primary"), await stack.exitCode("secondary")]).toEqual([0, 0]);
    },
  );
});
