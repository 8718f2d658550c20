import type { FaultKind } from "./life-plan.ts";
import type { LifeReport } from "./life.ts";

/** What happened in many lives, added up. */
export interface LifeTotals {
  lives: number;
  operations: number;
  checkpoints: number;
  prepared: number;
  discarded: number;
  restarts: number;
  failovers: number;
  steps: number;
  virtualMs: number;
  readonly faults: Map<FaultKind, number>;
  readonly failed: number[];
}

export function newTotals(): LifeTotals {
  return {
    lives: 0,
    operations: 0,
    checkpoints: 0,
    prepared: 0,
    discarded: 0,
    restarts: 0,
    failovers: 0,
    steps: 0,
    virtualMs: 0,
    faults: new Map(),
    failed: [],
  };
}

export function addReport(totals: LifeTotals, report: LifeReport): void {
  totals.lives += 1;
  for (const key of [
    "operations",
    "checkpoints",
    "prepared",
    "discarded",
    "restarts",
    "failovers",
    "steps",
    "virtualMs",
  ] as const) {
    totals[key] += report[key];
  }
  for (const [kind, count] of Object.entries(report.faults) as [FaultKind, number][]) {
    totals.faults.set(kind, (totals.faults.get(kind) ?? 0) + count);
  }
}

/** One line. */
export function describeTotals(totals: LifeTotals): string {
  const faults = [...totals.faults]
    .sort(([left], [right]) => left.localeCompare(right))
    .map(([kind, count]) => `${kind} ${count}`);
  return [
    `${totals.lives} lives lived, ${totals.failed.length} failed`,
    `${totals.operations} operations`,
    `${totals.checkpoints} checkpoints committed, ${totals.prepared} prepared, ${totals.discarded} withdrawn`,
    `${totals.restarts} restarts`,
    `${totals.failovers} failovers`,
    `${totals.steps} steps in ${(totals.virtualMs / 3_600_000).toFixed(1)} virtual hours`,
    `faults: ${faults.join(", ")}`,
  ].join("; ");
}
