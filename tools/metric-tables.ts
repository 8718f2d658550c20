/** The tables of docs/metrics.md. */
import { METRICS, type MetricRow } from "../proto/metrics.ts";
import { markdownTable } from "./markdown-table.ts";

export function metricTable(): string {
  return markdownTable(
    ["metric", "type", "labels", "meaning", "DRBD's"],
    Object.entries<MetricRow>(METRICS).map(([name, { type, labels, help, drbd }]) => [
      `\`${name}\``,
      type,
      labels.map((label) => `\`${label}\``).join(", "),
      `${help}.`,
      drbd === undefined ? "" : `\`${drbd}\``,
    ]),
  );
}
