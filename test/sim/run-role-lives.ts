/**
 * Lives of a pair whose roles change, from the command line:
 * `npx tsx test/sim/run-role-lives.ts --seed 17` tells one life line by line; `--from 1 --count 1000` lives many.
 */
import { parseArgs } from "node:util";
import { runRoleLife } from "./role-life.ts";

const { values } = parseArgs({
  options: {
    "seed": { type: "string" },
    "from": { type: "string", default: "1" },
    "count": { type: "string", default: "100" },
    "until-failure": { type: "boolean", default: false },
  },
});

if (values.seed !== undefined) {
  const report = await runRoleLife(Number(values.seed), (line) => console.log(line));
  console.log(JSON.stringify(report));
} else {
  const from = Number(values.from);
  const totals: Record<string, number> = {};
  let failed = 0;
  for (let seed = from; seed < from + Number(values.count); seed += 1) {
    try {
      const { counts } = await runRoleLife(seed);
      for (const [name, count] of Object.entries(counts)) totals[name] = (totals[name] ?? 0) + count;
    } catch (error) {
      failed += 1;
      console.log(`seed ${seed}: ${String(error instanceof Error ? error.message : error).split("\n")[0]}`);
      if (values["until-failure"]) break;
    }
  }
  console.log(`${Number(values.count)} lives, ${failed} failed: ${JSON.stringify(totals)}`);
  process.exitCode = failed === 0 ? 0 : 1;
}
