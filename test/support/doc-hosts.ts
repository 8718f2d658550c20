/**
 * The two hosts db1 and db2 of a document, whose commands are run as they stand there: a network namespace each, joined by a
 * link, and a directory each for what lies in /etc, /run, /var/lib and /usr/lib. A block of a document begins with the host that
 * it belongs to.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { cpSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished } from "vitest";
import type { Status } from "../../proto/status.ts";
import { ROOT } from "../../tools/bundle-program.ts";
import type { AgentHost } from "./agent-pair.ts";
import { askColobus, ColobusProcess } from "./cli-runner.ts";
import { NetworkNamespaces } from "./network-namespaces.ts";
import { mainOf } from "./other-release.ts";
import { scratchDirectory } from "./scratch.ts";

const BLOCK = /^```(sh|yaml)\n# (.*)\n([^`]*)^```$/gm;
const AGENT = ", an agent";
const INSTALL = /^npm install --global \.\/(\S+)$/;
const SERVICE = /^systemctl (restart|stop|start) colobus-(?:primary|secondary)@web$/;
const DIRECTORIES = ["/etc/colobus", "/var/lib/images", "/run/colobus", "/usr/lib/colobus"];

/** A host of the document. */
class DocHost {
  /** What can be installed, by the archive's name: where it is built. */
  readonly archives = new Map<string, string>();
  agent: ColobusProcess | undefined;
  readonly #root = join(scratchDirectory(), "host");
  readonly #network: AgentHost;
  readonly #addresses: ReadonlyMap<string, string>;
  #command = "";

  constructor(network: AgentHost, addresses: ReadonlyMap<string, string>) {
    this.#network = network;
    this.#addresses = addresses;
    for (const path of DIRECTORIES) mkdirSync(this.path(path), { recursive: true });
    symlinkSync(join(ROOT, "node_modules"), this.path("/usr/lib/colobus/node_modules"));
    this.#install(ROOT);
  }

  /** Where a file of the document lies here. */
  path(path: string): string {
    return join(this.#root, path);
  }

  get run(): string {
    return this.path("/run/colobus/web");
  }

  /** Text of the document with the paths and addresses that there are. */
  localized(text: string): string {
    const addressed = [...this.#addresses].reduce((known, [theirs, ours]) => known.replaceAll(theirs, ours), text);
    return addressed.replaceAll(/(?<![\w.:])\/(?=(?:etc|run|var\/lib)\/)/g, `${this.#root}/`);
  }

  async startAgent(command: string): Promise<void> {
    this.#command = command;
    const [program, ...words] = this.localized(command).split(" ");
    expect(program).toBe("colobus");
    this.agent = new ColobusProcess(words, this.#network.launcher, this.#main);
    await this.agent.untilPrinted("serves in");
  }

  /** Runs lines of a shell, up to the first that fails. What installs, and what asks for a service, is done by the test. */
  async runLines(script: string): Promise<void> {
    let lines: string[] = [];
    const runCollected = async (): Promise<void> => {
      if (lines.length > 0) await this.#run(lines.join("\n"));
      lines = [];
    };
    for (const line of script.trimEnd().split("\n")) {
      const [, archive] = INSTALL.exec(line) ?? [];
      const [, verb] = SERVICE.exec(line) ?? [];
      if (archive === undefined && verb === undefined) {
        lines.push(line);
        continue;
      }
      await runCollected();
      if (archive !== undefined) this.#install(this.archives.get(archive) ?? archive);
      if (verb !== undefined && verb !== "start") await this.#stopAgent();
      if (verb !== undefined && verb !== "stop") await this.startAgent(this.#command);
    }
    await runCollected();
  }

  async status(): Promise<Status> {
    return (await askColobus<Status>("status", "--run", this.run)).json;
  }

  get #main(): string {
    return mainOf(this.path("/usr/lib/colobus"));
  }

  /** Puts other files in the place of those that an agent may be running from, as an installation does. */
  #install(built: string): void {
    const installed = this.path("/usr/lib/colobus/dist");
    rmSync(installed, { recursive: true, force: true });
    cpSync(join(built, "dist"), installed, { recursive: true });
  }

  async #stopAgent(): Promise<void> {
    this.agent?.child.kill("SIGTERM");
    expect((await this.agent?.ended)?.code).toBe(0);
  }

  async #run(script: string): Promise<void> {
    const [program, ...words] = [...this.#network.launcher, "/bin/sh"];
    const colobus = `colobus() { "${process.execPath}" "${this.#main}" "$@"; }`;
    const env = { ...process.env, COLOBUS_RUN: this.run };
    const child = spawn(program, [...words, "-exc", `${colobus}\n${this.localized(script)}`], { env });
    const { code, output } = await ended(child);
    if (code !== 0) throw new Error(`exit code ${code}\n${output}`);
  }
}

function ended(child: ChildProcess): Promise<{ readonly code: number | null; readonly output: string }> {
  onTestFinished(() => void child.kill("SIGKILL"));
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream?.on("data", (data: Buffer) => (output += data.toString()));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, output }));
  });
}

export class DocHosts {
  readonly db1: DocHost;
  readonly db2: DocHost;

  constructor() {
    const network = new NetworkNamespaces();
    const addresses = new Map([
      ["192.0.2.1", network.a.address],
      ["192.0.2.2", network.b.address],
    ]);
    this.db1 = new DocHost(network.a, addresses);
    this.db2 = new DocHost(network.b, addresses);
  }

  /**
   * Does what the blocks of `text` say, one after the other; `before` is called ahead of each, with where it begins. Fails
   * where a block is for nobody.
   */
  async follow(text: string, before: (index: number) => Promise<void> = () => Promise.resolve()): Promise<void> {
    let followed = 0;
    for (const { index, 1: language, 2: where = "", 3: content = "" } of text.matchAll(BLOCK)) {
      followed += 1;
      await before(index);
      if (language === "yaml") {
        const [, path = "", name = ""] = /^(\S+) on (db\d)$/.exec(where) ?? [];
        const host = this.#host(name);
        writeFileSync(host.path(path), host.localized(content));
      } else if (where.endsWith(AGENT)) {
        await this.#hostOf(where).startAgent(content.trim());
      } else if (where === "on both") {
        for (const host of [this.db1, this.db2]) await host.runLines(content);
      } else {
        // The copy to the other host is the one step that does not go over this network.
        const copies = /^scp -pr (\S+) (db\d):(\S+)$/m.exec(content);
        const host = this.#hostOf(where);
        await host.runLines(content.replace(/^scp .*$/m, ""));
        if (copies === null) continue;
        const [, from = "", name = "", to = ""] = copies;
        cpSync(host.path(from), this.#host(name).path(to), { recursive: true });
      }
    }
    expect(followed).toBe(text.match(/^```\w/gm)?.length);
  }

  #hostOf(where: string): DocHost {
    const [, name = ""] = /^on (db\d)/.exec(where) ?? [];
    return this.#host(name);
  }

  #host(name: string): DocHost {
    if (name === "db1" || name === "db2") return this[name];
    throw new Error(`a block is for no host: ${name}`);
  }
}
