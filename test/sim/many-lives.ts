import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { LifeTotals, type LifeCounts } from "./life-totals.ts";

/** Seeds between two notes of how far a run has come. */
const SAVE_EVERY = 50;

/** Lives one life. `print` is told what happens in it, line by line. Rejects when a promise is broken. */
export type Live = (seed: number, print?: (line: string) => void) => Promise<LifeCounts>;

interface Notes {
  nextSeed: number;
  seconds: number;
  readonly totals: LifeTotals;
}

/**
 * Lives lives from the command line:
 *
 *     --seed S              one life, with all that happens in it
 *     --from S --count N    N lives, and one line about them
 *     --resume FILE         goes on behind the last seed that FILE names, and keeps the totals of all runs there
 *     --until-failure       the first life that fails is the last
 *
 * The exit code is 1 when a life has failed.
 */
export async function liveFromCommandLine(live: Live): Promise<void> {
  const { values } = parseArgs({
    options: {
      "seed": { type: "string" },
      "from": { type: "string", default: "1" },
      "count": { type: "string", default: "100" },
      "resume": { type: "string" },
      "until-failure": { type: "boolean", default: false },
    },
  });
  if (values.seed !== undefined) {
    const report = await live(Number(values.seed), (line) => process.stdout.write(`${line}\n`));
    process.stdout.write(`${JSON.stringify(report)}\n`);
    return;
  }
  const notes = readNotes(values.resume, Number(values.from));
  const end = notes.nextSeed + Number(values.count);
  let resumedMs = performance.now();
  const save = (): void => {
    notes.seconds += (performance.now() - resumedMs) / 1000;
    resumedMs = performance.now();
    if (values.resume === undefined) return;
    writeFileSync(`${values.resume}.new`, `${JSON.stringify(notes)}\n`);
    renameSync(`${values.resume}.new`, values.resume);
  };
  const { totals } = notes;
  for (; notes.nextSeed < end; notes.nextSeed += 1) {
    if (values["until-failure"] && totals.failed.length > 0) break;
    if (notes.nextSeed % SAVE_EVERY === 0) save();
    try {
      totals.add(await live(notes.nextSeed));
    } catch (error) {
      totals.failed.push(notes.nextSeed);
      const [cause] = String(error instanceof Error ? error.message : error).split(/\n {2}seed /);
      process.stderr.write(`seed ${notes.nextSeed}: ${cause?.replaceAll(/\s+/g, " ")}\n`);
    }
  }
  save();
  const rate = (totals.lives + totals.failed.length) / notes.seconds;
  process.stdout.write(`${totals.describe()}; ${Math.round(notes.seconds)} s, ${rate.toFixed(1)} lives/s\n`);
  if (totals.failed.length > 0) process.exitCode = 1;
}

function readNotes(file: string | undefined, from: number): Notes {
  const totals = new LifeTotals();
  if (file === undefined || !existsSync(file)) return { nextSeed: from, seconds: 0, totals };
  const earlier = JSON.parse(readFileSync(file, "utf8")) as Notes;
  totals.addTotals(earlier.totals);
  return { nextSeed: earlier.nextSeed, seconds: earlier.seconds, totals };
}
