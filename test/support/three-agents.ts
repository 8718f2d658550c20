import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Status } from "../../proto/status.ts";
import { AgentUnderTest, freePort, makeImage, type AgentHost } from "./agent-pair.ts";
import { scratchDirectory } from "./scratch.ts";

type Name = "a" | "b" | "c";

export interface ThreeAgentsOptions {
  readonly hosts: Readonly<Record<Name, AgentHost>>;
  /** Of the disk `vda` on each host, where its image is not there yet. */
  readonly content: Buffer;
  /** Where that is: under `root`, which all agents have in common. */
  readonly imageOf: (root: string, name: Name) => string;
  readonly flagsOf: (root: string, role: "primary" | "secondary") => readonly string[];
}

/** A primary, which dials, and its two secondaries: agents that are not started yet. */
export async function threeAgents({ hosts, content, imageOf, flagsOf }: ThreeAgentsOptions) {
  const root = scratchDirectory();
  const ports = { a: await freePort(), b: await freePort(), c: await freePort() };
  const urlOf = (name: Name): string => `ws://${hosts[name].address}:${ports[name]}`;
  const agent = (name: Name, role: "primary" | "secondary", own: readonly string[] = []): AgentUnderTest => {
    const run = join(root, "run", name);
    mkdirSync(run, { recursive: true });
    mkdirSync(join(root, name));
    const image = imageOf(root, name);
    if (!existsSync(image)) makeImage(image, content);
    const state = join(root, name, "state");
    const where = ["--vm", "test", "--run", run, "--state", state, "--disk", `vda=${image}`];
    const peers = ["--listen", `${hosts[name].address}:${ports[name]}`, "--secondaries", "2"];
    const command = [role, ...where, ...peers, ...flagsOf(root, role), ...own];
    return new AgentUnderTest(name, run, command, hosts[name].launcher);
  };
  return {
    urlOf,
    a: agent("a", "primary", ["--peer", urlOf("b"), "--peer", urlOf("c")]),
    b: agent("b", "secondary"),
    c: agent("c", "secondary"),
  };
}

/** How many secondaries of a primary lack nothing. */
export function inSync({ peers }: Status): number {
  return peers.filter(({ replication, lagBytes }) => replication === "Established" && lagBytes === 0).length;
}
