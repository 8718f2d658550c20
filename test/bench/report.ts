import { markdownTable } from "../../tools/markdown-table.ts";
import type { GeneratedSection } from "../../tools/generated-sections.ts";
import { describeMachine, type Machine } from "./machine.ts";
import { isKept, type Measured, type Place, type Table, type Target } from "./measuring.ts";
import type { Plot } from "./plot.ts";

export const BENCHMARKS_DOC = "docs/benchmarks.md";
const PLOT_DIRECTORY = "docs/benchmarks";

/** What one bench measured in one place. */
export interface Result extends Measured {
  readonly bench: string;
  readonly place: Place["name"];
  readonly rounds: number;
}

/** For a terminal. */
export function renderText({ bench, place, rounds, tables, targets }: Result): string {
  const lines = [`${bench}, ${place}, medians of ${rounds} rounds`];
  for (const { title, rows } of tables) {
    lines.push(`  ${title}`);
    for (const { what, figures } of rows) {
      const columns = Object.entries(figures).map(([name, value]) => `${figure(value).padStart(10)} ${name}`);
      lines.push(`    ${what.padEnd(28)}${columns.join("")}`);
    }
  }
  if (targets.length > 0) lines.push("  targets");
  for (const target of targets) {
    lines.push(`    ${target.what}: ${amount(target)} (${[bounds(target), ...outcome(target)].join(": ")})`);
  }
  return lines.join("\n");
}

/** What `docs/benchmarks.md` says about one bench, in all places that it ran in. */
export function benchSection(bench: string, results: readonly Result[], machine: Machine): GeneratedSection {
  const parts = results.flatMap((result) => [
    `### ${result.place === "memory" ? "In memory" : "On a disk"}\n`,
    targetTable(result.targets),
    ...result.tables.flatMap((table) => [`**${table.title}**\n`, figureTable(table)]),
    ...result.plots.map((plot) => `![${plot.title}](${plotPath(result, plot).replace("docs/", "")})\n`),
  ]);
  const rounds = Math.max(...results.map((result) => result.rounds));
  const where = `Medians of ${rounds} rounds on ${describeMachine(machine)}.\n`;
  return {
    name: `bench ${bench}`,
    command: "npm run bench -- --write-docs",
    file: BENCHMARKS_DOC,
    body: [where, ...parts.filter((part) => part !== "")].join("\n"),
  };
}

/** Where the drawing of a plot lies, from the repository's root. */
export function plotPath({ bench, place }: Result, { name }: Plot): string {
  const words = `${bench} ${place} ${name}`.toLowerCase().match(/[a-z0-9]+/g) ?? [];
  return `${PLOT_DIRECTORY}/${words.join("-")}.svg`;
}

function targetTable(targets: readonly Target[]): string {
  if (targets.length === 0) return "";
  return markdownTable(
    ["figure", "value", "target", "met"],
    targets.map((target) => [target.what, amount(target), bounds(target), outcome(target).join("")]),
  );
}

function figureTable({ rows }: Table): string {
  const names = Object.keys(rows[0]?.figures ?? {});
  return markdownTable(
    ["", ...names],
    rows.map(({ what, figures }) => [what, ...names.map((name) => figure(figures[name] ?? null))]),
  );
}

/** Nothing where there is no bound. */
function outcome(target: Target): ["yes" | "no"] | [] {
  if (target.atLeast === undefined && target.atMost === undefined) return [];
  return [isKept(target) ? "yes" : "no"];
}

function bounds({ atLeast, atMost, unit }: Target): string {
  const words = [];
  if (atLeast !== undefined) words.push(`at least ${atLeast}${unit === "times" ? "" : ` ${unit}`}`);
  if (atMost !== undefined) words.push(`at most ${atMost}${unit === "times" ? "" : ` ${unit}`}`);
  return words.length === 0 ? "for information" : words.join(", ");
}

function amount({ value, unit }: Target): string {
  return unit === "times" ? `${figure(value)} times` : `${figure(value)} ${unit}`;
}

/** Three digits that count. */
function figure(value: number | null): string {
  if (value === null || !Number.isFinite(value)) return "–";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.max(Math.abs(value), 0.1))));
  return value.toFixed(Math.min(digits, 2));
}
