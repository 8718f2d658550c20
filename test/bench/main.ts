/**
 * `npm run bench`: figures of a pair on this machine, in memory and on its disk, with either durability. What is compared
 * is measured in turns in one run, so that drift of the machine hits both alike; only the ratios mean anything.
 *
 * Arguments: `checkpoint`, `resync`; all of them where none is named. Options: `--rounds N` (20), `--dir DIR` (a directory
 * on the disk; the system's temporary one), `--json`. The exit code is 1 when a ratio is not what it has to be.
 */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { parseArgs } from "node:util";
import { DURABILITIES, type Durability } from "../../proto/words.ts";
import { measureCheckpoints } from "./checkpoint-bench.ts";
import { isKept, type Measured, type Place, type Ratio } from "./measuring.ts";
import { measureResync } from "./resync-bench.ts";

const MEMORY_DIRECTORY = "/dev/shm";
const BENCHES = { checkpoint: measureCheckpoints, resync: measureResync };

interface Result extends Measured {
  readonly bench: string;
  readonly place: Place["name"];
  readonly durability: Durability;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "20" },
    dir: { type: "string", default: tmpdir() },
    json: { type: "boolean", default: false },
  },
});

const unknown = positionals.find((name) => !Object.hasOwn(BENCHES, name));
if (unknown !== undefined) throw new Error(`"${unknown}" is none of ${Object.keys(BENCHES).join(", ")}`);

const places: Place[] = [{ name: "disk", directory: values.dir }];
if (existsSync(MEMORY_DIRECTORY)) places.unshift({ name: "memory", directory: MEMORY_DIRECTORY });

const results: Result[] = [];
for (const [bench, measure] of Object.entries(BENCHES)) {
  if (positionals.length > 0 && !positionals.includes(bench)) continue;
  for (const place of places) {
    for (const durability of DURABILITIES) {
      const measured = await measure(place, durability, Number(values.rounds));
      results.push({ bench, place: place.name, durability, ...measured });
    }
  }
}
process.stdout.write(values.json ? `${JSON.stringify(results)}\n` : `${results.map(render).join("\n")}\n`);
if (results.some(({ ratios }) => !ratios.every(isKept))) process.exitCode = 1;

function render({ bench, place, durability, rows, ratios }: Result): string {
  const lines = [`${bench}, ${place}, durability ${durability}; medians`];
  for (const { what, figures } of rows) {
    const columns = Object.entries(figures).map(([name, value]) => `${value.toFixed(2).padStart(10)} ${name}`);
    lines.push(`  ${what.padEnd(28)}${columns.join("")}`);
  }
  for (const ratio of ratios) lines.push(`  ${ratio.what}: ${ratio.ratio.toFixed(2)} times as much (${bound(ratio)})`);
  return lines.join("\n");
}

function bound({ atMost }: Ratio): string {
  return atMost === undefined ? "for information" : `at most ${atMost}`;
}
