import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { NodeClock } from "../../../shared/host/node-clock.ts";
import { runInProcess, serveFakeAgent } from "../../support/control-harness.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { protectedPrimary } from "../../support/status-examples.ts";

const TOKEN = "s3cr3t-token-of-both-agents";

interface Scene {
  readonly directory: string;
  readonly config: string;
  readonly log: string;
}

/** A configuration, its token and its log, with the token wherever an operator could put it. */
function scene(): Scene {
  const directory = scratchDirectory();
  const config = join(directory, "web.yaml");
  const log = join(directory, "agent.log");
  mkdirSync(join(directory, "state"));
  writeFileSync(join(directory, "token"), TOKEN, { mode: 0o600 });
  const output = JSON.stringify({ line: `the password is ${TOKEN}`, msg: "on-failover" });
  writeFileSync(log, `{"msg":"dialled","url":"ws://user:${TOKEN}@[::1]:1"}\n${output}\n`);
  const lines = [
    `run: ${join(directory, "run")}`,
    `state: ${join(directory, "state")}`,
    `disk: vda=${join(directory, "vda.img")}`,
    `peer: ws://user:${TOKEN}@127.0.0.1:1`,
    `token-file: ${join(directory, "token")}`,
    `fence-peer: fence --password ${TOKEN}`,
    `on-failover: "PASSWORD=${TOKEN} start-vm"`,
    "arbiter: http://127.0.0.1:2379",
  ];
  writeFileSync(config, lines.join("\n"));
  return { directory, config, log };
}

function unpack(file: string): {
  readonly names: string[];
  readonly text: (name: string) => string;
  readonly all: string;
} {
  const directory = scratchDirectory();
  execFileSync("tar", ["-C", directory, "-xzf", file]);
  const root = join(directory, "colobus-support");
  const names = readdirSync(root).sort();
  const text = (name: string): string => readFileSync(join(root, name), "utf8");
  return { names, text, all: names.map(text).join("\n") };
}

describe("a support bundle", () => {
  it("has what is asked for, and no secret wherever one was written", async () => {
    const { directory, config, log } = scene();
    const { run, control } = await serveFakeAgent();
    const status = protectedPrimary();
    control.currentStatus = {
      ...status,
      peers: status.peers.map((peer) => ({ ...peer, url: `ws://user:${TOKEN}@127.0.0.1:1` })),
    };
    control.log.emit("peer-refused", { url: `ws://user:${TOKEN}@127.0.0.1:1` });
    const file = join(directory, "bundle.tar.gz");
    const answer = await runInProcess(
      ["support-bundle", file, "--run", run, "--config", config, "--log", log, "--json"],
      { env: { COLOBUS_TOKEN: TOKEN } },
    );
    expect(answer.code).toBe(0);
    const { names, text, all } = unpack(file);
    expect((JSON.parse(answer.stdout) as { entries: string[] }).entries.sort()).toEqual(names);
    expect(names).toEqual([
      "agent.log",
      "config.json",
      "doctor.json",
      "events.json",
      "jobs.json",
      "metrics.txt",
      "status.json",
      "versions.json",
    ]);
    expect(all).not.toContain(TOKEN);
    expect(answer.stdout + answer.stderr).not.toContain(TOKEN);
    expect(JSON.parse(text("config.json"))).toMatchObject({
      "token-file": join(directory, "token"),
      "fence-peer": "(left out)",
      "peer": ["ws://127.0.0.1:1"],
    });
    expect(JSON.parse(text("status.json"))).toMatchObject({ vm: "web", peers: [{ url: "ws://127.0.0.1:1" }] });
    expect(text("agent.log")).toContain("dialled");
    expect(statSync(file).mode & 0o077).toBe(0);
    expect(readdirSync(directory).filter((name) => name.startsWith("."))).toEqual([]);
  });

  it("has the end of a long log, in whole lines, without what hooks have printed at either end", async () => {
    const { directory, config, log } = scene();
    const output = JSON.stringify({ line: TOKEN.repeat(200_000), msg: "on-failover" });
    const torn = JSON.stringify({ line: `${TOKEN} "` }).slice(0, -3);
    writeFileSync(log, `${output}\n{"msg":"in between"}\n${torn}`);
    const file = join(directory, "bundle.tar.gz");
    expect((await runInProcess(["support-bundle", file, "--config", config, "--log", log])).code).toBe(0);
    const { all, text } = unpack(file);
    expect(text("agent.log")).toMatch(/^\{"msg":"in between"\}\n/);
    expect(all).not.toContain(TOKEN);
  });

  it("leaves an earlier one alone when it is interrupted", async () => {
    const { directory, config } = scene();
    const { run, control } = await serveFakeAgent();
    const file = join(directory, "bundle.tar.gz");
    writeFileSync(file, "an earlier one");
    const interrupt = new AbortController();
    control.metrics = () => {
      interrupt.abort();
      throw new Error("too late");
    };
    const { code } = await runInProcess(["support-bundle", file, "--run", run, "--config", config], {
      interrupted: interrupt.signal,
    });
    expect(code).toBe(4);
    expect(readFileSync(file, "utf8")).toBe("an earlier one");
    expect(readdirSync(directory).filter((name) => name.startsWith("."))).toEqual([]);
  });

  it("is made where a disk hangs, and says so", async () => {
    const { directory, config } = scene();
    const silent = join(directory, "silent");
    execFileSync("mkfifo", [silent]); // who opens it waits
    writeFileSync(
      config,
      `run: ${directory}/run\nstate: ${silent}\ndisk: vda=${directory}/vda.img\npeer: ws://[::1]:1\n`,
    );
    const file = join(directory, "bundle.tar.gz");
    const args = ["support-bundle", file, "--config", config, "--log", silent, "--timeout", "1s"];
    expect((await runInProcess(args, { clock: new NodeClock() })).code).toBe(0);
    const { text } = unpack(file);
    const late = { code: "timed-out", message: `${silent} has not answered in 1 s` };
    for (const name of ["record.json", "agent.log"]) expect(JSON.parse(text(name))).toMatchObject({ error: late });
    expect(JSON.parse(text("doctor.json"))).toContainEqual(
      expect.objectContaining({ check: "state", state: "failed", message: late.message }),
    );
    expect(JSON.parse(text("doctor.json"))).toContainEqual(expect.objectContaining({ check: "images speed" }));
  });

  it("is made without an agent too", async () => {
    const { directory, config } = scene();
    const file = join(directory, "bundle.tar.gz");
    expect((await runInProcess(["support-bundle", file, "--config", config])).code).toBe(0);
    expect(unpack(file).names).toEqual(["config.json", "doctor.json", "versions.json"]);
  });

  it("tells what it could not get in its place", async () => {
    const { directory } = scene();
    const { run, control } = await serveFakeAgent();
    control.metrics = () => {
      throw new Error("no metrics today");
    };
    const file = join(directory, "bundle.tar.gz");
    expect((await runInProcess(["support-bundle", file, "--run", run])).code).toBe(0);
    expect(JSON.parse(unpack(file).text("metrics.txt"))).toMatchObject({ error: { code: "internal" } });
  });

  it("fails where the file cannot be written", async () => {
    const { run } = await serveFakeAgent();
    const { code, stderr } = await runInProcess(["support-bundle", "/none/bundle.tar.gz", "--run", run]);
    expect({ code, said: stderr.includes("/none/bundle.tar.gz cannot be written") }).toEqual({ code: 1, said: true });
  });
});
