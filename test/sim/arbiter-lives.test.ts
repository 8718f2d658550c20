import { describe, expect, it } from "vitest";
import { runArbiterLife } from "./arbiter-life.ts";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";

/** Lives of a pair that an arbiter decides over; `COLOBUS_ARBITER_LIVES` says how many. */
const groups = lifeGroups(livesToLive("COLOBUS_ARBITER_LIVES", { inCi: 20, here: 20 }), 20);

describe("lives of a pair with an arbiter", () => {
  it.each(groups)("have one side at a time whose guests succeed, in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runArbiterLife(seed));
    process.stdout.write(`arbiter lives ${from} to ${to}: ${totals.describe()}\n`);
    for (const name of ["failover", "lease-refused", "guests-held", "arbiter-unreachable"]) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
  });
});
