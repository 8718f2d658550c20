import { describe, expect, it } from "vitest";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";
import { runSharedRoleLife } from "./shared-role-life.ts";

/** Lives of pairs that share their disks and change their roles; `COLOBUS_SHARED_ROLE_LIVES` says how many. */
const groups = lifeGroups(livesToLive("COLOBUS_SHARED_ROLE_LIVES", { inCi: 120, here: 30 }), 30);

describe("lives of changing roles on shared disks", () => {
  it.each(groups)("keep every checkpoint, and one writer, in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runSharedRoleLife(seed));
    process.stdout.write(`shared role lives ${from} to ${to}: ${totals.describe()}\n`);
    // A life in which nothing happens proves nothing.
    for (const name of [
      "failovers",
      "forced",
      "rejoins",
      "alone",
      "both restart",
      "views read",
      "process crashes",
      "power losses",
    ] as const) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
  });
});
