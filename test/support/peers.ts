/**
 * The programs of other projects that interop and end-to-end tests talk to. A missing one fails the tests in CI, so
 * that a green run always means "tried against the real thing"; elsewhere the file's tests are left out, loudly.
 */
import { spawnSync } from "node:child_process";
import { accessSync, constants, existsSync } from "node:fs";
import { delimiter, join } from "node:path";

const INSTALL = "npm run setup:peers";

/**
 * True when every one of `programs` can be run: for `describe.runIf(requirePeers(…))`. A name is a program on the
 * PATH, or its whole path, or `python3:MODULE` for a module of the system's Python. Throws in CI when one is missing.
 */
export function requirePeers(...programs: string[]): boolean {
  const missing = missingPeers(...programs);
  if (missing.length === 0) return true;
  const message = `Not installed: ${missing.join(", ")}. Install the peers with "${INSTALL}".`;
  if (process.env["CI"] === "true") throw new Error(message);
  warnOnce(message);
  return false;
}

/** Those of `programs` that cannot be run. */
export function missingPeers(...programs: string[]): string[] {
  return programs.filter((program) => !hasPeer(program));
}

const known = new Map<string, boolean>();

function hasPeer(program: string): boolean {
  let found = known.get(program);
  if (found === undefined) {
    const [, module] = /^python3:(\w+)$/.exec(program) ?? [];
    found = module === undefined ? isOnPath(program) : hasPythonModule(module);
    known.set(program, found);
  }
  return found;
}

function isOnPath(program: string): boolean {
  if (program.startsWith("/")) return existsSync(program);
  return (process.env["PATH"] ?? "").split(delimiter).some((directory) => {
    try {
      accessSync(join(directory, program), constants.X_OK);
      return true;
    } catch {
      return false; // Not in this directory: the next one may have it.
    }
  });
}

/** Debian's modules belong to /usr/bin/python3, whatever other Python is first on the PATH. */
function hasPythonModule(module: string): boolean {
  return spawnSync("/usr/bin/python3", ["-c", `import ${module}`], { stdio: "ignore" }).status === 0;
}

const warned = new Set<string>();

function warnOnce(message: string): void {
  if (warned.has(message)) return;
  warned.add(message);
  leaveOut(message);
}

/** Says loudly why tests are left out: for what no package brings, such as being root. */
export function leaveOut(why: string): false {
  const line = "!".repeat(72);
  process.stderr.write(`\n${line}\n! TESTS LEFT OUT. ${why}\n${line}\n\n`);
  return false;
}
