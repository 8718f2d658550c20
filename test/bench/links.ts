/** The links that a sync is measured over: all on this machine, in network namespaces where they are slower than loopback. */
import { spawnSync } from "node:child_process";

/** What the queue of a slower link passes at a time, and how long it holds what is beyond its rate: as a switch's buffer would. */
const BURST = "256k";
const QUEUE = "20ms";

export interface NetworkLink {
  readonly name: string;
  /** What a program is started with so that it is on this link: both ends are 127.0.0.1. */
  readonly launcher: readonly string[];
}

export const LOOPBACK: NetworkLink = { name: "loopback", launcher: [] };

const made = new Set<string>();

/** A link of so many Mbit/s, until `removeLinks`; undefined, with the reason on stderr, where this user may make none. */
export function tryMakeLink(mbits: number): NetworkLink | undefined {
  const namespace = `colobus-bench-${process.pid}-${mbits}`;
  try {
    run("ip", "netns", "add", namespace);
    made.add(namespace);
    run("ip", "-n", namespace, "link", "set", "lo", "up");
    const shape = ["tbf", "rate", `${mbits}mbit`, "burst", BURST, "latency", QUEUE];
    run("tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", ...shape);
  } catch (error) {
    process.stderr.write(`bench: no link of ${mbits} Mbit/s can be made here, it is left out: ${String(error)}\n`);
    return undefined;
  }
  return { name: `${mbits} Mbit/s`, launcher: ["ip", "netns", "exec", namespace] };
}

export function removeLinks(): void {
  for (const namespace of made) run("ip", "netns", "delete", namespace);
  made.clear();
}

function run(program: string, ...args: string[]): void {
  const done = spawnSync(program, args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${program} ${args.join(" ")}: ${done.stderr ?? String(done.error)}`);
}
