import { describe, expect, it } from "vitest";
import { runArbiterTrioLife } from "./arbiter-life.ts";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";

/** Lives of a primary with two secondaries that an arbiter decides over; `COLOBUS_ARBITER_TRIO_LIVES` says how many. */
const groups = lifeGroups(livesToLive("COLOBUS_ARBITER_TRIO_LIVES", { inCi: 20, here: 20 }), 20);

describe("lives of a primary with two secondaries and an arbiter", () => {
  // A checkpoint is told as the last one that has it is lost: nobody parts from that one by it.
  it("take over from a primary that is merely behind then, in life 3318", async () => {
    const { counts } = await runArbiterTrioLife(3318);
    expect(counts["failover"]).toBeGreaterThan(0);
  });

  it.each(groups)("have one side at a time whose guests succeed, in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runArbiterTrioLife(seed));
    process.stdout.write(`arbiter trio lives ${from} to ${to}: ${totals.describe()}\n`);
    for (const name of ["failover", "lease-refused", "checkpoints told", "rejoined", "secondaries at the end"]) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
  });
});
