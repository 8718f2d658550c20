import { describe, expect, it } from "vitest";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";
import { runSharedLife } from "./life.ts";

const groups = lifeGroups(livesToLive("COLOBUS_SHARED_LIVES", { inCi: 90, here: 60 }), 20);

describe("whole lives of a pair that shares its disks", () => {
  it.each(groups)("keeps every promise in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runSharedLife(seed));
    expect(totals.lives).toBe(to - from + 1);
    process.stdout.write(`shared lives ${from} to ${to}: ${totals.describe()}\n`);
  });

  it("lives a life again exactly, from its seed", async () => {
    const report = await runSharedLife(3);
    expect(await runSharedLife(3)).toEqual(report);
  });
});
