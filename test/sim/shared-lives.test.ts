import { describe, expect, it } from "vitest";
import { LifeTotals } from "./life-totals.ts";
import { runSharedLife } from "./life.ts";

const LIVES_IN_CI = 250;
const LIVES_HERE = 60;
/** Lives are lived in groups, so that each test ends in good time. */
const GROUP = 20;

const lives = Number(process.env.COLOBUS_SHARED_LIVES ?? (process.env.CI === "true" ? LIVES_IN_CI : LIVES_HERE));
const groups = Array.from({ length: Math.ceil(lives / GROUP) }, (_, index) => ({
  from: 1 + index * GROUP,
  to: Math.min(lives, (index + 1) * GROUP),
}));

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
