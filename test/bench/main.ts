/**
 * `npm run bench`: figures of a pair on this machine, in memory and on its disk, beside other projects' servers. What is
 * compared is measured in turns in one run, so that drift of the machine hits all alike; only the ratios mean anything.
 *
 * The exit code is 1 when a figure does not keep its bound, and 2 when nothing could be measured.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import yargs from "yargs";
import { hideBin } from "yargs/helpers";
import { withSection } from "../../tools/generated-sections.ts";
import { BENCHES } from "./benches.ts";
import { clearAtExit } from "./leftovers.ts";
import { missingPrograms, thisMachine } from "./machine.ts";
import { isKept, type Place } from "./measuring.ts";
import { drawPlot } from "./plot.ts";
import { benchSection, BENCHMARKS_DOC, plotPath, renderText, type Result } from "./report.ts";

const MEMORY_DIRECTORY = "/dev/shm";
const ROOT = new URL("../../", import.meta.url);

const values = await yargs(hideBin(process.argv))
  .scriptName("npm run bench --")
  .usage("$0 [BENCH ...]", "Those that do not take long where none is named; not a test", (command) =>
    command.positional("BENCH", {
      type: "string",
      array: true,
      default: [] as string[],
      choices: Object.keys(BENCHES),
    }),
  )
  .options({
    "rounds": { type: "number", describe: "Instead of each bench's own number", defaultDescription: "each its own" },
    "seconds": { type: "number", default: 2, describe: "For each load in a round" },
    "dir": { type: "string", default: tmpdir(), describe: "A directory on the disk" },
    "place": { type: "string", choices: ["memory", "disk"], describe: "Only there" },
    "json": { type: "boolean", default: false, describe: "One document instead of tables" },
    "write-docs": { type: "boolean", default: false, describe: `Tables and plots of ${BENCHMARKS_DOC}` },
  })
  .version(false)
  .strict()
  .fail((message, error) => refuse(message || error.message))
  .parse();
const benches = (values["BENCH"] ?? []) as string[];

const seconds = positiveNumber("--seconds", values.seconds);
const givenRounds = values.rounds === undefined ? undefined : positiveNumber("--rounds", values.rounds);
const missing = missingPrograms();
if (missing.length > 0) refuse(`Not installed: ${missing.join(", ")}. Install the peers with "npm run setup:peers".`);
clearAtExit();

const places: Place[] = [{ name: "disk", directory: values.dir }];
if (existsSync(MEMORY_DIRECTORY)) places.unshift({ name: "memory", directory: MEMORY_DIRECTORY });
if (values.place !== undefined && !places.some(({ name }) => name === values.place)) {
  refuse(`There is no ${MEMORY_DIRECTORY} to measure in memory.`);
}

const asked = places.filter(({ name }) => (values.place ?? name) === name);
const runs = Object.entries(BENCHES)
  .filter(([bench, { isLong }]) => (benches.length > 0 ? benches.includes(bench) : isLong !== true))
  .flatMap(([bench, { measure, rounds, places: measuredAt }]) =>
    asked
      .filter(({ name }) => measuredAt?.includes(name) !== false)
      .map((place) => ({ bench, measure, setting: { place, rounds: givenRounds ?? rounds, seconds } })),
  );
const unmeasured = benches.filter((name) => !runs.some(({ bench }) => bench === name));
if (unmeasured.length > 0) {
  refuse(`Not measured in this place (${asked.map(({ name }) => name).join(", ")}): ${unmeasured.join(", ")}.`);
}

const results: Result[] = [];
for (const { bench, measure, setting } of runs) {
  results.push({ bench, place: setting.place.name, rounds: setting.rounds, ...(await measure(setting)) });
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

function positiveNumber(flag: string, value: number): number {
  if (Number.isInteger(value) && value > 0) return value;
  return refuse(`${flag} takes a whole number above 0.`);
}

function refuse(sentence: string): never {
  process.stderr.write(`bench: ${sentence}\n`);
  process.exit(2);
}
