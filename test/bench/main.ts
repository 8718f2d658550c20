/**
 * `npm run bench`: figures of a pair on this machine, in memory and on its disk, beside other projects' servers. What is
 * compared is measured in turns in one run, so that drift of the machine hits all alike; only the ratios mean anything.
 *
 * Arguments: the benches to run; those that do not take long where none is named. Options:
 * `--rounds N` instead of each bench's own number, `--seconds N` (2) for each load in a round, `--dir DIR` (a directory on
 * the disk; the system's temporary one), `--place memory|disk` for only one of them, `--json`, `--write-docs` (tables and
 * plots of docs/benchmarks.md). The exit code is 1 when a figure does not keep its bound, and 2 when nothing could be
 * measured.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { withSection } from "../../tools/generated-sections.ts";
import { BENCHES } from "./benches.ts";
import { clearAtExit } from "./leftovers.ts";
import { missingPrograms, thisMachine } from "./machine.ts";
import { isKept, type Place } from "./measuring.ts";
import { drawPlot } from "./plot.ts";
import { benchSection, BENCHMARKS_DOC, plotPath, renderText, type Result } from "./report.ts";

const MEMORY_DIRECTORY = "/dev/shm";
const ROOT = new URL("../../", import.meta.url);

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    "rounds": { type: "string" },
    "seconds": { type: "string", default: "2" },
    "dir": { type: "string", default: tmpdir() },
    "place": { type: "string" },
    "json": { type: "boolean", default: false },
    "write-docs": { type: "boolean", default: false },
  },
});

const unknown = positionals.find((name) => !Object.hasOwn(BENCHES, name));
if (unknown !== undefined) refuse(`"${unknown}" is none of ${Object.keys(BENCHES).join(", ")}.`);
const seconds = positiveNumber("--seconds", values.seconds);
const givenRounds = values.rounds === undefined ? undefined : positiveNumber("--rounds", values.rounds);
const missing = missingPrograms();
if (missing.length > 0) refuse(`Not installed: ${missing.join(", ")}. Install the peers with "npm run setup:peers".`);
clearAtExit();

const places: Place[] = [{ name: "disk", directory: values.dir }];
if (existsSync(MEMORY_DIRECTORY)) places.unshift({ name: "memory", directory: MEMORY_DIRECTORY });
if (values.place !== undefined && !places.some(({ name }) => name === values.place)) {
  refuse(`--place ${values.place} is none of ${places.map(({ name }) => name).join(", ")}.`);
}

const results: Result[] = [];
for (const [bench, { measure, rounds, isLong, places: benchPlaces }] of Object.entries(BENCHES)) {
  if (positionals.length > 0 ? !positionals.includes(bench) : isLong) continue;
  for (const place of places) {
    if (values.place !== undefined && values.place !== place.name) continue;
    if (benchPlaces !== undefined && !benchPlaces.includes(place.name)) continue;
    const setting = { place, rounds: givenRounds ?? rounds, seconds };
    results.push({ bench, place: place.name, rounds: setting.rounds, ...(await measure(setting)) });
  }
}

const machine = thisMachine();
process.stdout.write(
  values.json ? `${JSON.stringify({ machine, results })}\n` : `${results.map(renderText).join("\n")}\n`,
);
if (values["write-docs"]) writeDocs();
if (results.some(({ targets }) => !targets.every(isKept))) process.exitCode = 1;

/** Replaces the sections of the benches that ran, and draws their plots. */
function writeDocs(): void {
  const document = new URL(BENCHMARKS_DOC, ROOT);
  let text = readFileSync(document, "utf8");
  for (const bench of new Set(results.map((result) => result.bench))) {
    const ofBench = results.filter((result) => result.bench === bench);
    text = withSection(text, benchSection(bench, ofBench, machine));
    for (const result of ofBench) {
      for (const plot of result.plots) {
        const file = fileURLToPath(new URL(plotPath(result, plot), ROOT));
        mkdirSync(dirname(file), { recursive: true });
        writeFileSync(file, drawPlot(plot));
      }
    }
  }
  writeFileSync(document, text);
}

function positiveNumber(flag: string, text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  return refuse(`${flag} ${text} is not a number above 0.`);
}

function refuse(sentence: string): never {
  process.stderr.write(`bench: ${sentence}\n`);
  process.exit(2);
}
