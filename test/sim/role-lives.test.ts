import { describe, expect, it } from "vitest";
import { LifeTotals } from "./life-totals.ts";
import { runRoleLife } from "./role-life.ts";

/** Lives of a pair whose roles change; `COLOBUS_ROLE_LIVES` says how many. */
const LIVES_HERE = 200;
const LIVES_IN_CI = 1_000;
const GROUP = 50;

const lives = Number(process.env.COLOBUS_ROLE_LIVES ?? (process.env.CI === "true" ? LIVES_IN_CI : LIVES_HERE));
const groups = Array.from({ length: Math.ceil(lives / GROUP) }, (_, index) => ({
  from: 1 + index * GROUP,
  to: Math.min(lives, (index + 1) * GROUP),
}));

describe("lives of changing roles", () => {
  it.each(groups)("lose nothing that was acknowledged, in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runRoleLife(seed));
    process.stdout.write(`role lives ${from} to ${to}: ${totals.describe()}\n`);
    // Each of the changes of roles has happened: a life in which nothing happens proves nothing.
    for (const name of [
      "failovers",
      "rejoins",
      "switchovers",
      "splits",
      "discards",
      "alone",
      "process crashes",
      "power losses",
    ] as const) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
  });
});
