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
 *     npm run test:mutants -- --no-baseline   without first running everything on the sources as they are, which has just passed
 *
 * The lines before the diff say what the runner needs to know: `Bug:` one sentence; a budget of seeds for each kind of
 * lives (`KINDS`), where it is not the usual one; `Test:` a test file that has to fail.
 */
/** The kinds of lives: which program lives them, and how many where a patch does not say. */
const KINDS = {
  "Lives": { program: "run-lives.ts", usual: 300 },
  "Roles": { program: "run-role-lives.ts", usual: 0 },
  "Shared": { program: "run-shared-lives.ts", usual: 0 },
  "Shared-roles": { program: "run-shared-role-lives.ts", usual: 0 },
  "Shared-trio": { program: "run-shared-trio-lives.ts", usual: 0 },
  "Arbiter": { program: "run-arbiter-lives.ts", usual: 0 },
  "Arbiter-trio": { program: "run-arbiter-trio-lives.ts", usual: 0 },
  "Buffered": { program: "run-buffered-lives.ts", usual: 0 },
  "Buffered-roles": { program: "run-buffered-role-lives.ts", usual: 0 },
  "Mirror": { program: "run-mirror-lives.ts", usual: 0 },
  "Trio": { program: "run-trio-lives.ts", usual: 0 },
  "Children": { program: "run-child-lives.ts", usual: 0 },
  "Mirror-roles": { program: "run-mirror-role-lives.ts", usual: 0 },
} as const;
type Kind = keyof typeof KINDS;
const ALL_KINDS = Object.keys(KINDS) as Kind[];
/** What a life leaves behind adds up: a process lives so many at most. */
const LIVES_PER_PROCESS = 500;
/** One process takes no longer: a pair that hangs itself is stopped by the simulator long before. */
const LIMIT_MS = 15 * 60_000;

interface Mutant {
  readonly name: string;
  readonly patch: string | undefined;
  readonly bug: string;
  readonly budgets: Readonly<Record<Kind, number>>;
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
      budgets: budgetsOf((kind) => Number(line(kind) ?? KINDS[kind].usual)),
      test: line("Test"),
    });
  }
  return mutants;
}

function budgetsOf(count: (kind: Kind) => number): Record<Kind, number> {
  return Object.fromEntries(ALL_KINDS.map((kind) => [kind, count(kind)])) as Record<Kind, number>;
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

async function liveLives(copy: string, kind: Kind, lives: number): Promise<Verdict> {
  for (let from = 1; from <= lives; from += LIVES_PER_PROCESS) {
    const count = Math.min(LIVES_PER_PROCESS, lives + 1 - from);
    const args = [`test/sim/${KINDS[kind].program}`, "--from", String(from), "--count", String(count)];
    const { code, output } = await run(["--import", "tsx", ...args, "--until-failure"], copy);
    const [, seed, what] = /^seed (\d+): (.+)$/m.exec(output) ?? [];
    if (seed !== undefined) return { found: true, by: what ?? "", seeds: Number(seed) };
    // Time stands still then, and nothing but memory ends it.
    if (output.includes("JavaScript heap out of memory"))
      return { found: true, by: "it never comes to rest", seeds: from };
    if (code !== 0) throw new Error(`the simulator does not run:\n${output}`);
  }
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

async function tryMutant({ patch, budgets, test }: Omit<Mutant, "bug" | "name">): Promise<Verdict[]> {
  const copy = copySources();
  try {
    if (patch !== undefined) runToEnd("git", ["apply", "-C1", patch], copy);
    const verdicts: Verdict[] = [];
    for (const kind of ALL_KINDS) if (budgets[kind] > 0) verdicts.push(await liveLives(copy, kind, budgets[kind]));
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

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { "no-baseline": { type: "boolean", default: false } },
});
const mutants = readMutants(positionals);
let failures = mutants.length === 0 ? 1 : 0;
const largest = budgetsOf((kind) => Math.max(0, ...mutants.map(({ budgets }) => budgets[kind])));
const tests = new Set(mutants.map(({ test }) => test));

printRow("mutant", "seeds", "found by");
// Without a bug nothing may be found, or what is found below says nothing.
for (const test of values["no-baseline"] ? [] : tests) {
  const budgets = test === undefined ? largest : budgetsOf(() => 0);
  for (const { found, by, seeds } of await tryMutant({ patch: undefined, budgets, test })) {
    printRow("(none)", seeds === 0 ? "" : String(seeds), found ? `FAILS WITHOUT A BUG: ${by}` : `nothing ${by}`);
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
