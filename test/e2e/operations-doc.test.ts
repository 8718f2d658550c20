/**
 * The commands of docs/operations.md, run as they stand there, against pairs that are in the state that each heading is
 * about. A heading with a symptom whose commands no test runs fails the last test.
 */
import { execFile } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import type { JobStatus } from "../../proto/status.ts";
import { AgentPair, AgentUnderTest, freePort, MIB } from "../support/agent-pair.ts";
import { MAIN } from "../support/cli-runner.ts";
import { readSections, sectionOf, withNames } from "../support/doc-sections.ts";
import { expectSame, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { ToolProcess } from "../support/tool-process.ts";
import { presentResync, startSlowResync } from "../support/slow-resync.ts";

const execute = promisify(execFile);
const LIMIT_MS = 60_000;

const sections = readSections("docs/operations.md").map((section) => ({
  ...section,
  isFailure: section.text.includes("**Symptom.**"),
  commands: section.commands.filter((line) => line.startsWith("colobus ")),
}));
const used = new Set<string>();

/** Runs the commands of a section at one agent, with what the document's example names replaced by what there is. */
async function follow(
  heading: string,
  agent: AgentUnderTest,
  names: Readonly<Record<string, string>> = {},
): Promise<void> {
  const { commands } = sectionOf(sections, heading);
  used.add(heading);
  for (const command of commands) await runCommand(agent, command, names);
}

async function runCommand(
  agent: AgentUnderTest,
  command: string,
  names: Readonly<Record<string, string>>,
): Promise<void> {
  const shell = `colobus() { "${process.execPath}" "${MAIN}" "$@"; }; ${withNames(command, names)}`;
  await execute("/bin/sh", ["-c", shell], { env: { ...process.env, COLOBUS_RUN: agent.run }, timeout: LIMIT_MS });
}

/** A pair whose sides both listen. */
async function pairOfEquals(
  secondaryFlags: readonly string[] = [],
): Promise<{ pair: AgentPair; urlOfA: string; urlOfB: string }> {
  const port = await freePort();
  const pair = await AgentPair.create({
    flags: ["--peer-timeout", "1s"],
    primaryFlags: ["--listen", `127.0.0.1:${port}`],
    secondaryFlags,
  });
  await pair.start();
  return { pair, urlOfA: `ws://127.0.0.1:${port}`, urlOfB: `ws://127.0.0.1:${pair.port}` };
}

/** An agent on another host, that takes the place of the pair's secondary. */
async function otherSecondary(pair: AgentPair): Promise<{ agent: AgentUnderTest; url: string }> {
  const root = join(pair.root, "c");
  mkdirSync(root, { recursive: true });
  const port = await freePort();
  const agent = new AgentUnderTest("the new secondary", join(root, "run"), [...pair.secondary.command, "--create"]);
  agent.setFlag("--run", join(root, "run"));
  agent.setFlag("--state", join(root, "state"));
  agent.setFlag("--disk", `vda=${join(root, "vda.img")}`);
  agent.setFlag("--listen", `127.0.0.1:${port}`);
  return { agent, url: `ws://127.0.0.1:${port}` };
}

const EXAMPLE_URL = "ws://192.0.2.2:7000";

async function untilAlone(agent: AgentUnderTest): Promise<void> {
  await agent.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
}

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("the commands of the operations document", () => {
  it("bring a pair through the loss of either host, and back", async () => {
    const { pair, urlOfB } = await pairOfEquals();
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), "write -P 1 0 1M");
    await secondary.crash();
    await untilAlone(primary);
    await secondary.start();
    await follow("The secondary is lost", primary);
    await pair.checkpoint();
    const checkpoint = await readDisk(secondary.uri());
    await primary.crash();
    await untilAlone(secondary);
    await follow("The primary is lost", secondary);
    expectSame(await readDisk(secondary.uri()), checkpoint);
    await qemuIo(secondary.uri(), "write -P 2 1M 1M");
    await primary.start();
    await primary.until("outdated", ({ protection }) => protection.reason === "outdated");
    await follow("The old primary comes back", primary, { [EXAMPLE_URL]: urlOfB });
    await pair.untilProtected();
    await follow("Maintenance of a host", secondary);
    expect((await secondary.status()).role).toBe("Secondary");
    await pair.untilProtected();
  });

  it.runIf(requirePeers("qemu-nbd"))("see a pair through the death of an image's server", async () => {
    const socketOf = (image: string): string => `${image}.sock`;
    const pair = await AgentPair.create({ imageOf: (path) => `nbd+unix:///?socket=${socketOf(path)}` });
    const serve = async (side: "a" | "b"): Promise<ToolProcess> => {
      const image = pair.imagePath(side);
      const server = new ToolProcess("qemu-nbd", [
        "-f",
        "raw",
        "--persistent",
        "-e",
        "4",
        "-k",
        socketOf(image),
        image,
      ]);
      await server.untilListening(socketOf(image));
      return server;
    };
    await serve("b");
    const server = await serve("a");
    await pair.start();
    await server.end("SIGKILL");
    const writing = qemuIo(pair.primary.uri(), "write -P 1 0 1M");
    await serve("a");
    await follow("The server of an image is gone", pair.primary);
    await writing;
    await pair.checkpoint();
    await qemuIo(pair.secondary.uri(), "read -P 1 0 1M");
  });

  it("bring together what has parted, once an operator has chosen", async () => {
    const { pair } = await pairOfEquals();
    const { primary, secondary } = pair;
    await secondary.crash();
    await untilAlone(primary);
    await qemuIo(primary.uri(), "write -P 1 0 1M");
    await primary.stop();
    await secondary.start();
    await secondary.get("failover");
    await primary.start();
    await primary.until("split", ({ protection }) => protection.reason === "split-brain");
    await follow("Both sides were written to", primary);
    await pair.untilProtected();
  });

  it("let guests go on that wait for a host which does not come back", async () => {
    const { pair } = await pairOfEquals();
    const { primary, secondary } = pair;
    await Promise.all([primary.crash(), secondary.crash()]);
    await primary.start();
    expect((await primary.status()).protection.reason).toBe("held");
    await follow("Guests wait after a start", primary);
    await qemuIo(primary.uri(), "write -P 1 0 1M");

    const fresh = await otherSecondary(pair);
    await fresh.agent.start();
    await follow("The host of the secondary is lost for good", primary, { [EXAMPLE_URL]: fresh.url });
    await primary.until("protected", ({ protection }) => protection.state === "Protected");
    for (const command of sectionOf(sections, "Grow a disk").commands) {
      await runCommand(primary, command, { "40GiB": "40MiB" });
    }
    await qemuIo(primary.uri(), "write -P 3 39M 1M");
    await primary.get("checkpoint");
    await qemuIo(fresh.agent.uri(), "read -P 3 39M 1M", "read -P 1 0 1M", "read -P 0 38M 1M");
    await fresh.agent.stop();
  });

  it("give a promoted side a new secondary", async () => {
    const { pair, urlOfB } = await pairOfEquals();
    const { primary, secondary } = pair;
    await primary.crash();
    await untilAlone(secondary);
    await secondary.get("failover");
    const root = join(pair.root, "c");
    mkdirSync(join(root, "images"), { recursive: true });
    writeFileSync(join(root, "token"), "d43f2f8cc0fc1e9477ea6c799100e2d1", { mode: 0o600 });
    const heading = "No secondary after a failover";
    const [start = "", ...others] = sectionOf(sections, heading).commands;
    // The pair of the test has no token, and another name.
    const line = start
      .replace(" --insecure --token-file /etc/colobus-token", "")
      .replace("--vm web", "--vm test")
      .replace(EXAMPLE_URL, urlOfB)
      .replace("/run/colobus/web", join(root, "run"))
      .replace("/var/lib/colobus/web", join(root, "state"))
      .replace("/var/lib/images", join(root, "images"));
    const fresh = new AgentUnderTest("the new secondary", join(root, "run"), line.split(/\s+/).slice(1));
    await fresh.start();
    used.add(heading);
    for (const command of others) await runCommand(fresh, command, {});
    await fresh.until("protected", ({ protection }) => protection.state === "Protected");
    await fresh.stop();
  });

  it("go back to an earlier checkpoint", async () => {
    const { pair } = await pairOfEquals(["--retain", "4"]);
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), "write -P 1 0 1M");
    const good = await pair.checkpoint();
    const content = await readDisk(secondary.uri());
    await qemuIo(primary.uri(), `write -P 2 0 ${MIB}`);
    await pair.checkpoint();
    await primary.stop();
    await untilAlone(secondary);
    await follow("The last checkpoint is a bad one", secondary, { "rollback 41": `rollback ${good}` });
    expectSame(await readDisk(secondary.uri()), content);
  });

  it("direct a resync", async () => {
    const { primary } = await startSlowResync();
    const { id } = await presentResync(primary);
    await follow("A resync disturbs the guest, or takes too long", primary, { "resync-1": id });
    expect((await primary.get<JobStatus[]>("jobs")).find((job) => job.id === id)?.speedLimit).toBe(200 * MIB);
  });

  it("are all run by one of these tests", () => {
    const withCommands = sections.filter(({ isFailure, commands }) => isFailure && commands.length > 0);
    expect(new Set(withCommands.map(({ heading }) => heading))).toEqual(used);
  });
});
