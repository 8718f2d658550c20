/** Lives of a disk's copies, from the command line: `--seed N`, or `--from N --count N`. */
import { parseArgs } from "node:util";
import { runChildLife } from "./child-life.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string" },
    from: { type: "string", default: "1" },
    count: { type: "string", default: "100" },
  },
});
const from = Number(values.seed ?? values.from);
const count = values.seed === undefined ? Number(values.count) : 1;
const totals: Record<string, number> = {};
let failed = 0;
for (let seed = from; seed < from + count; seed += 1) {
  try {
    const { counts } = await runChildLife(seed);
    for (const [name, number] of Object.entries(counts)) totals[name] = (totals[name] ?? 0) + number;
  } catch (error) {
    failed += 1;
    console.error(error);
  }
}
console.log(`${count} lives of copies, ${failed} failed;`, totals);
process.exitCode = failed > 0 ? 1 : 0;
