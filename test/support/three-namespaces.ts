/**
 * Three hosts' networks on one machine: `a` has a link of its own to each of `b` and `c`, as in `network-namespaces.ts`, which
 * reach each other by way of it.
 */
import { spawnSync } from "node:child_process";
import { onTestFinished } from "vitest";
import type { AgentHost } from "./agent-pair.ts";

const SPOKES = ["b", "c"] as const;
type Spoke = (typeof SPOKES)[number];

export class ThreeNamespaces {
  readonly a: AgentHost;
  readonly b: AgentHost;
  readonly c: AgentHost;
  readonly #prefix = `colobus-${process.pid}-three-`;

  /** Makes the namespaces; they are removed when the test has finished. Needs root. */
  constructor() {
    for (const end of ["a", ...SPOKES]) {
      run("ip", "netns", "add", this.#name(end));
      onTestFinished(() => run("ip", "netns", "delete", this.#name(end)));
      run("ip", "-n", this.#name(end), "link", "set", "lo", "up");
    }
    run("ip", "netns", "exec", this.#name("a"), "sysctl", "-qw", "net.ipv4.ip_forward=1");
    this.a = this.#host("a", "10.98.1.1");
    this.b = this.#join("b", "10.98.1");
    this.c = this.#join("c", "10.98.2");
  }

  /** Takes the link to one of them down, or up again. */
  setLink(spoke: Spoke, state: "down" | "up"): void {
    run("ip", "-n", this.#name("a"), "link", "set", `to-${spoke}`, state);
  }

  #join(spoke: Spoke, net: string): AgentHost {
    const [hub, end] = [this.#name("a"), this.#name(spoke)];
    run("ip", "-n", hub, "link", "add", `to-${spoke}`, "type", "veth", "peer", "to-a", "netns", end);
    run("ip", "-n", hub, "address", "add", `${net}.1/24`, "dev", `to-${spoke}`);
    run("ip", "-n", end, "address", "add", `${net}.2/24`, "dev", "to-a");
    run("ip", "-n", hub, "link", "set", `to-${spoke}`, "up");
    run("ip", "-n", end, "link", "set", "to-a", "up");
    run("ip", "-n", end, "route", "add", "default", "via", `${net}.1`);
    return this.#host(spoke, `${net}.2`);
  }

  #host(end: string, address: string): AgentHost {
    return { address, launcher: ["ip", "netns", "exec", this.#name(end)] };
  }

  #name(end: string): string {
    return `${this.#prefix}${end}`;
  }
}

function run(program: string, ...args: string[]): void {
  const done = spawnSync(program, args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${program} ${args.join(" ")}: ${done.stderr ?? String(done.error)}`);
}
