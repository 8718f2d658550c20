/**
 * Two hosts' networks on one machine: a network namespace for each, joined by a pair of virtual interfaces. An agent
 * that runs in one reaches the other only over that link, which a test can take down or have lose everything one way.
 * Unix sockets are not part of it, so operators and guests reach both.
 *
 * The kernel's own means are used: no traffic ever leaves the machine, and everything goes with the namespaces.
 */
import { spawnSync } from "node:child_process";
import { onTestFinished } from "vitest";
import type { AgentHost } from "./agent-pair.ts";
import { leaveOut } from "./peers.ts";

const INTERFACE = "veth0";

type End = "a" | "b";

let made = 0;

export class NetworkNamespaces {
  readonly a: AgentHost;
  readonly b: AgentHost;
  readonly #names: Readonly<Record<End, string>>;

  /** Makes both namespaces; they are removed when the test has finished. Needs root. */
  constructor() {
    made += 1;
    const prefix = `colobus-${process.pid}-${made}`;
    this.#names = { a: `${prefix}a`, b: `${prefix}b` };
    for (const name of Object.values(this.#names)) {
      run("ip", "netns", "add", name);
      onTestFinished(() => run("ip", "netns", "delete", name));
    }
    run("ip", "-n", this.#names.a, "link", "add", INTERFACE, "type", "veth", "peer", INTERFACE, "netns", this.#names.b);
    this.a = this.#up("a", "10.99.0.1");
    this.b = this.#up("b", "10.99.0.2");
  }

  /** Takes the link down, or up again: both hosts see at once that there is no way. */
  setLink(state: "down" | "up"): void {
    run("ip", "-n", this.#names.a, "link", "set", INTERFACE, state);
  }

  /** While it is silent, everything that this host sends is lost, and nobody is told. */
  setSilent(end: End, isSilent: boolean): void {
    const verb = isSilent ? "add" : "delete";
    const kind = isSilent ? ["blackhole"] : [];
    run("tc", "-n", this.#names[end], "qdisc", verb, "dev", INTERFACE, "root", ...kind);
  }

  #up(end: End, address: string): AgentHost {
    const name = this.#names[end];
    run("ip", "-n", name, "address", "add", `${address}/24`, "dev", INTERFACE);
    run("ip", "-n", name, "link", "set", "lo", "up");
    run("ip", "-n", name, "link", "set", INTERFACE, "up");
    return { address, launcher: ["ip", "netns", "exec", name] };
  }
}

/** Whether namespaces can be made here: for `describe.runIf(…)`. Without root, or rights for it, it says so loudly. */
export function canMakeNamespaces(): boolean {
  const name = `colobus-${process.pid}-probe`;
  const tried = spawnSync("ip", ["netns", "add", name], { encoding: "utf8" });
  if (tried.status === 0) {
    run("ip", "netns", "delete", name);
    return true;
  }
  return leaveOut(`A network namespace cannot be made here, run them as root. ${tried.stderr?.trim() ?? ""}`);
}

function run(program: string, ...args: string[]): void {
  const done = spawnSync(program, args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${program} ${args.join(" ")}: ${done.stderr ?? String(done.error)}`);
}
