import { describe, expect, it } from "vitest";
import { runChildLife } from "./child-life.ts";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";

const groups = lifeGroups(livesToLive("COLOBUS_CHILD_LIVES", { inCi: 500, here: 60 }), 30);

describe("the copies of a disk", () => {
  it.each(groups)("are all equal, and lack nothing, after lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runChildLife(seed));
    for (const name of [
      "crash process",
      "crash power",
      "child-broken",
      "child-sound",
      "child-replaced",
      "quorum-failure",
    ]) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
  });
});
