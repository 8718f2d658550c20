import { describe, expect, it } from "vitest";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";
import { runRoleLife } from "./role-life.ts";

/** Lives of a pair whose roles change; `COLOBUS_ROLE_LIVES` says how many. */
const groups = lifeGroups(livesToLive("COLOBUS_ROLE_LIVES", { inCi: 600, here: 200 }), 50);

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
      "stops in a merge",
      "ages",
    ] as const) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
  });
});
