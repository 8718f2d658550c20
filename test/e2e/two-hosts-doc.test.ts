/**
 * docs/two-hosts.md from its first command to its last, as it stands there, on two "hosts": a network namespace each, joined by a
 * link, and a directory each for what lies in /etc, /run and /var/lib.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { cpSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Status } from "../../proto/control-api.ts";
import { makeImage, MIB, type AgentHost } from "../support/agent-pair.ts";
import { askColobus, ColobusProcess, MAIN } from "../support/cli-runner.ts";
import { readDocument } from "../support/doc-sections.ts";
import { canMakeNamespaces, NetworkNamespaces } from "../support/network-namespaces.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

const SIZE = 16 * MIB;
const BLOCK = /^```(sh|yaml)\n# (.*)\n([^`]*)^```$/gm;
const AGENT = ", an agent";
const CUT = "Now cut the power of db1.";

type Name = "db1" | "db2";

/** A host of the document. */
class Host {
  readonly #root = join(scratchDirectory(), "host");
  readonly #network: AgentHost;
  readonly #addresses: ReadonlyMap<string, string>;
  agent: ColobusProcess | undefined;

  constructor(network: AgentHost, addresses: ReadonlyMap<string, string>) {
    this.#network = network;
    this.#addresses = addresses;
    for (const path of ["/etc/colobus", "/var/lib/images", "/run/colobus"])
      mkdirSync(this.path(path), { recursive: true });
  }

  /** Where a file of the document lies here. */
  path(path: string): string {
    return join(this.#root, path);
  }

  /** Text of the document with the paths and addresses that there are. */
  localized(text: string): string {
    const addressed = [...this.#addresses].reduce((known, [theirs, ours]) => known.replaceAll(theirs, ours), text);
    return addressed.replaceAll(/(?<![\w.:])\/(?=(?:etc|run|var\/lib)\/)/g, `${this.#root}/`);
  }

  async startAgent(command: string): Promise<void> {
    const [program, ...words] = this.localized(command).split(" ");
    expect(program).toBe("colobus");
    this.agent = new ColobusProcess(words, this.#network.launcher);
    await this.agent.untilPrinted("serves in");
  }

  /** Runs lines of a shell, which stops at the first that fails. */
  async run(script: string): Promise<void> {
    const [program, ...words] = [...this.#network.launcher, "/bin/sh"];
    const colobus = `colobus() { "${process.execPath}" "${MAIN}" "$@"; }`;
    const env = { ...process.env, COLOBUS_RUN: this.path("/run/colobus/web") };
    const child = spawn(program, [...words, "-exc", `${colobus}\n${this.localized(script)}`], { env });
    const { code, output } = await ended(child);
    if (code !== 0) throw new Error(`exit code ${code}\n${output}`);
  }

  async status(): Promise<Status> {
    return (await askColobus<Status>("status", "--run", this.path("/run/colobus/web"))).json;
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

describe.runIf(requirePeers("qemu-io", "openssl", "ip") && canMakeNamespaces())("docs/two-hosts.md", () => {
  it("brings two hosts from nothing to a failover, and back", async () => {
    const network = new NetworkNamespaces();
    const addresses = new Map([
      ["192.0.2.1", network.a.address],
      ["192.0.2.2", network.b.address],
    ]);
    const hosts = { db1: new Host(network.a, addresses), db2: new Host(network.b, addresses) };
    makeImage(hosts.db1.path("/var/lib/images/web.img"), SIZE);
    const text = readDocument("docs/two-hosts.md");
    expect(text).toContain(CUT);

    let isCut = false;
    let followed = 0;
    for (const { index, 1: language, 2: where = "", 3: content = "" } of text.matchAll(BLOCK)) {
      followed += 1;
      if (!isCut && index > text.indexOf(CUT)) {
        isCut = true;
        hosts.db1.agent?.child.kill("SIGKILL");
        await hosts.db1.agent?.ended;
        const connection = async (): Promise<string | undefined> => (await hosts.db2.status()).peers[0]?.connection;
        await expect.poll(connection, { timeout: 30_000 }).not.toBe("Connected");
      }
      if (language === "yaml") {
        const [, path = "", name] = /^(\S+) on (db\d)$/.exec(where) ?? [];
        const host = hosts[name as Name];
        writeFileSync(host.path(path), host.localized(content));
      } else if (where.endsWith(AGENT)) {
        await hosts[nameIn(where)].startAgent(content.trim());
      } else if (where === "on both") {
        for (const host of Object.values(hosts)) await host.run(content);
      } else {
        // The copy to the other host is the one step that does not go over this network.
        const copies = /^scp -pr (\S+) (db\d):(\S+)$/m.exec(content);
        const host = hosts[nameIn(where)];
        await host.run(content.replace(/^scp .*$/m, ""));
        if (copies === null) continue;
        const [, from = "", name, to = ""] = copies;
        cpSync(host.path(from), hosts[name as Name].path(to), { recursive: true });
      }
    }
    expect(followed).toBe(text.match(/^```\w/gm)?.length);
    expect([(await hosts.db1.status()).role, (await hosts.db2.status()).role]).toEqual(["Primary", "Secondary"]);
  });
});

function nameIn(where: string): Name {
  const [, name] = /^on (db\d)/.exec(where) ?? [];
  if (name !== "db1" && name !== "db2") throw new Error(`a block is for no host: ${where}`);
  return name;
}
