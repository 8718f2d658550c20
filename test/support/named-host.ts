import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { AgentHost } from "./agent-pair.ts";
import { scratchDirectory } from "./scratch.ts";

const SCRIPT = `mount --bind "$0" /proc/sys/kernel/random/boot_id && hostname "$1" && shift && exec "$@"`;

/** `host` as a machine of its own: with a name and a boot id that no other one has. Needs root. */
export function namedHost(host: AgentHost, name: string): AgentHost {
  const bootId = join(scratchDirectory(), name);
  writeFileSync(bootId, `boot-of-${name}\n`);
  const launcher = [...host.launcher, "unshare", "--mount", "--uts", "sh", "-c", SCRIPT, bootId, name];
  return { ...host, launcher };
}
