import { readdirSync, readFileSync } from "node:fs";

/** The format servers that an agent with this run directory has started, and that run now. */
export function formatServersOf(run: string): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      const [program, ...args] = argumentsOf(pid);
      return program === "qemu-nbd" && args.some((arg) => arg.startsWith(`--socket=${run}/`));
    });
}

function argumentsOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
  } catch {
    return []; // it has ended meanwhile
  }
}

/** Resolves when none of them runs any more. */
export async function untilNoFormatServer(run: string): Promise<void> {
  for (let tries = 0; formatServersOf(run).length > 0; tries += 1) {
    if (tries > 1000) throw new Error(`qemu-nbd of ${run} still runs`);
    await new Promise((resolve) => {
      setTimeout(resolve, 20);
    });
  }
}
