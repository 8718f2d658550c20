import { describe, expect, it } from "vitest";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";
import { runBufferedLife } from "./life.ts";
import { runBufferedRoleLife } from "./role-life.ts";

const groups = lifeGroups(livesToLive("COLOBUS_BUFFERED_LIVES", { inCi: 100, here: 60 }), 20);
const roleGroups = lifeGroups(livesToLive("COLOBUS_BUFFERED_ROLE_LIVES", { inCi: 80, here: 40 }), 20);

describe("whole lives of a pair whose secondary buffers", () => {
  it.each(groups)("keeps every promise in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runBufferedLife(seed));
    expect(totals.lives).toBe(to - from + 1);
    process.stdout.write(`buffered lives ${from} to ${to}: ${totals.describe()}\n`);
  });

  it.each(roleGroups)("lose nothing while roles change, in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runBufferedRoleLife(seed));
    for (const name of ["failovers", "rejoins", "switchovers"] as const) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
    process.stdout.write(`buffered role lives ${from} to ${to}: ${totals.describe()}\n`);
  });

  it("lives a life again exactly, from its seed", async () => {
    const report = await runBufferedLife(3);
    expect(await runBufferedLife(3)).toEqual(report);
  });
});
