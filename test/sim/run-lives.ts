import { parseArgs } from "node:util";
import { addReport, describeTotals, newTotals } from "./life-totals.ts";
import { runLife } from "./life.ts";
import { SimFailure } from "./world.ts";

/**
 * Lives lives of the pair from the command line.
 *
 *     npx tsx test/sim/run-lives.ts --seed S            one life, with all that happens in it
 *     npx tsx test/sim/run-lives.ts --from S --count N  N lives, and one line about them
 *
 * With `--until-failure` the first life that fails is the last.
 */
const { values } = parseArgs({
  options: {
    "seed": { type: "string" },
    "from": { type: "string" },
    "count": { type: "string" },
    "until-failure": { type: "boolean" },
  },
});

async function replay(seed: number): Promise<void> {
  const report = await runLife(seed, (line) => process.stdout.write(`${line}\n`));
  process.stdout.write(`${JSON.stringify(report)}\n`);
}

async function run(from: number, count: number): Promise<void> {
  const totals = newTotals();
  const startedMs = performance.now();
  let seed = from;
  for (; seed < from + count; seed += 1) {
    if (values["until-failure"] === true && totals.failed.length > 0) break;
    try {
      addReport(totals, await runLife(seed));
    } catch (error) {
      if (!(error instanceof SimFailure)) throw error;
      totals.failed.push(seed);
      const [cause] = error.message.split(/\n  seed /);
      process.stderr.write(`seed ${seed}: ${cause?.replaceAll(/\s+/g, " ")}\n`);
    }
  }
  const seconds = (performance.now() - startedMs) / 1000;
  process.stdout.write(
    `seeds ${from}..${seed - 1}: ${describeTotals(totals)}, ${((seed - from) / seconds).toFixed(1)} lives/s\n`,
  );
  if (totals.failed.length > 0) process.exitCode = 1;
}

try {
  if (values.seed === undefined) await run(Number(values.from ?? 1), Number(values.count ?? 100));
  else await replay(Number(values.seed));
} catch (error) {
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  process.exitCode = 1;
}
