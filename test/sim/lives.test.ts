import { describe, expect, it } from "vitest";
import { LifeTotals } from "./life-totals.ts";
import { replayCommand, runLife } from "./life.ts";

const LIVES_IN_CI = 800;
const LIVES_HERE = 150;
const OPERATIONS_MIN = 300;
const FAULTS_MIN = 5;
const CHECKPOINTS_MIN = 5;

/** Lives are lived in groups, so that each test ends in good time. */
const GROUP = 50;

const lives = Number(process.env.COLOBUS_LIVES ?? (process.env.CI === "true" ? LIVES_IN_CI : LIVES_HERE));
const groups = Array.from({ length: Math.ceil(lives / GROUP) }, (_, index) => ({
  from: 1 + index * GROUP,
  to: Math.min(lives, (index + 1) * GROUP),
}));

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
