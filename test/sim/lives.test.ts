import { describe, expect, it } from "vitest";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";
import { replayCommand, runLife } from "./life.ts";

const OPERATIONS_MIN = 300;
const FAULTS_MIN = 5;
const CHECKPOINTS_MIN = 5;

const groups = lifeGroups(livesToLive("COLOBUS_LIVES", { inCi: 200, here: 150 }), 50);

describe("whole lives of a pair", () => {
  it.each(groups)("keeps every promise in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) {
      const report = await runLife(seed);
      expect(report.operations, replayCommand(seed)).toBeGreaterThanOrEqual(OPERATIONS_MIN);
      expect(report.faults, replayCommand(seed)).toBeGreaterThanOrEqual(FAULTS_MIN);
      expect(report.checkpoints, replayCommand(seed)).toBeGreaterThanOrEqual(CHECKPOINTS_MIN);
      totals.add(report);
    }
    process.stdout.write(`lives ${from} to ${to}: ${totals.describe()}\n`);
  });

  it("lives a life again exactly, from its seed", async () => {
    for (const seed of [2, 4, 7]) {
      const report = await runLife(seed);
      expect(await runLife(seed)).toEqual(report);
    }
  });
});
