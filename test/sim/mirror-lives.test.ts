import { describe, expect, it } from "vitest";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";
import { runMirrorLife } from "./life.ts";
import { runMirrorRoleLife } from "./role-life.ts";

const groups = lifeGroups(livesToLive("COLOBUS_MIRROR_LIVES", { inCi: 100, here: 40 }), 20);
const roleGroups = lifeGroups(livesToLive("COLOBUS_MIRROR_ROLE_LIVES", { inCi: 160, here: 60 }), 20);

describe("whole lives of a pair without epochs", () => {
  it.each(groups)("returns every acknowledged write in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runMirrorLife(seed));
    expect(totals.lives).toBe(to - from + 1);
    process.stdout.write(`mirror lives ${from} to ${to}: ${totals.describe()}\n`);
  });

  it.each(roleGroups)("lose nothing while roles change, in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runMirrorRoleLife(seed));
    for (const name of ["failovers", "rejoins", "switchovers"] as const) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
    process.stdout.write(`mirror role lives ${from} to ${to}: ${totals.describe()}\n`);
  });

  it("lives a life again exactly, from its seed", async () => {
    const report = await runMirrorLife(3);
    expect(await runMirrorLife(3)).toEqual(report);
  });
});
