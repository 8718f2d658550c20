import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";

/**
 * Tests the tests: each patch of this folder puts one bug into a copy of the shipping source, and the simulator has to
 * find it within a budget of lives, or the test that the patch names has to fail.
 *
 *     npm run test:mutants                    all of them
 *     npm run test:mutants -- record journal  those whose name contains one of the words
 *
 * The lines before the diff say what the runner needs to know: `Bug:` one sentence; `Lives:` the budget of seeds, where
 * it is not the usual one, 0 for none; `Roles:`, `Shared:`, `Buffered:` and `Buffered-roles:` the budgets of lives of
 * changing roles, of shared disks, and of both kinds in mode `mc`, none where they are not named; `Test:` a test file that has to fail.
 */
const LIVES = 300;
/** One mutant takes no longer: a pair that hangs itself is stopped by the simulator long before. */
const LIMIT_MS = 15 * 60_000;

interface Mutant {
  readonly name: string;
  readonly patch: string | undefined;
  readonly bug: string;
  readonly lives: number;
  readonly roles: number;
  readonly shared: number;
  readonly buffered: number;
  readonly bufferedRoles: number;
  readonly test: string | undefined;
}

interface Verdict {
  readonly found: boolean;
  readonly by: string;
  readonly seeds: number;
}

const root = join(import.meta.dirname, "../..");

function readMutants(words: readonly string[]): Mutant[] {
  const mutants: Mutant[] = [];
  for (const file of readdirSync(import.meta.dirname).sort()) {
    const [, name] = /^(.+)\.patch$/.exec(file) ?? [];
    if (name === undefined || (words.length > 0 && !words.some((word) => name.includes(word)))) continue;
    const patch = join(import.meta.dirname, file);
    const [head = ""] = readFileSync(patch, "utf8").split("\n--- ");
    const line = (key: string): string | undefined => new RegExp(`^${key}: (.+)$`, "m").exec(head)?.[1];
    const bug = line("Bug");
    assert(bug !== undefined, `${file} does not say which bug it is`);
    mutants.push({
      name,
      patch,
      bug,
      lives: Number(line("Lives") ?? LIVES),
      roles: Number(line("Roles") ?? 0),
      shared: Number(line("Shared") ?? 0),
      buffered: Number(line("Buffered") ?? 0),
      bufferedRoles: Number(line("Buffered-roles") ?? 0),
      test: line("Test"),
    });
  }
  return mutants;
}

/** A copy of the sources as they are here, with the same packages. */
function copySources(): string {
  const copy = mkdtempSync(join(tmpdir(), "colobus-mutant-"));
  const listed = runToEnd("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], root);
  for (const file of listed.split("\0")) {
    if (file === "" || statSync(join(root, file), { throwIfNoEntry: false })?.isFile() !== true) continue;
    mkdirSync(dirname(join(copy, file)), { recursive: true });
    copyFileSync(join(root, file), join(copy, file));
  }
  symlinkSync(join(root, "node_modules"), join(copy, "node_modules"));
  return copy;
}

function runToEnd(command: string, args: readonly string[], cwd: string): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: "utf8" });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${error?.message ?? stderr}`);
  return stdout;
}

/** What a program of the repository prints, and its exit code. It gets no terminal, and ends in time. */
function run(args: readonly string[], cwd: string): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve, reject) => {
    // So many crash images find each mutant that names them.
    const env = { ...process.env, COLOBUS_CRASH_IMAGES: "800" };
    const child = spawn(process.execPath, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"], timeout: LIMIT_MS });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        output += text;
      });
    }
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, output }));
  });
}

async function liveLives(copy: string, lives: number, program = "test/sim/run-lives.ts"): Promise<Verdict> {
  const args = [program, "--from", "1", "--count", String(lives), "--until-failure"];
  const { code, output } = await run(["--import", "tsx", ...args], copy);
  const [, seed, what] = /^seed (\d+): (.+)$/m.exec(output) ?? [];
  if (seed !== undefined) return { found: true, by: what ?? "", seeds: Number(seed) };
  if (code !== 0) throw new Error(`the simulator does not run:\n${output}`);
  return { found: false, by: "", seeds: lives };
}

async function failTest(copy: string, file: string): Promise<Verdict> {
  const args = [
    "node_modules/vitest/vitest.mjs",
    "run",
    "--project",
    file.split("/")[1] ?? "",
    "--reporter=json",
    file,
  ];
  const { output } = await run(args, copy);
  const [, failed] = /"numFailedTests":(\d+)/.exec(output) ?? [];
  if (failed === undefined) throw new Error(`${file} does not run:\n${output}`);
  return { found: Number(failed) > 0, by: file, seeds: 0 };
}

async function tryMutant({ patch, lives, roles, shared, buffered, bufferedRoles, test }: Mutant): Promise<Verdict[]> {
  const copy = copySources();
  try {
    if (patch !== undefined) runToEnd("git", ["apply", "-C1", patch], copy);
    const verdicts: Verdict[] = [];
    if (lives > 0) verdicts.push(await liveLives(copy, lives));
    if (roles > 0) verdicts.push(await liveLives(copy, roles, "test/sim/run-role-lives.ts"));
    if (shared > 0) verdicts.push(await liveLives(copy, shared, "test/sim/run-shared-lives.ts"));
    if (buffered > 0) verdicts.push(await liveLives(copy, buffered, "test/sim/run-buffered-lives.ts"));
    if (bufferedRoles > 0) verdicts.push(await liveLives(copy, bufferedRoles, "test/sim/run-buffered-role-lives.ts"));
    if (test !== undefined) verdicts.push(await failTest(copy, test));
    return verdicts;
  } finally {
    rmSync(copy, { recursive: true, force: true });
  }
}

const NAME_WIDTH = 36;
const SEEDS_WIDTH = 6;
const BY_WIDTH = 110;

function printRow(name: string, seeds: string, by: string): void {
  console.log(`${name.padEnd(NAME_WIDTH)} ${seeds.padStart(SEEDS_WIDTH)}  ${by.slice(0, BY_WIDTH)}`);
}

const { positionals } = parseArgs({ allowPositionals: true });
const mutants = readMutants(positionals);
let failures = mutants.length === 0 ? 1 : 0;
const budget = Math.max(0, ...mutants.map(({ lives }) => lives));
const rolesBudget = Math.max(0, ...mutants.map(({ roles }) => roles));
const sharedBudget = Math.max(0, ...mutants.map(({ shared }) => shared));
const bufferedBudget = Math.max(0, ...mutants.map(({ buffered }) => buffered));
const bufferedRolesBudget = Math.max(0, ...mutants.map(({ bufferedRoles }) => bufferedRoles));
const tests = new Set(mutants.map(({ test }) => test));

printRow("mutant", "seeds", "found by");
// Without a bug nothing may be found, or what is found below says nothing.
for (const test of tests) {
  const none = {
    name: "(none)",
    patch: undefined,
    bug: "",
    test,
    ...(test === undefined
      ? {
          lives: budget,
          roles: rolesBudget,
          shared: sharedBudget,
          buffered: bufferedBudget,
          bufferedRoles: bufferedRolesBudget,
        }
      : { lives: 0, roles: 0, shared: 0, buffered: 0, bufferedRoles: 0 }),
  };
  for (const { found, by, seeds } of await tryMutant(none)) {
    printRow(none.name, seeds === 0 ? "" : String(seeds), found ? `FAILS WITHOUT A BUG: ${by}` : `nothing ${by}`);
    if (found) failures += 1;
  }
}
for (const mutant of mutants) {
  try {
    for (const { found, by, seeds } of await tryMutant(mutant)) {
      printRow(mutant.name, seeds === 0 ? "" : String(seeds), found ? by : `NOT FOUND ${by}`.trimEnd());
      if (!found) failures += 1;
    }
  } catch (error) {
    printRow(mutant.name, "", `BROKEN: ${error instanceof Error ? error.message : String(error)}`);
    failures += 1;
  }
}
console.log(`${mutants.length} mutants, ${failures} failures`);
if (failures > 0) process.exitCode = 1;
