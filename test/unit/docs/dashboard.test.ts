import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { z } from "zod";
import { METRICS, type MetricRow } from "../../../proto/metrics.ts";
import { metricOf } from "../../support/prometheus-text.ts";
import { present } from "../../support/present.ts";

const root = new URL("../../../docs/grafana/", import.meta.url);

/** Labels that every series has: the agent's, and the scraper's. */
const COMMON_LABELS = ["vm", "instance"];

const dashboardSchema = z.object({
  panels: z.array(
    z.object({
      title: z.string(),
      gridPos: z.object({ x: z.int(), y: z.int(), w: z.int(), h: z.int() }),
      targets: z.array(z.object({ expr: z.string(), legendFormat: z.string() })).default([]),
    }),
  ),
});
const rulesSchema = z.object({
  groups: z.array(
    z.object({
      rules: z.array(z.object({ alert: z.string(), expr: z.string(), annotations: z.record(z.string(), z.string()) })),
    }),
  ),
});

const dashboard = dashboardSchema.parse(JSON.parse(readFileSync(new URL("colobus.json", root), "utf8")));
const rules = rulesSchema.parse(parse(readFileSync(new URL("colobus.rules.yml", root), "utf8")));

const queries = dashboard.panels.flatMap(({ title, targets }) =>
  targets.map(({ expr, legendFormat }) => ({ title, expr, texts: [legendFormat] })),
);
const alerts = rules.groups.flatMap(({ rules: all }) =>
  all.map(({ alert, expr, annotations }) => ({ title: alert, expr, texts: Object.values(annotations) })),
);

/** What an expression reads that nobody writes: unknown metrics, and labels that the metrics named have not. */
function unknownIn({ expr, texts }: { readonly expr: string; readonly texts: readonly string[] }): string[] {
  const series = [...expr.matchAll(/\b(?:colobus|process)_\w+/g)].map(([name]) => name);
  const rows = series.map((name) => ({ name, metric: metricOf(name) }));
  const labels = new Set([
    ...COMMON_LABELS,
    "le",
    ...rows.flatMap(({ metric }) => (metric === undefined ? [] : (METRICS[metric.name] satisfies MetricRow).labels)),
  ]);
  const usedLabels = [
    ...[...expr.matchAll(/(\w+)(?:=|!=|=~|!~)"/g)].map(([, label]) => present(label)),
    ...[...expr.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, list]) => present(list).split(/\s*,\s*/)),
    ...texts.flatMap((text) =>
      [...text.matchAll(/\{\{\s*(?:\$labels\.)?([a-z]\w*)\s*\}\}/g)].map(([, label]) => present(label)),
    ),
  ];
  return [
    ...(series.length === 0 ? ["no metric at all"] : []),
    ...rows.filter(({ metric }) => metric === undefined).map(({ name }) => name),
    ...usedLabels.filter((label) => !labels.has(label)),
  ];
}

describe("the Grafana dashboard and the alerts", () => {
  it.each([...queries, ...alerts])("$title reads metrics and labels that exist: $expr", (query) => {
    expect(unknownIn(query)).toEqual([]);
  });

  it("are told from those that read what nobody writes", () => {
    expect(unknownIn({ expr: 'colobus_lagg_bytes{vm="x"}', texts: [] })).toEqual(["colobus_lagg_bytes"]);
    expect(unknownIn({ expr: "colobus_guest_request_seconds", texts: [] })).toEqual(["colobus_guest_request_seconds"]);
    expect(
      unknownIn({ expr: 'sum by (vm, disc) (colobus_device_state{stat="Failed"})', texts: ["{{disks}}"] }),
    ).toEqual(["stat", "disc", "disks"]);
  });

  it("show every metric but those that only name things or that other panels imply", () => {
    const shown = new Set(
      [...queries, ...alerts].flatMap(({ expr }) => expr.match(/\b(?:colobus|process)_\w+/g) ?? []),
    );
    const names = new Set([...shown].map((series) => metricOf(series)?.name));
    const implied = [
      "colobus_info",
      "colobus_epoch_open",
      "colobus_epoch_committed",
      "colobus_epochs_prepared",
      "colobus_epochs_retained",
      "colobus_recoverable",
      "colobus_failover_loss_writes",
      "colobus_replication_state",
      "colobus_last_contact_seconds",
      "colobus_connection_error",
      "colobus_device_size_bytes",
      "colobus_device_child_sound",
      "colobus_export_clients",
      "colobus_vmstate_bytes",
      "colobus_job_state",
      "colobus_arbiter_state",
      "colobus_lease_seconds",
      "colobus_stalls_total",
      "process_open_fds",
      "process_start_time_seconds",
    ];
    expect(Object.keys(METRICS).filter((name) => !names.has(name as keyof typeof METRICS))).toEqual(implied);
  });

  it("have panels that do not overlap", () => {
    const cells = dashboard.panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, index) => `${x + (index % w)} ${y + Math.floor(index / w)}`),
    );
    expect(new Set(cells).size).toBe(cells.length);
  });
});
